//! Upkeep: what a journal needs done beside appending, in steps that each leave it whole.
//!
//! Footers are written, runs merged, what retention no longer wants is folded or retired, in rollback mode
//! the replica is brought up to the newest write. One turn does a bounded amount of each and says whether
//! more is waiting, so that one journal never keeps the others from theirs.

use crate::age::{Stamp, micros};
use crate::compact;
use crate::damage;
use crate::fold::{Contain, Fold, FoldError};
use crate::footers::Footers;
use crate::history::History;
use crate::pins::Pins;
use crate::read::Reads;
use crate::settings::Mode;
use crate::state::State;
use crate::undo::{Undo, UndoWriter};
use crate::upkeep::{Done, Upkeep};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::{Mutex, MutexGuard};
use types::WriteSeq;

/// The manifest is saved for the age clock alone after this part of the history window.
const SAVED_PARTS: i64 = 24;
/// The same, at most, where somebody waits for that age: a lock or a pin that ends by it. An agent that ends loses it.
const SAVED_WHERE_AWAITED: Duration = Duration::from_secs(300);

/// Who keeps a journal up, a turn at a time.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Arc<State>,
    reads: Arc<Reads>,
    footers: Arc<Footers>,
    fold: Arc<Fold>,
    undo: Undo,
    /// Held by whoever seals, merges, folds or retires.
    upkeep: Mutex<UndoWriter>,
}

impl Turns {
    pub(crate) fn new(
        state: Arc<State>,
        reads: Arc<Reads>,
        footers: Arc<Footers>,
        writer: UndoWriter,
    ) -> Self {
        let fold = Arc::new(Fold::new(state.clone(), reads.clone(), footers.clone()));
        let undo = Undo::new(state.clone(), reads.clone(), fold.clone());
        Self { state, reads, footers, fold, undo, upkeep: Mutex::new(writer) }
    }

    /// While this is held no turn is taken.
    pub(crate) fn lock(&self) -> MutexGuard<'_, UndoWriter> {
        self.upkeep.lock().expect("a panic aborts the process")
    }

    /// Ends the open undo segment, where there is one; `undo` is what [`Turns::lock`] gave.
    pub(crate) fn seal_undo(&self, undo: &mut UndoWriter) -> io::Result<()> {
        self.undo.seal(undo)
    }

    /// Does a bounded amount of what is to be done.
    pub(crate) fn take(&self, how: &Upkeep<'_>, contain: Contain<'_>) -> Result<Done, FoldError> {
        let mut undo = self.lock();
        self.state.check_turn().map_err(FoldError::Manifest)?;
        let stamp = self.state.write_shared().age.tick(how);
        Pins { state: &self.state }.expire(how.now).map_err(FoldError::Manifest)?;
        damage::settle(&self.state).map_err(FoldError::Manifest)?;
        if self.state.read_shared().settings.mode == Mode::RollForward
            && !undo.has_unfinished_step(&self.state)
        {
            // What is left of another mode ages as sealed segments do.
            self.undo.seal(&mut undo).map_err(FoldError::Manifest)?;
        }
        let footers = self.footers.write_all(Some(stamp)).map_err(FoldError::Footer)?;
        self.keep_ages(stamp).map_err(FoldError::Manifest)?;
        let merges = compact::merge_runs(&self.state, &self.reads, how.entropy)?;
        let mut kept = self.retain(&mut undo, how, contain)?;
        // A step that was cut short is finished in either mode.
        if self.state.read_shared().settings.mode == Mode::Rollback || undo.has_unfinished_step(&self.state) {
            let applied = self.undo.apply(&mut undo, how, contain)?;
            kept.folded_bytes += applied.folded_bytes;
            kept.segments += applied.segments;
            kept.more |= applied.more;
        }
        let applied = self.state.read_shared().manifest.applied();
        Ok(Done { footers, merges, applied, more: kept.more || merges > 0, ..kept })
    }

    /// Stamps segments that got their footer without, and saves the age clock where nothing else did for long.
    fn keep_ages(&self, stamp: Stamp) -> io::Result<()> {
        let is_due = {
            let shared = self.state.read_shared();
            let logs = [&shared.manifest.redo, &shared.manifest.undo];
            let mut sealed = logs.iter().flat_map(|log| &log.segments).filter_map(|s| s.sealed.as_ref());
            let unsaved = shared.age.now.saturating_sub(shared.manifest.age_clock);
            let is_awaited =
                shared.settings.is_locked || shared.manifest.pins.iter().any(|pin| pin.expires_age.is_some());
            let most = micros(shared.settings.history) / SAVED_PARTS;
            let most = if is_awaited { most.min(micros(SAVED_WHERE_AWAITED)) } else { most };
            sealed.any(|sealed| sealed.aged_from.is_none()) || unsaved > most
        };
        if !is_due {
            return Ok(());
        }
        self.state.change_manifest_alone(|manifest| {
            for log in [&mut manifest.redo, &mut manifest.undo] {
                log.segments.iter_mut().filter_map(|s| s.sealed.as_mut()).for_each(|s| stamp.put(s));
            }
        })
    }

    /// Folds or retires what is due.
    fn retain(
        &self,
        undo: &mut UndoWriter,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<Done, FoldError> {
        let applied = self.state.read_shared().manifest.applied();
        let last_good = self.last_good();
        let due = self.state.read_shared().due(last_good);
        let Some(due) = due else { return Ok(Done { applied, ..Done::default() }) };
        // What was begun is ended first: what is due grows while it is written.
        let target = self.fold.begun().filter(|begun| *begun < due).unwrap_or(due);
        let mut folded_bytes = 0;
        if target > applied {
            if undo.has_unfinished_step(&self.state) {
                return Ok(Done { applied, more: true, ..Done::default() });
            }
            match self.fold.fold_to(target, how, contain)? {
                Some(written) => {
                    folded_bytes = written.bytes;
                    if !written.is_whole {
                        return Ok(Done { applied, folded_bytes, more: true, ..Done::default() });
                    }
                }
                None => return Ok(Done { applied, ..Done::default() }),
            }
        } else if !self.fold.retire(target).map_err(FoldError::Manifest)? {
            return Ok(Done { applied, ..Done::default() });
        }
        let segments = self.fold.finish(target).map_err(FoldError::Manifest)?;
        Ok(Done { segments, folded_bytes, more: true, ..Done::default() })
    }

    /// The newest cut there is to fail over to. While a sync is under way all that come after it miss writes, and while
    /// something of the newest state is lost they are damaged, so that it is the newest checkpoint from before.
    fn last_good(&self) -> Option<WriteSeq> {
        let history = History { state: &self.state };
        let newest = history.newest_consistent(WriteSeq::MAX)?;
        let is_whole = {
            let shared = self.state.read_shared();
            !shared.timeline.is_gap_open() && !shared.timeline.lost().is_of_newest()
        };
        if is_whole {
            return Some(newest);
        }
        // One that cannot be read is none: the cut just before the sync is held then.
        let checkpoint = history.newest_checkpoint().ok().flatten();
        Some(checkpoint.map_or(newest, |facts| facts.cut().min(newest)))
    }
}
