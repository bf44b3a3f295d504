//! What a stream sends next: the spill first, then the buffer, each batch encoded once.
//!
//! What holds: the spill's batches all lie below the buffer's records, and together they follow what the
//! peer has acknowledged without a hole. Spilling moves the oldest of the buffer to the spill's end, but for copies of a
//! sync, which are made again.

use crate::clock;
use crate::state::random;
use anyhow::{Context, Result};
use batch::{Batch, BatchMeta, Codec, Pieces};
use joint::view::SpillRoom;
use journal::{FsStore, Released, Spill, SpillError};
use replication::{CodecChooser, Compression};
use splitter::Capture;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::task::block_in_place;
use types::limits::BATCH_BYTES_TARGET;
use types::{Incarnation, RunNumber, VmId, WriteSeq};

/// Batches moved to the spill in one go.
const SPILL_BATCHES: usize = 16;

/// A batch as it goes out.
pub(super) struct Outgoing {
    pub(super) batch: Pieces,
    pub(super) last: WriteSeq,
    pub(super) watermark: WriteSeq,
}

impl Outgoing {
    /// The newest run that the peer hears of by it. In a batch without records that of the watermark alone, which a cut
    /// may have lifted.
    pub(super) fn newest_run(&self) -> RunNumber {
        self.watermark.max(self.last).run()
    }
}

/// The outgoing end of one VM's stream.
pub(super) struct Outbox {
    capture: Arc<Capture>,
    incarnation: Incarnation,
    spill: Mutex<SpillState>,
}

struct SpillState {
    spill: Option<Spill>,
    /// No room was left; there is again once something was acknowledged.
    full: bool,
    /// It cannot be written; nothing more is tried until the stream begins anew.
    failed: bool,
    /// Something in it cannot be read: the stream has to begin anew.
    lost: bool,
}

/// The spill in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpillView {
    pub(super) has_room: bool,
    pub(super) lost: bool,
    pub(super) bytes: u64,
    pub(super) bytes_max: u64,
}

impl SpillView {
    /// What a sender has to know.
    pub(super) fn room(self) -> SpillRoom {
        SpillRoom { has_room: self.has_room, lost: self.lost }
    }
}

impl Outbox {
    /// With a spill of `spill_bytes` in `folder`, or without one where that is zero or cannot be made.
    pub(super) fn new(
        capture: Arc<Capture>,
        incarnation: Incarnation,
        vm: VmId,
        folder: &Path,
        spill_bytes: u64,
    ) -> Self {
        let make = || -> Result<Spill> {
            let store = FsStore::open(folder).with_context(|| format!("open {}", folder.display()))?;
            Spill::create(Arc::new(store), vm, spill_bytes).context("empty the spill")
        };
        let spill = (spill_bytes > 0).then(make).and_then(|spill| {
            spill.inspect_err(|error| tracing::error!(%vm, error = format!("{error:#}"), "no spill")).ok()
        });
        let spill = SpillState { spill, full: false, failed: false, lost: false };
        Self { capture, incarnation, spill: Mutex::new(spill) }
    }

    pub(super) fn view(&self) -> SpillView {
        let state = self.lock();
        let Some(spill) = &state.spill else { return SpillView::default() };
        SpillView {
            has_room: !state.full && !state.failed && !state.lost,
            lost: state.lost,
            bytes: spill.bytes(),
            bytes_max: spill.bytes_max(),
        }
    }

    /// The batch that follows `after`; none where nothing is to be said.
    pub(super) fn next(
        &self,
        after: WriteSeq,
        bytes_max: usize,
        chooser: &mut CodecChooser,
        lags: bool,
        tells_watermark: bool,
    ) -> Option<Outgoing> {
        let Some(taken) = self.capture.take_after(after, bytes_max, lags) else {
            return block_in_place(|| self.next_of_spill(after));
        };
        if taken.records.is_empty() && !tells_watermark {
            return None;
        }
        let last = taken.records.last().map_or(after, |record| record.seq);
        let watermark = taken.watermark.max(last);
        let meta =
            BatchMeta { incarnation: self.incarnation, prev_seq: after, watermark, taken_at: clock::wall() };
        let codec = chooser.choose(lags);
        let begun = clock::now();
        let batch = batch::encode_in_pieces(&meta, &taken.records, codec);
        let plain = taken.records.iter().map(|record| record.payload.len()).sum();
        chooser.note_encoded(codec, plain, batch.len(), clock::now().since(begun));
        Some(Outgoing { batch, last, watermark })
    }

    fn next_of_spill(&self, after: WriteSeq) -> Option<Outgoing> {
        let mut state = self.lock();
        let spill = state.spill.as_ref().expect("what was spilled lies in a spill");
        let next = spill.next_after(after).context("read the spill");
        let next = next
            .and_then(|batch| following(&batch.context("the spill ends before the buffer begins")?, after));
        match next {
            Ok(next) => Some(next),
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the spill is lost: history gets a gap, and what it held is sent as blocks"
                );
                state.lost = true;
                None
            }
        }
    }

    /// Moves some of the oldest of the buffer into the spill.
    pub(super) fn spill(&self) {
        for _ in 0..SPILL_BATCHES {
            if !self.spill_one() {
                return;
            }
        }
    }

    /// Moves one batch; whether there may be another. Nothing begins anew between what is taken and what is said to
    /// have left the buffer: the spill is held over both.
    fn spill_one(&self) -> bool {
        let mut state = self.lock();
        let SpillState { spill: Some(spill), full, failed, lost: false } = &mut *state else { return false };
        let status = self.capture.status();
        if *full || *failed || status.buffered_bytes * 4 < status.buffer_bytes_max {
            return false;
        }
        let after = status.spilled;
        // None: an acknowledgement came in between, and there is less to spill than it seemed.
        let Some(taken) = self.capture.take_to_spill(after, BATCH_BYTES_TARGET) else { return true };
        let Some(last) = taken.records.last() else { return false };
        let (watermark, taken_at) = (taken.watermark.max(last.seq), clock::wall());
        let meta = BatchMeta { incarnation: self.incarnation, prev_seq: after, watermark, taken_at };
        let encoded = batch::encode(&meta, &taken.records, Codec::Lz4);
        let batch = Batch::parse(encoded).expect("encoded just now");
        match spill.append(&batch, random(), taken_at) {
            Ok(()) => self.capture.spilled(last.seq),
            Err(SpillError::Full { bytes_max }) => {
                tracing::warn!(bytes_max, "the spill is full");
                *full = true;
            }
            Err(error) => {
                tracing::error!(error = crate::error::with_sources(&error), "the spill takes nothing more");
                *failed = true;
            }
        }
        true
    }

    /// Everything up to here is acknowledged.
    pub(super) fn release(&self, up_to: WriteSeq) {
        self.capture.release(up_to);
        let mut state = self.lock();
        let Some(spill) = &mut state.spill else { return };
        let released = spill.release(up_to);
        warn_of(&released);
        if released.any {
            state.full = false;
            self.capture.sweep();
        }
    }

    /// The stream begins anew above `floor`: nothing of what was spilled is needed. Both are emptied while nobody
    /// spills; what is spilled from then on is of the new stream.
    pub(super) fn restart(&self, floor: WriteSeq) {
        let mut state = self.lock();
        self.capture.restart(floor);
        state.clear();
    }

    /// The stream ends: nothing of what was spilled is needed.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, SpillState> {
        self.spill.lock().expect("a panic aborts the process")
    }
}

fn warn_of(released: &Released) {
    if let Some(error) = &released.left_behind {
        tracing::warn!(%error, "a file of the spill is left behind");
    }
}

impl SpillState {
    fn clear(&mut self) {
        if let Some(spill) = &mut self.spill {
            warn_of(&spill.clear());
        }
        (self.full, self.failed, self.lost) = (false, false, false);
    }
}

/// The batch as it follows `after`, which may lie within it.
fn following(batch: &Batch, after: WriteSeq) -> Result<Outgoing> {
    let header = batch.header();
    Ok(Outgoing {
        batch: batch::following(batch, after)?,
        last: header.last_seq,
        watermark: header.watermark,
    })
}

/// The configured compression.
pub(super) fn compression(wanted: crate::config::Compression) -> Compression {
    match wanted {
        crate::config::Compression::Auto => Compression::Adaptive,
        crate::config::Compression::None => Compression::Always(Codec::Raw),
        crate::config::Compression::Lz4 => Compression::Always(Codec::Lz4),
        crate::config::Compression::Zstd => Compression::Always(Codec::Zstd),
    }
}

#[cfg(test)]
mod tests;
