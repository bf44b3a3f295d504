//! Changing protections, as an operation: a step for each VM. What it was kept to before is in the plan, and comes back where a
//! later one cannot be changed.

use super::super::record::{FileRecord, ProtectionRecord};
use crate::policy::Policy;
use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::VmId;

/// What an operator may change of a protection that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Kept {
    pub(in super::super) policy: Policy,
    pub(in super::super) peer: String,
    pub(in super::super) peer_agent: Option<String>,
    pub(in super::super) definition: String,
    pub(in super::super) files: Vec<FileRecord>,
}

impl Kept {
    pub(in super::super) fn of(record: &ProtectionRecord) -> Self {
        Self {
            policy: record.policy.clone(),
            peer: record.peer.clone(),
            peer_agent: record.peer_agent.clone(),
            definition: record.definition.clone(),
            files: record.files.clone(),
        }
    }

    /// Puts into a record what is another than it was `before`. Everything else stays as it has become meanwhile: which agent
    /// has answered is learned at any time.
    pub(in super::super) fn put_into(&self, before: &Self, record: &mut ProtectionRecord) {
        let Self { policy, peer, peer_agent, definition, files } = self.clone();
        if policy != before.policy {
            record.policy = policy;
        }
        if peer != before.peer {
            record.peer = peer;
        }
        if peer_agent != before.peer_agent {
            record.peer_agent = peer_agent;
        }
        if (&definition, &files) != (&before.definition, &before.files) {
            (record.definition, record.files) = (definition, files);
        }
    }

    /// Whether a record has all that is another than it was `before`.
    pub(super) fn is_in(&self, before: &Self, record: &ProtectionRecord) -> bool {
        let mut put = record.clone();
        self.put_into(before, &mut put);
        put == *record
    }

    /// Whether the recovery side is told something else, or another is spoken to.
    pub(super) fn is_greeted_otherwise(&self, other: &Self) -> bool {
        let said = |kept: &Self| {
            let Policy {
                history_seconds, journal_bytes_max, rpo_seconds, checkpoint_interval_seconds, ..
            } = kept.policy;
            [history_seconds, journal_bytes_max, rpo_seconds, checkpoint_interval_seconds]
        };
        said(self) != said(other)
            || self.peer != other.peer
            || self.peer_agent != other.peer_agent
            || self.definition != other.definition
            || self.files != other.files
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct VmChange {
    #[serde(with = "crate::id_text")]
    pub(in super::super) vm: VmId,
    pub(in super::super) name: String,
    pub(in super::super) before: Kept,
    pub(in super::super) after: Kept,
}

/// Which VMs are changed, and to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct ChangePlan {
    /// The name of the group that they are of.
    pub(in super::super) group: String,
    pub(in super::super) changes: Vec<VmChange>,
}

impl ChangePlan {
    /// The VM, where it is one.
    pub(in super::super) fn only(&self) -> Option<&VmChange> {
        Some(&self.changes[..]).filter(|changes| changes.len() == 1).and_then(<[_]>::first)
    }
}

/// One VM, by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct ChangeStep(pub(in super::super) usize);

impl fmt::Display for ChangeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "change what VM {} of them is kept to", self.0 + 1)
    }
}

impl operations::Plan for ChangePlan {
    type Step = ChangeStep;

    fn steps(&self) -> Vec<ChangeStep> {
        (0..self.changes.len()).map(ChangeStep).collect()
    }

    fn is_final(&self, _: ChangeStep) -> bool {
        false
    }

    fn may_be_left(&self, _: ChangeStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        self.changes.iter().map(|change| Lock::Protected(change.vm)).collect()
    }

    fn counts_as(&self) -> Option<&'static str> {
        Some("change")
    }
}
