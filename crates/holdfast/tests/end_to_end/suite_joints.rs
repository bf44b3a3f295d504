//! The joints under real guests: three VMs on two hosts under load, whose agents are killed at any moment, links cut,
//! journals moved and damaged, spills filled; and what the recovery side has is looked at again and again.
//!
//! `HOLDFAST_JOINTS_KILLS` sets how many kills (200). Each round is by a seed of its own, which is printed, with the kills
//! that are left: `HOLDFAST_JOINTS_SEED` begins with that round, to repeat it or to go on behind it. What is done comes again
//! then; when it comes to what the guests do meanwhile does not.

mod harm;
mod ledger;
mod look;
mod manners;
mod pledge;
mod world;

use crate::stage::same_bytes;
use ledger::VMS;
use look::{Seen, look};
use world::{Dice, World, at_last};

/// Checkpoints that are looked at each time.
const AT_ONCE: usize = 4;
/// Kills between two looks.
const KILLS_BETWEEN: u64 = 5;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
#[ignore = "suite: joints"]
fn nothing_that_is_done_to_agents_links_and_journals_loses_or_mixes_what_was_written() {
    let first = number("HOLDFAST_JOINTS_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 7919);
    let kills = number("HOLDFAST_JOINTS_KILLS").unwrap_or(200);
    let (mut world, mut seen) = (World::make(), Seen::default());
    look(&mut world, &mut seen, &mut Dice::new(first), 1);
    for (round, seed) in (first..).enumerate() {
        if world.tally.kills >= kills {
            break;
        }
        println!("round {round}: HOLDFAST_JOINTS_SEED={seed}, {} kills left", kills - world.tally.kills);
        let mut dice = Dice::new(seed);
        let until = world.tally.kills + KILLS_BETWEEN;
        while world.tally.kills < until.min(kills) {
            harm::harm(&mut world, &mut dice);
        }
        look(&mut world, &mut seen, &mut dice, AT_ONCE);
        println!("{:?}", world.tally);
    }
    ends_alike(&mut world);
    println!("at the end: {:?}", world.tally);
}

/// Once nobody writes any more, both sides have the same bytes.
fn ends_alike(world: &mut World) {
    let last = world.ledger.end();
    world.guests.iter_mut().for_each(|guest| guest.kill().unwrap());
    println!("{last} records on each of three VMs");
    at_last("a tag", || Ok(world.first.ask(&["checkpoint", "tag", "--group", "shop", "the end"]).ok()));
    for vm in VMS {
        at_last("the tag at the recovery side", || {
            let page = world.recovery.ask(&["checkpoint", "list", "--vm", vm, "--tag", "the end"])?;
            Ok(page["checkpoints"].as_array().is_some_and(|rows| !rows.is_empty()).then_some(()))
        });
        let image = world.recovery.ask(&["image", "open", "--vm", vm, "--at", "the end"]).unwrap();
        for disk in ["vda", "log"] {
            let (copy, own) = (world.path("the-end.raw"), world.path(&format!("{vm}-{disk}.raw")));
            lab::copy_image(image["socket"].as_str().unwrap(), disk, &copy).unwrap();
            assert!(same_bytes(&copy, &own), "disk {disk} of {vm} is the same on both sides");
        }
        world.recovery.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    }
}
