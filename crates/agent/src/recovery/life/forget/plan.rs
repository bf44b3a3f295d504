//! Forgetting a VM and its journal, for good, as an operation.
//!
//! 1. Nobody sends it and no image of it is open: its record says that it is forgotten. From here on no stream is let in
//!    and its journal is not opened: whoever greets for it is told to come again.
//! 2. Its journal is closed once nobody uses it any more; no image of it comes to stay meanwhile. That its folders are
//!    being deleted is written down: until then it can be kept after all. They go.
//! 3. Its record goes: whoever greets now gets a new journal.
//!
//! So there is never a journal of which a part is deleted and that is used, and none is deleted that was made meanwhile.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::VmId;

/// Which VM is forgotten, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super::super) struct ForgetPlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super::super) vm: VmId,
    /// `SITE/NAME`, to tell of it.
    pub(in super::super::super) label: String,
    /// A part of its journal may be deleted.
    pub(super) deletes: bool,
}

impl ForgetPlan {
    /// Whether a part of the journal may be deleted.
    pub(in super::super::super) fn is_begun(&self) -> bool {
        self.deletes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super::super) enum ForgetStep {
    Mark,
    Delete,
    Remove,
}

impl fmt::Display for ForgetStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mark => "let nobody in any more",
            Self::Delete => "delete the journal",
            Self::Remove => "remove what is recorded of it",
        })
    }
}

impl operations::Plan for ForgetPlan {
    type Step = ForgetStep;

    fn steps(&self) -> Vec<ForgetStep> {
        vec![ForgetStep::Mark, ForgetStep::Delete, ForgetStep::Remove]
    }

    fn is_final(&self, step: ForgetStep) -> bool {
        self.deletes || step == ForgetStep::Remove
    }

    fn may_be_left(&self, _: ForgetStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Kept(self.vm)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}
