//! The end of the redo log: where batches get their places, what they are until they are durable, and what is taken.

use crate::gather::Gathered;
use crate::segment::{Position, Segment};
use crate::timeline::{Timeline, begins_anew};
use batch::{Batch, BatchError};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::{Condvar, Mutex};
use types::limits::{SEGMENT_BYTES_RANGE, SEGMENT_FILL_SECONDS};
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
    pub(crate) vm: VmId,
    /// The open segment and where its next batch goes; none before the first append after a seal.
    pub(crate) open: Option<(Segment, u64, Position)>,
    pub(crate) last_seq: WriteSeq,
    pub(crate) takes: Takes,
    pub(crate) opened_at: Option<WallTime>,
    /// At which the next segment is closed.
    pub(crate) segment_bytes: u64,
}

/// Batches with their places, ready to be written.
#[derive(Debug)]
pub(crate) struct Framed {
    pub(crate) segment: Segment,
    pub(crate) start: u64,
    pub(crate) gathered: Gathered,
    pub(crate) end: Position,
    /// Each batch with the page it begins at and a sample of its payload.
    pub(crate) batches: Vec<(Batch, u64, Vec<u8>)>,
    pub(crate) received_at: WallTime,
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
    pub(crate) fn add(&self) {
        *self.count.lock().expect("a panic aborts the process") += 1;
    }

    pub(crate) fn done(&self) {
        let mut count = self.count.lock().expect("a panic aborts the process");
        *count -= 1;
        if *count == 0 {
            self.none.notify_all();
        }
    }

    pub(crate) fn wait(&self) {
        let count = self.count.lock().expect("a panic aborts the process");
        drop(self.none.wait_while(count, |count| *count > 0).expect("a panic aborts the process"));
    }

    pub(crate) fn wait_within(&self, most: Duration) -> bool {
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
    pub(crate) fn check_takes(&self, batch: &Batch, from: WriteSeq) -> Result<(), AppendError> {
        match self.takes {
            Takes::Everything => Ok(()),
            Takes::ANewStream if begins_anew(batch) => Ok(()),
            Takes::ANewStream | Takes::NothingMore => Err(AppendError::MustBeginAnew { from }),
        }
    }

    /// About as much as comes in two minutes: doubled where the last segment filled in less than half of
    /// that, halved where it took more than double.
    pub(crate) fn next_segment_bytes(&self, now: WallTime) -> u64 {
        let (Some(opened), Some((_, _, position))) = (self.opened_at, &self.open) else {
            return self.segment_bytes;
        };
        let seconds = now.since(opened).as_secs();
        let was_full = position.at > self.segment_bytes / 2;
        let next = if was_full && seconds < SEGMENT_FILL_SECONDS / 2 {
            self.segment_bytes * 2
        } else if seconds > SEGMENT_FILL_SECONDS * 2 {
            self.segment_bytes / 2
        } else {
            self.segment_bytes
        };
        next.clamp(SEGMENT_BYTES_RANGE.0, SEGMENT_BYTES_RANGE.1)
    }
}

/// Checks that each batch follows, and that its marks can be read, before a byte is written.
pub(crate) fn check_order(batches: &[Batch], mut current: WriteSeq) -> Result<(), AppendError> {
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
