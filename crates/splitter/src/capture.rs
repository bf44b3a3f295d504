//! The sequencer of one VM: order, buffer and bitmap behind one lock.
//!
//! What holds whenever the lock is free:
//!
//! - the buffer's records ascend strictly, and every one drew its sequence under this lock;
//! - a write of this VM that has drawn a sequence is in the buffer, released from it, or marked in the
//!   bitmap with a `SyncBegin` standing in the stream before it;
//! - therefore the counter read under this lock is a watermark: nothing of this VM is still to come at
//!   or below it.
//!
//! A full buffer turns into a bitmap, never into a stall: nobody here waits for anything.

use crate::dirty::Dirty;
use crate::dirty_map::DirtyMap;
use batch::{Kind, Record, encode_mark};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use types::limits::{BATCH_BYTES_TARGET, BATCH_RECORDS_MAX, BLOCK_BYTES, RECORD_BYTES_MAX};
use types::{BlockIndex, ByteRange, Checkpoint, DiskIndex, GroupCounter, Incarnation, WallTime, WriteSeq};

/// What a record costs beside its payload, in bytes of the buffer.
const RECORD_OVERHEAD_BYTES: u64 = 96;
/// The longest run of zeroes in one record.
const ZERO_BYTES_MAX: u64 = 1 << 30;

/// The captured writes of one VM.
pub struct Capture {
    counter: Arc<GroupCounter>,
    buffer_bytes_max: u64,
    inner: Mutex<Inner>,
    /// Told whenever there is something new to send or a state to follow.
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    buffer: VecDeque<Record>,
    buffered_bytes: u64,
    released: WriteSeq,
    tracking: bool,
    gap_open: bool,
    dirty: Dirty,
    writes: u64,
    write_bytes: u64,
}

/// A capture in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Writes only mark the bitmap.
    pub tracking: bool,
    /// Writes are missing from the stream since a `SyncBegin`.
    pub gap_open: bool,
    pub dirty_blocks: u64,
    pub buffered_bytes: u64,
    pub buffer_bytes_max: u64,
    pub released: WriteSeq,
    /// The last sequence in the buffer; `released` where it is empty.
    pub last: WriteSeq,
    pub watermark: WriteSeq,
    /// Guest writes since the agent started, zeroes and discards among them.
    pub writes: u64,
    pub write_bytes: u64,
}

/// Records for a batch.
#[derive(Debug)]
pub struct Taken {
    pub records: Vec<Record>,
    pub watermark: WriteSeq,
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Capture {
    /// A capture that tracks only, until [`Capture::restart`] begins the stream. What `map` has kept is
    /// marked.
    pub fn new(
        counter: Arc<GroupCounter>,
        disk_sizes: &[u64],
        map: DirtyMap,
        buffer_bytes_max: u64,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let inner = Inner {
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            released: WriteSeq::ZERO,
            tracking: true,
            gap_open: true,
            dirty: Dirty::new(disk_sizes, map),
            writes: 0,
            write_bytes: 0,
        };
        Self { counter, buffer_bytes_max, inner: Mutex::new(inner), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }

    /// Says that a range is about to be written to the local disk, by the guest.
    ///
    /// # Errors
    /// Where that cannot be kept in mind over the agent's death: the write must not be made.
    pub fn begin_write(&self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        self.lock().dirty.begin_write(disk, range)
    }

    /// Commits a guest write that was begun and that the local disk has completed. `payload` is empty for
    /// zeroes. The caller holds the range lock and acknowledges the guest only after this returns.
    pub fn commit(&self, disk: DiskIndex, kind: Kind, range: ByteRange, payload: &Bytes) {
        debug_assert!(kind.is_guest_write());
        let mut inner = self.lock();
        inner.writes += 1;
        inner.write_bytes += range.len;
        let pieces = pieces(kind, range, payload);
        if inner.tracking || !self.room_for(&inner, &pieces) {
            inner.begin_gap(&self.counter);
            inner.tracking = true;
            inner.dirty.end_write(disk, range, None);
        } else {
            inner.push_pieces(&self.counter, disk, pieces);
        }
        drop(inner);
        (self.wake)();
    }

    /// A local write that was begun has failed: what the range holds now is unknown, so it is to be copied.
    pub fn suspect(&self, disk: DiskIndex, range: ByteRange) {
        let mut inner = self.lock();
        inner.begin_gap(&self.counter);
        inner.dirty.end_write(disk, range, None);
        drop(inner);
        (self.wake)();
    }

    /// Puts a checkpoint's mark behind everything at or below its cut, and says the mark's own sequence.
    /// While writes are missing there is no mark to put.
    pub fn mark_checkpoint(&self, checkpoint: &Checkpoint) -> Option<WriteSeq> {
        let mut inner = self.lock();
        if inner.gap_open {
            return None;
        }
        let seq = self.counter.draw();
        inner.push(Record::mark(seq, Kind::Checkpoint, encode_mark(checkpoint)));
        drop(inner);
        (self.wake)();
        Some(seq)
    }

    /// The capture in numbers.
    pub fn status(&self) -> CaptureStatus {
        let inner = self.lock();
        CaptureStatus {
            tracking: inner.tracking,
            gap_open: inner.gap_open,
            dirty_blocks: inner.dirty.marked_blocks(),
            buffered_bytes: inner.buffered_bytes,
            buffer_bytes_max: self.buffer_bytes_max,
            released: inner.released,
            last: inner.last(),
            watermark: self.counter.last(),
            writes: inner.writes,
            write_bytes: inner.write_bytes,
        }
    }

    /// What stands in the buffer above `after`, as much as fits a batch, and the watermark that goes with
    /// it. The records stay in the buffer until they are released.
    pub fn take_after(&self, after: WriteSeq) -> Taken {
        let inner = self.lock();
        let from = inner.buffer.partition_point(|record| record.seq <= after);
        let mut bytes = 0;
        let records: Vec<Record> = inner
            .buffer
            .range(from..)
            .take(BATCH_RECORDS_MAX)
            .take_while(|record| {
                let first = bytes == 0;
                bytes += record.payload.len() + 1;
                first || bytes <= BATCH_BYTES_TARGET
            })
            .cloned()
            .collect();
        let watermark = match records.last() {
            Some(last) if from + records.len() < inner.buffer.len() => last.seq,
            _ => self.counter.last(),
        };
        Taken { records, watermark }
    }

    /// Forgets everything at or below: it is durable at the recovery side.
    pub fn release(&self, up_to: WriteSeq) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.dirty.acknowledged(up_to);
        while inner.buffer.front().is_some_and(|record| record.seq <= up_to) {
            let record = inner.buffer.pop_front().expect("looked at just now");
            inner.buffered_bytes -= cost(&record);
            if record.kind.changes_disk() {
                inner.dirty.released(record.disk, record.range, record.seq);
            }
        }
        inner.released = inner.released.max(up_to);
    }

    /// Begins the stream anew above `floor`: what was buffered is marked instead, and a `SyncBegin` says
    /// that writes are missing from `floor` on. The caller marks what else may differ, and then calls
    /// [`Capture::begin_stream`], before anything is closed.
    pub fn restart(&self, floor: WriteSeq) {
        let mut inner = self.lock();
        inner.buffer.clear();
        inner.buffered_bytes = 0;
        inner.dirty.forget_stream();
        inner.released = floor;
        self.counter.raise(floor);
        inner.tracking = false;
        inner.gap_open = true;
        let seq = self.counter.draw();
        inner.push(sync_begin(seq, floor.next()));
    }

    /// Everything that may differ above `floor` is marked: from here on the dirty map belongs to this
    /// incarnation of the stream.
    pub fn begin_stream(&self, incarnation: Incarnation, floor: WriteSeq) {
        self.lock().dirty.begin_stream(incarnation, floor);
    }

    /// To be said each second: the agent is there, and whatever is written goes through it.
    pub fn note_alive(&self, now: WallTime) {
        self.lock().dirty.note_alive(now);
    }

    /// The agent stops, and nothing is written any more: the dirty map is kept over a reboot too.
    pub fn close(&self, now: WallTime) {
        self.lock().dirty.close(now);
    }

    /// Stops buffering: from here on writes only mark the bitmap.
    pub fn start_tracking(&self) {
        let mut inner = self.lock();
        inner.begin_gap(&self.counter);
        inner.tracking = true;
    }

    /// Buffers writes again. What was marked stays marked until it is copied.
    pub fn leave_tracking(&self) {
        self.lock().tracking = false;
    }

    /// Marks a range to be copied.
    pub fn mark_dirty(&self, disk: DiskIndex, range: ByteRange) {
        self.lock().dirty.mark(disk, range);
    }

    /// Whether a block is marked to be copied.
    pub fn is_dirty(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.lock().dirty.is_marked(disk, block)
    }

    /// The next run of marked blocks, at most `blocks_max` long.
    pub(crate) fn next_dirty_run(&self, blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
        self.lock().dirty.next_run(blocks_max)
    }

    /// Clears the marks of a run that the caller has locked and is about to read. It is given back by
    /// [`Capture::end_copy`].
    pub(crate) fn begin_copy(&self, disk: DiskIndex, first: BlockIndex, len: u64) {
        self.lock().dirty.begin_copy(disk, first, len);
    }

    /// Takes the copy of a run into the stream, in pieces of bytes or zeroes. False where there was none,
    /// or no room, or nothing is buffered now: then its marks are set again.
    pub(crate) fn end_copy(&self, disk: DiskIndex, range: ByteRange, payload: Option<&Bytes>) -> bool {
        let mut inner = self.lock();
        let pieces = payload.map(|payload| pieces(Kind::Sync, range, payload));
        let pieces = pieces.filter(|pieces| !inner.tracking && self.room_for(&inner, pieces));
        let taken = pieces.is_some();
        match pieces {
            Some(pieces) => inner.push_pieces(&self.counter, disk, pieces),
            None => inner.dirty.end_write(disk, range, None),
        }
        drop(inner);
        (self.wake)();
        taken
    }

    /// Ends a sync with a `SyncEnd`; false where blocks are marked, or writes are not buffered.
    pub fn close_sync(&self) -> bool {
        let mut inner = self.lock();
        if inner.tracking || inner.dirty.marked_blocks() > 0 {
            return false;
        }
        inner.gap_open = false;
        let seq = self.counter.draw();
        inner.push(Record::mark(seq, Kind::SyncEnd, Bytes::new()));
        true
    }

    fn room_for(&self, inner: &Inner, pieces: &[(Kind, ByteRange, Bytes)]) -> bool {
        let more: u64 =
            pieces.iter().map(|(_, _, payload)| payload.len() as u64 + RECORD_OVERHEAD_BYTES).sum();
        inner.buffered_bytes + more <= self.buffer_bytes_max
    }
}

impl Inner {
    /// Takes what was begun into the stream, each piece with its own sequence.
    fn push_pieces(
        &mut self,
        counter: &GroupCounter,
        disk: DiskIndex,
        pieces: Vec<(Kind, ByteRange, Bytes)>,
    ) {
        for (kind, range, payload) in pieces {
            let seq = counter.draw();
            self.dirty.end_write(disk, range, Some(seq));
            self.push(Record { seq, kind, disk, range, payload });
        }
    }

    fn push(&mut self, record: Record) {
        debug_assert!(record.seq > self.last());
        self.buffered_bytes += cost(&record);
        self.buffer.push_back(record);
    }

    fn last(&self) -> WriteSeq {
        self.buffer.back().map_or(self.released, |record| record.seq.max(self.released))
    }

    /// Says in the stream that writes are missing from here on, once. The mark always fits: it is as
    /// small as a record can be, and there is at most one between two syncs.
    fn begin_gap(&mut self, counter: &GroupCounter) {
        if !self.gap_open {
            self.gap_open = true;
            let seq = counter.draw();
            self.push(sync_begin(seq, seq));
        }
    }
}

fn cost(record: &Record) -> u64 {
    record.payload.len() as u64 + RECORD_OVERHEAD_BYTES
}

fn sync_begin(seq: WriteSeq, missing_from: WriteSeq) -> Record {
    let range = ByteRange::new(missing_from.raw(), 0);
    Record { range, ..Record::mark(seq, Kind::SyncBegin, Bytes::new()) }
}

/// Cuts a write into records: at 1 MiB, and where whole 64 KiB of zeroes begin or end.
fn pieces(kind: Kind, range: ByteRange, payload: &Bytes) -> Vec<(Kind, ByteRange, Bytes)> {
    if !kind.has_payload() {
        return range.split_at_multiples(ZERO_BYTES_MAX).map(|piece| (kind, piece, Bytes::new())).collect();
    }
    let zero = if kind == Kind::Sync { Kind::SyncZero } else { Kind::Zero };
    let mut pieces: Vec<(Kind, ByteRange, Bytes)> = Vec::new();
    for part in range.split_at_multiples(BLOCK_BYTES) {
        let at = (part.start - range.start) as usize;
        let bytes = payload.slice(at..at + part.len as usize);
        let (kind, bytes) = if is_zero(&bytes) { (zero, Bytes::new()) } else { (kind, bytes) };
        match pieces.last_mut() {
            Some((last, so_far, joined)) if *last == kind && so_far.len + part.len <= RECORD_BYTES_MAX => {
                so_far.len += part.len;
                let from = (so_far.start - range.start) as usize;
                if kind.has_payload() {
                    *joined = payload.slice(from..from + so_far.len as usize);
                }
            }
            _ => pieces.push((kind, part, bytes)),
        }
    }
    pieces
}

fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests;
