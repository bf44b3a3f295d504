//! The recovery side of a group, as a whole: what it has written down of all its VMs, and who asks which moment of them.

use joint::admission::Failover;
use joint::failover::Phase;
use replication::wire::Hello;
use std::collections::BTreeMap;
use types::{Epoch, GroupId, VmId, WriteSeq};

pub(super) const SITE: &str = "paris";
pub(super) const PEER: &str = "agent.paris";

/// What the recovery side has written down of groups themselves.
#[derive(Debug, Default)]
pub(super) struct Site {
    pub(super) failovers: BTreeMap<GroupId, FailedOver>,
}

/// A failover, as it is written down, and what the run knows of it.
#[derive(Debug)]
pub(super) struct FailedOver {
    pub(super) epoch: Epoch,
    pub(super) phase: Phase,
    pub(super) cut: WriteSeq,
    /// Empty until the cut is chosen.
    pub(super) vms: Vec<VmId>,
    /// Where the journals of the group stood when they were fenced.
    pub(super) fenced_at: BTreeMap<VmId, WriteSeq>,
}

impl Site {
    pub(super) fn failover(&self, group: GroupId) -> Failover<'static> {
        match self.failovers.get(&group) {
            None => Failover::Never,
            Some(one) => Failover::Recorded { epoch: one.epoch, released: one.phase.is_released() },
        }
    }

    pub(super) fn invariant_nothing_is_accepted_without_authority(&self, hello: &Hello, journal: Epoch) {
        let failover = self.failovers.get(&hello.group);
        let has_it = failover.is_none_or(|one| one.phase == Phase::RolledBack && hello.epoch >= one.epoch);
        assert!(
            has_it && hello.epoch >= journal,
            "invariant_nothing_is_accepted_without_authority: epoch {} of {failover:?}, journal {journal}",
            hello.epoch
        );
    }
}

/// The group of a number: each that has gone over for good is followed by another.
pub(super) fn group_of(number: u8) -> (GroupId, String) {
    (GroupId::from_bytes([number; 16]), format!("group-{number}"))
}
