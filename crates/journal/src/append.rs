//! Appending: batches get their places in the open segment (framing), one write and one sync make them
//! durable (committing), then they are published. What was not synced is never published and never
//! acknowledged.
//!
//! [`Appender::append`] does both. The shards (`shard.rs`) do the two in two threads, so that one group is
//! framed while the one before is on its way to the disk; groups of one journal are committed in the order
//! they were framed.

use crate::cover::LogKind;
use crate::entropy::sample;
use crate::extent::extents_of;
use crate::footers::Footers;
use crate::gather::Gathered;
use crate::layout::{Envelope, FIRST_BATCH_AT};
use crate::page::{PAGE_BYTES, PageBuf};
use crate::roll;
use crate::state::State;
use crate::status::JournalStatus;
use crate::writer::{AppendError, AppendMeta, Appended, Framed, InFlight, Takes, Writer, check_order};
use batch::Batch;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::atomic::{AtomicBool, Ordering};
use threads::sync::{Mutex, MutexGuard};
use types::limits::{FROZEN_TABLES_MAX, TABLE_ENTRIES_MAX};
use types::{Epoch, WriteSeq};

/// Who appends to the redo log.
#[derive(Debug)]
pub(crate) struct Appender {
    state: Arc<State>,
    footers: Arc<Footers>,
    writer: Mutex<Writer>,
    in_flight: InFlight,
    /// Set after a failed write or sync: nothing more is taken.
    failed: AtomicBool,
}

impl Appender {
    pub(crate) fn new(state: Arc<State>, footers: Arc<Footers>, writer: Writer) -> Self {
        let (writer, in_flight, failed) = (Mutex::new(writer), InFlight::default(), AtomicBool::new(false));
        Self { state, footers, writer, in_flight, failed }
    }

    pub(crate) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a panic aborts the process")
    }

    /// Whether nothing more is taken.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Nothing more is taken.
    pub(crate) fn refuse(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Appends batches in order and makes them durable with one sync. After [`AppendError::Failed`] nothing more is
    /// taken until the journal is opened again from the disk: a sync that failed once says nothing the second time.
    pub(crate) fn append(&self, batches: Vec<Batch>, meta: AppendMeta) -> Result<Appended, AppendError> {
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

    /// A stream is about to be welcomed, and is told by what is returned whether it must begin anew. No other one may
    /// append any more.
    pub(crate) fn begin_stream(&self) -> JournalStatus {
        let mut writer = self.lock_writer();
        if writer.takes == Takes::NothingMore {
            writer.takes = Takes::ANewStream;
        }
        JournalStatus::of(&self.state.read_shared())
    }

    /// Waits until every group that was framed is committed or has failed.
    pub(crate) fn wait(&self) {
        self.in_flight.wait();
    }

    /// The same, but no longer than this; whether they have. A disk that hangs commits nothing and fails nothing.
    pub(crate) fn wait_within(&self, most: Duration) -> bool {
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
        if self.has_failed() || self.state.is_closed() {
            return Err(AppendError::Closed);
        }
        let acked = self.check_state(meta.epoch)?;
        if let Some(first) = batches.first().filter(|_| writer.takes != Takes::Everything) {
            let from = self.state.read_shared().timeline.must_resync();
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
        let shared = self.state.read_shared();
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
    fn commit(&self, framed: Framed) -> Result<Appended, AppendError> {
        let written = self.write(&framed).and_then(|()| self.sync(&framed));
        let result = written.and_then(|()| self.publish(&framed));
        self.in_flight.done();
        result
    }

    /// Writes a group to its place.
    pub(crate) fn write(&self, framed: &Framed) -> Result<(), AppendError> {
        if self.has_failed() {
            return Err(AppendError::Closed);
        }
        let Framed { segment, start, gathered, .. } = framed;
        gathered.write_to(&*segment.file, *start).map_err(|error| self.classify(error))
    }

    /// Makes everything written to the group's segment durable.
    pub(crate) fn sync(&self, framed: &Framed) -> Result<(), AppendError> {
        if self.has_failed() {
            return Err(AppendError::Closed);
        }
        framed.segment.file.sync_data().map_err(|error| self.fail(error))
    }

    /// Publishes a group that is durable.
    pub(crate) fn publish(&self, framed: &Framed) -> Result<Appended, AppendError> {
        let mut shared = self.state.write_shared();
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
        let settings = self.state.read_shared().settings;
        if let Some((_, _, position)) = &writer.open {
            let more: u64 = batches.iter().map(|batch| Envelope::stride(batch.bytes().len())).sum();
            let old = writer.opened_at.is_some_and(|opened| now.since(opened) > settings.history / 12);
            let limit = writer.segment_bytes.min(settings.segment_bytes);
            let is_full = self.state.read_shared().redo_table.len() >= TABLE_ENTRIES_MAX;
            let fits = (position.at + more <= limit && !is_full) || position.at == FIRST_BATCH_AT;
            // A clock that was set back would keep it open for as long.
            writer.opened_at = Some(writer.opened_at.unwrap_or(now).min(now));
            if fits && !old {
                return Ok(());
            }
        }
        self.in_flight.wait();
        if self.has_failed() {
            return Err(AppendError::Closed);
        }
        if self.state.read_shared().view.redo.frozen.len() >= FROZEN_TABLES_MAX {
            // Whoever keeps the journal up does not keep pace: memory is bounded all the same.
            self.footers.write_all(None).map_err(|error| self.classify(error))?;
        }
        writer.segment_bytes = writer.next_segment_bytes(now);
        self.seal_redo(writer).map_err(|error| self.classify(error))?;
        let (info, segment) = roll::begin_segment(&self.state, LogKind::Redo, writer.vm, now, meta.entropy)
            .map_err(|error| self.classify(error))?;
        writer.opened_at = Some(now);
        let start = segment.start();
        writer.open = Some((segment, info.base_page, start));
        Ok(())
    }

    /// Seals the open redo segment, if there is one, where what is committed ends. What a write that failed has left behind
    /// that is not read any more. Waits for what is in flight.
    pub(crate) fn seal_redo(&self, writer: &mut Writer) -> io::Result<()> {
        self.in_flight.wait();
        if writer.open.is_none() {
            return Ok(());
        }
        let (end, point, newest_at) = {
            let shared = self.state.read_shared();
            (shared.open_bytes, shared.timeline.point(), shared.newest_at.unwrap_or_default())
        };
        roll::seal(&self.state, LogKind::Redo, end, point, newest_at).inspect_err(|error| {
            // The manifest on the disk may have it sealed all the same: nothing more may go to it.
            if !is_full(error) {
                self.refuse();
            }
        })?;
        writer.open = None;
        Ok(())
    }

    /// A full disk leaves the journal as it was; any other failure closes it.
    fn classify(&self, error: io::Error) -> AppendError {
        if is_full(&error) { AppendError::Full(error) } else { self.fail(error) }
    }

    fn fail(&self, error: io::Error) -> AppendError {
        self.refuse();
        AppendError::Failed(error)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
