//! Making a journal, and opening one again: what is on the disk decides what is known.
//!
//! Segments are read from the oldest to the newest. A torn batch at the very end of the newest one, of
//! which nothing had been acknowledged, is cut off. Anything else that does not check is damage: it is
//! named, what follows it is set aside, and since the journal then stands below what the source was
//! told, the source sends everything again. Nothing is ever cut in silence.

use crate::append::Writer;
use crate::index::Index;
use crate::journal::{Journal, Settings, Shared};
use crate::layout::ENVELOPE_BYTES;
use crate::manifest::{DiskEntry, Manifest, ManifestError, SegmentInfo, StreamPoint};
use crate::segment::{Depth, Found, Position, Segment, SegmentError};
use crate::store::{Store, StoreFile};
use crate::timeline::Timeline;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, RwLock};
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

/// What was found wrong, and that it was contained.
#[derive(Debug)]
pub struct Damage {
    pub error: SegmentError,
    /// Checkpoints above it cannot be opened.
    pub last_good: WriteSeq,
}

/// An opened journal and what had to be said about it.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    pub damage: Option<Damage>,
    /// Bytes of a torn batch that were cut off the end.
    pub torn_bytes: u64,
}

pub(crate) fn replica_name(disk: &str) -> String {
    format!("replica/{disk}.raw")
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
        if store.exists("manifest")? {
            return Err(CreateError::Exists);
        }
        for disk in disks {
            let replica = store.open(&replica_name(&disk.name), true)?;
            replica.set_len(0)?;
            replica.set_len(disk.size_bytes)?;
            replica.sync_data()?;
        }
        let disks =
            disks.iter().map(|disk| DiskEntry { name: disk.name.clone(), size_bytes: disk.size_bytes });
        let manifest = Manifest {
            vm: vm.to_string(),
            vm_name: vm_name.to_owned(),
            disks: disks.collect(),
            epoch: epoch.0,
            applied: 0,
            retired_below: 0,
            gap_at_applied: true,
            folded: StreamPoint::default(),
            segments: Vec::new(),
            next_segment: 1,
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
        let manifest = Manifest::load(&*store)?;
        let replicas = open_replicas(&*store, &manifest)?;
        let mut reading = Reading::begin(&manifest);
        let mut damage = None;
        for (at, info) in manifest.segments.iter().enumerate() {
            let is_last = at + 1 == manifest.segments.len();
            if let Err(error) = reading.read_segment(&*store, info, is_last) {
                damage = Some(Damage { error, last_good: reading.timeline.last_seq });
                break;
            }
        }
        let torn_bytes = reading.torn_bytes;
        reading.settle()?;
        store.sync_folder()?;
        let manifest = if damage.is_some() { set_aside(&*store, manifest, &reading)? } else { manifest };
        Ok(Opened { journal: reading.finish(store, manifest, replicas, settings), damage, torn_bytes })
    }
}

/// What has been read so far.
struct Reading {
    vm: VmId,
    index: Index,
    timeline: Timeline,
    segments: BTreeMap<u64, Segment>,
    open: Option<(u64, Position)>,
    oldest_at: Option<WallTime>,
    newest_at: Option<WallTime>,
    torn_bytes: u64,
    /// Batches of the open segment: where each begins in the file, and its last sequence.
    in_open: Vec<(u64, WriteSeq)>,
    /// What the source had been told when the newest batch was written.
    acked: WriteSeq,
}

impl Reading {
    fn begin(manifest: &Manifest) -> Self {
        Self {
            vm: manifest.vm.parse().unwrap_or(VmId::from_bytes([0; 16])),
            index: Index::default(),
            timeline: Timeline::begin(manifest),
            segments: BTreeMap::new(),
            open: None,
            oldest_at: None,
            newest_at: None,
            torn_bytes: 0,
            in_open: Vec::new(),
            acked: WriteSeq::ZERO,
        }
    }

    /// Makes sure that what was read is on the disk, and not only in memory.
    ///
    /// A crash story: (1) a batch is written, its sync fails, nothing is acknowledged; (2) the journal is
    /// closed and opened again, and reads the batch back, from the page cache; (3) it is taken for durable
    /// and acknowledged; (4) the power goes, and the batch with it. So whatever may not have been
    /// acknowledged before is written once more, which makes its pages dirty again, and synced.
    fn settle(&self) -> io::Result<()> {
        let Some((number, end)) = self.open else { return Ok(()) };
        let file = &self.segments[&number].file;
        // A batch that only moved the watermark has the sequence of the one before it.
        let first = self.in_open.iter().find(|(_, last_seq)| *last_seq >= self.acked);
        if let Some(&(start, _)) = first {
            let mut bytes = vec![0; (end.at.min(file.len()?) - start) as usize];
            file.read_at(start, &mut bytes)?;
            file.write_at(start, &bytes)?;
        }
        file.sync_data()
    }

    fn read_segment(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        is_last: bool,
    ) -> Result<(), SegmentError> {
        let name = SegmentInfo::file_name(info.number);
        let segment = Segment::open(store, &name, info.number, &info.incarnation)?;
        self.segments.insert(info.number, segment.clone());
        let mut position = segment.start();
        self.open = None;
        self.in_open.clear();
        let depth = if info.sealed.is_some() { Depth::Tables } else { Depth::Bodies };
        let end = info.sealed.as_ref().map(|sealed| sealed.bytes);
        while end.is_none_or(|end| position.at < end) {
            let before = position;
            match segment.next(&mut position, depth) {
                Ok(Some(found)) => self.take(&segment, found)?,
                Ok(None) if end.is_none() => break,
                Ok(None) => {
                    let (number, at) = (info.number, before.at);
                    return Err(SegmentError::Batch { number, at, what: "the file ends too early".into() });
                }
                Err(error) => {
                    let acked = segment.acked_beyond(before.at, u64::MAX / 2);
                    let was_acked = acked.is_some_and(|acked| acked > self.timeline.last_seq);
                    if end.is_some() || !is_last || was_acked || matches!(error, SegmentError::Io { .. }) {
                        return Err(error);
                    }
                    position = before;
                    self.torn_bytes = segment.file.len().unwrap_or(before.at).saturating_sub(before.at);
                    break;
                }
            }
        }
        if end.is_none() {
            self.open = Some((info.number, position));
        }
        Ok(())
    }

    fn take(&mut self, segment: &Segment, found: Found) -> Result<(), SegmentError> {
        let number = segment.header.number;
        let Found { at, envelope, batch } = found;
        let damaged = |what: String| SegmentError::Batch { number, at, what };
        if batch.header().prev_seq != self.timeline.last_seq {
            return Err(damaged("the batch does not follow the stream before it".into()));
        }
        let payload = |entry: usize| {
            if !batch.bytes().is_empty() {
                return batch.payload(entry);
            }
            let mut body = vec![0; batch.header().total_len];
            segment.file.read_at(at, &mut body).map_err(|_| batch::BatchError::Short)?;
            batch::Batch::parse(Bytes::from(body))?.payload(entry)
        };
        self.timeline.insert(&batch, payload).map_err(|error| damaged(error.to_string()))?;
        self.index.insert(&batch, number, at);
        self.in_open.push((at - ENVELOPE_BYTES as u64, batch.header().last_seq));
        self.acked = envelope.acked_upto;
        self.oldest_at = self.oldest_at.or(Some(envelope.received_at));
        self.newest_at = Some(envelope.received_at);
        Ok(())
    }

    fn finish(
        mut self,
        store: Arc<dyn Store>,
        manifest: Manifest,
        replicas: Vec<Arc<dyn StoreFile>>,
        settings: Settings,
    ) -> Journal {
        self.index.forget(WriteSeq::from_raw(manifest.applied), &[]);
        let writer = Writer::resume(self.vm, self.open, self.timeline.last_seq);
        let open_bytes = self.open.map_or(0, |(_, position)| position.at);
        let shared = Shared {
            manifest,
            settings,
            index: self.index,
            timeline: self.timeline,
            segments: self.segments,
            replicas,
            pins: BTreeMap::new(),
            next_pin: 1,
            oldest_at: self.oldest_at,
            newest_at: self.newest_at,
            open_bytes,
        };
        Journal { store, writer: Mutex::new(writer), shared: RwLock::new(shared) }
    }
}

fn open_replicas(store: &dyn Store, manifest: &Manifest) -> Result<Vec<Arc<dyn StoreFile>>, OpenError> {
    let open = |disk: &DiskEntry| {
        let file = store.open(&replica_name(&disk.name), false)?;
        let (found, expected) = (file.len()?, disk.size_bytes);
        if found != expected {
            return Err(OpenError::ReplicaSize { disk: disk.name.clone(), found, expected });
        }
        Ok(file)
    };
    manifest.disks.iter().map(open).collect()
}

/// After damage: the segment it is in ends before it, later ones are kept under another name.
///
/// The order matters for a crash in between: files are renamed first, so that a manifest never names a
/// segment that is only half its own; with the old manifest, a missing segment is damage again, found
/// at the same place or before.
fn set_aside(store: &dyn Store, mut manifest: Manifest, reading: &Reading) -> Result<Manifest, OpenError> {
    let good = reading.segments.len();
    for info in manifest.segments.iter().skip(good) {
        let name = SegmentInfo::file_name(info.number);
        if store.exists(&name)? {
            store.rename(&name, &format!("damaged-{:08}", info.number))?;
        }
    }
    manifest.segments.truncate(good);
    if let Some(last) = manifest.segments.last_mut() {
        let bytes = reading.end_of_last(last.number);
        last.sealed = Some(crate::manifest::Sealed {
            bytes,
            last_seq: reading.timeline.last_seq.raw(),
            newest_at: reading.newest_at.unwrap_or_default().0,
        });
    }
    manifest.save(store)?;
    Ok(manifest)
}

impl Reading {
    /// Where the good part of the last segment ends: found by reading it once more.
    fn end_of_last(&self, number: u64) -> u64 {
        let segment = &self.segments[&number];
        let mut position = segment.start();
        let mut last_seq = None;
        loop {
            let before = position;
            match segment.next(&mut position, Depth::Tables) {
                Ok(Some(found)) if last_seq != Some(self.timeline.last_seq) => {
                    if found.batch.header().last_seq > self.timeline.last_seq {
                        return before.at;
                    }
                    last_seq = Some(found.batch.header().last_seq);
                }
                _ => return before.at,
            }
        }
    }
}
