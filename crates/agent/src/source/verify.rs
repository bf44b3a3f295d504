//! A comparison of both sides for the operator: how far it is, and what was found.

use splitter::CaptureStatus;
use types::BlockIndex;
use types::limits::{BLOCK_BYTES, VERIFY_PLACES_MAX};

#[derive(Debug)]
pub(super) struct Verification {
    total_bytes: u64,
    compared_bytes: u64,
    differing_bytes: u64,
    /// What the local disk did not give, so that nobody knows whether it is equal.
    unreadable_bytes: u64,
    /// How many blocks the capture had counted as such before.
    uncompared_before: u64,
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
    /// `uncompared_blocks`: what the capture has counted of them until now.
    pub(super) fn begin(total_bytes: u64, uncompared_blocks: u64) -> Self {
        Self {
            total_bytes,
            compared_bytes: 0,
            differing_bytes: 0,
            unreadable_bytes: 0,
            uncompared_before: uncompared_blocks,
            differing: Vec::new(),
            state: Progress::Running,
            repaired: false,
        }
    }

    /// Itself while it runs: what a later sync finds is none of its business.
    pub(super) fn while_it_runs(&mut self) -> Option<&mut Self> {
        (self.state != Progress::Done).then_some(self)
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

    /// How far the capture is; `well`: the stream is in order and up, with nothing to sync.
    pub(super) fn follow(&mut self, status: &CaptureStatus, well: bool, vm: &str) {
        if self.state == Progress::Done {
            self.repaired |= well;
            return;
        }
        let left_bytes = status.unsettled_blocks * BLOCK_BYTES;
        self.unreadable_bytes = status.uncompared_blocks.saturating_sub(self.uncompared_before) * BLOCK_BYTES;
        self.compared_bytes = self.total_bytes.saturating_sub(left_bytes + self.unreadable_bytes);
        self.state = match (left_bytes, well) {
            (0, _) => Progress::Done,
            (_, true) => Progress::Running,
            (_, false) => Progress::Waiting,
        };
        if self.state == Progress::Done {
            self.repaired = well && self.differing_bytes == 0;
            let (differing_bytes, unreadable_bytes) = (self.differing_bytes, self.unreadable_bytes);
            tracing::info!(vm, differing_bytes, unreadable_bytes, "verification done");
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
            unreadable_bytes: self.unreadable_bytes,
            differing: self.differing.clone(),
            repaired: self.repaired && self.differing_bytes > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use splitter::SyncState;
    use types::WriteSeq;

    const TOTAL: u64 = 100 * BLOCK_BYTES;

    fn status(unsettled_blocks: u64, uncompared_blocks: u64) -> CaptureStatus {
        CaptureStatus {
            tracking: false,
            gap_open: false,
            deaf: false,
            dirty_blocks: 0,
            unsettled_blocks,
            suspect_blocks: unsettled_blocks,
            unreadable_blocks: 0,
            uncompared_blocks,
            sync_work: splitter::SyncWork::default(),
            buffered_bytes: 0,
            buffer_bytes_max: 1 << 20,
            copies: 0,
            released: WriteSeq::ZERO,
            spilled: WriteSeq::ZERO,
            last: WriteSeq::ZERO,
            watermark: WriteSeq::ZERO,
            writes: 0,
            write_bytes: 0,
            left_out_bytes: 0,
            sync: SyncState::Asynchronous,
        }
    }

    #[test]
    fn what_could_not_be_read_is_neither_equal_nor_different() {
        let mut verification = Verification::begin(TOTAL, 7);
        verification.follow(&status(40, 8), true, "vm");
        assert_eq!(verification.to_api().compared_bytes, 59 * BLOCK_BYTES);
        verification.follow(&status(0, 10), false, "vm");
        let told = verification.to_api();
        assert_eq!((told.state.as_str(), told.differing_bytes), ("done", 0));
        assert_eq!(told.unreadable_bytes, 3 * BLOCK_BYTES, "and not what earlier ones could not read");
        assert_eq!(told.compared_bytes, 97 * BLOCK_BYTES);
    }

    #[test]
    fn what_a_later_sync_finds_is_not_counted_into_a_verification_that_is_done() {
        let mut verification = Verification::begin(TOTAL, 0);
        verification.follow(&status(1, 0), false, "vm");
        verification.while_it_runs().unwrap().differs("vda", BlockIndex(3), 1);
        verification.follow(&status(0, 0), true, "vm");
        assert!(verification.while_it_runs().is_none());
        verification.follow(&status(50, 4), false, "vm");
        let told = verification.to_api();
        assert_eq!(
            (told.state.as_str(), told.differing_bytes, told.unreadable_bytes),
            ("done", BLOCK_BYTES, 0)
        );
    }
}
