//! Moving a journal to another folder, as an operation.
//!
//! 1. The target is marked: nobody else's move fills or empties it meanwhile, see `folders.rs`. Its stream is told to go, and whoever uses the journal is waited for; nobody begins to meanwhile. It is copied, and
//!    that it lies elsewhere is written down: from there on there is no way back. Until then whoever begins anew opens the
//!    old folder, takes what comes into it, and copies all of it again; what was copied goes where the move is taken back.
//! 2. It is opened in its new folder.
//! 3. Only then the old one goes, which is marked before that, and the target's mark.

use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use types::VmId;

/// Which journal goes where, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super::super) struct MovePlan {
    #[serde(with = "crate::id_text")]
    pub(in super::super::super) vm: VmId,
    /// `SITE/NAME`, to tell of it.
    pub(in super::super::super) label: String,
    pub(super) source: PathBuf,
    pub(in super::super::super) target: PathBuf,
    /// What lies in the target while it is marked is a copy, or a part of one. A record of before says so without a mark:
    /// whose it is then is not known, and it stays.
    pub(super) copies: bool,
    /// The copy is whole, and the journal is to lie there from now on.
    pub(super) switches: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super::super) enum MoveStep {
    Copy,
    Open,
    Remove,
}

impl fmt::Display for MoveStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy the journal",
            Self::Open => "open it in its new folder",
            Self::Remove => "remove the old folder",
        })
    }
}

impl operations::Plan for MovePlan {
    type Step = MoveStep;

    fn steps(&self) -> Vec<MoveStep> {
        vec![MoveStep::Copy, MoveStep::Open, MoveStep::Remove]
    }

    fn is_final(&self, step: MoveStep) -> bool {
        step != MoveStep::Copy || self.switches
    }

    fn may_be_left(&self, step: MoveStep) -> bool {
        step == MoveStep::Remove
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Kept(self.vm)].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        Some("move")
    }
}
