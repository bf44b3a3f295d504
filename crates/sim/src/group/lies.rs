//! A peer of another site, with a certificate of its own, that says it is one of these VMs, or of this group: whatever epoch,
//! names and numbers it gives, it is refused, and nothing that is kept here changes.

use super::kept::{journal_of, to_other};
use super::site::group_of;
use super::{GroupVm, GroupWorld};
use crate::source::hello;
use joint::admission::{Answer, Kept, Side, decide, leave};
use replication::wire::Leave;
use types::{Epoch, Incarnation, VmId, WriteSeq};

const LIAR: &str = "agent.rome";
const LIARS_SITE: &str = "rome";
/// Nobody has this id.
const NOBODY: VmId = VmId::from_bytes([0xff; 16]);

impl GroupWorld {
    /// Somebody lies about a VM that is kept, or about its group.
    pub(super) fn lie(&mut self, at: usize) {
        let Some(record) = self.vms[at].record.clone() else { return };
        let as_another = self.rng.one_in(2);
        let id = if as_another { NOBODY } else { self.vms[at].id() };
        let epoch = Epoch(self.rng.below(1 << 40));
        let (acked, last) = (WriteSeq::from_raw(self.rng.bits()), WriteSeq::from_raw(self.rng.bits()));
        let mut said = hello(id, epoch, Incarnation::from_bytes([7; 16]), acked, last, 65_536);
        (said.group, said.group_name) = record.group.clone();
        said.vm_name.clone_from(&record.name);
        said.history_seconds = 3600;
        let kept = if as_another { Kept::Not } else { self.kept_vm(&self.vms[at]) };
        let others = self.others_kept(if as_another { self.vms.len() } else { at });
        let others: Vec<_> = others.iter().map(to_other).collect();
        let failover = self.site.failover(said.group);
        let (peer, site, history_seconds_min) = (LIAR, LIARS_SITE, 0);
        let side = Side {
            peer,
            site,
            vm: kept.clone(),
            failover,
            group_site: None,
            others: &others,
            history_seconds_min,
        };
        let answer = decide(&said, &side);
        let name = "invariant_nothing_of_one_site_is_touched_by_another";
        assert!(matches!(answer, Answer::Refuse(_)), "{name}: {answer:?} to {said:?}");
        let goes = Leave { vm: id, group: group_of(self.vms[at].group).0, epoch, at: last };
        let answer = leave(&goes, LIAR, &kept, failover);
        assert!(answer != Ok(true), "{name}: it says who leaves");
        self.summary.lies += 1;
    }

    fn kept_vm<'a>(&self, vm: &'a GroupVm) -> Kept<'a> {
        let journal = journal_of(&vm.pair.recovery, vm.lived.life.state());
        vm.record.as_ref().map_or(Kept::Not, |record| Kept::Is(record.to_vm(journal)))
    }
}
