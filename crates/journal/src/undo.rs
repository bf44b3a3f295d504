//! Rollback mode: before-images go to the undo log, then the replica is brought up to the newest write.
//!
//! One step, as a numbered story: (1) for every write above `applied` up to the step's target, in the
//! order of the writes, what its range held just before goes to the undo log, the last batch marked as
//! the step's end; (2) it is synced; (3) its extents are published: from here on a reader whose cut lies
//! below a write finds the before-image instead of the replica; (4) the manifest says up to where there are
//! before-images; (5) readers that looked up before (3) are waited for; (6) the replica is written and synced;
//! (7) the manifest with the new `applied` is saved.
//!
//! A crash before the mark of (1) is on the disk: the replica is untouched, the part of a step is cut off
//! when the journal is opened. A crash after it: the step is whole, so (6) and (7) are done again and
//! nothing is read out of a replica that is half the one and half the other. A log that ends below what (4)
//! says is damaged, however its end looks: without its steps older cuts would be read out of the replica.

mod step;
mod writer;

use crate::cover::LogKind;
use crate::extent::{Extent, Width};
use crate::fold::{Contain, Fold, FoldError};
use crate::manifest::StreamPoint;
use crate::merge::Merge;
use crate::read::Reads;
use crate::roll;
use crate::state::State;
use crate::upkeep::{Done, Upkeep};
use crate::view::Shared;
use std::io;
use std::sync::Arc;
use step::Step;
use types::WriteSeq;
use types::limits::{TABLE_ENTRIES_MAX, UNDO_STEP_BYTES};

pub(crate) use writer::UndoWriter;

/// Who brings the replica up to the newest write; by one turn of upkeep at a time.
#[derive(Debug)]
pub(crate) struct Undo {
    state: Arc<State>,
    reads: Arc<Reads>,
    fold: Arc<Fold>,
}

impl Undo {
    pub(crate) fn new(state: Arc<State>, reads: Arc<Reads>, fold: Arc<Fold>) -> Self {
        Self { state, reads, fold }
    }

    /// Brings the replica up to the newest durable write, or as far as one step goes.
    pub(crate) fn apply(
        &self,
        undo: &mut UndoWriter,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<Done, FoldError> {
        let mut kept = Done::default();
        if !undo.has_unfinished_step(&self.state) {
            let Some(more) = self.write_before_images(undo, how, contain)? else { return Ok(kept) };
            kept.more = more;
        }
        self.note_before_images(undo.upto).map_err(FoldError::Manifest)?;
        self.reads.wait_for_readers();
        let written = self.fold.write_replica(undo.upto, how, contain)?;
        kept.folded_bytes = written.bytes;
        if !written.is_whole {
            return Ok(Done { more: true, ..kept });
        }
        kept.segments = self.fold.finish(undo.upto).map_err(FoldError::Manifest)?;
        Ok(kept)
    }

    /// Steps (1) to (3). None where there is nothing to do; else whether more is left for another step.
    fn write_before_images(
        &self,
        undo: &mut UndoWriter,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<Option<bool>, FoldError> {
        let (applied, durable, settings) = {
            let shared = self.state.read_shared();
            (shared.manifest.applied(), shared.timeline.last_seq, shared.settings)
        };
        if durable <= applied {
            return Ok(None);
        }
        let (extents, target) = self.next_step(applied, durable)?;
        // A clock that was set back would keep it open for as long.
        undo.opened_at = undo.opened_at.map(|opened| opened.min(how.now));
        let old = undo.opened_at.is_some_and(|opened| how.now.since(opened) > settings.history / 12);
        let full = undo.open.as_ref().is_some_and(|(_, _, end)| end.at >= settings.segment_bytes)
            || self.state.read_shared().undo_table.len() >= TABLE_ENTRIES_MAX;
        if old || full || undo.must_seal {
            self.seal(undo).map_err(FoldError::Undo)?;
        }
        if undo.open.is_none() {
            let begun = roll::begin_segment(&self.state, LogKind::Undo, undo.vm, how.now, how.entropy);
            let (info, segment) = begun.map_err(FoldError::Undo)?;
            let start = segment.start();
            undo.open = Some((segment, info.base_page, start));
            undo.opened_at = Some(how.now);
        }
        let position = undo.open.as_ref().expect("opened above").2;
        let mut step = Step {
            state: &self.state,
            reads: &self.reads,
            contain,
            records: Vec::new(),
            record_bytes: 0,
            written: Vec::new(),
            position,
            last_seq: undo.upto,
            now: how.now,
            undo,
        };
        for extent in &extents {
            (how.pace)(extent.range.len);
            step.push(extent)?;
        }
        step.finish(target)?;
        Ok(Some(target < durable))
    }

    /// Step (4).
    fn note_before_images(&self, upto: WriteSeq) -> io::Result<()> {
        if self.state.read_shared().manifest.before_images_upto == upto.raw() {
            return Ok(());
        }
        self.state.change_manifest_alone(|manifest| manifest.before_images_upto = upto.raw())
    }

    /// The extents of the next step in the order of the writes, and the step's target.
    fn next_step(&self, applied: WriteSeq, durable: WriteSeq) -> Result<(Vec<Extent>, WriteSeq), FoldError> {
        // A segment at a time, so that what is sorted in memory has a bound.
        let ends = |shared: &Shared| {
            let sealed = shared.manifest.redo.segments.iter().filter_map(|segment| segment.sealed.as_ref());
            let mut ends = sealed.map(|sealed| WriteSeq::from_raw(sealed.point.last_seq));
            ends.find(|end| *end > applied)
        };
        let mut target = ends(&self.state.read_shared()).unwrap_or(durable).min(durable);
        let mut extents = Vec::new();
        for width in Width::BOTH {
            let mut merge = Merge::new(self.fold.sources_between(LogKind::Redo, applied, target, width)?)?;
            while let Some(extent) = merge.next()? {
                if extent.seq > applied && extent.seq <= target {
                    extents.push(extent);
                }
            }
        }
        extents.sort_by_key(|extent| extent.seq);
        let mut bytes = 0;
        for at in 1..extents.len() {
            bytes += extents[at - 1].range.len;
            if bytes > UNDO_STEP_BYTES && extents[at].seq > extents[at - 1].seq {
                target = extents[at - 1].seq;
                extents.truncate(at);
                break;
            }
        }
        Ok((extents, target))
    }

    /// Ends the open undo segment.
    pub(crate) fn seal(&self, undo: &mut UndoWriter) -> io::Result<()> {
        let Some((_, _, end)) = &undo.open else { return Ok(()) };
        let point = StreamPoint { last_seq: undo.upto.raw(), ..StreamPoint::default() };
        let newest_at = self.state.read_shared().newest_at.unwrap_or_default();
        // Where it fails, the manifest on the disk may have it sealed all the same.
        undo.must_seal = true;
        roll::seal(&self.state, LogKind::Undo, end.at, point, newest_at)?;
        undo.must_seal = false;
        undo.open = None;
        Ok(())
    }
}
