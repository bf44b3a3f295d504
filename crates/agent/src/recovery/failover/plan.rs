//! A failover as an operation: what was asked for, and its steps.
//!
//! 1. The group is fenced: its record says so, then its journals take nothing more of the old epoch. The cut is chosen,
//!    with it the ids of the images and the names of the guests on this host, and written into the same record.
//! 2. The images are opened by those ids, 3. the guests are started by those names: whoever comes back after a crash
//!    finds again what was made already, and makes the rest.
//! 4. The record says that the failover runs. From here on it is taken back by a rollback, and no more by itself.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::GroupId;

/// What an operator has asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct FailoverPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super) group: GroupId,
    /// `SITE/NAME`, to tell of it.
    pub(in super::super) label: String,
    /// The group's from the first step on, whatever becomes of the failover.
    pub(super) epoch: u64,
    pub(super) at: String,
    /// Ids of VMs.
    pub(super) vms: Vec<String>,
    pub(super) without: Vec<String>,
    /// What the operator should know, as it was when it began.
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum FailoverStep {
    Fence,
    OpenImages,
    StartGuests,
    Finish,
}

impl fmt::Display for FailoverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fence => "fence the group and choose the cut",
            Self::OpenImages => "open the images",
            Self::StartGuests => "start the VMs",
            Self::Finish => "write down that they run",
        })
    }
}

impl operations::Plan for FailoverPlan {
    type Step = FailoverStep;

    fn steps(&self) -> Vec<FailoverStep> {
        vec![FailoverStep::Fence, FailoverStep::OpenImages, FailoverStep::StartGuests, FailoverStep::Finish]
    }

    fn is_final(&self, step: FailoverStep) -> bool {
        step == FailoverStep::Finish
    }

    fn may_be_left(&self, _: FailoverStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Group(self.group)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        Some("failover")
    }
}
