//! How a turn of upkeep is to go about it, and what it did. The turn itself is in `turn.rs`.

use types::{Monotonic, WallTime, WriteSeq};

/// By what the history ages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// What passes on this clock while the journal is kept up.
    Monotonic(Monotonic),
    /// The label itself, for whoever makes the time up.
    Label,
}

/// How upkeep is to go about it.
#[derive(Clone, Copy)]
pub struct Upkeep<'a> {
    /// This host's clock, as a label.
    pub now: WallTime,
    pub clock: Clock,
    /// Random.
    pub entropy: [u8; 16],
    /// Threads that bring data from the journal to the replica; 1 for all in the caller's.
    pub threads: usize,
    /// Told how many bytes are about to be written to a replica, or read by a scrub; it may wait, which is
    /// how a rate is kept.
    pub pace: &'a (dyn Fn(u64) + Sync),
}

impl std::fmt::Debug for Upkeep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upkeep")
            .field("now", &self.now)
            .field("clock", &self.clock)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl Upkeep<'_> {
    /// In the caller's thread and as fast as it goes; the history ages by `now`.
    pub fn plain(now: WallTime, entropy: [u8; 16]) -> Self {
        Self { now, clock: Clock::Label, entropy, threads: 1, pace: &|_| {} }
    }
}

/// What a turn of upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) footers: usize,
    pub(crate) merges: usize,
    pub(crate) segments: usize,
    pub(crate) folded_bytes: u64,
    pub(crate) applied: WriteSeq,
    pub(crate) more: bool,
}
