//! Scrubbing: segments and their index are read again from time to time, so that rot is found while the other side still
//! has what was lost. Of an open segment that is read which was durable when the reading began, while the writer goes on.
//!
//! A damaged batch is contained (`damage.rs`), and what lies behind it is read all the same. A damaged run costs
//! nothing: it is made again, a merged one out of its segments' footers, a footer out of its segment's batches or of what it
//! was merged into, in a file of its own. Where of a damaged batch nothing but the footer knew what it held, both together
//! cost cuts. A segment that retention drops while it is read is passed over.

use crate::append::Appender;
use crate::appraise::{Appraisal, Stretch};
use crate::checkpoint_files::{CheckpointError, Copies, Mended};
use crate::compact::{remove_run_files, swap_runs};
use crate::cover::LogKind;
use crate::damage::{Containing, Damage, Spoilt, Untold};
use crate::extent::{Extent, REGION_BYTES, extents_of};
use crate::fold::{CameUpon, FoldError};
use crate::footers::Footers;
use crate::manifest::{Manifest, RunInfo, SegmentInfo};
use crate::page::PAGE_BYTES;
use crate::payload::ReadError;
use crate::read::Reads;
use crate::replica::Places;
use crate::run::{Run, RunError};
use crate::run_writer::RunWriter;
use crate::scrub_replica::{Read, ScrubReplica};
use crate::segment::{Found, Onward, Segment, cut_off_up_to};
use crate::state::State;
use crate::table::Table;
use crate::turn::Turns;
use crate::undo::UndoWriter;
use crate::upkeep::Upkeep;
use crate::view::View;
use std::io;
use std::sync::Arc;
use types::{ByteRange, DiskIndex, WriteSeq};

/// Up to where a round of scrubbing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScrubPlace(Place);

/// In the order in which they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Redo(u64),
    Undo(u64),
    Replica { disk: u16, upto: u64 },
}

fn place_of(kind: LogKind, segment: u64) -> ScrubPlace {
    ScrubPlace(match kind {
        LogKind::Redo => Place::Redo(segment),
        LogKind::Undo => Place::Undo(segment),
    })
}

/// What a step of scrubbing found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where the next step goes on; none where the round is done.
    pub place: Option<ScrubPlace>,
    pub bytes: u64,
    /// What was found damaged now, contained already: the stream must be told, so that the source sends again.
    pub damage: Vec<Damage>,
    /// Index runs that were made again.
    pub rebuilt: usize,
    /// What else was damaged, cost nothing, and was made again.
    pub mended: Vec<String>,
    /// Checkpoints that no list shows any more.
    pub lost: Vec<CheckpointError>,
}

/// What is to be read next.
struct Next {
    kind: LogKind,
    info: SegmentInfo,
    /// The last sequence before it.
    before: WriteSeq,
    /// Where what was durable of it ended when this was asked.
    end: u64,
}

impl Next {
    fn place(&self) -> ScrubPlace {
        place_of(self.kind, self.info.number)
    }
}

/// Who scrubs a journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scrub<'a> {
    pub(crate) state: &'a State,
    pub(crate) reads: &'a Reads,
    /// Beside whose work no checkpoint file is mended.
    pub(crate) footers: &'a Footers,
    pub(crate) appender: &'a Appender,
    /// Beside whose work no run is put in another's place.
    pub(crate) turns: &'a Turns,
    pub(crate) untold: &'a Untold,
}

impl Scrub<'_> {
    /// Reads the segment after `after` and its footer, and with the last one every merged run, the checkpoint files
    /// and the manifest. What a step contains that fails then is told by the next turn of upkeep.
    pub(crate) fn step(&self, after: Option<ScrubPlace>, how: &Upkeep<'_>) -> Result<Scrubbed, FoldError> {
        let done = self.read_next(after, how)?;
        self.untold.tell(&done.damage);
        Ok(done)
    }

    fn read_next(&self, after: Option<ScrubPlace>, how: &Upkeep<'_>) -> Result<Scrubbed, FoldError> {
        let mut done = Scrubbed::default();
        let Some(next) =
            self.segments().into_iter().find(|next| after.is_none_or(|after| next.place() > after))
        else {
            if let Some((disk, from)) = self.next_replica(after) {
                return self.read_replica(disk, from, how);
            }
            done.rebuilt = self.rebuild_merged(how)?;
            Mended { mended: done.mended, lost: done.lost } =
                self.mend_checkpoints(how).map_err(FoldError::Footer)?;
            done.mended.extend(self.state.mend_copies().map_err(FoldError::Manifest)?);
            return Ok(done);
        };
        self.read_segment(next, how)
    }

    /// Reads the segments of a log that have to do with a file, and their footers.
    pub(crate) fn segment_with(
        &self,
        kind: LogKind,
        file: &str,
        how: &Upkeep<'_>,
    ) -> Result<Vec<Scrubbed>, FoldError> {
        let is_in = |info: &SegmentInfo| {
            info.file_name(kind) == file || info.footer().is_some_and(|footer| footer.file_name(kind) == file)
        };
        let wanted = self.segments().into_iter().filter(|next| next.kind == kind && is_in(&next.info));
        wanted.map(|next| self.read_segment(next, how)).collect()
    }

    /// Reads a segment and its footer.
    fn read_segment(&self, next: Next, how: &Upkeep<'_>) -> Result<Scrubbed, FoldError> {
        let mut done = Scrubbed { place: Some(next.place()), ..Scrubbed::default() };
        let Next { kind, info, before, end } = next;
        let stretches;
        (done.bytes, stretches) =
            self.read_batches(kind, &info, before, end, how).map_err(FoldError::Footer)?;
        // An index first: it tells what damage costs.
        self.mend_footer(kind, &info, before, how, &mut done)?;
        if !stretches.is_empty() && self.is_kept(kind, info.number) {
            let contained = match self.contain(kind, &info, &stretches) {
                Err(FoldError::Read(ReadError::Run(_))) => {
                    self.mend_index(how, &mut done)?;
                    self.contain(kind, &info, &stretches)
                }
                contained => contained,
            };
            done.damage.extend(contained?);
        }
        Ok(done)
    }

    /// Every segment, in the order in which they are read.
    fn segments(&self) -> Vec<Next> {
        let (manifest, ends) = {
            let shared = self.state.read_shared();
            (shared.manifest.clone(), [shared.open_bytes, shared.undo_open_bytes])
        };
        let mut segments = Vec::new();
        for kind in [LogKind::Redo, LogKind::Undo] {
            let mut before = match kind {
                LogKind::Redo => WriteSeq::from_raw(manifest.base.last_seq),
                LogKind::Undo => WriteSeq::ZERO,
            };
            for info in &manifest.log(kind).segments {
                let durable = ends[usize::from(kind == LogKind::Undo)];
                let end = info.sealed.as_ref().map_or(durable, |sealed| sealed.bytes);
                segments.push(Next { kind, info: info.clone(), before, end });
                before = info.sealed.as_ref().map_or(before, |s| WriteSeq::from_raw(s.point.last_seq));
            }
        }
        segments
    }

    /// Contains what of a segment does not check; what of that was not known.
    fn contain(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        stretches: &[Stretch],
    ) -> Result<Vec<Damage>, FoldError> {
        let mut undo = self.turns.lock();
        self.state.check_life().map_err(FoldError::Footer)?;
        if !self.is_kept(kind, info.number) {
            return Ok(Vec::new());
        }
        self.settle_index(kind, info.number, &mut undo)?;
        let seen = self.state.read_shared().timeline.last_seq;
        let appraisal = Appraisal { state: self.state, reads: self.reads };
        let (costs, error) = appraisal.of_stretches(kind, info, stretches);
        let found = stretches.iter().zip(costs);
        let found = found.map(|(stretch, pieces)| Spoilt { what: stretch.what.clone(), pieces });
        let damage = self.containing().pieces(found.collect(), seen)?;
        error.map_or(Ok(damage), |error| Err(error.into()))
    }

    pub(crate) fn containing(&self) -> Containing<'_> {
        let Self { state, reads, appender, untold, .. } = *self;
        Containing { state, reads, appender, untold }
    }

    /// Makes again what of the index does not check: before anything is appraised by it, for each run alone costs nothing.
    fn mend_index(&self, how: &Upkeep<'_>, done: &mut Scrubbed) -> Result<(), FoldError> {
        for Next { kind, info, before, .. } in self.segments() {
            self.mend_footer(kind, &info, before, how, done)?;
        }
        done.rebuilt += self.rebuild_merged(how)?;
        Ok(())
    }

    /// Ends a segment that is open and puts its index on the disk: what is damaged in it would keep the next opening from
    /// reading what lies behind.
    fn settle_index(&self, kind: LogKind, number: u64, undo: &mut UndoWriter) -> Result<(), FoldError> {
        let has_footer = |info: &SegmentInfo| info.footer().is_some();
        let manifest = self.state.read_shared().manifest.clone();
        if manifest.log(kind).segments.iter().any(|info| info.number == number && has_footer(info)) {
            return Ok(());
        }
        match kind {
            LogKind::Redo => self.appender.seal_redo(&mut self.appender.lock_writer()),
            LogKind::Undo => self.turns.seal_undo(undo),
        }
        .map_err(FoldError::Manifest)?;
        self.footers.write_all(None).map_err(FoldError::Footer)?;
        Ok(())
    }

    /// The next replica, and from where on.
    fn next_replica(&self, after: Option<ScrubPlace>) -> Option<(DiskIndex, u64)> {
        let manifest = self.state.read_shared().manifest.clone();
        let (disk, upto) = match after {
            Some(ScrubPlace(Place::Replica { disk, upto })) => (disk, upto),
            _ => (0, 0),
        };
        let is_read = manifest.disks.get(usize::from(disk)).is_some_and(|disk| disk.size_bytes == upto);
        let (disk, from) = if is_read { (disk + 1, 0) } else { (disk, upto) };
        (usize::from(disk) < manifest.disks.len()).then_some((DiskIndex(disk), from))
    }

    fn read_replica(&self, disk: DiskIndex, from: u64, how: &Upkeep<'_>) -> Result<Scrubbed, FoldError> {
        let contain = |places: Places| self.contain_in_replica(disk, places);
        let (scrub, mut done) = (self.of_replicas(&contain), Scrubbed::default());
        let read = match scrub.step(disk, from, how) {
            Err(FoldError::Read(ReadError::Run(_))) => {
                self.mend_index(how, &mut done)?;
                scrub.step(disk, from, how)
            }
            read => read,
        };
        let Read { upto, bytes, damage } = read?;
        done.damage.extend(damage);
        let place = Some(ScrubPlace(Place::Replica { disk: disk.0, upto }));
        Ok(Scrubbed { place, bytes, ..done })
    }

    fn of_replicas<'b>(
        &'b self,
        contain: &'b dyn Fn(Places) -> Result<Vec<Damage>, FoldError>,
    ) -> ScrubReplica<'b> {
        ScrubReplica { state: self.state, reads: self.reads, turns: self.turns, contain }
    }

    /// Contains what was found of a replica, all in one.
    fn contain_in_replica(&self, disk: DiskIndex, places: Places) -> Result<Vec<Damage>, FoldError> {
        let seen = self.state.read_shared().timeline.last_seq;
        let appraisal = Appraisal { state: self.state, reads: self.reads };
        let mut costs = appraisal.of_replica(disk, places.iter().map(|(range, _)| *range))?;
        costs.sort_unstable();
        let found = places.into_iter().map(|(range, what)| {
            let first = costs.partition_point(|piece| piece.range.start < range.start);
            let past = costs.partition_point(|piece| piece.range.start < range.end());
            Spoilt { what, pieces: costs[first..past].to_vec() }
        });
        self.containing().pieces(found.collect(), seen)
    }

    /// Contains what the turn that is taken now has come upon in a replica. Of what it writes it knows best itself. What it
    /// could not read is looked at as a scrub does it, whatever a fold has left half done there: a disk that gives nothing
    /// just now is no damage, and of a long read one sector may be to blame. Beside it others are damaged where one is, and
    /// all of the region is looked at.
    pub(crate) fn contain_in_turn(
        &self,
        disk: DiskIndex,
        came_upon: CameUpon,
    ) -> Result<Vec<Damage>, FoldError> {
        let range = match came_upon {
            CameUpon::Written(places) => return self.contain_in_replica(disk, places),
            CameUpon::Unread(range) => range,
        };
        let replica = self.reads.replica(disk).map_err(FoldError::Replica)?;
        let start = range.start / REGION_BYTES * REGION_BYTES;
        let region = ByteRange::new(start, REGION_BYTES.min(replica.size() - start));
        let contain = |places: Places| self.contain_in_replica(disk, places);
        self.of_replicas(&contain).settle_in_turn(disk, &replica, &[region])
    }

    fn is_kept(&self, kind: LogKind, number: u64) -> bool {
        self.state.read_shared().manifest.log(kind).segments.iter().any(|info| info.number == number)
    }

    /// Reads every batch of a segment up to byte `end`: how many bytes, and what of it does not check. What is known
    /// already is told again, for more may have come behind it.
    fn read_batches(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        before: WriteSeq,
        end: u64,
        how: &Upkeep<'_>,
    ) -> io::Result<(u64, Vec<Stretch>)> {
        let mut bytes = 0;
        let each = |found: &Found| {
            bytes += found.batch.bytes().len() as u64;
            (how.pace)(found.batch.bytes().len() as u64);
        };
        let stretches = self.read_around_damage(kind, info, before, end, each)?;
        Ok((bytes, stretches))
    }

    /// Tells `each` batch of a segment, up to byte `end`, whose tables check. What does not check is returned.
    fn read_around_damage(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        before: WriteSeq,
        end: u64,
        mut each: impl FnMut(&Found),
    ) -> io::Result<Vec<Stretch>> {
        let (mut last, mut stretches) = (before, Vec::new());
        let segment = match Segment::open(&*self.state.store, kind, info) {
            Ok(segment) => segment,
            Err(error) => {
                let what = error.io_or_damage()?;
                return Ok(vec![Stretch { what, last, place: 0..end, tables: None }]);
            }
        };
        let mut scan = segment.scan(Some(end)).map_err(io::Error::other)?;
        loop {
            self.state.check_turn()?;
            let at = scan.position.at;
            let error = match scan.next() {
                Ok(Some(found)) => {
                    last = found.batch.header().last_seq;
                    each(&found);
                    continue;
                }
                Ok(None) if at >= end => return Ok(stretches),
                Ok(None) => segment.ends_early(at),
                Err(error) => error,
            };
            let mut stretch = Stretch { what: error.io_or_damage()?, last, place: at..end, tables: None };
            stretch.tables = scan.tables().map_err(io::Error::other)?;
            if let Some(found) = &stretch.tables {
                last = found.batch.header().last_seq;
                each(found);
            }
            let onward = scan.resume().map_err(io::Error::other)?;
            if onward != Onward::End {
                stretch.place.end = scan.position.at;
            }
            if onward != Onward::Next {
                stretch.tables = None; // They are not of all that is lost.
                stretch.what += &cut_off_up_to(stretch.place.end);
            }
            stretches.push(stretch);
            if onward == Onward::End {
                return Ok(stretches);
            }
        }
    }

    /// The first cut that misses something where what follows `last` in a log cannot be read.
    fn lost_from(&self, kind: LogKind, last: WriteSeq) -> WriteSeq {
        match kind {
            LogKind::Redo => last.next(),
            // Whatever is older than a before-image may need it: as the manifest on the disk has it, for that is what
            // can be opened after a crash.
            LogKind::Undo => WriteSeq::from_raw(self.state.read_shared().manifest.retired_below),
        }
    }

    /// Whether every page of a run can be read and checks. One that cannot is made again out of what lies elsewhere.
    fn is_whole(&self, run: &Run) -> bool {
        run.visit(&*self.state.store, |_| {}).is_ok()
    }

    /// Makes the footer of a segment again where it does not check.
    fn mend_footer(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        before: WriteSeq,
        how: &Upkeep<'_>,
        done: &mut Scrubbed,
    ) -> Result<(), FoldError> {
        if let Some(footer) = info.footer()
            && !self.is_whole(&Run::new(kind, footer.clone()))
            && let Some(contained) = self.rebuild_footer(kind, info, before, footer, how)?
        {
            done.damage.extend(contained);
            done.rebuilt += 1;
        }
        Ok(())
    }

    /// Makes a segment's footer again, in a file of its own. What nobody knows any more is contained with that, in cuts:
    /// reads would show older bytes there. What was, unless there is nothing to be made again after all.
    fn rebuild_footer(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        before: WriteSeq,
        old: &RunInfo,
        how: &Upkeep<'_>,
    ) -> Result<Option<Vec<Damage>>, FoldError> {
        let _upkeep = self.turns.lock();
        self.state.check_life().map_err(FoldError::Footer)?;
        if !self.is_kept(kind, info.number) {
            return Ok(None);
        }
        let (mut table, mut unknown) =
            self.tables_again(kind, info, before, old).map_err(FoldError::Footer)?;
        if !unknown.is_empty() {
            if let Some(merged) = self.out_of_merged(kind, info, before) {
                (table, unknown) = (merged, Vec::new());
            } else if self.is_given(&Run::new(kind, old.clone()))? {
                return Ok(None);
            }
        }
        let manifest = self.state.read_shared().manifest.clone();
        let in_cuts = |stretch: Stretch| {
            let from = self.lost_from(kind, stretch.last);
            Damage::of_cuts(stretch.what, from, false)
        };
        let damage = unknown.into_iter().map(in_cuts).filter(|damage| !damage.is_known(&manifest));
        let damage: Vec<Damage> = damage.collect();
        let fresh = self.write_footer(kind, &table, old, how).map_err(FoldError::Footer)?;
        self.swap_footer(kind, old, &fresh, &damage).map_err(FoldError::Manifest)?;
        Ok(Some(damage))
    }

    /// Whether a run is whole that alone knows what a damaged batch held: nothing is given up for it where its file gives
    /// nothing just now.
    fn is_given(&self, run: &Run) -> Result<bool, FoldError> {
        match run.visit(&*self.state.store, |_| {}) {
            Err(error @ RunError::Io { .. }) if !run.answers(&*self.state.store) => Err(error.into()),
            visited => Ok(visited.is_ok()),
        }
    }

    /// What a segment's batches say that its old index held, and of which stretches nobody does.
    ///
    /// Nothing more, though an opening may have read no further than up to what was damaged: (1) what lies behind that is not
    /// in its index; (2) the source compares with what there is, and what it has written since as it was before is equal;
    /// (3) an index with those batches would show them over that.
    fn tables_again(
        &self,
        kind: LogKind,
        info: &SegmentInfo,
        before: WriteSeq,
        old: &RunInfo,
    ) -> io::Result<(Table, Vec<Stretch>)> {
        let mut table = Table::new(kind, info.number, info.base_page);
        let upto = WriteSeq::from_raw(old.last_seq);
        let each = |found: &Found| {
            let page = info.base_page + found.at / PAGE_BYTES;
            let entries = found.batch.entries().iter();
            let extents = entries.flat_map(|entry| extents_of(entry, page));
            extents.filter(|extent| extent.seq <= upto).for_each(|extent| table.insert(extent));
        };
        let end = info.sealed.as_ref().map_or(0, |sealed| sealed.bytes);
        let mut stretches = self.read_around_damage(kind, info, before, end, each)?;
        stretches.retain(|stretch| stretch.tables.is_none() && stretch.last < upto);
        Ok((table, stretches))
    }

    /// What a segment held, as far as anybody can want it, by a run that it was merged into; none where there is no whole
    /// one.
    fn out_of_merged(&self, kind: LogKind, info: &SegmentInfo, before: WriteSeq) -> Option<Table> {
        let manifest = self.state.read_shared().manifest.clone();
        let sealed = info.sealed.as_ref()?;
        let pages = info.base_page..info.base_page + sealed.bytes.div_ceil(PAGE_BYTES);
        let (after, upto) = (before.max(manifest.done_upto(kind)), WriteSeq::from_raw(sealed.point.last_seq));
        let is_held = |extent: &Extent| {
            let is_here = extent.payload.is_none_or(|place| pages.contains(&place.page));
            is_here && extent.seq > after && extent.seq <= upto
        };
        let covers = |run: &&RunInfo| run.covers(info.number);
        manifest.log(kind).runs.iter().filter(covers).filter(|run| run.level > 0).find_map(|run| {
            let mut held = Vec::new();
            let keep = |extent: Extent| held.extend(Some(extent).filter(is_held));
            Run::new(kind, run.clone()).visit(&*self.state.store, keep).ok()?;
            held.sort_by_key(|extent| extent.seq);
            let mut table = Table::new(kind, info.number, info.base_page);
            held.into_iter().for_each(|extent| table.insert(extent));
            Some(table)
        })
    }

    /// Writes a footer to a file of its own, which no manifest names yet.
    fn write_footer(
        &self,
        kind: LogKind,
        table: &Table,
        old: &RunInfo,
        how: &Upkeep<'_>,
    ) -> io::Result<RunInfo> {
        let number = self.state.read_shared().manifest.next_file + 1;
        let fresh = RunInfo { file: Some(number), at: 0, ..old.clone() };
        let file = self.state.store.open(&fresh.file_name(kind), true)?;
        file.set_len(0)?;
        let stamp = u32::from_le_bytes([how.entropy[8], how.entropy[9], how.entropy[10], how.entropy[11]]);
        let mut writer = RunWriter::begin(&*file, 0, kind, stamp, table.base_page);
        for extent in table.sorted() {
            writer.push(&extent)?;
        }
        let written = writer.finish()?;
        file.sync_data()?;
        self.state.store.sync_folder()?;
        Ok(RunInfo {
            bytes: written.bytes,
            entries: written.entries,
            first_seq: written.first_seq,
            last_seq: written.last_seq,
            ..fresh
        })
    }

    /// Puts a footer in the place of an old one, and contains what it does not know.
    fn swap_footer(
        &self,
        kind: LogKind,
        old: &RunInfo,
        fresh: &RunInfo,
        damage: &[Damage],
    ) -> io::Result<()> {
        let change = |manifest: &mut Manifest| {
            let log = manifest.log_mut(kind);
            let sealed = log.segments.iter_mut().find(|one| one.number == old.first_segment);
            if let Some(sealed) = sealed.and_then(|one| one.sealed.as_mut()) {
                sealed.footer = Some(fresh.clone());
            }
            log.runs.iter_mut().filter(|run| *run == old).for_each(|run| *run = fresh.clone());
            manifest.next_file = manifest.next_file.max(fresh.file.unwrap_or(0));
        };
        let show = |view: &mut View| {
            let runs = &mut view.log_mut(kind).runs;
            for run in runs.iter_mut().filter(|run| run.info == *old) {
                *run = Arc::new(Run::new(kind, fresh.clone()));
            }
        };
        if damage.is_empty() {
            return self
                .state
                .change_manifest(change, |shared, manifest| shared.set_manifest(manifest, show));
        }
        self.containing().cuts_with(damage, change, show)
    }

    /// Puts the footers in the place of merged runs that do not check; merging makes new ones of them.
    pub(crate) fn rebuild_merged(&self, how: &Upkeep<'_>) -> Result<usize, FoldError> {
        let mut count = 0;
        for kind in [LogKind::Redo, LogKind::Undo] {
            let manifest = self.state.read_shared().manifest.clone();
            for info in manifest.log(kind).runs.iter().filter(|run| run.level > 0) {
                self.state.check_turn().map_err(FoldError::Footer)?;
                (how.pace)(info.bytes);
                let run = Arc::new(Run::new(kind, info.clone()));
                if self.is_whole(&run) {
                    continue;
                }
                let _upkeep = self.turns.lock();
                let manifest = self.state.read_shared().manifest.clone();
                let log = manifest.log(kind);
                if !log.runs.contains(info) {
                    continue; // Merged or dropped meanwhile.
                }
                let segments = log.segments.iter().filter(|one| info.covers(one.number));
                let footers = segments.filter_map(SegmentInfo::footer).cloned().collect();
                swap_runs(self.state, kind, std::slice::from_ref(&run), footers)
                    .map_err(FoldError::Manifest)?;
                self.reads.wait_for_readers();
                remove_run_files(&*self.state.store, kind, &[run]);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Makes checkpoint files whole in both copies.
    fn mend_checkpoints(&self, how: &Upkeep<'_>) -> io::Result<Mended> {
        let (store, mut all) = (&*self.state.store, Mended::default());
        let numbers: Vec<u64> =
            self.state.read_shared().manifest.checkpoints.iter().map(|file| file.number).collect();
        for number in numbers {
            let manifest = self.state.read_shared().manifest.clone();
            let Some(file) = manifest.checkpoints.iter().find(|file| file.number == number) else { continue };
            (how.pace)(u64::from(file.pages) * PAGE_BYTES * 2);
            if Copies::past_the_cache(store, &manifest, file).are_whole() {
                continue;
            }
            // Nobody adds pages to it, or removes it, until it is whole.
            let _footers = self.footers.lock();
            self.state.check_life()?;
            let manifest = self.state.read_shared().manifest.clone();
            let Some(file) = manifest.checkpoints.iter().find(|file| file.number == number) else { continue };
            let Mended { mended, lost } = Copies::past_the_cache(store, &manifest, file).mend()?;
            all.mended.extend(mended);
            all.lost.extend(lost);
            if !file.is_double {
                self.state.change_manifest_alone(|manifest| {
                    let mut files = manifest.checkpoints.iter_mut();
                    files.find(|file| file.number == number).expect("it stays").is_double = true;
                })?;
            }
        }
        Ok(all)
    }
}
