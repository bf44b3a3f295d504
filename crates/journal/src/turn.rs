//! Upkeep: what a journal needs done beside appending, in steps that each leave it whole.
//!
//! Footers are written, runs merged, what retention no longer wants is folded or retired, in rollback mode
//! the replica is brought up to the newest write. One turn does a bounded amount of each and says whether
//! more is waiting, so that one journal never keeps the others from theirs.

use crate::age::{Stamp, micros};
use crate::compact;
use crate::fold::FoldError;
use crate::journal::Journal;
use crate::settings::Mode;
use crate::timeline::Timeline;
use crate::undo::UndoWriter;
use crate::upkeep::{Kept, Upkeep};
use std::io;
use types::WriteSeq;

/// The manifest is saved for the age clock alone after this part of the history window.
const SAVED_PARTS: i64 = 24;

impl Journal {
    /// Does a bounded amount of what is to be done.
    ///
    /// # Errors
    /// [`FoldError`]; nothing is lost, and the next call tries again.
    pub fn keep_up(&self, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let mut undo = self.lock_upkeep();
        self.check_life().map_err(FoldError::Manifest)?;
        let stamp = self.write_shared().age.tick(how);
        self.expire_pins(how.now).map_err(FoldError::Manifest)?;
        self.settle_damage().map_err(FoldError::Manifest)?;
        if self.read_shared().settings.mode == Mode::RollForward && !undo.has_unfinished_step(&self.state) {
            // What is left of another mode ages as sealed segments do.
            self.undo.seal(&mut undo).map_err(FoldError::Manifest)?;
        }
        let footers = self.footers.write_all(Some(stamp)).map_err(FoldError::Footer)?;
        self.keep_ages(stamp).map_err(FoldError::Manifest)?;
        let merges = compact::merge_runs(&self.state, &self.reads, how.entropy)?;
        let mut kept = self.retain(&mut undo, how)?;
        // A step that was cut short is finished in either mode.
        if self.read_shared().settings.mode == Mode::Rollback || undo.has_unfinished_step(&self.state) {
            let applied = self.undo.apply(&mut undo, how)?;
            kept.folded_bytes += applied.folded_bytes;
            kept.segments += applied.segments;
            kept.more |= applied.more;
        }
        let applied = self.read_shared().manifest.applied();
        Ok(Kept { footers, merges, applied, more: kept.more || merges > 0, ..kept })
    }

    /// Stamps segments that got their footer without, and saves the age clock where nothing else did for long.
    fn keep_ages(&self, stamp: Stamp) -> io::Result<()> {
        let is_due = {
            let shared = self.read_shared();
            let logs = [&shared.manifest.redo, &shared.manifest.undo];
            let mut sealed = logs.iter().flat_map(|log| &log.segments).filter_map(|s| s.sealed.as_ref());
            let unsaved = shared.age.now.saturating_sub(shared.manifest.age_clock);
            sealed.any(|sealed| sealed.aged_from.is_none())
                || unsaved > micros(shared.settings.history) / SAVED_PARTS
        };
        if !is_due {
            return Ok(());
        }
        self.change_manifest(
            |manifest| {
                for log in [&mut manifest.redo, &mut manifest.undo] {
                    log.segments.iter_mut().filter_map(|s| s.sealed.as_mut()).for_each(|s| stamp.put(s));
                }
            },
            |shared, manifest| shared.set_manifest(manifest, |_| {}),
        )
    }

    /// Folds or retires what is due.
    fn retain(&self, undo: &mut UndoWriter, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let applied = self.read_shared().manifest.applied();
        let last_good = self.last_good();
        let due = self.read_shared().due(last_good);
        let Some(due) = due else { return Ok(Kept { applied, ..Kept::default() }) };
        // What was begun is ended first: what is due grows while it is written.
        let target = self.fold.begun().filter(|begun| *begun < due).unwrap_or(due);
        let mut folded_bytes = 0;
        if target > applied {
            if undo.has_unfinished_step(&self.state) {
                return Ok(Kept { applied, more: true, ..Kept::default() });
            }
            match self.fold.fold_to(target, how)? {
                Some(written) => {
                    folded_bytes = written.bytes;
                    if !written.is_whole {
                        return Ok(Kept { applied, folded_bytes, more: true, ..Kept::default() });
                    }
                }
                None => return Ok(Kept { applied, ..Kept::default() }),
            }
        } else if !self.fold.retire(target).map_err(FoldError::Manifest)? {
            return Ok(Kept { applied, ..Kept::default() });
        }
        let segments = self.fold.finish(target).map_err(FoldError::Manifest)?;
        Ok(Kept { segments, folded_bytes, more: true, ..Kept::default() })
    }

    /// The newest cut there is to fail over to. While a sync is under way all that come after it miss writes, so
    /// that it is the newest checkpoint from before.
    fn last_good(&self) -> Option<WriteSeq> {
        let newest = self.newest_consistent(WriteSeq::MAX)?;
        if !self.with_timeline(Timeline::is_gap_open) {
            return Some(newest);
        }
        // One that cannot be read is none: the cut just before the sync is held then.
        let checkpoint = self.newest_checkpoint().ok().flatten();
        Some(checkpoint.map_or(newest, |facts| facts.cut().min(newest)))
    }
}
