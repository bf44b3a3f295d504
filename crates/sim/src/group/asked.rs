//! Who asks which moment of a group's VMs, and what a site that is asked says.

use super::kept::{Known, journal_of};
use super::site::*;
use super::{GroupVm, GroupWorld};
use joint::admission::{Kept, leave};
use joint::choice::{At, Chosen, Held, Journals, Member, NotChosen, Pick, choose};
use journal::{CheckpointQuery, Journal};
use replication::wire::{Leave, Refuse};
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, VmId, WriteSeq};

/// The journals that are open.
struct Open<'a>(&'a [GroupVm]);

impl Open<'_> {
    fn journal(&self, id: VmId) -> Option<&Arc<Journal>> {
        self.0.iter().find(|vm| vm.id() == id)?.pair.recovery.journal.as_ref()
    }
}

impl Journals for Open<'_> {
    type Error = String;

    fn newest_consistent(&self, vm: VmId, at_most: WriteSeq) -> Option<WriteSeq> {
        self.journal(vm)?.newest_consistent(at_most)
    }

    fn checkpoint(&self, vm: VmId, id: CheckpointId) -> Result<Option<Held>, String> {
        let Some(journal) = self.journal(vm) else { return Ok(None) };
        let facts = journal.checkpoint(id).map_err(|error| error.to_string())?;
        Ok(facts.map(|facts| Held { damaged_bytes: facts.damaged_bytes, checkpoint: facts.checkpoint }))
    }

    fn each(
        &self,
        vm: VmId,
        at: &At,
        take: &mut dyn FnMut(&Checkpoint) -> bool,
    ) -> Result<Option<WriteSeq>, String> {
        let Some(journal) = self.journal(vm) else { return Ok(None) };
        let newest = CheckpointQuery { newest_first: true, limit: usize::MAX, ..CheckpointQuery::default() };
        let query = match at {
            At::Latest => CheckpointQuery { undamaged: true, ..newest },
            At::Id(_) => newest,
            At::Time(time) => CheckpointQuery { undamaged: true, to: Some(*time), ..newest },
            At::Tag(tag) => CheckpointQuery { tag: Some(tag.clone()), ..newest },
        };
        for row in journal.checkpoints(&query).rows {
            if take(&row.checkpoint) {
                break;
            }
        }
        Ok(None)
    }
}

impl GroupWorld {
    /// Those whose journals are kept.
    pub(super) fn kept(&self) -> Vec<Member> {
        let of_it = self.vms.iter().filter(|vm| vm.group == self.group);
        let kept = of_it.filter_map(|vm| {
            let record = vm.record.as_ref()?;
            Some(Member { vm: vm.id(), left: record.left.is_some() })
        });
        kept.collect()
    }

    /// What a failover would open.
    pub(super) fn choose(&self, at: &At, pick: &Pick) -> Result<Chosen, NotChosen<String>> {
        choose(&self.kept(), false, at, pick, &Open(&self.vms))
    }

    /// What else is kept there than a VM.
    pub(super) fn others_kept(&self, but: usize) -> Vec<Known> {
        let others = self.vms.iter().enumerate().filter(|(at, _)| *at != but);
        let known = others.filter_map(|(_, vm)| {
            let record = vm.record.as_ref()?;
            let (name, group) = (record.name.clone(), record.group.clone());
            Some(Known { id: vm.id(), name, group, left: record.left.is_some() })
        });
        known.collect()
    }

    /// Hears that a VM has left.
    pub(super) fn hear_of_departure(&mut self, at: usize, said: &Leave) -> Result<(), Refuse> {
        let failover = self.site.failover(said.group);
        let vm = &mut self.vms[at];
        let journal = journal_of(&vm.pair.recovery, vm.lived.life.state());
        let kept = vm.record.as_ref().map_or(Kept::Not, |record| Kept::Is(record.to_vm(journal)));
        if leave(said, PEER, &kept, failover)? {
            let record = vm.record.as_mut().expect("there is something to write down");
            record.left = record.left.or(Some(said.at));
        }
        Ok(())
    }
}
