//! The end of a run: everything is mended, nobody writes any more, and both sides come to be equal.

use crate::invariants::*;
use crate::world::{VMS, World};
use replication::State;
use std::time::Duration;

const REST_ROUNDS: u32 = 20_000;

impl World {
    /// What an agent counted, before it is gone.
    pub(crate) fn take_counts(&mut self, vm: usize) {
        if let Some(agent) = &self.pairs[vm].source.agent {
            self.summary.blocks_found_to_differ += agent.differing;
            self.summary.batches_spilled += agent.spilled_batches();
            self.summary.blocks_asked_again += agent.capture().status().sync_work.asked_again;
            self.summary.writes_left_out += agent.writes_left_out();
        }
    }

    /// Everything is mended, nobody writes any more: both sides come to be equal.
    pub(crate) fn rest(&mut self) {
        self.say("comes to rest");
        self.network_up = true;
        self.fenced_at = None;
        self.lift_limits();
        for pair in &mut self.pairs {
            pair.recovery.mend_disk();
            pair.recovery.stands_still = 0;
            pair.recovery.fence = pair.recovery.fence.map(|(epoch, _)| (epoch, true));
        }
        for vm in 0..usize::from(VMS) {
            self.scrub_all(vm);
            self.cut_link(vm);
            if self.pairs[vm].source.paused {
                self.pause_or_resume(vm);
            }
        }
        for _ in 0..REST_ROUNDS {
            self.now = self.now.plus(Duration::from_millis(50));
            self.run_threads();
            for vm in 0..usize::from(VMS) {
                self.tick(vm);
                self.deliver(vm);
                self.append(vm);
            }
            self.answer_guests();
            if (0..usize::from(VMS)).all(|vm| self.is_at_rest(vm)) {
                break;
            }
        }
        for vm in 0..usize::from(VMS) {
            assert!(self.is_at_rest(vm), "{vm} does not come to rest: {:?}", self.state_of(vm));
            invariant_at_rest_both_sides_are_equal(&self.pairs[vm]);
            self.take_counts(vm);
        }
        self.check(true);
        self.rest_wide();
        for vm in 0..usize::from(VMS) {
            let how = self.moment().upkeep(self.rng.sixteen());
            invariant_nothing_keeps_old_history_from_going(&mut self.pairs[vm], &how);
        }
        self.check(true);
        for pair in &self.pairs {
            let (gone, held) = pair.recovery.retained.counts();
            self.summary.gone += gone;
            self.summary.held_by_tags += held;
        }
    }

    pub(crate) fn state_of(&self, vm: usize) -> Option<State> {
        self.pairs[vm].source.agent.as_ref().map(|agent| agent.sender().state())
    }

    pub(crate) fn is_at_rest(&self, vm: usize) -> bool {
        let pair = &self.pairs[vm];
        let link_is_quiet = self.links[vm]
            .as_ref()
            .is_some_and(|link| link.to_receiver.is_empty() && link.to_sender.is_empty());
        let Some(agent) = &pair.source.agent else { return false };
        let status = agent.capture().status();
        let sent =
            status.released == status.last && status.buffered_bytes == 0 && status.unsettled_blocks == 0;
        let told = agent.unanswered.iter().all(|(seq, _)| agent.capture().may_acknowledge(*seq));
        agent.sender().state() == State::Journaling
            && sent
            && told
            && link_is_quiet
            && agent.is_idle()
            && pair.recovery.is_idle()
            && !pair.recovery.has_lost()
    }
}
