//! What upkeep comes upon: rot in what it reads, or writes a part of, is contained at once and not when the scrub comes by,
//! and the turn goes on, or the next one does.
//!
//! In a replica it is contained in the middle of the turn: what is to be left out of a step back, and what a block holds
//! that a fold has written a part of, hangs on it. In a log or an index the turn ends, what it has come upon is read as a
//! scrub reads it, and the next turn follows at once.

use crate::cover::LogKind;
use crate::damage::Damage;
use crate::fold::{CameUpon, FoldError};
use crate::scrub::Scrub;
use crate::turn::Turns;
use crate::upkeep::{Done, Upkeep};
use threads::sync::Mutex;
use types::{DiskIndex, WriteSeq};

/// What upkeep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// What it came upon, and is contained: the stream must be told, as after a scrub.
    pub damage: Vec<Damage>,
    /// Index runs that were made again.
    pub rebuilt: usize,
}

/// What a turn has failed for though it was looked at: it is not read again and again for that.
#[derive(Debug, Default)]
pub(crate) struct LookedAt(Mutex<Option<String>>);

impl LookedAt {
    /// Whether it is news that a turn fails for this.
    fn is_news(&self, why: Option<String>) -> bool {
        let mut before = self.0.lock().expect("a panic aborts the process");
        let is_news = why.is_some() && *before != why;
        *before = why;
        is_news
    }
}

/// Who keeps a journal up, and contains what that comes upon.
#[derive(Clone, Copy)]
pub(crate) struct Met<'a> {
    pub(crate) turns: &'a Turns,
    pub(crate) scrub: Scrub<'a>,
    pub(crate) looked_at: &'a LookedAt,
}

impl Met<'_> {
    pub(crate) fn keep_up(&self, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let contain =
            |disk: DiskIndex, came_upon: CameUpon| self.scrub.contain_in_turn(disk, came_upon).map(drop);
        let error = match self.turns.take(how, &contain) {
            Ok(done) => {
                self.looked_at.is_news(None);
                return Ok(Kept { damage: self.scrub.untold.take(), ..Kept::from(done) });
            }
            Err(error) => error,
        };
        let rebuilt = match self.looked_at.is_news(why(&error)) {
            true => self.look_at(&error, how).unwrap_or(0),
            false => 0,
        };
        // What hinders it besides hinders the next turn too, and is told then.
        let damage = self.scrub.untold.take();
        match damage.is_empty() && rebuilt == 0 {
            true => Err(error),
            false => Ok(Kept { damage, rebuilt, more: true, ..Kept::default() }),
        }
    }

    /// Reads what a turn could not, as a scrub does; how many index runs were made again.
    fn look_at(&self, error: &FoldError, how: &Upkeep<'_>) -> Result<usize, FoldError> {
        let (mut is_damaged, mut rebuilt) = (false, 0);
        let name = file_of(error).unwrap_or_default();
        for kind in [LogKind::Redo, LogKind::Undo] {
            for step in self.scrub.segment_with(kind, name, how)? {
                is_damaged |= !step.damage.is_empty();
                rebuilt += step.rebuilt;
            }
        }
        if !is_damaged && rebuilt == 0 && is_of_an_index(error) {
            rebuilt = self.scrub.rebuild_merged(how)?;
        }
        Ok(rebuilt)
    }
}

/// The file of a log that a turn failed for.
fn file_of(error: &FoldError) -> Option<&str> {
    match error {
        FoldError::Read(error) => error.file(),
        FoldError::Run(error) => Some(error.file()),
        FoldError::Replica(_) | FoldError::Undo(_) | FoldError::Footer(_) | FoldError::Manifest(_) => None,
    }
}

fn is_of_an_index(error: &FoldError) -> bool {
    matches!(error, FoldError::Run(_) | FoldError::Read(crate::payload::ReadError::Run(_)))
}

/// In words that say the place.
fn why(error: &FoldError) -> Option<String> {
    match error {
        FoldError::Read(error) => error.file().map(|_| error.to_string()),
        FoldError::Run(error) => Some(error.to_string()),
        FoldError::Replica(_) | FoldError::Undo(_) | FoldError::Footer(_) | FoldError::Manifest(_) => None,
    }
}

impl From<Done> for Kept {
    fn from(done: Done) -> Self {
        let Done { footers, merges, segments, folded_bytes, applied, more } = done;
        Self { footers, merges, segments, folded_bytes, applied, more, damage: Vec::new(), rebuilt: 0 }
    }
}
