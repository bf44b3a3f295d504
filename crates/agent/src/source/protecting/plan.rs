//! Beginning a protection, as an operation of one step: the disks are opened and served, the stream begins, and it is
//! recorded. From then on it is taken up whenever the agent starts.
//!
//! Where it cannot be, what was begun ends: a recovery side that has heard of the VM is told that it has left.

use super::super::record::ProtectionRecord;
use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::VmId;

/// What is protected, as it will be recorded. The VM may tell more of its disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct ProtectPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super) vm: VmId,
    pub(in super::super) record: ProtectionRecord,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum ProtectStep {
    Begin,
}

impl fmt::Display for ProtectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "open its disks, begin its stream, and record it",
        })
    }
}

impl operations::Plan for ProtectPlan {
    type Step = ProtectStep;

    fn steps(&self) -> Vec<ProtectStep> {
        vec![ProtectStep::Begin]
    }

    fn is_final(&self, _: ProtectStep) -> bool {
        false
    }

    fn may_be_left(&self, _: ProtectStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Protected(self.vm)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        Some("protect")
    }
}
