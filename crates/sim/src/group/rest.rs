//! The end of a run: everything works, nobody writes or leaves any more, and all that is protected comes to be in sync.

use super::coming::is_member;
use super::{GroupVm, GroupWorld, Protected};
use crate::invariants::*;
use joint::choice::{At, Pick};
use replication::State;
use std::collections::BTreeSet;
use std::time::Duration;
use types::VmId;

const REST_ROUNDS: u32 = 20_000;
/// Until then whoever moves a journal or closes one has come to an end.
const LIVES_ROUNDS: u32 = 1_000;

impl GroupWorld {
    pub(super) fn rest(&mut self) {
        self.say("comes to rest");
        self.network_up = true;
        self.take_up();
        for at in 0..self.vms.len() {
            self.vms[at].pair.recovery.mend_disk();
            self.cut_link(at);
        }
        for _ in 0..LIVES_ROUNDS {
            self.go_on_with_lives();
            (0..self.vms.len()).for_each(|at| self.open(at));
        }
        self.end_failovers();
        for guest in 0..self.guests.len() {
            self.protect(guest);
        }
        for _ in 0..REST_ROUNDS {
            self.now = self.now.plus(Duration::from_millis(50));
            self.run_threads();
            self.go_on_with_lives();
            for at in 0..self.vms.len() {
                self.tick(at);
                self.deliver(at);
                self.append(at);
                self.open(at);
            }
            self.answer_guests();
            // Whoever has nothing to say tells how far it is all the same, sooner or later.
            if self.vms.iter().all(is_at_rest) && self.has_latest() {
                break;
            }
        }
        for vm in &self.vms {
            let state = vm.pair.source.agent.as_ref().map(|agent| agent.sender().state());
            assert!(is_at_rest(vm), "{} does not come to rest: {state:?}, {:?}", vm.id(), vm.departure);
        }
        self.end_lives();
        self.check(true);
        let protected = self.vms.iter().filter(|vm| vm.protected == Protected::Yes);
        let protected: BTreeSet<VmId> = protected.map(GroupVm::id).collect();
        if !protected.is_empty() {
            let chosen = self.choose(&At::Latest, &Pick::All).expect("at rest there is a moment of all");
            assert_eq!(chosen.vms.iter().copied().collect::<BTreeSet<_>>(), protected);
        }
        for vm in self.vms.iter().filter(|vm| vm.protected == Protected::Yes) {
            invariant_at_rest_both_sides_are_equal(&vm.pair);
        }
        for at in 0..self.vms.len() {
            let how = self.moment().upkeep(self.rng.sixteen());
            if self.vms[at].pair.recovery.journal.is_some() {
                invariant_nothing_keeps_old_history_from_going(&mut self.vms[at].pair, &how);
            }
        }
        self.check(true);
    }
}

impl GroupWorld {
    fn has_latest(&self) -> bool {
        let nobody = self.vms.iter().all(|vm| vm.protected == Protected::No);
        nobody || self.choose(&At::Latest, &Pick::All).is_ok()
    }
}

fn is_at_rest(vm: &GroupVm) -> bool {
    if vm.protected == Protected::No {
        let is_known = vm.record.as_ref().is_none_or(|record| record.left.is_some());
        return vm.departure.is_none() && is_known;
    }
    let Some(agent) = &vm.pair.source.agent else { return false };
    let is_quiet =
        vm.link.as_ref().is_some_and(|link| link.to_receiver.is_empty() && link.to_sender.is_empty());
    let status = agent.capture().status();
    let sent = status.released == status.last && status.buffered_bytes == 0 && status.unsettled_blocks == 0;
    let told = agent.unanswered.iter().all(|(seq, _)| agent.capture().may_acknowledge(*seq));
    let is_in_sync = agent.sender().state() == State::Journaling && is_member(vm);
    is_in_sync && sent && told && is_quiet && agent.is_idle() && vm.pair.recovery.is_idle()
}
