//! What must hold of a whole group after every event.

use super::site::group_of;
use super::{GroupVm, GroupWorld};
use crate::invariants::*;
use crate::retained::all_checkpoints;
use joint::choice::{At, Chosen, NotChosen, Pick};
use std::collections::BTreeSet;
use types::{CheckpointId, VmId, WallTime, WriteSeq};

impl GroupWorld {
    pub(super) fn check(&mut self, in_full: bool) {
        self.answer_guests();
        self.invariant_what_was_promised_is_in_the_groups_latest();
        for vm in &mut self.vms {
            invariant_history_goes_only_by_retention(&mut vm.pair, self.now);
            invariant_memory_is_bounded(&vm.pair);
            invariant_checkpoint_never_precedes_its_writes(&vm.pair);
        }
        self.invariant_one_side_writes();
        if in_full {
            self.check_in_full();
        }
    }

    /// Nothing comes to be in a journal whose group has failed over, from when it was fenced until that is rolled back.
    fn invariant_one_side_writes(&self) {
        for vm in &self.vms {
            let failover = self.site.failovers.get(&group_of(vm.group).0);
            let fenced = failover.filter(|one| !one.phase.is_released());
            invariant_one_writer_per_epoch(
                &vm.pair,
                fenced.and_then(|one| one.fenced_at.get(&vm.id()).copied()),
            );
        }
    }

    pub(super) fn check_in_full(&mut self) {
        for vm in &mut self.vms {
            self.summary.image_reads += vm.pair.recovery.images.compare_all();
        }
        for at in 0..self.vms.len() {
            let pair = &self.vms[at].pair;
            let (all, _) = invariant_image_at_checkpoint_equals_guest_disk_then(pair);
            self.summary.checkpoints_compared += all;
            invariant_dirty_marks_cover_every_unsent_block(pair);
        }
        self.invariant_a_checkpoint_has_those_who_were_of_the_group_then();
        let now = WallTime(self.now.0.as_micros() as i64);
        let then = WallTime(self.rng.below(now.0 as u64) as i64);
        let tag = self.rng.below(self.taken.len() as u64 + 1) as usize;
        let tag = self.taken.keys().nth(tag).map_or_else(String::new, |id| format!("before {}", id.0));
        for at in [At::Latest, At::Time(then), At::Tag(tag)] {
            if let Ok(chosen) = self.choose(&at, &Pick::All) {
                self.invariant_what_is_chosen_is_one_moment_of_its_members(&at, &chosen);
            }
        }
    }

    /// What a failover would open has what guests were promised; where somebody has no state yet an operator is told so, and
    /// opens the group without.
    fn invariant_what_was_promised_is_in_the_groups_latest(&self) {
        if self.promised == WriteSeq::ZERO || self.of_group().any(is_closed) {
            return;
        }
        let found = match self.choose(&At::Latest, &Pick::All) {
            Err(NotChosen::Hindered(vms)) => self.choose(&At::Latest, &Pick::Without(vms)),
            found => found,
        };
        match found {
            Ok(chosen) => assert!(
                chosen.cut >= self.promised,
                "invariant_what_was_promised_is_in_the_groups_latest: {} of {}",
                chosen.cut,
                self.promised
            ),
            // Nobody is of the group any more, or a VM has just ended its first sync and others have not said that they are
            // as far.
            Err(NotChosen::Nobody | NotChosen::NothingInCommon(_)) => {}
            Err(why) => panic!("invariant_what_was_promised_is_in_the_groups_latest: {why:?}"),
        }
    }

    /// No checkpoint has a VM that was not of the group when it was taken, and one that is opened whole has all that were.
    fn invariant_a_checkpoint_has_those_who_were_of_the_group_then(&mut self) {
        let mut ids: BTreeSet<CheckpointId> = BTreeSet::new();
        for vm in &self.vms {
            let Some(journal) = &vm.pair.recovery.journal else { continue };
            let is_now = vm.group == self.group;
            for checkpoint in all_checkpoints(journal) {
                let then = self.taken.get(&checkpoint.id).expect("it was taken");
                assert!(
                    then.contains(&vm.id()) && usize::from(checkpoint.members) == then.len(),
                    "invariant_a_checkpoint_has_those_who_were_of_the_group_then: {} at {}",
                    vm.id(),
                    checkpoint.id
                );
                ids.extend(is_now.then_some(checkpoint.id));
            }
        }
        for id in ids {
            if let Ok(chosen) = self.choose(&At::Id(id), &Pick::All) {
                self.summary.cuts_opened += 1;
                let vms: BTreeSet<VmId> = chosen.vms.into_iter().collect();
                assert_eq!(vms, self.taken[&id], "a checkpoint that is opened whole has not all of then");
            }
        }
    }

    /// A moment of the group, as a failover would open it: all of those who were of it then, each as its disk was.
    pub(super) fn invariant_what_is_chosen_is_one_moment_of_its_members(&self, at: &At, chosen: &Chosen) {
        let then = match at {
            At::Latest => self.kept().iter().filter(|one| !one.left).map(|one| one.vm).collect(),
            At::Id(_) | At::Time(_) | At::Tag(_) => self.taken[&CheckpointId(chosen.cut)].clone(),
        };
        let vms: BTreeSet<VmId> = chosen.vms.iter().copied().collect();
        assert_eq!(vms, then, "invariant_what_is_chosen_is_one_moment_of_its_members: {at:?}");
        for vm in self.vms.iter().filter(|vm| vms.contains(&vm.id())) {
            compare_at(&vm.pair, chosen.cut, &format!("{at:?}"));
        }
    }
}

/// Whether its journal is kept and cannot be asked just now.
fn is_closed(vm: &GroupVm) -> bool {
    vm.record.is_some() && vm.pair.recovery.journal.is_none()
}
