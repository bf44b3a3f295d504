//! Blocks that the recovery side has lost and asks for again.
//!
//! What holds: whoever asks for everything, all the time, has no more done than what it could be sent at a fixed rate, and a
//! sync always comes to its end between two of its demands. Of those that come sooner the newest waits, and says all that
//! the ones before did.

use std::time::Duration;
use types::limits::{BLOCK_BYTES, SEND_AGAIN_BYTES_PER_SECOND, SEND_AGAIN_INTERVAL};
use types::{BlockRun, Monotonic};

#[derive(Debug)]
pub(super) struct Again {
    wanted: Vec<BlockRun>,
    /// One was taken up, and the sync it began has not ended.
    is_under_way: bool,
    next_at: Monotonic,
}

impl Again {
    pub(super) fn new(now: Monotonic) -> Self {
        Self { wanted: Vec::new(), is_under_way: false, next_at: now }
    }

    /// This is all that is lost now.
    pub(super) fn want(&mut self, runs: Vec<BlockRun>) {
        self.wanted = runs;
    }

    /// What is to be marked now.
    pub(super) fn take(&mut self, now: Monotonic) -> Option<Vec<BlockRun>> {
        if self.wanted.is_empty() || self.is_under_way || now < self.next_at {
            return None;
        }
        let bytes = self.wanted.iter().map(|run| run.blocks).sum::<u64>().saturating_mul(BLOCK_BYTES);
        let sending = Duration::from_secs(bytes / SEND_AGAIN_BYTES_PER_SECOND);
        self.next_at = now.plus(sending.max(SEND_AGAIN_INTERVAL));
        self.is_under_way = true;
        Some(std::mem::take(&mut self.wanted))
    }

    /// It is told again by the next welcome, as far as it is still lost.
    pub(super) fn link_lost(&mut self) {
        self.wanted.clear();
    }

    /// Everything that was marked is in the stream.
    pub(super) fn sync_ended(&mut self) {
        self.is_under_way = false;
    }
}
