//! Folding: what is old in the redo log moves into the replica, in the order of the disks.
//!
//! One crash story, told at the order of the steps: (1) cuts below the new `applied` are retired, durably,
//! so that no image can be opened there any more, also not after a crash in the middle of (2); images
//! that are open hold pins, and a pin below stops the fold; (2) the replica is written and synced: readers
//! at or above the new `applied` do not see it, for wherever it is written a redo extent they prefer
//! stands; (3) the manifest with the new `applied` is saved, without the segments that are done; (4)
//! readers that began before are waited for; (5) the files are kept to be written anew, or go. A crash
//! before (3) repeats (2) with the same bytes; a crash after it leaves files that no manifest names, which
//! are removed when the journal is opened.
//!
//! Step (2) may be long: it is done in parts, each by a turn of upkeep of its own, and goes on at the place where the part
//! before has ended. Each part is synced, so that nothing is known of the replica that is not so on the disk.
//!
//! In rollback mode (`undo.rs`) before-images take the place of step (1).

mod again;
mod done;
mod error;
mod part;
mod regions;

use crate::cover::{Cover, LogKind, Origin, Piece};
use crate::extent::{REGION_BYTES, Width};
use crate::footers::Footers;
use crate::merge::{Merge, Source};
use crate::page::PageBuf;
use crate::payload::ReadError;
use crate::read::Reads;
use crate::replica::{Places, Writing};
use crate::run::{Run, RunError};
use crate::state::State;
use crate::store::StoreFile;
use crate::table::fill_in_order;
use crate::upkeep::Upkeep;
use done::{Gone, drop_what_is_done, recycle};
use part::{Part, fold_in_threads};
use regions::{Region, Regions, Wanted};
use std::io;
use std::sync::Arc;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use threads::sync::{Mutex, MutexGuard};
use types::{ByteRange, DiskIndex, WriteSeq};

pub use error::FoldError;

/// What of a replica is damaged.
#[derive(Debug)]
pub(crate) enum CameUpon {
    /// What is left of blocks of one region that are written in part, and what is wrong with each.
    Written(Places),
    /// Something about here, which was to be read: it is looked at once more.
    Unread(ByteRange),
}

/// Contains that; told while this turn of upkeep is taken.
pub(crate) type Contain<'a> = &'a (dyn Fn(DiskIndex, CameUpon) -> Result<(), FoldError> + Sync);

/// How far the writing of a replica is that was begun, and goes on in the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    above: WriteSeq,
    target: WriteSeq,
    /// Every place that begins below is done.
    below: u64,
}

/// What a turn has brought to the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    /// Whether the replica has all of it now.
    pub(crate) is_whole: bool,
}

/// Who brings the redo log into the replica; by one turn of upkeep at a time.
#[derive(Debug)]
pub(crate) struct Fold {
    state: Arc<State>,
    reads: Arc<Reads>,
    footers: Arc<Footers>,
    /// Of a replica that is written in part; held shortly.
    begun: Mutex<Option<Begun>>,
    /// Whether the file system of the replicas has made a hole when it was last asked to.
    makes_holes: AtomicBool,
    /// Whether a part was begun that has not ended as it should, of what is to be written now: by an earlier life, perhaps.
    was_cut_short: AtomicBool,
}

impl Fold {
    pub(crate) fn new(state: Arc<State>, reads: Arc<Reads>, footers: Arc<Footers>) -> Self {
        let (applied, upto) = state.read_shared().manifest.being_written();
        let was_cut_short = AtomicBool::new(upto > applied);
        let makes_holes = AtomicBool::new(false);
        Self { state, reads, footers, begun: Mutex::default(), makes_holes, was_cut_short }
    }

    /// Up to where a fold is under way; none where none is.
    pub(crate) fn begun(&self) -> Option<WriteSeq> {
        let applied = self.state.read_shared().manifest.applied();
        self.lock_begun().filter(|begun| begun.above == applied).map(|begun| begun.target)
    }

    fn lock_begun(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().expect("a panic aborts the process")
    }

    /// Folds everything at or below `target`, the end of a sealed segment. None where a pin holds it.
    pub(crate) fn fold_to(
        &self,
        target: WriteSeq,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<Option<Written>, FoldError> {
        if !self.retire(target).map_err(FoldError::Manifest)? {
            return Ok(None);
        }
        self.write_replica(target, how, contain).map(Some)
    }

    /// Retires cuts below `floor`, durably. False where a pin holds one, or all history is locked: that may have been said
    /// since it was decided what is due.
    pub(crate) fn retire(&self, floor: WriteSeq) -> io::Result<bool> {
        {
            let mut shared = self.state.write_shared();
            if shared.settings.is_locked || shared.lowest_pin().is_some_and(|cut| cut < floor) {
                return Ok(false);
            }
            // Nobody may pin below from here on.
            shared.timeline.raise_floor(floor);
        }
        self.state.change_manifest(
            |manifest| manifest.retired_below = manifest.retired_below.max(floor.raw()),
            |shared, manifest| {
                // Not up to the floor: a fold to further up may have failed before this one.
                shared.timeline.forget_gaps(WriteSeq::from_raw(manifest.retired_below));
                shared.set_manifest(manifest, |_| {});
            },
        )?;
        Ok(true)
    }

    /// Writes to the replicas what the redo log has above `applied` and at or below `target`, or a part of that, and
    /// syncs.
    pub(crate) fn write_replica(
        &self,
        target: WriteSeq,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<Written, FoldError> {
        let above = self.state.read_shared().manifest.applied();
        // Nothing is known of how far a part got that fails.
        let begun = self.lock_begun().take().filter(|begun| (begun.above, begun.target) == (above, target));
        let [narrow, wide] =
            Width::BOTH.map(|width| self.sources_between(LogKind::Redo, above, target, width));
        let (narrow, wide) = (Merge::new(narrow?)?, Merge::new(wide?)?);
        let written = AtomicU64::new(0);
        let is_repeated = self.was_cut_short.swap(true, Ordering::Relaxed);
        if is_repeated && begun.is_none() {
            self.sum_what_only_before_images_tell((above, target), how, contain)?;
        }
        let fold = |region: &Region, buf: &mut PageBuf| {
            let bytes = self.fold_region(region, (target, is_repeated), buf, how, contain)?;
            written.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        };
        let sizes: Vec<u64> =
            self.state.read_shared().manifest.disks.iter().map(|disk| disk.size_bytes).collect();
        let disks = sizes.len();
        let regions = Regions::new(narrow, wide, Wanted { sizes, above, target })?;
        let from = begun.map_or(0, |begun| begun.below);
        let makes_holes = &self.makes_holes;
        let mut part = Part { regions, from, makes_holes, spent: 0, next: None };
        if how.threads <= 1 {
            let mut buf = PageBuf::zeroed(REGION_BYTES as usize);
            while let Some(region) = part.next()? {
                fold(&region, &mut buf)?;
            }
        } else {
            fold_in_threads(&mut part, how.threads, &fold)?;
        }
        for disk in 0..disks {
            let replica = self.reads.replica(DiskIndex(disk as u16)).map_err(FoldError::Replica)?;
            replica.sync().map_err(FoldError::Replica)?;
        }
        self.was_cut_short.store(is_repeated && self.is_more_begun(target, &part), Ordering::Relaxed);
        *self.lock_begun() = part.next.map(|below| Begun { above, target, below });
        Ok(Written { bytes: written.into_inner(), is_whole: part.next.is_none() })
    }

    /// Whether what was begun goes on behind what is written now: in this fold, or in one to further up that had failed before
    /// it, for an operator may have allowed more to be kept since.
    fn is_more_begun(&self, target: WriteSeq, part: &Part<'_>) -> bool {
        part.next.is_some() || self.state.read_shared().manifest.being_written().1 > target
    }

    /// The extents of one width of all segments of a log that may hold some in the range, each source in order.
    pub(crate) fn sources_between(
        &self,
        kind: LogKind,
        above: WriteSeq,
        upto: WriteSeq,
        width: Width,
    ) -> Result<Vec<Source>, RunError> {
        let (manifest, mut tables) = {
            let shared = self.state.read_shared();
            let mut tables = Vec::new();
            for table in &shared.view.log(kind).frozen {
                tables.push(table.of_width(width));
            }
            tables.push(shared.table(kind).of_width(width));
            (shared.manifest.clone(), tables)
        };
        for table in &mut tables {
            table.retain(|extent| extent.seq > above && extent.seq <= upto);
        }
        let mut sources: Vec<Source> =
            tables.into_iter().map(|table| Source::Memory(table.into_iter())).collect();
        for segment in &manifest.log(kind).segments {
            let Some(footer) = segment.footer() else { continue };
            if footer.last_seq > above.raw() && footer.first_seq <= upto.raw() {
                let run = Arc::new(Run::new(kind, footer.clone()));
                sources.push(Source::of_run(run, width, &*self.state.store)?);
            }
        }
        Ok(sources)
    }

    /// Brings one region's newest bytes into the replica. What of it was damaged before, and stays so, is contained.
    fn fold_region(
        &self,
        region: &Region,
        (target, is_repeated): (WriteSeq, bool),
        buf: &mut PageBuf,
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<u64, FoldError> {
        // Between regions, so that whoever waits for this life to end does not wait for a whole fold.
        self.state.check_turn().map_err(FoldError::Replica)?;
        let replica = self.reads.replica(region.disk).map_err(FoldError::Replica)?;
        let summed = self.state.read_shared().manifest.disks[usize::from(region.disk.0)].summed_below;
        let mut writing = replica.begin(summed, is_repeated);
        let bytes = self.bring(region, target, &mut writing, buf, how)?;
        self.end_writing((region.disk, replica.around(region.range)), target, writing, contain)?;
        Ok(bytes)
    }

    /// Sums what was written to some blocks.
    fn end_writing(
        &self,
        (disk, blocks): (DiskIndex, ByteRange),
        target: WriteSeq,
        writing: Writing<'_>,
        contain: Contain<'_>,
    ) -> Result<(), FoldError> {
        let lost = || self.state.read_shared().timeline.lost().of_at(disk, blocks, target);
        let spoilt = writing.spoilt(&lost());
        if !spoilt.is_empty() {
            contain(disk, CameUpon::Written(spoilt))?;
        }
        writing.finish(&lost()).map_err(FoldError::Replica)
    }

    /// Writes one region's newest bytes, in as few writes as there are runs of them.
    fn bring(
        &self,
        region: &Region,
        target: WriteSeq,
        replica: &mut Writing<'_>,
        buf: &mut PageBuf,
        how: &Upkeep<'_>,
    ) -> Result<u64, FoldError> {
        let mut cover = Cover::of(region.range);
        fill_in_order(&mut cover, &region.extents, LogKind::Redo);
        let view = self.state.read_shared().view.clone();
        let mut run: Option<ByteRange> = None;
        let mut total = 0;
        let at = |start: u64| (start - region.range.start) as usize;
        let write = |run: Option<ByteRange>, replica: &mut Writing<'_>, buf: &PageBuf| match run {
            Some(run) => replica
                .write(run.start, &buf.as_slice()[at(run.start)..at(run.end())])
                .map_err(FoldError::Replica),
            None => Ok(()),
        };
        let pieces = cover.taken();
        // A hole costs the disk no more than a region of bytes does.
        (how.pace)(pieces.iter().map(|piece| piece.range.len.min(REGION_BYTES)).sum());
        let mut left: Vec<(Piece, bool)> = pieces.into_iter().rev().map(|piece| (piece, true)).collect();
        while let Some((piece, is_whole)) = left.pop() {
            let range = piece.range;
            if piece.origin == Origin::Zero {
                let zeroed = replica.zero(range, |file| self.zero_replica(file, range, how));
                zeroed.map_err(FoldError::Replica)?;
                total += range.len;
                continue;
            }
            let bytes = &mut buf.as_mut_slice()[at(range.start)..at(range.end())];
            if let Err(error) = self.reads.part(&view, region.disk, piece).and_then(|part| part.read(bytes)) {
                let parts = match is_whole && error.is_of_a_batch() {
                    true => self.needed_of(region.disk, &piece, target)?,
                    false => None,
                };
                let parts = parts.ok_or(error)?;
                replica.leave_out(range, &parts).map_err(FoldError::Replica)?;
                left.extend(parts.into_iter().rev().map(|part| (piece.part(part), false)));
                continue;
            }
            total += range.len;
            match &mut run {
                Some(run) if run.end() == range.start => run.len += range.len,
                _ => {
                    write(run, replica, buf)?;
                    run = Some(range);
                }
            }
        }
        write(run, replica, buf)?;
        Ok(total)
    }

    /// Makes a range of a replica zeroes. Where that is no hole it is written, region by region at the pace of what is
    /// written; the first was counted already.
    fn zero_replica(&self, replica: &dyn StoreFile, range: ByteRange, how: &Upkeep<'_>) -> io::Result<()> {
        let is_hole = replica.punch(range)?;
        self.makes_holes.store(is_hole, Ordering::Relaxed);
        if is_hole {
            return Ok(());
        }
        for part in range.split_at_multiples(REGION_BYTES) {
            if part.start != range.start {
                self.state.check_turn()?;
                (how.pace)(part.len);
            }
            replica.zero(part)?;
        }
        Ok(())
    }

    /// Which parts of a piece, of which not all can be read, have to be as they are at `target`: not those that are known
    /// to be lost there. None where that is all of it.
    fn needed_of(
        &self,
        disk: DiskIndex,
        piece: &Piece,
        target: WriteSeq,
    ) -> Result<Option<Vec<ByteRange>>, ReadError> {
        let known = self.state.read_shared().timeline.lost().left_of(disk, piece.range, target);
        if known == [piece.range] {
            return self.still_needed(disk, piece, target);
        }
        let mut needed = Vec::new();
        for part in known {
            match self.still_needed(disk, &piece.part(part), target)? {
                Some(parts) => needed.extend(parts),
                None => needed.push(part),
            }
        }
        Ok(Some(needed))
    }

    /// Which parts of a piece some cut that can be opened needs as they are at `target`. In a gap that has ended those are
    /// not needed that were written anew by its end, as all was that could not be read when the sides were compared.
    /// An image that was opened before the gap was found, at the write or above it, needs them as far as its cut. None
    /// where there is no such gap, or where it begins behind the write: cuts between read the replica there, once a step
    /// back has brought it further, and would be given what was there before the write.
    fn still_needed(
        &self,
        disk: DiskIndex,
        piece: &Piece,
        target: WriteSeq,
    ) -> Result<Option<Vec<ByteRange>>, ReadError> {
        let Origin::Log { seq, .. } = piece.origin else { return Ok(None) };
        let (gap, pin, retired_below) = {
            let shared = self.state.read_shared();
            let retired_below = WriteSeq::from_raw(shared.manifest.retired_below);
            (shared.timeline.closed_gap_at(target), shared.lowest_pin_from(seq), retired_below)
        };
        let gap = gap.filter(|(begin, _)| *begin <= seq.max(retired_below));
        let upto = gap.map(|(_, end)| pin.map_or(end, |pin| end.min(pin)));
        upto.map(|upto| self.reads.unwritten_between(disk, piece.range, target, upto)).transpose()
    }

    /// Moves `applied` to `target`, drops the segments that are done, and keeps or removes their files.
    pub(crate) fn finish(&self, target: WriteSeq) -> io::Result<usize> {
        let mut gone = Gone::default();
        // A footer that is being written beside this adds its checkpoints to the newest file, which may go here.
        let _footers = self.footers.lock();
        self.state.change_manifest(
            |manifest| {
                manifest.applied = manifest.applied.max(target.raw());
                gone = drop_what_is_done(manifest);
            },
            |shared, manifest| {
                shared.set_manifest(manifest, |view| {
                    for kind in [LogKind::Redo, LogKind::Undo] {
                        let known = view.manifest.log(kind).runs.clone();
                        view.log_mut(kind).runs.retain(|run| known.contains(&run.info));
                    }
                });
            },
        )?;
        self.reads.wait_for_readers();
        for (kind, segment) in &gone.segments {
            self.reads.forget(*kind, *segment);
        }
        recycle(&*self.state.store, &gone)?;
        Ok(gone.segments.len())
    }
}

#[cfg(test)]
mod tests;
