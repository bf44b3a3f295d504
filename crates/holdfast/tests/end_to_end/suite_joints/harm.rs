//! What is done to agents, links, journals and modes, one thing after the other and some at once, by the dice.

use super::agents::{kill, start};
use super::ledger::VMS;
use super::world::{ALL, Dice, PLEDGE, Who, World, at_last};
use super::{damage, overlay, protected_files};
use lab::wait_until;
use std::process::{Child, Stdio};
use std::time::Duration;

/// One harm or several, after which everything runs again or will by [`World::mend`].
pub(super) fn harm(world: &mut World, dice: &mut Dice) {
    match dice.below(100) {
        0..30 => kill_some(world, dice),
        30..41 => cut_a_link(world, dice),
        41..46 => let_a_link_stand_still(world, dice),
        46..54 => outage(world, dice),
        54..64 => move_a_journal(world, dice),
        64..82 => damage::damage(world, dice),
        82..86 => overlay::damage(world, dice),
        86..92 => protected_files::damage(world, dice),
        92..97 => switch_synchronous_mode(world, dice),
        _ => turn_a_journal(world, dice),
    }
    dice.sleep(800);
}

fn any(dice: &mut Dice) -> Who {
    ALL[dice.below(3) as usize]
}

fn kill_some(world: &mut World, dice: &mut Dice) {
    let mut dead = vec![any(dice)];
    kill(world, dead[0]);
    if dice.below(3) == 0 {
        dice.sleep(700);
        let other = any(dice);
        kill(world, other);
        dead.push(other);
    }
    dice.sleep(1200);
    // In either order.
    if dice.below(2) == 0 {
        dead.reverse();
    }
    for who in dead {
        start(world, who);
        dice.sleep(500);
    }
}

fn cut_a_link(world: &mut World, dice: &mut Dice) {
    let which = dice.below(3) as usize;
    world.links[which].cut();
    world.tally.cuts += 1;
    dice.sleep(1500);
    if dice.below(2) == 0 {
        let who = any(dice);
        kill(world, who);
        dice.sleep(800);
        start(world, who);
    }
    dice.sleep(1500);
    world.links[which].mend();
}

/// Sometimes for longer than the ends wait for each other.
fn let_a_link_stand_still(world: &mut World, dice: &mut Dice) {
    let which = dice.below(3) as usize;
    world.links[which].stand_still();
    world.tally.cuts += 1;
    let longest = if dice.below(3) == 0 { 14_000 } else { 2_500 };
    dice.sleep(longest);
    if dice.below(3) == 0 {
        let who = any(dice);
        kill(world, who);
        start(world, who);
    }
    world.links[which].mend();
}

/// The recovery side is away until what waits for it is more than buffer and spill hold.
fn outage(world: &mut World, dice: &mut Dice) {
    kill(world, Who::Recovery);
    let first = &world.first;
    let full = wait_until("buffer and spill are full", Duration::from_secs(40), || {
        Ok((first.protected("one")?["state"] == "tracking").then_some(()))
    });
    world.tally.outages += u64::from(full.is_ok());
    if dice.below(2) == 0 {
        kill(world, Who::First);
        start(world, Who::First);
    }
    start(world, Who::Recovery);
}

fn move_a_journal(world: &mut World, dice: &mut Dice) {
    let vm = ["one", "two", "three", "pledge"][dice.below(4) as usize];
    let to = world.path(&format!("moved/{}-{vm}", world.tally.moves));
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let mut moving = order(world, &["journal", "move", vm, "--to", &to.display().to_string()]);
    world.tally.moves += 1;
    dice.sleep(600);
    if dice.below(2) == 0 {
        kill(world, Who::Recovery);
        start(world, Who::Recovery);
    }
    // It may have been refused, for the VM is being opened just now, or have lost its agent.
    let ended = wait_until("the end of a move", Duration::from_secs(120), || Ok(moving.try_wait()?));
    ended.unwrap();
    let there = wait_until("the journal is open", Duration::from_secs(60), || Ok(world.journal(vm).ok()));
    there.unwrap();
}

/// An operator's command that goes on while other things are done.
fn order(world: &World, arguments: &[&str]) -> Child {
    let mut command = world.recovery.command();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Synchronous mode is switched off and on again while its VM is written to: by a pause, or by protecting it anew in the
/// other mode, with the guest started again on it. There is no command that changes the mode of a protection.
fn switch_synchronous_mode(world: &mut World, dice: &mut Dice) {
    world.mend();
    if dice.below(3) == 0 {
        world.first.ask(&["vm", "pause", "pledge"]).unwrap();
        at_last("pledge paused", || {
            let row = world.first.protected("pledge")?;
            if row["state"] != "paused" {
                return Ok(None);
            }
            assert_ne!(row["mode"], "sync", "nobody waits in a pause");
            Ok(Some(()))
        });
        dice.sleep(1500);
        if dice.below(3) == 0 {
            kill(world, Who::First);
            start(world, Who::First);
        }
        world.first.ask(&["vm", "resume", "pledge"]).unwrap();
        world.tally.switches += 2;
        return;
    }
    // Nobody takes a disk away from a VM that runs on it.
    world.guests[PLEDGE].kill().unwrap();
    world.pledge.rest();
    at_last("nobody at the disks of pledge", || {
        Ok((world.first.protected("pledge")?["clients"] == 0).then_some(()))
    });
    world.first.ask(&["vm", "unprotect", "pledge"]).unwrap();
    at_last("pledge forgotten", || Ok(world.recovery.ask(&["vm", "forget", "pledge"]).ok()));
    world.pledge.in_sync = !world.pledge.in_sync;
    world.protect_pledge(world.pledge.in_sync);
    world.pledge.go_on();
    let before = world.pledge.acknowledged();
    at_last("a write that is acknowledged in the other mode", || {
        Ok((world.pledge.acknowledged() > before).then_some(()))
    });
    world.tally.switches += 1;
}

/// The replica of a journal goes to the other end of its history.
fn turn_a_journal(world: &mut World, dice: &mut Dice) {
    let vm = VMS[dice.below(3) as usize];
    let Ok(journal) = world.journal(vm) else { return };
    let mode = if journal["mode"] == "rollback" { "roll-forward" } else { "rollback" };
    if world.recovery.ask(&["journal", "set", vm, "--mode", mode]).is_ok() {
        println!("  {mode}: the journal of {vm}");
        world.tally.turns += 1;
    }
    if dice.below(2) == 0 {
        dice.sleep(1000);
        kill(world, Who::Recovery);
        start(world, Who::Recovery);
    }
}
