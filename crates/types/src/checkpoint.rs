//! Checkpoints: cuts of a group at which all its disks are consistent.

use crate::{WallTime, WriteSeq};
use std::fmt;
use std::str::FromStr;

/// A checkpoint of a group. On one host the cut draws its own sequence, so the cut is the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId(pub WriteSeq);

/// A text that is not a checkpoint's id (`RUN-COUNT`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseCheckpointIdError;

impl fmt::Display for ParseCheckpointIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a checkpoint id is two numbers, RUN-COUNT, as `holdfast checkpoint list` prints them")
    }
}

impl std::error::Error for ParseCheckpointIdError {}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CheckpointId {
    type Err = ParseCheckpointIdError;

    fn from_str(text: &str) -> Result<Self, ParseCheckpointIdError> {
        text.parse().map(CheckpointId).map_err(|()| ParseCheckpointIdError)
    }
}

/// Why a checkpoint was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// By the clock, every `checkpoint_interval`.
    Automatic,
    /// By a person, with their words.
    Tagged,
}

/// A cut and what people call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub id: CheckpointId,
    /// Every write at or below it, on every disk of every VM of the group, belongs to the checkpoint.
    pub cut: WriteSeq,
    pub kind: CheckpointKind,
    /// The taker's clock, as a label.
    pub taken_at: WallTime,
    /// How many VMs the group had: the checkpoint is complete once that many streams hold it.
    pub members: u16,
    /// A person's words; empty for an automatic checkpoint.
    pub tag: String,
}
