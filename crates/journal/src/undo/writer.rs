//! The end of the undo log: up to where there are before-images, and the segment they go to.

use crate::segment::{Position, Segment};
use crate::state::State;
use types::{VmId, WallTime, WriteSeq};

/// The end of the undo log.
#[derive(Debug)]
pub(crate) struct UndoWriter {
    pub(crate) vm: VmId,
    pub(crate) open: Option<(Segment, u64, Position)>,
    /// The end of the last whole step.
    pub(crate) upto: WriteSeq,
    pub(crate) opened_at: Option<WallTime>,
    /// Nothing more may go to the open segment: sealing it has been tried.
    pub(crate) must_seal: bool,
}

impl UndoWriter {
    /// Whether before-images are there of writes the replica does not have yet.
    pub(crate) fn has_unfinished_step(&self, state: &State) -> bool {
        self.upto > state.read_shared().manifest.applied()
    }
}
