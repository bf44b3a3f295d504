//! The promotion of an image as an operation.
//!
//! 1. What the image reads from its journal is copied into it, while it is served. 2. That its disks are plain ones is
//!    written down. 3. Only then its pin goes: until that is known for good, the image may yet be closed as one that needs
//!    its journal.
//!
//! There is nothing to take back: what was copied is what the image shows anyway.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Which image, and how fast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct PromotePlan {
    pub(in super::super) image: String,
    /// Its VM, to tell of it.
    pub(in super::super) label: String,
    /// 0 is as fast as it goes.
    pub(super) bytes_per_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum PromoteStep {
    Copy,
    Keep,
    Unpin,
}

impl fmt::Display for PromoteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy what it reads from its journal",
            Self::Keep => "write down that it needs no journal",
            Self::Unpin => "end its hold on the journal",
        })
    }
}

/// What is locked of an image.
pub(in super::super) fn image_lock(id: &str) -> Option<Lock> {
    u32::from_str_radix(id, 16).ok().map(Lock::Image)
}

impl operations::Plan for PromotePlan {
    type Step = PromoteStep;

    fn steps(&self) -> Vec<PromoteStep> {
        vec![PromoteStep::Copy, PromoteStep::Keep, PromoteStep::Unpin]
    }

    fn is_final(&self, step: PromoteStep) -> bool {
        step == PromoteStep::Unpin
    }

    fn may_be_left(&self, _: PromoteStep) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        image_lock(&self.image).into_iter().collect()
    }

    fn counts_as(&self) -> Option<&'static str> {
        Some("promote")
    }
}
