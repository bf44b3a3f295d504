//! Appending: batches go to the end of the open segment, one sync makes them durable, then they are
//! published. What was not synced is never published and never acknowledged.

use crate::journal::{Journal, Shared};
use crate::layout::{Envelope, FIRST_BATCH_AT, SegmentHeader};
use crate::manifest::{Sealed, SegmentInfo};
use crate::segment::{Position, Segment, hex};
use batch::{Batch, BatchError};
use std::io;
use types::{Epoch, VmId, WallTime, WriteSeq};

/// Why batches were not appended. None of them is published; those before them still are.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("no space left for the journal")]
    Full(#[source] io::Error),
    #[error("the journal's disk failed; open the journal again")]
    Failed(#[source] io::Error),
    #[error("closed after an earlier failure; open the journal again")]
    Closed,
    #[error("a batch of epoch {found}, the journal is at {current}")]
    Epoch { found: Epoch, current: Epoch },
    #[error("a batch that follows {found}, the journal stands at {current}")]
    Order { found: WriteSeq, current: WriteSeq },
    #[error("a mark in the batch cannot be read")]
    Mark(#[from] BatchError),
}

impl AppendError {
    /// Whether the same batches may be appended later, without opening the journal again.
    pub fn is_transient(&self) -> bool {
        matches!(self, AppendError::Full(_))
    }
}

/// The state after an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub durable: WriteSeq,
    pub watermark: WriteSeq,
}

/// The end of the journal, where batches go.
#[derive(Debug)]
pub(crate) struct Writer {
    vm: VmId,
    /// The open segment and where its next batch goes; none before the first append after a seal.
    open: Option<(u64, Position)>,
    last_seq: WriteSeq,
    opened_at: Option<WallTime>,
    failed: bool,
}

/// Batches written but not yet synced.
struct Pending {
    segment: u64,
    at: u64,
}

impl Writer {
    pub(crate) fn resume(vm: VmId, open: Option<(u64, Position)>, last_seq: WriteSeq) -> Self {
        Self { vm, open, last_seq, opened_at: None, failed: false }
    }
}

impl Journal {
    /// Appends batches in order and makes them durable with one sync.
    ///
    /// `acked` is what the source has been told is durable; `entropy` seeds a new segment's incarnation.
    ///
    /// # Errors
    /// [`AppendError`]. After [`AppendError::Failed`] nothing more is taken until the journal is opened
    /// again from the disk: a sync that failed once says nothing the second time.
    pub fn append(
        &self,
        batches: &[Batch],
        epoch: Epoch,
        acked: WriteSeq,
        received_at: WallTime,
        entropy: [u8; 16],
    ) -> Result<Appended, AppendError> {
        let mut writer = self.lock_writer();
        if writer.failed {
            return Err(AppendError::Closed);
        }
        let current = Epoch(self.read_shared().manifest.epoch);
        if epoch < current {
            return Err(AppendError::Epoch { found: epoch, current });
        }
        check_order(batches, writer.last_seq)?;
        self.roll_if_due(&mut writer, batches, received_at, entropy)?;
        let (number, mut position) = writer.open.expect("rolled to an open segment");
        let segment = self.read_shared().segments[&number].clone();
        let mut pending = Vec::with_capacity(batches.len());
        let mut out = Vec::new();
        let start = position.at;
        for batch in batches {
            let body = batch.bytes();
            let envelope = Envelope {
                body_len: body.len() as u32,
                body_crc: crc32c::crc32c_append(segment.header.seed(), body),
                batch_no: position.batch_no,
                acked_upto: acked,
                epoch,
                received_at,
                chain: position.chain,
            };
            let (header, crc) = envelope.encode(segment.header.seed());
            pending.push(Pending { segment: number, at: position.at + header.len() as u64 });
            out.extend_from_slice(&header);
            out.extend_from_slice(body);
            position.at += Envelope::stride(body.len());
            position.batch_no += 1;
            position.chain = crc;
            out.resize((position.at - start) as usize, 0);
        }
        segment.file.write_at(start, &out).map_err(|error| writer.classify(error))?;
        segment.file.sync_data().map_err(|error| {
            writer.failed = true;
            AppendError::Failed(error)
        })?;
        writer.open = Some((number, position));
        writer.last_seq = batches.last().map_or(writer.last_seq, |batch| batch.header().last_seq);
        let mut shared = self.write_shared();
        shared.open_bytes = position.at;
        shared.publish(batches, &pending, received_at)
    }

    /// Seals the open segment and begins a new one where the batches do not fit, or where the open one
    /// has been so for a twelfth of the history window.
    fn roll_if_due(
        &self,
        writer: &mut Writer,
        batches: &[Batch],
        now: WallTime,
        entropy: [u8; 16],
    ) -> Result<(), AppendError> {
        let settings = self.read_shared().settings;
        if let Some((_, position)) = writer.open {
            let more: u64 = batches.iter().map(|batch| Envelope::stride(batch.bytes().len())).sum();
            let old = writer.opened_at.is_some_and(|opened| now.since(opened) > settings.history / 12);
            let fits = position.at + more <= settings.segment_bytes || position.at == FIRST_BATCH_AT;
            writer.opened_at = writer.opened_at.or(Some(now));
            if fits && !old {
                return Ok(());
            }
        }
        let mut manifest = self.read_shared().manifest.clone();
        if let (Some((_, position)), Some(last)) = (writer.open, manifest.segments.last_mut()) {
            let newest_at = self.read_shared().newest_at.unwrap_or(now).0;
            let last_seq = writer.last_seq.raw();
            last.sealed = Some(Sealed { bytes: position.at, last_seq, newest_at });
        }
        let number = manifest.next_segment;
        let header = SegmentHeader { number, vm: writer.vm, incarnation: entropy, created_at: now };
        let name = SegmentInfo::file_name(number);
        let segment = Segment::create(&*self.store, &name, header).map_err(|error| writer.classify(error))?;
        manifest.next_segment += 1;
        manifest.segments.push(SegmentInfo { number, incarnation: hex(&entropy), sealed: None });
        self.store.sync_folder().map_err(|error| writer.classify(error))?;
        manifest.save(&*self.store).map_err(|error| writer.classify(error))?;
        writer.open = Some((number, segment.start()));
        writer.opened_at = Some(now);
        let mut shared = self.write_shared();
        shared.segments.insert(number, segment);
        shared.manifest = manifest;
        shared.open_bytes = FIRST_BATCH_AT;
        Ok(())
    }
}

impl Writer {
    /// A full disk leaves the journal as it was; any other failure closes it.
    fn classify(&mut self, error: io::Error) -> AppendError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AppendError::Full(error),
            _ => {
                self.failed = true;
                AppendError::Failed(error)
            }
        }
    }
}

impl Shared {
    fn publish(
        &mut self,
        batches: &[Batch],
        pending: &[Pending],
        received_at: WallTime,
    ) -> Result<Appended, AppendError> {
        for (batch, place) in batches.iter().zip(pending) {
            self.timeline.insert(batch, |entry| batch.payload(entry))?;
            self.index.insert(batch, place.segment, place.at);
        }
        self.oldest_at = self.oldest_at.or(Some(received_at));
        self.newest_at = Some(received_at);
        Ok(Appended { durable: self.timeline.last_seq, watermark: self.timeline.watermark })
    }
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
