//! What is done to agents, links and journals, one thing after the other and some at once, by the dice.

use super::world::{ALL, Dice, Who, World};
use lab::wait_until;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// One harm or several, after which everything runs again or will by [`World::mend`].
pub(super) fn harm(world: &mut World, dice: &mut Dice) {
    match dice.below(100) {
        0..45 => kill_some(world, dice),
        45..62 => cut_a_link(world, dice),
        62..70 => let_a_link_stand_still(world, dice),
        70..76 => outage(world, dice),
        76..90 => move_a_journal(world, dice),
        _ => damage(world, dice),
    }
    dice.sleep(800);
}

fn any(dice: &mut Dice) -> Who {
    ALL[dice.below(3) as usize]
}

/// Kills an agent, and looks what was promised where that is the one that promises.
fn kill(world: &mut World, who: Who) {
    if world.site(who).agent_pid().is_none() {
        return;
    }
    let promised = (who == Who::First).then(|| world.pledge.promised(&world.first)).flatten();
    if promised.is_some() {
        // Something must have been written since that look.
        std::thread::sleep(Duration::from_millis(150));
    }
    world.kill(who);
    let Some(due) = promised.and_then(|promised| world.pledge.due(&promised)) else { return };
    if world.recovery.agent_pid().is_none() {
        world.recovery.start_agent().unwrap();
    }
    let kept = wait_until("the promised image", Duration::from_secs(60), || {
        // Its journal may be being opened.
        Ok(world.pledge.kept(&world.recovery).ok())
    });
    let kept = kept.unwrap();
    // The one that was under way may be there or not, and its answer may not have been counted yet.
    assert!((due..=due + 2).contains(&kept), "{due} was acknowledged in synchronous mode, {kept} is there");
    world.tally.promises += 1;
}

fn start(world: &mut World, who: Who) {
    if world.site(who).agent_pid().is_none() {
        world.site(who).start_agent().unwrap();
    }
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

/// Changes a few bytes somewhere in a sealed segment of the VM that writes most.
fn damage(world: &mut World, dice: &mut Dice) {
    let vm = "one";
    let Ok(journal) = world.journal(vm) else { return };
    let folder = PathBuf::from(journal["folder"].as_str().unwrap());
    let killed = dice.below(2) == 0;
    if killed {
        kill(world, Who::Recovery);
    }
    if let Some(place) = damage_one_of(&sealed_segments(&folder), dice) {
        println!("  damaged {place}");
        world.damaged.insert(vm);
        world.tally.damages += 1;
    }
    start(world, Who::Recovery);
}

/// The segments of a journal but the newest two, of which one may be written to, and the other be sealed just now.
fn sealed_segments(folder: &Path) -> Vec<PathBuf> {
    let rows = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let mut numbered: Vec<(u64, PathBuf)> = rows
        .filter_map(|row| {
            let number = row.file_name().to_str()?.strip_prefix("segment-")?.parse().ok()?;
            Some((number, row.path()))
        })
        .collect();
    numbered.sort();
    numbered.truncate(numbered.len().saturating_sub(2));
    numbered.into_iter().map(|(_, path)| path).collect()
}

fn damage_one_of(segments: &[PathBuf], dice: &mut Dice) -> Option<String> {
    if segments.is_empty() {
        return None;
    }
    let path = &segments[dice.below(segments.len() as u64) as usize];
    let file = File::options().read(true).write(true).open(path).ok()?;
    let at = dice.below(file.metadata().ok()?.len().saturating_sub(8));
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).ok()?;
    file.write_all_at(&bytes.map(|byte| byte ^ 0x55), at).ok()?;
    file.sync_all().ok()?;
    Some(format!("{} at byte {at}", path.file_name()?.to_string_lossy()))
}
