//! Appending: batches get their places in the open segment (framing), one write and one sync make them
//! durable (committing), then they are published. What was not synced is never published and never
//! acknowledged.
//!
//! [`Journal::append`] does both. The shards (`shard.rs`) do the two in two threads, so that one group is
//! framed while the one before is on its way to the disk; groups of one journal are committed in the order
//! they were framed.

use crate::cover::LogKind;
use crate::entropy::sample;
use crate::extent::extents_of;
use crate::gather::Gathered;
use crate::journal::Journal;
use crate::layout::{Envelope, FIRST_BATCH_AT, SegmentHeader};
use crate::manifest::{Sealed, SegmentInfo, StreamPoint};
use crate::page::{PAGE_BYTES, PageBuf};
use crate::segment::{Position, Segment, hex};
use crate::status::JournalStatus;
use crate::table::Table;
use crate::timeline::{Timeline, begins_anew};
use batch::{Batch, BatchError};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use types::limits::{FROZEN_TABLES_MAX, SEGMENT_BYTES_RANGE, SEGMENT_FILL_SECONDS, TABLE_ENTRIES_MAX};
use types::{Epoch, VmId, WallTime, WriteSeq};

/// Why batches were not appended. None of them is published; those before them still are.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("no space left for the journal")]
    Full(#[source] io::Error),
    #[error("the journal has {bytes} bytes, its hard limit is {limit}; raise it, or shorten the history")]
    HardLimit { bytes: u64, limit: u64 },
    #[error("the journal's disk failed; open the journal again")]
    Failed(#[source] io::Error),
    #[error("closed after an earlier failure; open the journal again")]
    Closed,
    #[error("a batch of epoch {found}, the journal is at {current}")]
    Epoch { found: Epoch, current: Epoch },
    #[error("a batch that follows {found}, the journal stands at {current}")]
    Order { found: WriteSeq, current: WriteSeq },
    #[error("writes from {from} on were found damaged: the stream must begin anew")]
    MustBeginAnew { from: WriteSeq },
    #[error("a record in the batch cannot be kept")]
    Record(#[from] BatchError),
}

impl AppendError {
    /// Whether the same batches may be appended later, without opening the journal again.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            AppendError::Full(_) | AppendError::HardLimit { .. } | AppendError::MustBeginAnew { .. }
        )
    }
}

/// The state after an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub durable: WriteSeq,
    pub watermark: WriteSeq,
}

/// What comes with a group of batches.
#[derive(Debug, Clone, Copy)]
pub struct AppendMeta {
    pub epoch: Epoch,
    /// This host's clock.
    pub received_at: WallTime,
    /// Random; a new segment's incarnation.
    pub entropy: [u8; 16],
}

/// What is taken, while a demand for a resync may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    Everything,
    /// Whoever streams has been told: only a stream that begins anew.
    ANewStream,
    /// Whoever streams has not been told.
    NothingMore,
}

/// The end of the redo log, where batches get their places.
#[derive(Debug)]
pub(crate) struct Writer {
    vm: VmId,
    /// The open segment and where its next batch goes; none before the first append after a seal.
    open: Option<(Segment, u64, Position)>,
    last_seq: WriteSeq,
    pub(crate) takes: Takes,
    opened_at: Option<WallTime>,
    /// At which the next segment is closed.
    segment_bytes: u64,
}

/// Batches with their places, ready to be written.
#[derive(Debug)]
pub(crate) struct Framed {
    segment: Segment,
    start: u64,
    gathered: Gathered,
    end: Position,
    /// Each batch with the page it begins at and a sample of its payload.
    batches: Vec<(Batch, u64, Vec<u8>)>,
    received_at: WallTime,
}

impl Framed {
    /// Whether both lie in one segment, so that one sync makes both durable.
    pub(crate) fn is_beside(&self, other: &Framed) -> bool {
        Arc::ptr_eq(&self.segment.file, &other.segment.file)
    }
}

/// How many framed groups are not committed yet. A segment is sealed only when none is.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: Mutex<usize>,
    none: Condvar,
}

impl InFlight {
    fn add(&self) {
        *self.count.lock().expect("a panic aborts the process") += 1;
    }

    fn done(&self) {
        let mut count = self.count.lock().expect("a panic aborts the process");
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
    }

    fn wait(&self) {
        let count = self.count.lock().expect("a panic aborts the process");
        drop(self.none.wait_while(count, |count| *count > 0).expect("a panic aborts the process"));
    }

    fn wait_within(&self, most: Duration) -> bool {
        let count = self.count.lock().expect("a panic aborts the process");
        let waited = self.none.wait_timeout_while(count, most, |count| *count > 0);
        !waited.expect("a panic aborts the process").1.timed_out()
    }
}

impl Writer {
    /// A writer that goes on where `timeline` stands; nobody streams yet.
    pub(crate) fn resume(vm: VmId, open: Option<(Segment, u64, Position)>, timeline: &Timeline) -> Self {
        let takes = if timeline.must_resync().is_some() { Takes::ANewStream } else { Takes::Everything };
        let (last_seq, segment_bytes) = (timeline.last_seq, SEGMENT_BYTES_RANGE.0);
        Self { vm, open, last_seq, takes, opened_at: None, segment_bytes }
    }

    /// Whether a stream may go on with `batch` now.
    fn check_takes(&self, batch: &Batch, from: WriteSeq) -> Result<(), AppendError> {
        match self.takes {
            Takes::Everything => Ok(()),
            Takes::ANewStream if begins_anew(batch) => Ok(()),
            Takes::ANewStream | Takes::NothingMore => Err(AppendError::MustBeginAnew { from }),
        }
    }
}

impl Journal {
    /// Appends batches in order and makes them durable with one sync. Not to be mixed with shards on the
    /// same journal.
    ///
    /// # Errors
    /// [`AppendError`]. After [`AppendError::Failed`] nothing more is taken until the journal is opened
    /// again from the disk: a sync that failed once says nothing the second time.
    pub fn append(&self, batches: Vec<Batch>, meta: AppendMeta) -> Result<Appended, AppendError> {
        let mut writer = self.lock_writer();
        let before = (writer.open.clone(), writer.last_seq);
        let takes = writer.takes;
        let framed = self.frame(&mut writer, batches, meta, None)?;
        let segment = framed.segment.header.number;
        let result = self.commit(framed);
        if let Err(AppendError::Full(_)) = &result {
            // Nothing was published: the next group goes to the same place.
            writer.takes = takes;
            (writer.open, writer.last_seq) = match before {
                (Some(open), last_seq) if open.0.header.number == segment => (Some(open), last_seq),
                (_, last_seq) => {
                    let open = writer.open.take().map(|(segment, base, _)| {
                        let start = segment.start();
                        (segment, base, start)
                    });
                    (open, last_seq)
                }
            };
        }
        result
    }

    /// A stream is about to be welcomed, and is told by `status` whether it must begin anew. No other one may append
    /// any more.
    pub fn begin_stream(&self) -> JournalStatus {
        let mut writer = self.lock_writer();
        if writer.takes == Takes::NothingMore {
            writer.takes = Takes::ANewStream;
        }
        self.status()
    }

    /// Waits until every group that was framed is committed or has failed.
    pub fn wait_for_appends(&self) {
        self.in_flight.wait();
    }

    /// The same, but no longer than this; whether they have. A disk that hangs commits nothing and fails nothing.
    pub fn wait_for_appends_within(&self, most: Duration) -> bool {
        self.in_flight.wait_within(most)
    }

    /// Gives batches their places behind what was framed before.
    pub(crate) fn frame(
        &self,
        writer: &mut Writer,
        batches: Vec<Batch>,
        meta: AppendMeta,
        spare: Option<PageBuf>,
    ) -> Result<Framed, AppendError> {
        if self.failed.load(Ordering::SeqCst) || self.is_closed() {
            return Err(AppendError::Closed);
        }
        let acked = self.check_state(meta.epoch)?;
        if let Some(first) = batches.first().filter(|_| writer.takes != Takes::Everything) {
            let from = self.read_shared().timeline.must_resync();
            writer.check_takes(first, from.unwrap_or(writer.last_seq))?;
        }
        check_order(&batches, writer.last_seq)?;
        self.roll_if_due(writer, &batches, meta)?;
        let (segment, base_page, position) = writer.open.as_mut().expect("rolled to an open segment");
        let seed = segment.header.seed();
        let start = position.at;
        let mut gathered = Gathered::with_room_for(&batches, spare);
        let mut framed = Vec::with_capacity(batches.len());
        for batch in batches {
            let body = batch.bytes();
            let envelope = Envelope {
                body_len: body.len() as u32,
                body_crc: batch.checksum(),
                batch_no: position.batch_no,
                acked_upto: acked,
                epoch: meta.epoch,
                received_at: meta.received_at,
                chain: position.chain,
            };
            let (head, crc) = envelope.encode(seed);
            gathered.push(&head, body);
            let page = *base_page + position.at / PAGE_BYTES;
            position.at += Envelope::stride(body.len());
            position.batch_no += 1;
            position.chain = crc;
            writer.last_seq = batch.header().last_seq;
            writer.takes = Takes::Everything;
            let sample = sample(&batch);
            framed.push((batch, page, sample));
        }
        self.in_flight.add();
        Ok(Framed {
            segment: segment.clone(),
            start,
            gathered,
            end: *position,
            batches: framed,
            received_at: meta.received_at,
        })
    }

    /// What is durable, if the journal takes batches of `epoch` now.
    fn check_state(&self, epoch: Epoch) -> Result<WriteSeq, AppendError> {
        let shared = self.read_shared();
        let current = Epoch(shared.manifest.epoch);
        if epoch < current {
            return Err(AppendError::Epoch { found: epoch, current });
        }
        let (bytes, limit) = (shared.journal_bytes(), shared.settings.bytes_hard);
        if limit > 0 && bytes >= limit {
            return Err(AppendError::HardLimit { bytes, limit });
        }
        Ok(shared.timeline.last_seq)
    }

    /// Writes what was framed, syncs it, and publishes it.
    pub(crate) fn commit(&self, framed: Framed) -> Result<Appended, AppendError> {
        let written = self.write(&framed).and_then(|()| self.sync(&framed));
        let result = written.and_then(|()| self.publish(&framed));
        self.in_flight.done();
        result
    }

    /// Writes a group to its place.
    pub(crate) fn write(&self, framed: &Framed) -> Result<(), AppendError> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(AppendError::Closed);
        }
        let Framed { segment, start, gathered, .. } = framed;
        gathered.write_to(&*segment.file, *start).map_err(|error| self.classify(error))
    }

    /// Makes everything written to the group's segment durable.
    pub(crate) fn sync(&self, framed: &Framed) -> Result<(), AppendError> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(AppendError::Closed);
        }
        framed.segment.file.sync_data().map_err(|error| self.fail(error))
    }

    /// Publishes a group that is durable.
    pub(crate) fn publish(&self, framed: &Framed) -> Result<Appended, AppendError> {
        let mut shared = self.write_shared();
        shared.open_bytes = framed.end.at;
        shared.newest_at = Some(framed.received_at);
        for (batch, page, sample) in &framed.batches {
            let checkpoints = shared.timeline.insert(batch, sample)?;
            shared.redo_table.checkpoints.extend(checkpoints);
            for extent in batch.entries().iter().flat_map(|entry| extents_of(entry, *page)) {
                shared.redo_table.insert(extent);
            }
        }
        Ok(Appended { durable: shared.timeline.last_seq, watermark: shared.timeline.watermark })
    }

    /// A group is done with, one way or the other; its buffer may be used again.
    pub(crate) fn finish_group(&self, framed: Framed) -> PageBuf {
        self.in_flight.done();
        framed.gathered.into_spare()
    }

    /// Seals the open segment and begins a new one where the batches do not fit, where its table is full, or where the
    /// open one has been so for a twelfth of the history window.
    fn roll_if_due(
        &self,
        writer: &mut Writer,
        batches: &[Batch],
        meta: AppendMeta,
    ) -> Result<(), AppendError> {
        let now = meta.received_at;
        let settings = self.read_shared().settings;
        if let Some((_, _, position)) = &writer.open {
            let more: u64 = batches.iter().map(|batch| Envelope::stride(batch.bytes().len())).sum();
            let old = writer.opened_at.is_some_and(|opened| now.since(opened) > settings.history / 12);
            let limit = writer.segment_bytes.min(settings.segment_bytes);
            let is_full = self.read_shared().redo_table.len() >= TABLE_ENTRIES_MAX;
            let fits = (position.at + more <= limit && !is_full) || position.at == FIRST_BATCH_AT;
            // A clock that was set back would keep it open for as long.
            writer.opened_at = Some(writer.opened_at.unwrap_or(now).min(now));
            if fits && !old {
                return Ok(());
            }
        }
        self.in_flight.wait();
        if self.failed.load(Ordering::SeqCst) {
            return Err(AppendError::Closed);
        }
        if self.read_shared().view.redo.frozen.len() >= FROZEN_TABLES_MAX {
            // Whoever keeps the journal up does not keep pace: memory is bounded all the same.
            self.write_footers(None).map_err(|error| self.classify(error))?;
        }
        writer.segment_bytes = next_segment_bytes(writer, now);
        self.seal_redo(writer).map_err(|error| self.classify(error))?;
        let (info, segment) = self
            .begin_segment(LogKind::Redo, writer.vm, now, meta.entropy)
            .map_err(|error| self.classify(error))?;
        writer.opened_at = Some(now);
        let start = segment.start();
        writer.open = Some((segment, info.base_page, start));
        Ok(())
    }

    /// Seals the open redo segment, if there is one. Nothing may be in flight, or else only what is
    /// committed counts.
    pub(crate) fn seal_redo(&self, writer: &mut Writer) -> io::Result<()> {
        self.in_flight.wait();
        let Some((_, _, position)) = &writer.open else { return Ok(()) };
        let (point, newest_at) = {
            let shared = self.read_shared();
            (shared.timeline.point(), shared.newest_at.unwrap_or_default())
        };
        self.seal(LogKind::Redo, position.at, point, newest_at).inspect_err(|error| {
            // The manifest on the disk may have it sealed all the same: nothing more may go to it.
            if !is_full(error) {
                self.failed.store(true, Ordering::SeqCst);
            }
        })?;
        writer.open = None;
        Ok(())
    }

    /// Seals the open segment of a log, whose batches end at byte `bytes`.
    pub(crate) fn seal(
        &self,
        kind: LogKind,
        bytes: u64,
        point: StreamPoint,
        newest_at: WallTime,
    ) -> io::Result<()> {
        let timeline = self.read_shared().timeline.clone();
        self.change_manifest(
            |manifest| {
                let log = manifest.log_mut(kind);
                let last = log.segments.last_mut().expect("an open segment is in the manifest");
                log.next_page = last.base_page + bytes / PAGE_BYTES;
                last.sealed =
                    Some(Sealed { bytes, point, newest_at: newest_at.0, aged_from: None, footer: None });
                if kind == LogKind::Redo {
                    timeline.write_to(manifest);
                }
            },
            |shared, manifest| {
                let fresh = Table::new(kind, 0, 0);
                let frozen = std::mem::replace(shared.table_mut(kind), fresh);
                *shared.open_bytes_mut(kind) = 0;
                shared.set_manifest(manifest, |view| view.log_mut(kind).frozen.push(Arc::new(frozen)));
            },
        )
    }

    /// Begins a new segment of a log that has no open one: the file first, then the manifest.
    pub(crate) fn begin_segment(
        &self,
        kind: LogKind,
        vm: VmId,
        now: WallTime,
        incarnation: [u8; 16],
    ) -> io::Result<(SegmentInfo, Segment)> {
        let info = {
            let shared = self.read_shared();
            let log = shared.manifest.log(kind);
            let (number, base_page) = (log.next_segment, log.next_page);
            SegmentInfo { number, incarnation: hex(&incarnation), base_page, created_at: now.0, sealed: None }
        };
        let header = SegmentHeader { kind, number: info.number, vm, incarnation, created_at: now };
        let spare = self.take_spare(kind)?;
        let segment = Segment::create(&*self.state.store, spare.as_deref(), header)?;
        self.change_manifest(
            |manifest| {
                let log = manifest.log_mut(kind);
                log.next_segment += 1;
                log.segments.push(info.clone());
            },
            |shared, manifest| {
                *shared.table_mut(kind) = Table::new(kind, info.number, info.base_page);
                *shared.open_bytes_mut(kind) = FIRST_BATCH_AT;
                shared.set_manifest(manifest, |_| {});
            },
        )?;
        Ok((info, segment))
    }

    /// A file of an old segment to be written anew, if one was kept.
    fn take_spare(&self, kind: LogKind) -> io::Result<Option<String>> {
        if kind == LogKind::Undo {
            return Ok(None); // Its segments are written seldom and in large steps.
        }
        let names = self.state.store.names()?;
        Ok(names.into_iter().filter(|name| name.starts_with(SPARE_PREFIX)).min())
    }

    /// A full disk leaves the journal as it was; any other failure closes it.
    pub(crate) fn classify(&self, error: io::Error) -> AppendError {
        if is_full(&error) { AppendError::Full(error) } else { self.fail(error) }
    }

    fn fail(&self, error: io::Error) -> AppendError {
        self.failed.store(true, Ordering::SeqCst);
        AppendError::Failed(error)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Files of old segments are kept under names that begin so.
pub(crate) const SPARE_PREFIX: &str = "spare-";

/// About as much as comes in two minutes: doubled where the last segment filled in less than half of
/// that, halved where it took more than double.
fn next_segment_bytes(writer: &Writer, now: WallTime) -> u64 {
    let (Some(opened), Some((_, _, position))) = (writer.opened_at, &writer.open) else {
        return writer.segment_bytes;
    };
    let seconds = now.since(opened).as_secs();
    let was_full = position.at > writer.segment_bytes / 2;
    let next = if was_full && seconds < SEGMENT_FILL_SECONDS / 2 {
        writer.segment_bytes * 2
    } else if seconds > SEGMENT_FILL_SECONDS * 2 {
        writer.segment_bytes / 2
    } else {
        writer.segment_bytes
    };
    next.clamp(SEGMENT_BYTES_RANGE.0, SEGMENT_BYTES_RANGE.1)
}

/// Checks that each batch follows, and that its marks can be read, before a byte is written.
fn check_order(batches: &[Batch], mut current: WriteSeq) -> Result<(), AppendError> {
    for batch in batches {
        let found = batch.header().prev_seq;
        if found != current {
            return Err(AppendError::Order { found, current });
        }
        current = batch.header().last_seq;
        for (at, entry) in batch.entries().iter().enumerate() {
            if entry.kind == batch::Kind::Checkpoint {
                batch::decode_mark(&batch.payload(at)?)
                    .map_err(|_| BatchError::Record { at, what: "its payload is not a checkpoint" })?;
            }
        }
    }
    Ok(())
}
