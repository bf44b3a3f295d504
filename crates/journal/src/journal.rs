//! The journal as the rest of the program sees it: state, settings, reading at a cut.
//!
//! Two locks, taken in this order: the writer's, held while a batch is written or segments are folded;
//! and the shared one, held shortly to look up or to publish. Reads of file data hold neither.

use crate::append::Writer;
use crate::index::{BatchKey, BatchPlace, Index, Origin};
use crate::manifest::Manifest;
use crate::segment::Segment;
use crate::store::{Store, StoreFile};
use crate::timeline::Timeline;
use batch::{FrameError, read_payload};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use types::{ByteRange, DiskIndex, DiskSpec, Epoch, Incarnation, WallTime, WriteSeq};

/// What an operator may set, and change while the journal is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The history window.
    pub history: Duration,
    /// Fold early above this many bytes; zero for no limit but the disk.
    pub bytes_max: u64,
    pub segment_bytes: u64,
}

/// The journal of one VM.
#[derive(Debug)]
pub struct Journal {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) shared: RwLock<Shared>,
}

/// What readers look at. Everything in it is durable.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) manifest: Manifest,
    pub(crate) settings: Settings,
    pub(crate) index: Index,
    pub(crate) timeline: Timeline,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) replicas: Vec<Arc<dyn StoreFile>>,
    /// Cuts that must stay readable, by the pin's number.
    pub(crate) pins: BTreeMap<u64, WriteSeq>,
    pub(crate) next_pin: u64,
    /// When the oldest batch of the journal came, by this host's clock.
    pub(crate) oldest_at: Option<WallTime>,
    pub(crate) newest_at: Option<WallTime>,
    pub(crate) open_bytes: u64,
}

/// A journal in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalStatus {
    pub epoch: Epoch,
    pub applied: WriteSeq,
    pub last_seq: WriteSeq,
    pub watermark: WriteSeq,
    pub incarnation: Option<Incarnation>,
    pub gap_open: bool,
    pub journal_bytes: u64,
    pub segments: usize,
    pub index_entries: usize,
    pub guest_writes: u64,
    /// From the oldest batch kept to the newest.
    pub history: Duration,
    pub settings: Settings,
}

/// Why bytes as of a cut could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("segment {segment}: batch at byte {at} is damaged")]
    Damaged {
        segment: u64,
        at: u64,
        #[source]
        source: FrameError,
    },
    #[error("cannot read segment {segment}")]
    Segment {
        segment: u64,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the replica")]
    Replica(#[source] io::Error),
    #[error("read {range:?} past the end of the disk")]
    OutOfRange { range: ByteRange },
}

impl Journal {
    pub(crate) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a panic aborts the process")
    }

    pub(crate) fn read_shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().expect("a panic aborts the process")
    }

    pub(crate) fn write_shared(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().expect("a panic aborts the process")
    }

    /// The journal in numbers.
    pub fn status(&self) -> JournalStatus {
        let shared = self.read_shared();
        let timeline = &shared.timeline;
        let newest = shared.newest_at.unwrap_or_default();
        JournalStatus {
            epoch: Epoch(shared.manifest.epoch),
            applied: timeline.applied,
            last_seq: timeline.last_seq,
            watermark: timeline.watermark,
            incarnation: timeline.incarnation,
            gap_open: timeline.is_gap_open(),
            journal_bytes: shared.journal_bytes(),
            segments: shared.manifest.segments.len(),
            index_entries: shared.index.len(),
            guest_writes: timeline.guest_writes,
            history: shared.oldest_at.map_or(Duration::ZERO, |oldest| newest.since(oldest)),
            settings: shared.settings,
        }
    }

    /// The disks, in order.
    pub fn disks(&self) -> Vec<DiskSpec> {
        let shared = self.read_shared();
        let disks = shared.manifest.disks.iter();
        disks.map(|disk| DiskSpec { name: disk.name.clone(), size_bytes: disk.size_bytes }).collect()
    }

    /// Asks the timeline: checkpoints, gaps, the newest consistent cut.
    pub fn with_timeline<T>(&self, ask: impl FnOnce(&Timeline) -> T) -> T {
        ask(&self.read_shared().timeline)
    }

    /// Changes what an operator may set.
    pub fn set(&self, settings: Settings) {
        self.write_shared().settings = settings;
    }

    /// Takes a higher epoch, durably; from then on nothing of a lower one is appended.
    ///
    /// # Errors
    /// As the file system says.
    pub fn raise_epoch(&self, epoch: Epoch) -> io::Result<()> {
        let _writer = self.lock_writer();
        let mut manifest = self.read_shared().manifest.clone();
        if epoch.0 <= manifest.epoch {
            return Ok(());
        }
        manifest.epoch = epoch.0;
        manifest.save(&*self.store)?;
        self.write_shared().manifest = manifest;
        Ok(())
    }

    /// Fills `buf` with the disk's bytes from `start` as of `cut`, which is pinned or not yet folded.
    ///
    /// # Errors
    /// [`ReadError`] naming the damaged place.
    pub fn read_at(
        &self,
        disk: DiskIndex,
        cut: WriteSeq,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let range = ByteRange::new(start, buf.len() as u64);
        for part in self.plan(disk, cut, range)? {
            let at = (part.range.start - start) as usize;
            part.read(&mut buf[at..at + part.range.len as usize])?;
        }
        Ok(())
    }

    /// Looks up where the bytes are, with the files that hold them kept open.
    fn plan(&self, disk: DiskIndex, cut: WriteSeq, range: ByteRange) -> Result<Vec<Part>, ReadError> {
        let shared = self.read_shared();
        let out_of_range = ReadError::OutOfRange { range };
        let Some(entry) = shared.manifest.disks.get(usize::from(disk.0)) else {
            return Err(out_of_range);
        };
        if !range.fits(entry.size_bytes) {
            return Err(out_of_range);
        }
        let pieces = shared.index.look_up(disk, range, cut);
        Ok(pieces.into_iter().map(|piece| shared.part(disk, piece.range, piece.origin)).collect())
    }
}

impl Shared {
    pub(crate) fn journal_bytes(&self) -> u64 {
        let sealed = self.manifest.segments.iter().filter_map(|segment| segment.sealed.as_ref());
        sealed.map(|sealed| sealed.bytes).sum::<u64>() + self.open_bytes
    }

    pub(crate) fn part(&self, disk: DiskIndex, range: ByteRange, origin: Origin) -> Part {
        let source = match origin {
            Origin::Zero => PartSource::Zero,
            Origin::Replica => PartSource::Replica(self.replicas[usize::from(disk.0)].clone()),
            Origin::Journal { batch, payload_at } => self.journal_part(batch, payload_at),
        };
        Part { range, source }
    }

    fn journal_part(&self, key: BatchKey, payload_at: u32) -> PartSource {
        let place = self.index.place(key).expect("an entry's batch is in the index").clone();
        let file = self.segments[&place.segment].file.clone();
        PartSource::Journal { file, place, payload_at }
    }
}

/// A range and an open file that has its bytes.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: ByteRange,
    source: PartSource,
}

#[derive(Debug)]
enum PartSource {
    Zero,
    Replica(Arc<dyn StoreFile>),
    Journal { file: Arc<dyn StoreFile>, place: BatchPlace, payload_at: u32 },
}

/// A frame's stored bytes could not be read, or do not check.
enum FetchError {
    Io(io::Error),
    Frame(FrameError),
}

impl From<FrameError> for FetchError {
    fn from(error: FrameError) -> Self {
        FetchError::Frame(error)
    }
}

impl Part {
    pub(crate) fn is_zero(&self) -> bool {
        matches!(self.source, PartSource::Zero)
    }

    pub(crate) fn is_replica(&self) -> bool {
        matches!(self.source, PartSource::Replica(_))
    }

    /// Fills `buf`, as long as the range.
    pub(crate) fn read(&self, buf: &mut [u8]) -> Result<(), ReadError> {
        match &self.source {
            PartSource::Zero => buf.fill(0),
            PartSource::Replica(file) => file.read_at(self.range.start, buf).map_err(ReadError::Replica)?,
            PartSource::Journal { file, place, payload_at } => {
                let fetch = |start: u32, len: u32| {
                    let mut stored = vec![0; len as usize];
                    file.read_at(place.at + u64::from(start), &mut stored).map_err(FetchError::Io)?;
                    Ok::<_, FetchError>(Bytes::from(stored))
                };
                let segment = place.segment;
                let payload =
                    read_payload(&place.frames, *payload_at, buf.len() as u32, fetch).map_err(|error| {
                        match error {
                            FetchError::Io(source) => ReadError::Segment { segment, source },
                            FetchError::Frame(source) => ReadError::Damaged { segment, at: place.at, source },
                        }
                    })?;
                buf.copy_from_slice(&payload);
            }
        }
        Ok(())
    }
}
