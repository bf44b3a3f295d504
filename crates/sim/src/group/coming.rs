//! Who comes to the group and who leaves it, at the protected side.

use super::lives::Lived;
use super::site::group_of;
use super::{Departure, GroupVm, GroupWorld, Protected};
use crate::invariants::Pair;
use crate::recovery::{RecoveryVm, SETTINGS};
use crate::source::SourceVm;
use joint::membership::{FirstSync, whom};
use replication::wire::{Leave, Refusal};
use std::time::Duration;
use types::{Checkpoint, CheckpointId, CheckpointKind, VmId, WallTime, WriteSeq};

/// So much is kept of VMs that have left, before somebody forgets the oldest.
const VMS_MAX: usize = 7;
const HISTORY_SECONDS: [u64; 3] = [3600, 7200, 86_400];

impl GroupWorld {
    /// A guest is protected from now on, as a VM that nobody knows yet.
    pub(super) fn protect(&mut self, guest: usize) {
        if self.vm_of(guest).is_some() || self.vms.len() >= VMS_MAX {
            return;
        }
        self.named += 1;
        let Self { guests, rng, named, sync, group, .. } = self;
        let disk = guests[guest].disk.clone();
        let initial = disk.content();
        let id = VmId::from_bytes([*named; 16]);
        let mut source = SourceVm::on_disk(id, disk, *sync, rng);
        source.name.clone_from(&guests[guest].name);
        source.group = group_of(*group);
        source.history_seconds = HISTORY_SECONDS[rng.below(3) as usize];
        source.start_agent(&self.counter, self.now, rng);
        let mut recovery = RecoveryVm::new(SETTINGS);
        recovery.has_a_life = true;
        let pair = Pair { source, recovery, initial };
        self.say(&format!("{} is protected as {id}", self.guests[guest].name));
        self.summary.joins += 1;
        self.vms.push(GroupVm {
            guest,
            group: self.group,
            pair,
            protected: Protected::Yes,
            departure: None,
            record: None,
            lived: Lived::default(),
            link: None,
            wants: false,
        });
        // What it has may not be written down: then nobody was told of it, and it is given up.
        if self.rng.one_in(8) {
            self.summary.joins_failed += 1;
            self.end(self.vms.len() - 1);
        }
    }

    /// A VM is protected no more. `dies`: the agent does, between the steps of that.
    pub(super) fn unprotect(&mut self, at: usize, dies: bool) {
        if self.vms[at].protected == Protected::No {
            return;
        }
        let left_at = self.counter.last();
        let vm = &mut self.vms[at];
        if vm.pair.source.first_sync.was_heard_of() {
            vm.departure = Some(Departure { epoch: vm.pair.source.epoch, at: left_at });
        }
        self.summary.departures += u64::from(self.vms[at].departure.is_some());
        self.say(&format!("{} is protected no more", self.vms[at].id()));
        if dies && self.vms[at].departure.is_some() {
            return self.crash_sources(false);
        }
        self.end(at);
        self.tell_departure(at);
    }

    /// The protection's record goes, and whoever serves it.
    pub(super) fn end(&mut self, at: usize) {
        let vm = &mut self.vms[at];
        (vm.protected, vm.link, vm.wants) = (Protected::No, None, false);
        vm.pair.source.agent = None;
        self.promises.left(vm.pair.source.vm);
    }

    /// Tells the recovery side who has left, as the agent does: it may hear it and its answer be lost.
    pub(super) fn tell_departure(&mut self, at: usize) {
        let Some(departure) = self.vms[at].departure.filter(|_| self.network_up) else { return };
        let Departure { epoch, at: left_at } = departure;
        let leave =
            Leave { vm: self.vms[at].id(), group: group_of(self.vms[at].group).0, epoch, at: left_at };
        let heard = self.hear_of_departure(at, &leave);
        if self.rng.one_in(4) {
            return;
        }
        match heard {
            Ok(()) => self.vms[at].departure = None,
            Err(refuse) => {
                if let Refusal::Fenced { epoch, released: true } = refuse.why
                    && epoch > departure.epoch
                {
                    self.vms[at].departure = Some(Departure { epoch, ..departure });
                }
            }
        }
    }

    /// Someone of this side makes room: the oldest of those that have left goes for good.
    pub(super) fn forget(&mut self) {
        let images = |vm: &GroupVm| !vm.pair.recovery.images.is_empty();
        let is_left = |vm: &GroupVm| vm.record.as_ref().is_some_and(|record| record.left.is_some());
        // Of a group that has gone over for good nobody says who has left it.
        let has_gone = |vm: &GroupVm| vm.record.is_some() && vm.group < self.group;
        let is_former = |vm: &GroupVm| (is_left(vm) || has_gone(vm)) && !images(vm);
        let Some(at) = self.vms.iter().position(is_former) else { return };
        self.say(&format!("{} is forgotten", self.vms[at].id()));
        self.vms[at].record = None;
        self.vms[at].lived = Lived::default();
        self.vms[at].pair.recovery = RecoveryVm::new(SETTINGS);
        self.vms.retain(|vm| !vm.is_left());
    }

    /// What is kept of nobody any more goes.
    pub(super) fn clear(&mut self) {
        self.vms.retain(|vm| !vm.is_left());
    }

    /// VMs that wait to be taken up are.
    pub(super) fn take_up(&mut self) {
        let Self { vms, rng, counter, now, .. } = self;
        for vm in vms.iter_mut().filter(|vm| vm.protected == Protected::Stalled) {
            vm.protected = Protected::Yes;
            vm.pair.source.start_agent(counter, *now, rng);
        }
    }

    /// The protected side's agent or host goes, and comes back: what was written down is gone on with.
    pub(super) fn crash_sources(&mut self, power: bool) {
        self.say(if power { "the source's host loses power" } else { "the source's agent is killed" });
        self.summary.source_crashes += 1;
        self.summary.source_power_losses += u64::from(power);
        let between = WriteSeq::before_run(types::RunNumber(self.run + 1));
        for at in 0..self.vms.len() {
            let vm = &mut self.vms[at];
            (vm.link, vm.wants) = (None, false);
            // Somebody may have asked for another history meanwhile.
            vm.pair.source.history_seconds = HISTORY_SECONDS[self.rng.below(3) as usize];
            let is_protected = vm.protected != Protected::No;
            match power && is_protected {
                true => vm.pair.source.lose_power(between, &mut self.rng),
                false => vm.pair.source.agent = None,
            }
            if vm.departure.is_some() {
                self.end(at);
            } else if is_protected {
                self.vms[at].protected = Protected::Stalled;
            }
        }
        self.run += 1;
        let before = WriteSeq::before_run(types::RunNumber(self.run));
        self.counter = std::sync::Arc::new(types::GroupCounter::new(before));
        self.promises = joint::promise::Promises::default();
        // Now and then a disk is not there yet.
        if !self.rng.one_in(4) {
            self.take_up();
        }
    }

    /// Whether images of the group may have VMs of which nothing is sent from here.
    pub(super) fn lacks_vms(&self) -> bool {
        self.of_group().any(|vm| vm.departure.is_some() || vm.protected == Protected::Stalled)
    }

    /// Each guest is told of its writes as far as its VM may promise them.
    pub(super) fn answer_guests(&mut self) {
        let lacks = self.lacks_vms();
        self.promises.lacks_vms(lacks);
        for vm in self.vms.iter_mut().filter(|vm| vm.protected == Protected::Yes) {
            let id = vm.id();
            let standing = vm.pair.source.standing().filter(|_| vm.group == self.group);
            match standing {
                Some(standing) => self.promises.note(id, standing),
                None => self.promises.left(id),
            };
        }
        for vm in self.vms.iter_mut().filter(|vm| vm.protected == Protected::Yes) {
            let others = self.promises.others(vm.id());
            let source = &mut vm.pair.source;
            source.follow_others(others);
            let before = source.promised;
            source.answer_guest();
            self.summary.promises += u64::from(source.promised > before);
            if vm.group == self.group {
                self.promised = self.promised.max(source.promised);
            }
        }
    }

    /// A cut of those who are of the group now.
    pub(super) fn checkpoint(&mut self) {
        let found: Vec<_> = self.of_group().filter_map(|vm| vm.pair.source.found()).collect();
        let Ok(members) = whom(&found) else { return };
        let cut = self.counter.draw();
        let tagged = self.rng.one_in(6);
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: if tagged { CheckpointKind::Tagged } else { CheckpointKind::Automatic },
            taken_at: WallTime(self.now.0.as_micros() as i64),
            members: members.len() as u16,
            tag: if tagged { format!("before {cut}") } else { String::new() },
        };
        self.taken.insert(checkpoint.id, members.iter().copied().collect());
        for id in members {
            let vm = self.vms.iter().find(|vm| vm.id() == id).expect("found just now");
            let agent = vm.pair.source.agent.as_ref().expect("found just now");
            if agent.capture().mark_checkpoint(&checkpoint).is_none() {
                return self.say(&format!("there is no room for checkpoint {cut}"));
            }
        }
        self.summary.cuts += 1;
        self.say(&format!("checkpoint {cut}"));
    }

    /// What else comes and goes.
    pub(super) fn come_and_go(&mut self) {
        let guest = self.rng.below(self.guests.len() as u64) as usize;
        match self.rng.below(8) {
            0..3 => self.protect(guest),
            3..5 => {
                let dies = self.rng.one_in(4);
                self.vm_of(guest).into_iter().for_each(|vm| self.unprotect(vm, dies));
            }
            5 => self.forget(),
            6 => self.take_up(),
            _ => self.now = self.now.plus(Duration::from_secs(self.rng.below(20))),
        }
    }
}

/// Whether its first sync was ever written down as done.
pub(super) fn is_member(vm: &GroupVm) -> bool {
    vm.pair.source.first_sync == FirstSync::Done
}
