//! The end of a failover, as operations: what was asked for, and the steps.
//!
//! A rollback only goes forward. What must be durable before what:
//!
//! 1. That it goes back, before the first VM is stopped or the first image is closed: from here on nobody can commit it.
//! 2. That VMs do not run, 3. that images are closed, each as it is done: all of it may be done again.
//! 4. That the group is released, once nothing of the failover is left: only then its other side writes again.
//!
//! A commit is one thing written down. As long as it is not known to be, the failover is neither final nor undone.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::GroupId;

/// Which failover goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct RollbackPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super) group: GroupId,
    /// To tell of it.
    pub(in super::super) label: String,
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum RollbackStep {
    GoBack,
    StopGuests,
    EndImages,
    Release,
}

impl fmt::Display for RollbackStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoBack => "write down that it goes back",
            Self::StopGuests => "stop the VMs",
            Self::EndImages => "close the images",
            Self::Release => "give the group back",
        })
    }
}

impl operations::Plan for RollbackPlan {
    type Step = RollbackStep;

    fn steps(&self) -> Vec<RollbackStep> {
        vec![RollbackStep::GoBack, RollbackStep::StopGuests, RollbackStep::EndImages, RollbackStep::Release]
    }

    fn is_final(&self, _: RollbackStep) -> bool {
        true
    }

    fn may_be_left(&self, _: RollbackStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Group(self.group)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}

/// Which failover is to be final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct CommitPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super) group: GroupId,
    /// To tell of it.
    pub(in super::super) label: String,
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum CommitStep {
    Commit,
}

impl fmt::Display for CommitStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Commit => "write down that it is final",
        })
    }
}

impl operations::Plan for CommitPlan {
    type Step = CommitStep;

    fn steps(&self) -> Vec<CommitStep> {
        vec![CommitStep::Commit]
    }

    fn is_final(&self, step: CommitStep) -> bool {
        match step {
            CommitStep::Commit => false,
        }
    }

    fn may_be_left(&self, _: CommitStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Group(self.group)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}
