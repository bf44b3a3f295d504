//! What the protected side keeps of a VM beside its disk, damaged between an end of its agent and the next start: which
//! blocks the other side may not have, which regions may differ, and what waits for the link. None of it may be believed
//! then: everything is compared, and both sides are equal afterwards.

use super::agents::{kill, start};
use super::world::{Dice, Who, World, spoil};
use lab::wait_until;
use std::path::PathBuf;
use std::time::Duration;

/// Damages one of these files while the agent is dead, or has been stopped.
pub(super) fn damage(world: &mut World, dice: &mut Dice) {
    let (who, vm) =
        [(Who::First, "one"), (Who::First, "pledge"), (Who::Second, "two"), (Who::Second, "three")]
            [dice.below(4) as usize];
    let Ok(row) = world.site(who).protected(vm) else { return };
    let id = row["id"].as_str().unwrap().to_owned();
    let waits = dice.below(3) == 0;
    if waits {
        fill_the_spill(world, who, vm);
    }
    let (tracking, spill) =
        (world.site(who).folder.join("state/tracking"), world.site(who).folder.join("state/spill"));
    if waits && dice.below(2) == 0 {
        // While it is in use: what is read of it does not check, and goes by the bitmap.
        let file = some_file(&spill.join(&id), dice);
        if let Some(place) = file.and_then(|file| spoil(&file, 0..u64::MAX, dice)) {
            world.damaged("spill in use", vm, &place);
        }
    } else {
        if dice.below(2) == 0 {
            kill(world, who);
        } else {
            world.stop(who);
        }
        let (kind, file) = match dice.below(3) {
            0 => ("dirty map", Some(tracking.join(format!("{id}.map")))),
            1 => ("region log", Some(tracking.join(format!("{id}.regions")))),
            _ => ("spill", some_file(&spill.join(&id), dice)),
        };
        if let Some(place) = file.and_then(|file| spoil(&file, 0..u64::MAX, dice)) {
            world.damaged(kind, vm, &place);
        }
        start(world, who);
    }
    start(world, Who::Recovery);
    world.to_verify.insert((who, vm));
}

/// The other side is away for as long as it takes until something lies in the spill.
fn fill_the_spill(world: &mut World, who: Who, vm: &str) {
    kill(world, Who::Recovery);
    let site = world.site(who);
    let some = wait_until("something in the spill", Duration::from_secs(20), || {
        Ok((site.protected(vm)?["spill_bytes"].as_u64() > Some(0)).then_some(()))
    });
    // A VM that writes little has it all in memory.
    drop(some);
}

fn some_file(folder: &PathBuf, dice: &mut Dice) -> Option<PathBuf> {
    let rows = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|row| row.path());
    let mut files: Vec<PathBuf> = rows.filter(|path| path.to_string_lossy().contains("segment-")).collect();
    files.sort();
    (!files.is_empty()).then(|| files.swap_remove(dice.below(files.len() as u64) as usize))
}

/// Both sides are equal, wherever something was damaged. What that has cost may be brought once more meanwhile, and only
/// where nothing is can they be compared.
pub(super) fn settle(world: &mut World) {
    for (who, vm) in std::mem::take(&mut world.to_verify) {
        let site = world.site(who);
        let equal = wait_until("a comparison of both sides", Duration::from_secs(180), || {
            match site.ask(&["vm", "verify", vm]) {
                Err(error) if error.to_string().contains("only while it is journaling") => {
                    eprintln!("  {vm} is not compared yet: {error}");
                    Ok(None)
                }
                done => Ok(Some(done)),
            }
        });
        let equal = equal.and_then(|done| done);
        assert!(equal.is_ok(), "{vm} differs after its files were damaged: {equal:?}");
        world.tally.verified += 1;
    }
}
