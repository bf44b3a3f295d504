//! Making a journal, and opening one again: what is on the disk decides what is known.
//!
//! Only segments without a footer are read: the open one, and those that were sealed just before a crash.
//! A torn batch at the very end of the open one, of which nothing had been acknowledged, is cut off.
//! Anything else that does not check is damage: it is named and contained (`damage.rs`). Where it is in
//! the open segment, the journal then stands below what the source was told, and the source sends
//! everything again. Nothing is ever cut in silence.

use crate::age::AgeClock;
use crate::cover::LogKind;
use crate::damage::Damage;
use crate::entropy::sample;
use crate::extent::extents_of;
use crate::journal::Journal;
use crate::life::Life;
use crate::manifest::{
    DiskEntry, GapEntry, Log, Manifest, ManifestError, Sealed, SegmentInfo, StreamPoint, replica_name,
};
use crate::page::PAGE_BYTES;
use crate::run::Run;
use crate::segment::{Found, Position, Scan, Segment, SegmentError};
use crate::settings::Settings;
use crate::store::{Store, set_aside};
use crate::table::Table;
use crate::timeline::Timeline;
use crate::undo::UndoWriter;
use crate::view::{LogView, Shared, View};
use crate::writer::Writer;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use types::{DiskSpec, Epoch, VmId, WallTime, WriteSeq};

/// Why a journal could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("a journal stands there already")]
    Exists,
    #[error("cannot make the journal")]
    Io(#[from] io::Error),
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("replica of disk {disk} has {found} bytes, {expected} were expected")]
    ReplicaSize { disk: String, found: u64, expected: u64 },
    #[error("cannot open the journal")]
    Io(#[from] io::Error),
}

/// An opened journal and what had to be said about it.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    pub damage: Vec<Damage>,
    /// Bytes of a torn batch that were cut off the end.
    pub torn_bytes: u64,
}

impl Journal {
    /// Makes the journal of a VM, with replicas that read as zeroes.
    ///
    /// # Errors
    /// [`CreateError::Exists`] where there is one already.
    pub fn create(
        store: Arc<dyn Store>,
        vm: VmId,
        vm_name: &str,
        disks: &[DiskSpec],
        epoch: Epoch,
        settings: Settings,
    ) -> Result<Journal, CreateError> {
        Self::create_around(store, vm, vm_name, disks, epoch, settings, true)
    }

    /// As [`Journal::create`], around replicas that lie in the store already.
    ///
    /// # Errors
    /// As [`Journal::create`].
    pub fn create_seeded(
        store: Arc<dyn Store>,
        vm: VmId,
        vm_name: &str,
        disks: &[DiskSpec],
        epoch: Epoch,
        settings: Settings,
    ) -> Result<Journal, CreateError> {
        Self::create_around(store, vm, vm_name, disks, epoch, settings, false)
    }

    fn create_around(
        store: Arc<dyn Store>,
        vm: VmId,
        vm_name: &str,
        disks: &[DiskSpec],
        epoch: Epoch,
        settings: Settings,
        replica_is_new: bool,
    ) -> Result<Journal, CreateError> {
        if store.exists("manifest")? {
            return Err(CreateError::Exists);
        }
        for disk in disks {
            let replica = store.open(&replica_name(&disk.name), true)?;
            if replica_is_new {
                replica.set_len(0)?;
            }
            replica.set_len(disk.size_bytes)?;
            replica.sync_data()?;
        }
        let disks =
            disks.iter().map(|disk| DiskEntry { name: disk.name.clone(), size_bytes: disk.size_bytes });
        let log = Log { next_segment: 1, ..Log::default() };
        let manifest = Manifest {
            vm: vm.to_string(),
            vm_name: vm_name.to_owned(),
            disks: disks.collect(),
            epoch: epoch.0,
            applied: 0,
            retired_below: 0,
            before_images_upto: 0,
            gaps: vec![GapEntry { begin: 0, end: None }],
            left_out: None,
            must_resync: None,
            base: StreamPoint::default(),
            redo: log.clone(),
            undo: log,
            age_clock: 0,
            checkpoints: Vec::new(),
            next_file: 0,
            tags: Vec::new(),
            pins: Vec::new(),
            next_pin: 0,
            damage: Vec::new(),
        };
        manifest.save(&*store)?;
        Journal::open(store, settings).map(|opened| opened.journal).map_err(|error| match error {
            OpenError::Io(source) | OpenError::Manifest(ManifestError::Io(source)) => CreateError::Io(source),
            other => CreateError::Io(io::Error::other(other)),
        })
    }

    /// Opens the journal in a folder.
    ///
    /// # Errors
    /// [`OpenError`]; damage that could be contained is told in [`Opened::damage`].
    pub fn open(store: Arc<dyn Store>, settings: Settings) -> Result<Opened, OpenError> {
        let life = Life::begin(&*store);
        let mut manifest = Manifest::load(&*store)?;
        let vm = manifest.vm.parse().unwrap_or(VmId::from_bytes([0; 16]));
        check_replicas(&*store, &manifest)?;
        remove_leftovers(&*store, &manifest)?;
        let mut redo = RedoReading::begin(&manifest);
        redo.read(&*store, &manifest)?;
        redo.settle()?;
        let mut undo = UndoReading::read(&*store, &manifest)?;
        store.sync_folder()?;
        let mut damage: Vec<Damage> = redo.damage.drain(..).chain(undo.damage.take()).collect();
        damage.retain(|damage| !damage.is_known(&manifest));
        if !damage.is_empty() {
            redo.seal_open(&*store, &mut manifest)?;
            undo.let_go_of_open(&*store, &mut manifest)?;
            for damage in &damage {
                damage.record(&mut manifest, &mut redo.timeline);
            }
            manifest.save(&*store)?;
        }
        let torn_bytes = redo.torn_bytes;
        let writer = Writer::resume(vm, redo.open.clone(), &redo.timeline);
        let undo_writer =
            UndoWriter { vm, open: undo.open.clone(), upto: undo.upto, opened_at: None, must_seal: false };
        let shared = shared_of(manifest, settings, redo, undo);
        Ok(Opened { journal: Journal::new(store, life, shared, writer, undo_writer), damage, torn_bytes })
    }
}

fn shared_of(manifest: Manifest, settings: Settings, redo: RedoReading, undo: UndoReading) -> Shared {
    let manifest = Arc::new(manifest);
    let runs = |kind: LogKind| {
        manifest.log(kind).runs.iter().map(|info| Arc::new(Run::new(kind, info.clone()))).collect()
    };
    let view = View {
        applied: manifest.applied(),
        redo: LogView { frozen: redo.frozen.into_iter().map(Arc::new).collect(), runs: runs(LogKind::Redo) },
        undo: LogView { frozen: undo.frozen.into_iter().map(Arc::new).collect(), runs: runs(LogKind::Undo) },
        manifest: manifest.clone(),
    };
    let end = |open: &Option<(Segment, u64, Position)>| open.as_ref().map_or(0, |(_, _, end)| end.at);
    Shared {
        settings,
        age: AgeClock::begin(manifest.age_clock),
        timeline: redo.timeline,
        redo_table: redo.table,
        undo_table: undo.table,
        view: Arc::new(view),
        newest_at: redo.newest_at,
        open_bytes: end(&redo.open),
        undo_open_bytes: end(&undo.open),
        image_pins: BTreeMap::new(),
        next_image_pin: 1,
        manifest,
    }
}

/// What has been read of the redo log.
struct RedoReading {
    timeline: Timeline,
    frozen: Vec<Table>,
    table: Table,
    open: Option<(Segment, u64, Position)>,
    newest_at: Option<WallTime>,
    torn_bytes: u64,
    /// Batches of the open segment: where each begins in the file, and its last sequence.
    in_open: Vec<(u64, WriteSeq)>,
    /// What the source had been told when the newest batch was written.
    acked: WriteSeq,
    damage: Vec<Damage>,
}

impl RedoReading {
    fn begin(manifest: &Manifest) -> Self {
        Self {
            timeline: Timeline::begin(manifest),
            frozen: Vec::new(),
            table: Table::new(LogKind::Redo, 0, 0),
            open: None,
            newest_at: None,
            torn_bytes: 0,
            in_open: Vec::new(),
            acked: WriteSeq::ZERO,
            damage: Vec::new(),
        }
    }

    fn read(&mut self, store: &dyn Store, manifest: &Manifest) -> io::Result<()> {
        let names: HashSet<String> = store.names()?.into_iter().collect();
        for info in &manifest.redo.segments {
            let name = info.file_name(LogKind::Redo);
            let before = self.timeline.last_seq;
            match &info.sealed {
                Some(sealed) => {
                    let read = match (names.contains(&name), &sealed.footer) {
                        (false, Some(_)) => Err(SegmentError::Missing { name }),
                        (true, Some(_)) => Ok(()),
                        (_, None) => self.read_sealed(store, info, sealed),
                    };
                    if let Err(error) = read {
                        let error = io_or_damage(error)?;
                        self.damage.push(Damage { what: error, from: before.next(), indexed: false });
                    }
                    self.timeline.stand_at(&sealed.point);
                    self.newest_at = Some(WallTime(sealed.newest_at));
                }
                None => self.read_open(store, info)?,
            }
        }
        Ok(())
    }

    /// Reads a sealed segment into a table of its own. Its marks are in the manifest's gaps already.
    fn read_sealed(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        sealed: &Sealed,
    ) -> Result<(), SegmentError> {
        let mut table = Table::new(LogKind::Redo, info.number, info.base_page);
        let mut timeline = self.timeline.clone();
        let result = Segment::open(store, LogKind::Redo, info).and_then(|segment| {
            let mut scan = segment.scan(Some(sealed.bytes))?;
            while let Some(found) = scan.next()? {
                take(&segment, info.base_page, &found, &mut timeline, &mut table)?;
            }
            match scan.position.at == sealed.bytes {
                true => Ok(()),
                false => Err(ends_early(&segment, scan.position.at)),
            }
        });
        // Whatever could be read is kept: cuts before the damage are good.
        self.frozen.push(table);
        result
    }

    fn read_open(&mut self, store: &dyn Store, info: &SegmentInfo) -> io::Result<()> {
        self.table = Table::new(LogKind::Redo, info.number, info.base_page);
        let segment = match Segment::open(store, LogKind::Redo, info) {
            Ok(segment) => segment,
            Err(error) => {
                let from = self.timeline.last_seq.next();
                self.damage.push(Damage { what: io_or_damage(error)?, from, indexed: false });
                return Ok(());
            }
        };
        let mut scan = match segment.scan(None) {
            Ok(scan) => scan,
            Err(error) => return io_or_damage(error).map(drop),
        };
        loop {
            let step = scan.next().and_then(|found| {
                let Some(found) = found else { return Ok(false) };
                take(&segment, info.base_page, &found, &mut self.timeline, &mut self.table)?;
                self.in_open.push((found.at, found.batch.header().last_seq));
                self.acked = found.envelope.acked_upto;
                self.newest_at = Some(found.envelope.received_at);
                Ok(true)
            });
            match step {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.end_of_open(&mut scan, error)?;
                    break;
                }
            }
        }
        let position = scan.position;
        self.open = Some((segment, info.base_page, position));
        Ok(())
    }

    /// What does not check at the end of the open segment: a torn end, or damage.
    fn end_of_open(&mut self, scan: &mut Scan<'_>, error: SegmentError) -> io::Result<()> {
        let was_acked = scan.acked_beyond().is_some_and(|acked| acked > self.timeline.last_seq);
        let is_io = matches!(error, SegmentError::Io { .. });
        if was_acked || is_io {
            let from = self.timeline.last_seq.next();
            self.damage.push(Damage { what: io_or_damage(error)?, from, indexed: false });
        } else if scan.is_torn_here() {
            self.torn_bytes = PAGE_BYTES.max(scan.end().saturating_sub(scan.position.at));
        }
        Ok(())
    }

    /// Makes sure that what was read is on the disk, and not only in memory.
    ///
    /// A crash story: (1) a batch is written, its sync fails, nothing is acknowledged; (2) the journal is
    /// closed and opened again, and reads the batch back, from the page cache; (3) it is taken for durable
    /// and acknowledged; (4) the power goes, and the batch with it. So whatever may not have been
    /// acknowledged before is written once more, which makes its pages dirty again, and synced.
    fn settle(&self) -> io::Result<()> {
        let Some((segment, _, end)) = &self.open else { return Ok(()) };
        // A batch that only moved the watermark has the sequence of the one before it.
        let first = self.in_open.iter().find(|(_, last_seq)| *last_seq >= self.acked);
        rewrite(segment, first.map(|(at, _)| *at), end.at)
    }

    /// Ends the open segment where its good part ends.
    fn seal_open(&mut self, store: &dyn Store, manifest: &mut Manifest) -> io::Result<()> {
        let bytes = self.open.take().map(|(_, _, end)| end.at);
        let point = self.timeline.point();
        let newest_at = self.newest_at.unwrap_or_default().0;
        let log = &mut manifest.redo;
        let open = log.segments.last_mut().filter(|segment| segment.sealed.is_none());
        let Some(last) = open else { return Ok(()) };
        match bytes {
            Some(bytes) => {
                log.next_page = last.base_page + bytes / PAGE_BYTES;
                last.sealed = Some(Sealed { bytes, point, newest_at, aged_from: None, footer: None });
                let fresh = Table::new(LogKind::Redo, 0, 0);
                self.frozen.push(std::mem::replace(&mut self.table, fresh));
            }
            // Nothing of it could be read at all: it is set aside.
            None => {
                set_aside(store, &last.file_name(LogKind::Redo))?;
                log.segments.pop();
            }
        }
        self.timeline.write_to(manifest);
        Ok(())
    }
}

/// Takes up one batch of a segment.
fn take(
    segment: &Segment,
    base_page: u64,
    found: &Found,
    timeline: &mut Timeline,
    table: &mut Table,
) -> Result<(), SegmentError> {
    let damaged = |what: String| SegmentError::Batch { name: segment.name.clone(), at: found.at, what };
    if found.batch.header().prev_seq != timeline.last_seq {
        return Err(damaged("the batch does not follow the stream before it".into()));
    }
    let checkpoints =
        timeline.insert(&found.batch, &sample(&found.batch)).map_err(|error| damaged(error.to_string()))?;
    table.checkpoints.extend(checkpoints);
    let page = base_page + found.at / PAGE_BYTES;
    for extent in found.batch.entries().iter().flat_map(|entry| extents_of(entry, page)) {
        table.insert(extent);
    }
    Ok(())
}

/// What has been read of the undo log.
struct UndoReading {
    frozen: Vec<Table>,
    table: Table,
    open: Option<(Segment, u64, Position)>,
    upto: WriteSeq,
    /// The end of the last whole step in the log.
    reaches: WriteSeq,
    damage: Option<Damage>,
}

impl UndoReading {
    fn read(store: &dyn Store, manifest: &Manifest) -> io::Result<Self> {
        let mut reading = Self {
            frozen: Vec::new(),
            table: Table::new(LogKind::Undo, 0, 0),
            open: None,
            upto: manifest.applied(),
            reaches: WriteSeq::ZERO,
            damage: None,
        };
        // Whatever is older than a before-image may need it.
        let damage = |what| Damage { what, from: WriteSeq::from_raw(manifest.retired_below), indexed: false };
        for info in &manifest.undo.segments {
            if let Some(sealed) = &info.sealed {
                reading.reaches = WriteSeq::from_raw(sealed.point.last_seq);
            }
            if let Err(error) = reading.read_segment(store, info) {
                reading.damage = Some(damage(io_or_damage(error)?));
            }
        }
        if reading.damage.is_none()
            && let Some(missing) = manifest.missing_before_images(reading.reaches)
        {
            reading.damage = Some(damage(missing));
        }
        Ok(reading)
    }

    /// The open segment, where nothing of it could be read.
    fn let_go_of_open(&self, store: &dyn Store, manifest: &mut Manifest) -> io::Result<()> {
        let is_lost = self.open.is_none();
        match manifest.undo.segments.pop_if(|last| is_lost && last.sealed.is_none()) {
            Some(last) => set_aside(store, &last.file_name(LogKind::Undo)),
            None => Ok(()),
        }
    }

    fn read_segment(&mut self, store: &dyn Store, info: &SegmentInfo) -> Result<(), SegmentError> {
        let end = match &info.sealed {
            Some(Sealed { footer: Some(_), .. }) => return Ok(()),
            Some(sealed) => Some(sealed.bytes),
            None => None,
        };
        let mut table = Table::new(LogKind::Undo, info.number, info.base_page);
        let result = self.read_steps(store, info, end, &mut table);
        if end.is_some() {
            // Whatever could be read is kept, though older cuts are not good.
            self.frozen.push(table);
            return result.map(drop);
        }
        let (segment, first_of_last, whole) = result?;
        rewrite(&segment, first_of_last, whole.at)
            .map_err(|source| SegmentError::Io { name: segment.name.clone(), source })?;
        self.table = table;
        self.open = Some((segment, info.base_page, whole));
        Ok(())
    }

    /// Reads a segment's whole steps into `table`: the segment, where the last batch that was looked at begins a step,
    /// and where the last whole step ends.
    fn read_steps(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        end: Option<u64>,
        table: &mut Table,
    ) -> Result<(Segment, Option<u64>, Position), SegmentError> {
        let segment = Segment::open(store, LogKind::Undo, info)?;
        let mut scan = segment.scan(end)?;
        let mut whole = scan.position;
        let mut last_step = None;
        let mut step: Vec<Found> = Vec::new();
        loop {
            match scan.next() {
                Ok(Some(found)) => {
                    let ends_step = found.batch.header().ends_step;
                    last_step.get_or_insert(found.at);
                    step.push(found);
                    if ends_step {
                        whole = scan.position;
                        for found in step.drain(..) {
                            self.reaches = found.batch.header().watermark;
                            self.upto = self.upto.max(self.reaches);
                            let page = info.base_page + found.at / PAGE_BYTES;
                            let entries = found.batch.entries().iter();
                            entries.flat_map(|entry| extents_of(entry, page)).for_each(|e| table.insert(e));
                        }
                    }
                }
                Ok(None) => break,
                // A step that is not whole has not touched the replica.
                Err(error @ SegmentError::Io { .. }) => return Err(error),
                Err(error) if end.is_some() => return Err(error),
                Err(_) => break,
            }
        }
        drop(scan);
        Ok((segment, last_step, whole))
    }
}

/// Writes what stands from `first` to `end` once more, and syncs.
fn rewrite(segment: &Segment, first: Option<u64>, end: u64) -> io::Result<()> {
    if let Some(start) = first {
        let len = segment.file.len()?;
        let mut at = start;
        while at < end {
            let mut bytes = vec![0; (end - at).min(4 << 20) as usize];
            // The zeroes behind the last batch may not have come into the file.
            let there = len.saturating_sub(at).min(bytes.len() as u64) as usize;
            segment.file.read_at(at, &mut bytes[..there])?;
            segment.file.write_at(at, &bytes)?;
            at += bytes.len() as u64;
        }
    }
    segment.file.sync_data()
}

pub(crate) fn ends_early(segment: &Segment, at: u64) -> SegmentError {
    SegmentError::Batch { name: segment.name.clone(), at, what: "the segment ends too early".into() }
}

/// A disk that cannot be read just now is no damage to be written down.
pub(crate) fn io_or_damage(error: SegmentError) -> io::Result<String> {
    match error {
        SegmentError::Io { source, .. } => Err(source),
        other => Ok(other.to_string()),
    }
}

fn check_replicas(store: &dyn Store, manifest: &Manifest) -> Result<(), OpenError> {
    for disk in &manifest.disks {
        let (found, expected) = (store.open(&replica_name(&disk.name), false)?.len()?, disk.size_bytes);
        if found != expected {
            return Err(OpenError::ReplicaSize { disk: disk.name.clone(), found, expected });
        }
    }
    Ok(())
}

/// Removes files that a crash left behind and no manifest names.
fn remove_leftovers(store: &dyn Store, manifest: &Manifest) -> io::Result<()> {
    let mut known: HashSet<String> = HashSet::new();
    for kind in [LogKind::Redo, LogKind::Undo] {
        let log = manifest.log(kind);
        known.extend(log.segments.iter().map(|segment| segment.file_name(kind)));
        let footers = log.segments.iter().filter_map(|segment| segment.sealed.as_ref()?.footer.as_ref());
        known.extend(log.runs.iter().chain(footers).map(|run| run.file_name(kind)));
    }
    known.extend(manifest.checkpoints.iter().map(|file| file.file_name()));
    let ours = ["segment-", "undo-", "run-", "checkpoints-"];
    for name in store.names()? {
        if ours.iter().any(|prefix| name.starts_with(prefix)) && !known.contains(&name) {
            store.remove(&name)?;
        }
    }
    Ok(())
}
