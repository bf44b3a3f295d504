//! A comparison of both sides for the operator: how far it is, and what was found.

use types::BlockIndex;
use types::limits::{BLOCK_BYTES, VERIFY_PLACES_MAX};

#[derive(Debug)]
pub(super) struct Verification {
    total_bytes: u64,
    compared_bytes: u64,
    differing_bytes: u64,
    differing: Vec<api::Extent>,
    state: Progress,
    repaired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    Waiting,
    Done,
}

impl Verification {
    pub(super) fn begin(total_bytes: u64) -> Self {
        Self {
            total_bytes,
            compared_bytes: 0,
            differing_bytes: 0,
            differing: Vec::new(),
            state: Progress::Running,
            repaired: false,
        }
    }

    /// Some blocks of a run differ.
    pub(super) fn differs(&mut self, disk: &str, first: BlockIndex, differs: u64) {
        for at in (0..64).filter(|at| differs & (1 << at) != 0) {
            let start = (first.0 + at) * BLOCK_BYTES;
            self.differing_bytes += BLOCK_BYTES;
            if let Some(last) = self.differing.last_mut()
                && last.disk == disk
                && last.start + last.bytes == start
            {
                last.bytes += BLOCK_BYTES;
            } else if self.differing.len() < VERIFY_PLACES_MAX {
                self.differing.push(api::Extent { disk: disk.to_owned(), start, bytes: BLOCK_BYTES });
            }
        }
    }

    /// So much is left; `well`: the stream is in order and up, with nothing to sync.
    pub(super) fn follow(&mut self, left_bytes: u64, well: bool, vm: &str) {
        if self.state == Progress::Done {
            self.repaired |= well;
            return;
        }
        self.compared_bytes = self.total_bytes.saturating_sub(left_bytes);
        self.state = match (left_bytes, well) {
            (0, _) => Progress::Done,
            (_, true) => Progress::Running,
            (_, false) => Progress::Waiting,
        };
        if self.state == Progress::Done {
            self.repaired = well && self.differing_bytes == 0;
            tracing::info!(vm, differing_bytes = self.differing_bytes, "verification done");
        }
    }

    pub(super) fn to_api(&self) -> api::Verify {
        api::Verify {
            state: match self.state {
                Progress::Running => "running".into(),
                Progress::Waiting => "waiting".into(),
                Progress::Done => "done".into(),
            },
            compared_bytes: self.compared_bytes,
            total_bytes: self.total_bytes,
            differing_bytes: self.differing_bytes,
            differing: self.differing.clone(),
            repaired: self.repaired && self.differing_bytes > 0,
        }
    }
}
