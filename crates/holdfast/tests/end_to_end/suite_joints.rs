//! The joints under real guests: three VMs on two hosts under load, whose agents are killed at any moment, links cut,
//! journals moved, files of every kind damaged, spills filled and synchronous mode switched; and what the recovery side has
//! is looked at after each of these, also for what the guests know of each other.
//!
//! `HOLDFAST_JOINTS_KILLS` sets how many kills (200). Each round is by a seed of its own, which is printed, with the kills
//! that are left: `HOLDFAST_JOINTS_SEED` begins with that round, to repeat it or to go on behind it. What is done comes again
//! then; when it comes to what the guests do meanwhile does not.

mod agents;
mod chain;
mod damage;
mod harm;
mod ledger;
mod lists;
mod look;
mod manners;
mod noted;
mod overlay;
mod pledge;
mod protected_files;
mod world;

use crate::stage::same_bytes;
use ledger::VMS;
use look::{glance, look};
use world::{Dice, World, at_last, image_of};

/// Checkpoints at random that are looked at after each harm.
const AT_ONCE: usize = 2;
/// And now and then, after so many kills.
const AT_INTERVALS: usize = 100;
const INTERVAL: u64 = 50;
/// Kills between two looks for which everything runs and is in step again.
const KILLS_BETWEEN: u64 = 5;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
#[ignore = "suite: joints"]
fn nothing_that_is_done_to_agents_links_and_journals_loses_or_mixes_what_was_written() {
    let first = number("HOLDFAST_JOINTS_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 7919);
    let kills = number("HOLDFAST_JOINTS_KILLS").unwrap_or(200);
    let mut world = World::make(kills);
    look(&mut world, &mut Dice::new(first), 1);
    for (round, seed) in (first..).enumerate() {
        if world.tally.kills >= kills {
            break;
        }
        println!("round {round}: HOLDFAST_JOINTS_SEED={seed}, {} kills left", kills - world.tally.kills);
        let mut dice = Dice::new(seed);
        let before = world.tally.kills;
        while world.tally.kills < (before + KILLS_BETWEEN).min(kills) {
            harm::harm(&mut world, &mut dice);
            glance(&mut world, &mut dice, AT_ONCE);
        }
        let many = world.tally.kills / INTERVAL > before / INTERVAL || world.tally.kills >= kills;
        look(&mut world, &mut dice, if many { AT_INTERVALS } else { AT_ONCE });
        println!("{:?}", world.tally);
    }
    ends_alike(&mut world);
    println!("at the end: {:?}", world.tally);
}

/// Once nobody writes any more, both sides have the same bytes.
fn ends_alike(world: &mut World) {
    let last = world.ledger.end();
    world.guests.iter_mut().for_each(|guest| guest.kill().unwrap());
    println!("{last} records on each of three VMs, and {:?} of the chain", world.relay.told());
    at_last("a tag", || Ok(world.first.ask(&["checkpoint", "tag", "--group", "shop", "the end"]).ok()));
    for vm in VMS {
        at_last("the tag at the recovery side", || {
            let page = world.recovery.ask(&["checkpoint", "list", "--vm", vm, "--tag", "the end"])?;
            Ok(page["checkpoints"].as_array().is_some_and(|rows| !rows.is_empty()).then_some(()))
        });
        let image = world.recovery.ask(&["image", "open", "--vm", vm, "--at", "the end"]).unwrap();
        for disk in ["vda", "log", "chain"] {
            let (copy, own) = (world.path("the-end.raw"), image_of(world.folder.path(), vm, disk));
            lab::copy_image(image["socket"].as_str().unwrap(), disk, &copy).unwrap();
            assert!(same_bytes(&copy, &own), "disk {disk} of {vm} is the same on both sides");
        }
        world.recovery.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    }
}
