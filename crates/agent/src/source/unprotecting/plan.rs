//! Ending a protection, as an operation.
//!
//! 1. Nobody uses the disks: the tap and block devices of this host go. It is taken up anew where it cannot be ended.
//! 2. That the VM leaves is written down, unless its recovery side has never heard of it. Until here it goes on as it was.
//! 3. The stream ends, and what is recorded of the protection goes, its own record last: until that is gone it is not taken
//!    up again, and the others of its group promise nothing without it.
//! 4. The recovery side is told from now on. That it knows is not waited for: where it cannot be reached that is an alert.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::VmId;

/// Which VM is protected no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct UnprotectPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super) vm: VmId,
    pub(in super::super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum UnprotectStep {
    Detach,
    Depart,
    End,
    Tell,
}

impl fmt::Display for UnprotectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detach => "leave its disks",
            Self::Depart => "write down that it leaves",
            Self::End => "end its stream, and remove what is recorded of it",
            Self::Tell => "tell the recovery side",
        })
    }
}

impl operations::Plan for UnprotectPlan {
    type Step = UnprotectStep;

    fn steps(&self) -> Vec<UnprotectStep> {
        vec![UnprotectStep::Detach, UnprotectStep::Depart, UnprotectStep::End, UnprotectStep::Tell]
    }

    fn is_final(&self, step: UnprotectStep) -> bool {
        matches!(step, UnprotectStep::End | UnprotectStep::Tell)
    }

    fn may_be_left(&self, _: UnprotectStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Protected(self.vm)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}
