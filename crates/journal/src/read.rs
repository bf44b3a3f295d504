//! Reading as of a cut: looking up where the bytes are, and bringing them.
//!
//! The rule, right on both sides of `applied` and while a fold is going on: the newest redo extent above
//! `applied` and at or below the cut; else the oldest undo extent above the cut; else the replica.
//!
//! A reader holds the gate from the look-up until it has the bytes. Whoever is about to change bytes that
//! an earlier look-up may have named (a fold the replica, recycling a segment) first publishes what makes
//! later look-ups go elsewhere, and then passes the gate once: see [`Reads::wait_for_readers`].

use crate::cover::{Cover, LogKind, Origin, Piece};
use crate::extent::{Extent, REGION_BYTES};
use crate::page::PAGE_BYTES;
use crate::payload::{BatchKey, ReadError, SegmentFile, Wanted};
use crate::replica::Replica;
use crate::segment::Segment;
use crate::state::State;
use crate::sums::SUMMED_BYTES;
use crate::view::{Shared, View};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use threads::sync::{Mutex, RwLock};
use types::limits::OPEN_SEGMENTS_MAX;
use types::{ByteRange, DiskIndex, WriteSeq};

/// Parts that one thread reads before it looks for more: a few requests to the disk are cheaper than a thread.
const PARTS_A_TURN: usize = 4;

/// Open segment files, as many as are used.
#[derive(Debug, Default)]
struct SegmentFiles {
    open: RwLock<HashMap<(LogKind, u64), SegmentFile>>,
}

impl SegmentFiles {
    fn get(&self, kind: LogKind, number: u64) -> Option<SegmentFile> {
        self.open.read().expect("a panic aborts the process").get(&(kind, number)).cloned()
    }

    fn insert(&self, kind: LogKind, segment: &Segment) -> SegmentFile {
        let file = SegmentFile {
            name: segment.name.as_str().into(),
            header: segment.header,
            file: segment.file.clone(),
        };
        let mut open = self.open.write().expect("a panic aborts the process");
        if open.len() >= OPEN_SEGMENTS_MAX {
            open.clear();
        }
        open.insert((kind, segment.header.number), file.clone());
        file
    }

    fn forget(&self, kind: LogKind, number: u64) {
        self.open.write().expect("a panic aborts the process").remove(&(kind, number));
    }

    fn clear(&self) {
        self.open.write().expect("a panic aborts the process").clear();
    }
}

/// A range and where its bytes are.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: ByteRange,
    pub(crate) source: PartSource,
}

#[derive(Debug)]
pub(crate) enum PartSource {
    Zero,
    /// With the byte below which all of it has checksums.
    Replica(Arc<Replica>, u64),
    Payload(SegmentFile, Wanted),
}

impl Part {
    /// Fills `buf`, as long as the range.
    pub(crate) fn read(&self, buf: &mut [u8]) -> Result<(), ReadError> {
        match &self.source {
            PartSource::Zero => buf.fill(0),
            PartSource::Replica(replica, summed) => replica.read(self.range.start, buf, *summed)?,
            PartSource::Payload(segment, wanted) => segment.read(wanted, buf)?,
        }
        Ok(())
    }
}

/// Fills `buf` with parts that follow each other: by several threads at once, up to `readers`, where there
/// are many. Of several errors the first one found is told.
fn read_parts(parts: &[Part], buf: &mut [u8], readers: usize) -> Result<(), ReadError> {
    let mut chunks = Vec::new();
    let mut rest = buf;
    for chunk in parts.chunks(PARTS_A_TURN) {
        let len: u64 = chunk.iter().map(|part| part.range.len).sum();
        let (own, others) = rest.split_at_mut(len as usize);
        chunks.push((chunk, own));
        rest = others;
    }
    let helpers = readers.min(chunks.len()).saturating_sub(1);
    let queue = Mutex::new(chunks);
    let work = || {
        loop {
            let next = queue.lock().expect("a panic aborts the process").pop();
            let Some((chunk, mut own)) = next else { return Ok(()) };
            for part in chunk {
                let (buf, others) = own.split_at_mut(part.range.len as usize);
                part.read(buf)?;
                own = others;
            }
        }
    };
    if helpers == 0 {
        return work();
    }
    threads::thread::scope(|scope| {
        // A thread that cannot be had is done without.
        let spawned = (0..helpers).filter_map(|_| threads::spawn_scoped(scope, work).ok());
        let spawned: Vec<_> = spawned.collect();
        let own = work();
        let others = spawned.into_iter().map(|thread| thread.join().expect("a panic aborts the process"));
        others.fold(own, Result::and)
    })
}

/// What reads go through: the gate, and the files that were opened for them.
#[derive(Debug)]
pub(crate) struct Reads {
    state: Arc<State>,
    gate: RwLock<()>,
    files: SegmentFiles,
    replicas: RwLock<Vec<Option<Arc<Replica>>>>,
}

impl Reads {
    pub(crate) fn new(state: Arc<State>) -> Self {
        let replicas = RwLock::new(vec![None; state.read_shared().manifest.disks.len()]);
        Self { state, gate: RwLock::default(), files: SegmentFiles::default(), replicas }
    }

    /// Fills `buf` with the disk's bytes from `start` as of `cut`, which is pinned or not yet retired.
    pub(crate) fn read_at(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.read(disk, cut, start, buf, |_| Ok(()))
    }

    /// The same, of an image that may have been opened before damage was found: an error where what lay at its cut is not
    /// known any more, for below what was lost lie older bytes.
    pub(crate) fn read_image(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.read(disk, cut, start, buf, |shared| shared.knows_all_at(cut))
    }

    /// `check` is asked of the very state that each part is looked up in.
    fn read(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
        check: impl Fn(&Shared) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let _gate = self.gate.read().expect("a panic aborts the process");
        let range = ByteRange::new(start, buf.len() as u64);
        let parts = self.plan(disk, cut, range, check)?;
        match read_parts(&parts, buf, self.state.store.readers()) {
            Err(ReadError::Rotten { .. }) => self.read_doubted(disk, &parts, buf),
            other => other,
        }
    }

    /// Reads parts of which a block of the replica is not what its checksum says: block by block, as it is where that
    /// means nothing.
    fn read_doubted(&self, disk: DiskIndex, parts: &[Part], mut buf: &mut [u8]) -> Result<(), ReadError> {
        for part in parts {
            let (own, rest) = buf.split_at_mut(part.range.len as usize);
            buf = rest;
            let PartSource::Replica(replica, summed) = &part.source else {
                part.read(own)?;
                continue;
            };
            for block in part.range.split_at_multiples(SUMMED_BYTES) {
                let own = &mut own[(block.start - part.range.start) as usize..][..block.len as usize];
                self.read_block(disk, replica, *summed, block, own)?;
            }
        }
        Ok(())
    }

    fn read_block(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        summed: u64,
        range: ByteRange,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        loop {
            let writing = self.state.read_shared().manifest.being_written();
            if self.is_being_written(disk, replica.around(range))? {
                return replica.data().read_at(range.start, buf).map_err(ReadError::Replica);
            }
            match replica.read(range.start, buf, summed) {
                // A fold may have come by since that was asked.
                Err(ReadError::Rotten { .. })
                    if self.state.read_shared().manifest.being_written() != writing => {}
                other => return other,
            }
        }
    }

    /// Whether something in a range, which lies in one region, is being brought into the replica, or was when that was cut
    /// short: until it is done its checksums say nothing. What the redo log has lost since before-images tell of.
    pub(crate) fn is_being_written(&self, disk: DiskIndex, range: ByteRange) -> Result<bool, ReadError> {
        let (after, upto) = self.state.read_shared().manifest.being_written();
        if upto <= after {
            return Ok(false);
        }
        Ok(self.unwritten_between(disk, range, after, upto)? != [range]
            || !self.extents_between(LogKind::Undo, (disk, range), (after, upto))?.is_empty())
    }

    /// Lets go of a segment's file: another one takes its name.
    pub(crate) fn forget(&self, kind: LogKind, number: u64) {
        self.files.forget(kind, number);
    }

    /// Closes the segments' files: the journal is at rest.
    pub(crate) fn rest(&self) {
        self.files.clear();
    }

    /// Waits until every read that began before has ended.
    pub(crate) fn wait_for_readers(&self) {
        drop(self.gate.write().expect("a panic aborts the process"));
    }

    /// Where the bytes of `range` are as of `cut`, in ascending order. To be called behind the gate.
    fn plan(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        range: ByteRange,
        check: impl Fn(&Shared) -> Result<(), ReadError>,
    ) -> Result<Vec<Part>, ReadError> {
        let size =
            self.state.read_shared().manifest.disks.get(usize::from(disk.0)).map(|entry| entry.size_bytes);
        if !size.is_some_and(|size| range.fits(size)) {
            return Err(ReadError::OutOfRange { range });
        }
        let mut parts = Vec::new();
        for region in range.split_at_multiples(REGION_BYTES) {
            let (pieces, view) = self.look_up(disk, cut, region, &check)?;
            for piece in pieces {
                parts.push(self.part(&view, disk, piece)?);
            }
        }
        Ok(parts)
    }

    /// Looks up a range that lies in one region.
    fn look_up(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        range: ByteRange,
        check: impl Fn(&Shared) -> Result<(), ReadError>,
    ) -> Result<(Vec<Piece>, Arc<View>), ReadError> {
        let mut cover = Cover::of(range);
        let (view, undo_of_open) = {
            let shared = self.state.read_shared();
            check(&shared)?;
            shared.knows_bytes_at(disk, range, cut)?;
            let view = shared.view.clone();
            shared.redo_table.fill(&mut cover, disk, range, view.applied, cut);
            // Taken along now: by the time the older ones are looked up it may have been sealed.
            let undo = shared.undo_table.counted(disk, range, cut, WriteSeq::MAX).into_owned();
            (view, undo)
        };
        for table in view.redo.frozen.iter().rev() {
            table.fill(&mut cover, disk, range, view.applied, cut);
        }
        for run in view.redo.runs.iter().rev() {
            run.fill(&*self.state.store, &mut cover, disk, view.applied, cut)?;
        }
        for run in &view.undo.runs {
            run.fill(&*self.state.store, &mut cover, disk, cut, WriteSeq::MAX)?;
        }
        for table in &view.undo.frozen {
            table.fill(&mut cover, disk, range, cut, WriteSeq::MAX);
        }
        crate::table::fill_in_order(&mut cover, &undo_of_open, LogKind::Undo);
        Ok((cover.finish(), view))
    }

    /// Which parts of a range, which lies in one region, no write of the redo log above `after` and at or below `upto`
    /// covers.
    pub(crate) fn unwritten_between(
        &self,
        disk: DiskIndex,
        range: ByteRange,
        after: WriteSeq,
        upto: WriteSeq,
    ) -> Result<Vec<ByteRange>, ReadError> {
        let mut cover = Cover::of(range);
        let view = {
            let shared = self.state.read_shared();
            shared.redo_table.fill(&mut cover, disk, range, after, upto);
            shared.view.clone()
        };
        for table in &view.redo.frozen {
            table.fill(&mut cover, disk, range, after, upto);
        }
        for run in &view.redo.runs {
            run.fill(&*self.state.store, &mut cover, disk, after, upto)?;
        }
        Ok(cover.open().to_vec())
    }

    /// All that a log has over a range, which lies in one region, above `after` and at or below `upto`; ascending by
    /// sequence.
    pub(crate) fn extents_between(
        &self,
        kind: LogKind,
        (disk, range): (DiskIndex, ByteRange),
        (after, upto): (WriteSeq, WriteSeq),
    ) -> Result<Vec<Extent>, ReadError> {
        let (view, mut found) = {
            let shared = self.state.read_shared();
            let open = shared.table(kind).between(disk, range, (after, upto)).collect::<Vec<_>>();
            (shared.view.clone(), open)
        };
        let log = view.log(kind);
        found.extend(log.frozen.iter().flat_map(|table| table.between(disk, range, (after, upto))));
        for run in &log.runs {
            found.extend(run.between(&*self.state.store, disk, range, (after, upto))?);
        }
        found.sort_by_key(|extent| extent.seq);
        Ok(found)
    }

    /// A piece with the file that has its bytes.
    pub(crate) fn part(&self, view: &View, disk: DiskIndex, piece: Piece) -> Result<Part, ReadError> {
        let source = match piece.origin {
            Origin::Zero => PartSource::Zero,
            Origin::Replica => {
                let summed = view.manifest.disks[usize::from(disk.0)].summed_below;
                PartSource::Replica(self.replica(disk).map_err(ReadError::Replica)?, summed)
            }
            Origin::Log { kind, page, payload_at, seq } => {
                let (segment, base_page) = self.segment_of(view, kind, page)?;
                let wanted = Wanted {
                    key: BatchKey { journal: self.state.uid, kind, page },
                    at: (page - base_page) * PAGE_BYTES,
                    seq,
                    disk,
                    range: piece.range,
                    payload_at,
                };
                PartSource::Payload(segment, wanted)
            }
        };
        Ok(Part { range: piece.range, source })
    }

    /// The open file of the segment a page lies in, and its first page.
    fn segment_of(&self, view: &View, kind: LogKind, page: u64) -> Result<(SegmentFile, u64), ReadError> {
        let info = view.manifest.log(kind).segment_of(page).ok_or_else(|| ReadError::Damaged {
            segment: kind.name().into(),
            at: page * PAGE_BYTES,
            what: "the index names a batch here, which no segment reaches to".into(),
        })?;
        let file = match self.files.get(kind, info.number) {
            Some(file) => file,
            None => {
                let segment = Segment::open(&*self.state.store, kind, info).map_err(|error| {
                    let segment = info.file_name(kind);
                    ReadError::Damaged { segment, at: 0, what: error.to_string() }
                })?;
                self.files.insert(kind, &segment)
            }
        };
        Ok((file, info.base_page))
    }

    /// The replica of a disk, opened the first time.
    pub(crate) fn replica(&self, disk: DiskIndex) -> io::Result<Arc<Replica>> {
        let at = usize::from(disk.0);
        if let Some(file) = &self.replicas.read().expect("a panic aborts the process")[at] {
            return Ok(file.clone());
        }
        let manifest = self.state.read_shared().manifest.clone();
        let entry = &manifest.disks[at];
        let opened = Replica::open(&*self.state.store, &manifest.vm, &entry.name, entry.size_bytes)?;
        let mut replicas = self.replicas.write().expect("a panic aborts the process");
        // Of two there would be two locks.
        Ok(replicas[at].get_or_insert_with(|| Arc::new(opened)).clone())
    }
}
