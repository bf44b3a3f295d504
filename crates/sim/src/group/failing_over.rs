//! Failovers of the group, as the agent performs them: what is written down before what, and where it may be killed.

use super::site::{FailedOver, group_of};
use super::{GroupVm, GroupWorld, Protected};
use crate::image_model::DiskModel;
use crate::images::Below;
use joint::choice::{At, Chosen, NotChosen, Pick};
use joint::failover::{Phase, epoch_of};
use joint::life::Use;
use replication::ReceiverEvent;
use replication::wire::{Refusal, Refuse};
use std::collections::BTreeMap;
use std::time::Duration;
use types::{CheckpointId, GroupId, WallTime, WriteSeq};

/// Whether something was done, or its disk is in the way.
type Done = Option<()>;

impl GroupWorld {
    fn group_id(&self) -> GroupId {
        group_of(self.group).0
    }

    fn failover(&self) -> Option<&FailedOver> {
        self.site.failovers.get(&self.group_id())
    }

    fn become_phase(&mut self, phase: Phase) {
        let id = self.group_id();
        let one = self.site.failovers.get_mut(&id).expect("a failover is recorded");
        one.phase = phase;
        self.say(&format!("the failover is {phase:?}"));
    }

    /// Something is done with the group at the recovery side.
    pub(super) fn play_failover(&mut self) {
        match self.failover().map(|one| one.phase) {
            None | Some(Phase::RolledBack) => {
                let (at, pick) = (self.any_moment(), Pick::All);
                let pick = match self.choose(&at, &pick) {
                    Err(NotChosen::Hindered(vms)) => Pick::Without(vms),
                    _ => pick,
                };
                self.fail_over(&at, &pick);
            }
            Some(Phase::Starting) => self.give_up_starting(),
            Some(Phase::Running) if self.rng.one_in(3) => self.become_phase(Phase::RollingBack),
            Some(Phase::Running) if self.rng.one_in(4) => self.commit(),
            Some(Phase::Running) => {}
            Some(Phase::RollingBack) => self.take_back(),
            Some(Phase::Committed) => unreachable!("another group is the one that VMs come to by then"),
        }
    }

    fn any_moment(&mut self) -> At {
        let any = self.rng.below(self.taken.len() as u64 + 1) as usize;
        let id = self.taken.keys().nth(any).copied();
        match (self.rng.below(4), id) {
            (0, Some(id)) => At::Id(id),
            (1, Some(id)) => At::Tag(format!("before {}", id.0)),
            (2, _) => At::Time(WallTime(self.rng.below(self.now.0.as_micros() as u64) as i64)),
            _ => At::Latest,
        }
    }

    /// 1. That it fails over is written down. 2. The journals are fenced. 3. The cut is chosen, and written down. 4. Images are
    ///    opened. 5. It runs. Whoever is killed in between takes it back.
    fn fail_over(&mut self, at: &At, pick: &Pick) {
        if self.choose(at, pick).is_err() {
            return;
        }
        let journals = self.of_group().filter_map(|vm| vm.pair.recovery.journal.as_ref());
        let before = self.failover().map(|one| one.epoch);
        let epoch = epoch_of(journals.map(|journal| journal.status().epoch), before);
        let (phase, cut) = (Phase::Starting, WriteSeq::ZERO);
        let begun = FailedOver { epoch, phase, cut, vms: Vec::new(), fenced_at: BTreeMap::new() };
        self.site.failovers.insert(self.group_id(), begun);
        self.summary.failovers += 1;
        self.say(&format!("fails over at {at:?}, epoch {epoch}"));
        let done = self.fence().and_then(|()| self.choose_again(at, pick)).and_then(|chosen| {
            self.may_be_killed()?;
            self.open_images(&chosen)
        });
        match done {
            Some(()) => self.become_phase(Phase::Running),
            None => self.give_up_starting(),
        }
    }

    fn may_be_killed(&mut self) -> Done {
        if self.rng.one_in(8) {
            self.crash_recovery();
            return None;
        }
        Some(())
    }

    /// No journal of the group takes anything of the old epoch from here on, also of those who have left.
    fn fence(&mut self) -> Done {
        let id = self.group_id();
        let epoch = self.failover()?.epoch;
        for at in 0..self.vms.len() {
            if self.vms[at].group != self.group {
                continue;
            }
            if self.rng.one_in(2) {
                // It may not let go in time: then only the epoch stops it.
                let why = Refusal::Fenced { epoch, released: false };
                self.receiver(at, ReceiverEvent::Stopped(Refuse { why, detail: String::new() }));
            }
            let vm = &self.vms[at];
            let Some(journal) = vm.pair.recovery.journal.clone() else { continue };
            let vm = vm.id();
            if journal.fence(epoch, Duration::ZERO).is_err() {
                return None;
            }
            let one = self.site.failovers.get_mut(&id)?;
            one.fenced_at.insert(vm, journal.status().last_seq);
        }
        self.may_be_killed()
    }

    /// What arrived until the fence stood counts.
    fn choose_again(&mut self, at: &At, pick: &Pick) -> Option<Chosen> {
        let chosen = self.choose(at, pick).ok()?;
        if *pick == Pick::All {
            self.invariant_what_is_chosen_is_one_moment_of_its_members(at, &chosen);
        }
        if *at == At::Latest {
            assert!(chosen.cut >= self.promised, "what was promised is not failed over: {chosen:?}");
        }
        let id = self.group_id();
        let one = self.site.failovers.get_mut(&id)?;
        (one.cut, one.vms) = (chosen.cut, chosen.vms.clone());
        Some(chosen)
    }

    fn open_images(&mut self, chosen: &Chosen) -> Done {
        for vm in self.vms.iter_mut().filter(|vm| chosen.vms.contains(&vm.id())) {
            let lease = vm.lived.life.lease(Use::Image).ok()?;
            let recovery = &mut vm.pair.recovery;
            let journal = recovery.journal.clone().expect("who has a lease has a journal");
            let mut guest = vm.pair.source.playback(&vm.pair.initial);
            let torn = guest.up_to(chosen.cut);
            let model = DiskModel::new(guest.content, &torn);
            let at = (chosen.cut, true);
            let opened = recovery.images.open(&journal, &recovery.store, at, model);
            vm.lived.follow_images(!recovery.images.is_empty());
            vm.lived.life.give_back(lease);
            if !opened {
                return None;
            }
            self.summary.images_opened += 1;
        }
        self.may_be_killed()
    }

    /// A failover that was cut short, or cannot be started, is taken back.
    fn give_up_starting(&mut self) {
        if self.close_images().is_some() {
            self.become_phase(Phase::RolledBack);
        }
    }

    fn take_back(&mut self) {
        if self.close_images().is_some() {
            self.become_phase(Phase::RolledBack);
            self.summary.rollbacks += 1;
        }
    }

    /// What was written to the images is thrown away.
    fn close_images(&mut self) -> Done {
        let group = self.group;
        for vm in self.vms.iter_mut().filter(|vm| vm.group == group) {
            let recovery = &mut vm.pair.recovery;
            if recovery.images.is_empty() {
                continue;
            }
            vm.lived.opens(recovery);
            let journal = recovery.journal.clone()?;
            recovery.images.discard_all(&journal, &recovery.store);
            if !recovery.images.is_empty() {
                return None;
            }
        }
        Some(())
    }

    /// The failover is final. Its old side lives on: it is fenced for ever, and its guests are protected anew once somebody
    /// has ended what they were protected by.
    fn commit(&mut self) {
        self.become_phase(Phase::Committed);
        self.summary.commits += 1;
        self.group += 1;
        self.promised = WriteSeq::ZERO;
    }

    /// Something is done with the images of a VM. A VM of a group that has gone over for good is ended at its old side at
    /// some time: nobody there hears that, and the operator says that it need not be told.
    pub(super) fn play_images(&mut self, at: usize) {
        let moment = self.moment();
        if self.vms[at].group < self.group && self.vms[at].protected != Protected::No && self.rng.one_in(30) {
            self.end(at);
            self.vms[at].departure = None;
        }
        let recovery = &mut self.vms[at].pair.recovery;
        if recovery.images.is_empty() || !self.rng.one_in(2) {
            return;
        }
        let Some(journal) = recovery.journal.clone() else { return };
        let is_over = self.vms[at].group < self.group;
        let recovery = &mut self.vms[at].pair.recovery;
        let below =
            Below { journal: &journal, store: &recovery.store, retained: &mut recovery.retained, moment };
        recovery.images.play_on(below, is_over, &mut self.rng, &mut self.summary);
    }

    /// At rest: what is undecided goes back, and what has gone over is the operators' own.
    pub(super) fn end_failovers(&mut self) {
        if self.failover().is_some_and(|one| one.phase.is_undecided()) {
            self.take_back();
        }
        let group = self.group;
        for vm in self.vms.iter_mut().filter(|vm| vm.group < group) {
            let recovery = &mut vm.pair.recovery;
            if let Some(journal) = recovery.journal.clone() {
                recovery.images.discard_all(&journal, &recovery.store);
            }
        }
        for at in 0..self.vms.len() {
            if self.vms[at].group < group {
                self.end(at);
                self.vms[at].departure = None;
            }
        }
        while self.vms.iter().any(|vm: &GroupVm| vm.group < group && vm.record.is_some()) {
            self.forget();
        }
        self.clear();
        let id = CheckpointId(WriteSeq::ZERO);
        assert!(self.choose(&At::Id(id), &Pick::All).is_err(), "there is no such checkpoint");
    }
}
