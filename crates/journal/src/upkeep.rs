//! Upkeep: what a journal needs done beside appending, in steps that each leave it whole.
//!
//! Footers are written, runs merged, what retention no longer wants is folded or retired, in rollback mode
//! the replica is brought up to the newest write. One call does a bounded amount of each and says whether
//! more is waiting, so that one journal never keeps the others from their turn.

use crate::fold::FoldError;
use crate::journal::{Journal, Mode};
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

/// What upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    pub footers: usize,
    pub merges: usize,
    /// Segments that were dropped.
    pub segments: usize,
    /// Bytes written to the replica.
    pub folded_bytes: u64,
    pub applied: WriteSeq,
    /// Whether another call would find something to do at once.
    pub more: bool,
}

impl Journal {
    /// Does a bounded amount of what is to be done.
    ///
    /// # Errors
    /// [`FoldError`]; nothing is lost, and the next call tries again.
    pub fn keep_up(&self, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let mut undo = self.lock_upkeep();
        self.check_life().map_err(FoldError::Manifest)?;
        let stamp = self.tick(how);
        self.expire_pins(how.now).map_err(FoldError::Manifest)?;
        self.settle_damage().map_err(FoldError::Manifest)?;
        if self.read_shared().settings.mode == Mode::RollForward && !undo.has_unfinished_step(self) {
            // What is left of another mode ages as sealed segments do.
            self.seal_undo(&mut undo).map_err(FoldError::Manifest)?;
        }
        let footers = self.write_footers(Some(stamp)).map_err(FoldError::Footer)?;
        self.keep_ages(stamp).map_err(FoldError::Manifest)?;
        let merges = self.merge_runs(how.entropy)?;
        let mut kept = self.retain(&mut undo, how)?;
        // A step that was cut short is finished in either mode.
        if self.read_shared().settings.mode == Mode::Rollback || undo.has_unfinished_step(self) {
            let applied = self.apply(&mut undo, how)?;
            kept.folded_bytes += applied.folded_bytes;
            kept.segments += applied.segments;
            kept.more |= applied.more;
        }
        let applied = self.read_shared().manifest.applied();
        Ok(Kept { footers, merges, applied, more: kept.more || merges > 0, ..kept })
    }
}
