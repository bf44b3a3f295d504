//! Agents that are killed and started again.

use super::world::{Who, World};
use lab::wait_until;
use std::time::Duration;

/// Kills an agent, and looks what was promised where that is the one that promises.
pub(super) fn kill(world: &mut World, who: Who) {
    if world.site(who).agent_pid().is_none() {
        return;
    }
    let promised = (who == Who::First).then(|| world.pledge.promised(&world.first)).flatten();
    if let Some(promised) = &promised {
        // Something must have been written since that look.
        let written = || Ok(world.pledge.due(promised).map(drop));
        let _ = wait_until("a write that is promised", Duration::from_secs(3), written);
    }
    world.kill(who);
    let Some(due) = promised.and_then(|promised| world.pledge.due(&promised)) else { return };
    if world.recovery.agent_pid().is_none() {
        world.recovery.start_agent().unwrap();
    }
    let kept = wait_until("the promised image", Duration::from_secs(60), || {
        // Its journal may be being opened.
        Ok(world.pledge.kept(&world.recovery, &world.path("promised.raw")).ok())
    });
    let kept = kept.unwrap();
    // The number that was under way may be there or not, and its answer may not have been counted yet.
    let has_all = (due.number..=due.number + 2).contains(&kept.number) && kept.tick >= due.tick;
    assert!(has_all, "{due:?} was acknowledged in synchronous mode, {kept:?} is there");
    world.tally.promises += 1;
}

pub(super) fn start(world: &mut World, who: Who) {
    if world.site(who).agent_pid().is_none() {
        world.site(who).start_agent().unwrap();
    }
}
