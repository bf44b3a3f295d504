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
//! A full buffer turns into a bitmap, never into a stall: nobody here waits for anything, but for guest
//! writes in synchronous mode, and those wait without the lock and without a range lock.

use crate::ack_gate::AckGate;
use crate::buffer_pool::BufferPool;
use crate::dirty::Dirty;
use crate::dirty_map::DirtyMap;
use crate::doubts::Doubts;
use crate::identity::DiskIdentity;
use crate::polite_lock::PoliteLock;
use crate::region_log::{RegionLog, Regions};
use crate::room::Room;
use crate::superseded::Superseded;
use crate::sync_gate::{Others, SyncGate, SyncPolicy, SyncState};
use batch::{Kind, Record, encode_mark, is_zero};
use bytes::Bytes;
pub(crate) use held::Patience;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use threads::sync::{Condvar, Mutex, MutexGuard};
use types::limits::{BATCH_RECORDS_MAX, BLOCK_BYTES, RANGE_BYTES_MAX, RECORD_BYTES_MAX};
use types::{BlockIndex, ByteRange, Checkpoint, DiskIndex, GroupCounter, Incarnation, WallTime, WriteSeq};

/// What a record costs beside its payload, in bytes of the buffer.
const RECORD_OVERHEAD_BYTES: u64 = 96;

/// The captured writes of one VM.
pub struct Capture {
    counter: Arc<GroupCounter>,
    /// Shared by all captures of an agent.
    pool: Arc<BufferPool>,
    gate: Arc<AckGate>,
    /// Synchronous mode is chosen: guest writes may have to wait for the recovery side. Set with `inner` locked.
    is_sync: AtomicBool,
    disk_sizes: Vec<u64>,
    /// Locked before `inner`, never after it.
    regions: Mutex<RegionLog>,
    inner: PoliteLock<Inner>,
    /// Told whenever what a held write waits for may have come.
    released: Condvar,
    /// Told whenever there is something new to send or a state to follow.
    wake: Box<dyn Fn() + Send + Sync>,
    /// Guest writes that were begun, and that have ended in whatever way, since the agent started.
    begun: AtomicU64,
    ended: AtomicU64,
}

struct Inner {
    buffer: VecDeque<Record>,
    buffered_bytes: u64,
    room: Room,
    /// Records in the buffer that are copies of a sync.
    copies: u64,
    released: WriteSeq,
    /// What lies between `released` and here has left the buffer for the spill.
    spilled: WriteSeq,
    tracking: bool,
    sync: SyncGate,
    /// What the other VMs of the group have at the recovery side.
    others: Others,
    gap_open: bool,
    /// Writes are made that nobody tells of: no cut of this capture is consistent any more.
    is_deaf: bool,
    /// The last `SyncEnd`: no image has a write of the stream before this is durable.
    sync_end: WriteSeq,
    /// Somebody who was leaving has waited in vain when this was released.
    waited_in_vain: Option<WriteSeq>,
    dirty: Dirty,
    /// Blocks that could not be read for a comparison.
    uncompared_blocks: u64,
    sync_work: SyncWork,
    doubts: Doubts,
    /// Where writes may be left out that others overwrite before the next checkpoint.
    superseded: Option<Superseded>,
    /// Not now.
    leaves_nothing_out: bool,
    writes: u64,
    write_bytes: u64,
    left_out_bytes: u64,
}

/// How much may be buffered, and what a guest's write waits for.
#[derive(Debug, Clone)]
pub struct CaptureConfig {
    pub buffer_bytes_max: u64,
    /// Shared by all captures of an agent.
    pub pool: Arc<BufferPool>,
    /// Synchronous mode, if the operator chose it.
    pub sync: Option<SyncPolicy>,
    /// Shared by all captures of a group on this host.
    pub gate: Arc<AckGate>,
    /// Whether writes may be left out of a stream that lags, where others overwrite them before the next checkpoint.
    pub leaves_out: bool,
}

/// A capture in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureStatus {
    /// Writes only mark the bitmap.
    pub tracking: bool,
    /// Writes are missing from the stream since a `SyncBegin`.
    pub gap_open: bool,
    /// Writes are made that nobody tells of, see [`Capture::lose_writes`].
    pub deaf: bool,
    pub dirty_blocks: u64,
    /// Blocks that are to be compared, or are being compared.
    pub unsettled_blocks: u64,
    /// Of those, the ones that are still to be compared.
    pub suspect_blocks: u64,
    /// Blocks that the local disk does not give as a whole.
    pub unreadable_blocks: u64,
    /// Blocks that no comparison could say anything about, for the same reason, since this capture began; counted anew
    /// in each comparison.
    pub uncompared_blocks: u64,
    pub sync_work: SyncWork,
    pub buffered_bytes: u64,
    pub buffer_bytes_max: u64,
    /// Records in the buffer that are copies of a sync.
    pub copies: u64,
    pub released: WriteSeq,
    /// What lies between `released` and here has left the buffer for the spill.
    pub spilled: WriteSeq,
    /// The last sequence in the buffer or the spill; `released` where both are empty.
    pub last: WriteSeq,
    pub watermark: WriteSeq,
    /// Guest writes since the agent started, zeroes and discards among them.
    pub writes: u64,
    pub write_bytes: u64,
    /// Of these, what needs not be sent: it was overwritten before the next checkpoint.
    pub left_out_bytes: u64,
    pub sync: SyncState,
}

/// What syncs have done since a capture began, in blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncWork {
    /// Taken into the stream, again where they were once before.
    pub copied: u64,
    pub compared: u64,
    /// Asked for by a recovery side that has lost them.
    pub asked_again: u64,
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
        regions: RegionLog,
        config: CaptureConfig,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let inner = Inner {
            buffer: VecDeque::new(),
            buffered_bytes: 0,
            room: Room::of(config.buffer_bytes_max),
            copies: 0,
            released: WriteSeq::ZERO,
            spilled: WriteSeq::ZERO,
            sync: SyncGate::new(config.sync),
            others: Others::NONE,
            tracking: true,
            gap_open: true,
            is_deaf: false,
            sync_end: WriteSeq::ZERO,
            waited_in_vain: None,
            dirty: Dirty::new(disk_sizes, map, &regions),
            uncompared_blocks: 0,
            sync_work: SyncWork::default(),
            doubts: Doubts::default(),
            writes: 0,
            write_bytes: 0,
            superseded: config.leaves_out.then(|| Superseded::above(WriteSeq::ZERO)),
            leaves_nothing_out: false,
            left_out_bytes: 0,
        };
        Self {
            counter,
            pool: config.pool,
            gate: config.gate,
            is_sync: AtomicBool::new(config.sync.is_some()),
            disk_sizes: disk_sizes.to_vec(),
            regions: Mutex::new(regions),
            inner: PoliteLock::new(inner),
            released: Condvar::new(),
            wake,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Says that a range is about to be written to the local disk, by the guest.
    ///
    /// # Errors
    /// Where that cannot be kept in mind over the agent's death: the write must not be made.
    pub fn begin_write(&self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        loop {
            let mut inner = self.lock();
            let cold = inner.dirty.cold(disk, range);
            if cold.is_empty() {
                inner.dirty.begin_write(disk, range)?;
                self.begun.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            drop(inner);
            self.heat(&cold)?;
        }
    }

    /// As [`Capture::begin_write`]; false, and nothing begun, where a region would have to be set in the log on
    /// the disk first.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn try_begin_write(&self, disk: DiskIndex, range: ByteRange) -> io::Result<bool> {
        let mut inner = self.lock();
        if !inner.dirty.cold(disk, range).is_empty() {
            return Ok(false);
        }
        inner.dirty.begin_write(disk, range)?;
        self.begun.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    /// How many guest writes were begun, none of them being under way; none while one is. As long as it stays the same,
    /// whoever changes a disk is somebody else.
    pub fn quiet_since(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        (begun == ended).then_some(begun)
    }

    fn lock_regions(&self) -> MutexGuard<'_, RegionLog> {
        self.regions.lock().expect("a panic aborts the process")
    }

    /// Commits a guest write that was begun and that the local disk has completed. `payload` is empty for
    /// zeroes. The caller holds the range lock; it acknowledges the guest only after this has returned and,
    /// with the range lock let go, [`Capture::hold`] has too. What is returned is for that.
    pub fn commit(&self, disk: DiskIndex, kind: Kind, range: ByteRange, payload: &Bytes) -> WriteSeq {
        debug_assert!(kind.is_guest_write());
        self.ended.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.lock();
        inner.writes += 1;
        inner.write_bytes += range.len;
        let pieces = (!inner.tracking).then(|| pieces(kind, range, payload));
        match pieces.filter(|pieces| self.room_for(&inner, pieces)) {
            Some(pieces) => inner.push_pieces(&self.counter, disk, pieces, &self.pool),
            None => {
                inner.begin_gap(&self.counter, &self.pool);
                inner.tracking = true;
                inner.dirty.end_write(disk, range, None);
            }
        }
        let seq = inner.last();
        // Where the stream has a gap now, nobody has to wait for it any more.
        let waits_end = inner.gap_open;
        drop(inner);
        if waits_end {
            self.tell_held();
        }
        (self.wake)();
        seq
    }

    /// A local write that was begun has failed: what the range holds now is unknown, so it is to be copied.
    pub fn suspect(&self, disk: DiskIndex, range: ByteRange) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        let mut inner = self.lock();
        inner.begin_gap(&self.counter, &self.pool);
        inner.dirty.end_write(disk, range, None);
        drop(inner);
        self.tell_held();
        (self.wake)();
    }

    /// A local write that was begun has changed nothing.
    pub fn abandon(&self, disk: DiskIndex, range: ByteRange) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.lock().dirty.abandon_write(disk, range);
    }

    /// Puts a checkpoint's mark behind everything at or below its cut, and says the mark's own sequence.
    /// While writes are missing there is no mark to put, and none has room in a full buffer: a VM that writes nothing while
    /// its link is down would have its buffer grow with every checkpoint.
    pub fn mark_checkpoint(&self, checkpoint: &Checkpoint) -> Option<WriteSeq> {
        let mark = encode_mark(checkpoint);
        let mut inner = self.lock();
        let more = mark.len() as u64 + RECORD_OVERHEAD_BYTES;
        if inner.gap_open || inner.buffered_bytes + more > inner.room.bytes() {
            return None;
        }
        if let Some(superseded) = &mut inner.superseded
            && !superseded.close_interval(checkpoint.cut)
        {
            return None;
        }
        let seq = self.counter.draw();
        inner.push(Record::mark(seq, Kind::Checkpoint, mark), &self.pool);
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
            deaf: inner.is_deaf,
            dirty_blocks: inner.dirty.marked_blocks(),
            unsettled_blocks: inner.dirty.unsettled_blocks(),
            suspect_blocks: inner.dirty.suspect_blocks(),
            unreadable_blocks: inner.dirty.unreadable_blocks(),
            uncompared_blocks: inner.uncompared_blocks,
            sync_work: inner.sync_work,
            buffered_bytes: inner.buffered_bytes,
            buffer_bytes_max: inner.room.bytes(),
            copies: inner.copies,
            released: inner.released,
            spilled: inner.spilled,
            last: inner.last(),
            watermark: self.counter.last(),
            writes: inner.writes,
            write_bytes: inner.write_bytes,
            left_out_bytes: inner.left_out_bytes,
            sync: inner.sync_state(),
        }
    }

    /// What stands in the buffer above `after`: as much as `bytes_max` of payload, and the watermark that goes with it.
    /// The records stay in the buffer until they are released. `lags`: writes wait for the link, so that those are left
    /// out that need not be sent, if that is allowed; a mark stands for each.
    ///
    /// None where something above `after` has left the buffer for the spill: what follows lies there. That is looked at
    /// under the same lock, since others spill meanwhile.
    pub fn take_after(&self, after: WriteSeq, bytes_max: usize, lags: bool) -> Option<Taken> {
        let mut inner = self.lock();
        if after < inner.spilled {
            return None;
        }
        let leaves_out = lags && !inner.leaves_nothing_out;
        if leaves_out {
            inner.find_superseded();
        }
        let superseded = inner.superseded.as_ref().filter(|_| leaves_out);
        let from = inner.buffer.partition_point(|record| record.seq <= after);
        let mut bytes = 0;
        let records: Vec<Record> = inner
            .buffer
            .range(from..)
            .take(BATCH_RECORDS_MAX)
            .map(|record| {
                superseded.and_then(|known| known.mark_for(record)).unwrap_or_else(|| record.clone())
            })
            .take_while(|record| {
                let first = bytes == 0;
                bytes += record.payload.len() + 1;
                first || bytes <= bytes_max
            })
            .collect();
        let watermark = match records.last() {
            Some(last) if from + records.len() < inner.buffer.len() => last.seq,
            _ => self.counter.last(),
        };
        Some(Taken { records, watermark })
    }

    /// Whether writes may be left out from now on, where the VM's policy has it.
    pub fn leave_out(&self, may: bool) {
        self.lock().leaves_nothing_out = !may;
    }

    /// Begins the stream anew above `floor`: what was buffered is marked instead, and a `SyncBegin` says
    /// that writes are missing from `floor` on. The caller marks what else may differ, and then calls
    /// [`Capture::begin_stream`], before anything is closed.
    pub fn restart(&self, floor: WriteSeq) {
        let mut inner = self.lock();
        inner.buffer.clear();
        inner.copies = 0;
        let all = inner.buffered_bytes;
        inner.free(all, &self.pool);
        inner.dirty.forget_stream();
        inner.superseded = inner.superseded.as_ref().map(|_| Superseded::above(floor));
        inner.released = floor;
        inner.spilled = floor;
        self.counter.raise(floor);
        inner.tracking = false;
        inner.gap_open = true;
        let seq = self.counter.draw();
        inner.push(sync_begin(seq, floor.next()), &self.pool);
        drop(inner);
        self.tell_held();
    }

    /// Everything that may differ above `floor` is marked: from here on the dirty map belongs to this
    /// incarnation of the stream.
    pub fn begin_stream(&self, incarnation: Incarnation, floor: WriteSeq) {
        let mut log = self.lock_regions();
        // What is dirty from here on is so by writes, and those set their regions themselves.
        let dirty: Vec<Regions> = self.lock().dirty.dirty_regions();
        if let Err(error) = log.set(&dirty).and_then(|()| log.begin(incarnation, floor)) {
            tracing::error!(%error, "the dirty-region log can neither be kept nor given up");
        }
        let mut inner = self.lock();
        inner.dirty.heated(&dirty);
        inner.dirty.begin_stream(incarnation, floor);
    }

    /// To be said each second: the agent is there, whatever is written goes through it, and this is what the disks
    /// are seen as.
    pub fn note_alive(&self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.lock().dirty.note_alive(now, seen);
    }

    /// To be said every few seconds: as [`Capture::note_alive`], of what the disks were seen as before their files were
    /// last synced, so that no crash of the host can show them older.
    pub fn note_durable(&self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        let noted = self.lock_regions().note_alive(now, seen);
        if let Err(error) = noted {
            tracing::warn!(%error, "the dirty-region log is not kept; after a crash of the host more is compared");
        }
    }

    /// The agent stops, and nothing is written any more: the dirty map is kept over a reboot too, with what the
    /// disks are seen as, and it and the region log are believed only of disks that nobody changes from here on.
    pub fn close(&self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        let mut log = self.lock_regions();
        self.lock().dirty.close(now, seen);
        log.close(now, seen);
    }

    /// Stops buffering: from here on writes only mark the bitmap.
    pub fn start_tracking(&self) {
        let mut inner = self.lock();
        inner.begin_gap(&self.counter, &self.pool);
        inner.tracking = true;
        drop(inner);
        self.tell_held();
    }

    /// The hypervisor does not tell of the guest's writes any more. No cut is consistent from here on, for as long as
    /// this capture lasts: what was missed is known only to the next.
    pub fn lose_writes(&self) {
        let mut inner = self.lock();
        inner.is_deaf = true;
        inner.begin_gap(&self.counter, &self.pool);
        drop(inner);
        self.tell_held();
        (self.wake)();
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

    /// Whether a block is to be compared, or is being compared.
    pub fn is_suspect(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.lock().dirty.is_unsettled(disk, block)
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

    /// A run of a disk that its VM has no more is neither to be copied nor compared.
    pub(crate) fn forget_run(&self, disk: DiskIndex, first: BlockIndex, len: u64) {
        self.lock().dirty.forget_run(disk, first, len);
        (self.wake)();
    }

    /// Takes the copy of a run into the stream, in pieces of bytes or zeroes. False where there was none,
    /// or no room, or nothing is buffered now: then its marks are set again.
    pub(crate) fn end_copy(&self, disk: DiskIndex, range: ByteRange, payload: Option<&Bytes>) -> bool {
        let mut inner = self.lock();
        let pieces = payload.map(|payload| pieces(Kind::Sync, range, payload));
        let pieces = pieces.filter(|pieces| !inner.tracking && self.room_for(&inner, pieces));
        let taken = pieces.is_some();
        match pieces {
            Some(pieces) => {
                inner.sync_work.copied += range.len.div_ceil(BLOCK_BYTES);
                inner.push_pieces(&self.counter, disk, pieces, &self.pool);
            }
            None => inner.dirty.end_write(disk, range, None),
        }
        drop(inner);
        (self.wake)();
        taken
    }

    /// Marks a range to be compared. `known_equal`: it should be equal, and counts as equal until it is
    /// found otherwise.
    pub fn mark_suspect(&self, disk: DiskIndex, range: ByteRange, known_equal: bool) {
        let mut inner = self.lock();
        if known_equal {
            inner.dirty.verify(disk, range);
        } else {
            inner.dirty.suspect(disk, range);
        }
    }

    /// Everything is to be compared, and no cut is consistent until it has been.
    pub fn suspect_everything(&self) {
        let mut inner = self.lock();
        inner.begin_gap(&self.counter, &self.pool);
        for (at, &size) in self.disk_sizes.iter().enumerate() {
            inner.dirty.suspect(DiskIndex(at as u16), ByteRange::new(0, size));
        }
        drop(inner);
        self.tell_held();
    }

    /// The next run of blocks to be compared, at most `blocks_max` long.
    pub(crate) fn next_suspects(&self, blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
        self.lock().dirty.next_suspects(blocks_max)
    }

    /// Begins the comparison of a run that the caller has locked and is about to read. What is returned is
    /// the last sequence of any write to it.
    pub(crate) fn begin_compare(&self, disk: DiskIndex, first: BlockIndex, len: u64) -> WriteSeq {
        let mut inner = self.lock();
        inner.dirty.begin_compare(disk, first, len);
        inner.sync_work.compared += len;
        inner.last()
    }

    /// The answer for a run. What differs is marked to be copied, and until it has been no cut is
    /// consistent; how many blocks. An answer that nobody waits for is nothing, and so is what it says of blocks
    /// behind the run's end.
    pub fn end_compare(&self, disk: DiskIndex, first: BlockIndex, differs: u64) -> u64 {
        self.settle_compare(disk, first, differs, 0)
    }

    /// As [`Capture::end_compare`]; `uncompared` of the blocks that are marked were not compared, because they cannot be
    /// read.
    fn settle_compare(&self, disk: DiskIndex, first: BlockIndex, differs: u64, uncompared: u64) -> u64 {
        let Some(blocks) = self.lock().dirty.compared_blocks(disk, first) else { return 0 };
        let differs = differs & first_bits(blocks);
        if differs != 0 {
            let len = u64::from(u64::BITS - differs.leading_zeros());
            let start = first.range(u64::MAX).start;
            let range = ByteRange::new(start, len * BLOCK_BYTES);
            let regions = self.lock().dirty.regions_of(disk, range);
            if let Err(error) = self.heat(&[regions]) {
                tracing::warn!(%error, "a difference that was found is not kept over a crash of the host");
            }
        }
        let mut inner = self.lock();
        let differing = inner.dirty.end_compare(disk, first, differs);
        inner.uncompared_blocks += uncompared.min(differing);
        if differing > 0 {
            inner.begin_gap(&self.counter, &self.pool);
        }
        drop(inner);
        self.tell_held();
        (self.wake)();
        differing
    }

    /// What is believed of the answer for a run of a disk whose writes come here only after they were made; the rest is
    /// compared again. To be asked before [`Capture::end_compare`], which is told what this returns.
    pub fn believed(&self, disk: DiskIndex, first: BlockIndex, differs: u64) -> u64 {
        let mut inner = self.lock();
        let Some(blocks) = inner.dirty.compared_blocks(disk, first) else { return 0 };
        let differs = differs & first_bits(blocks);
        let believed = inner.doubts.believed(disk, first, blocks, differs);
        inner.dirty.compare_again(disk, first, differs & !believed);
        believed
    }

    /// The link is lost: what was being compared is to be compared anew.
    pub fn forget_compares(&self) {
        self.lock().dirty.forget_compares();
    }

    /// Ends a sync with a `SyncEnd`; false where blocks are marked or suspect, or writes are not buffered.
    pub fn close_sync(&self) -> bool {
        let mut inner = self.lock();
        if inner.is_deaf
            || inner.tracking
            || inner.dirty.marked_blocks() > 0
            || inner.dirty.unsettled_blocks() > 0
        {
            return false;
        }
        inner.gap_open = false;
        let seq = self.counter.draw();
        inner.sync_end = seq;
        inner.push(Record::mark(seq, Kind::SyncEnd, Bytes::new()), &self.pool);
        true
    }

    fn room_for(&self, inner: &Inner, pieces: &[(Kind, ByteRange, Bytes)]) -> bool {
        let more: u64 =
            pieces.iter().map(|(_, _, payload)| payload.len() as u64 + RECORD_OVERHEAD_BYTES).sum();
        inner.buffered_bytes + more <= inner.room.bytes()
            && self.pool.has_room(more)
            && inner.dirty.has_room()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.pool.give_back(self.lock().buffered_bytes);
    }
}

impl Inner {
    /// Takes what was begun into the stream, each piece with its own sequence.
    fn push_pieces(
        &mut self,
        counter: &GroupCounter,
        disk: DiskIndex,
        pieces: Vec<(Kind, ByteRange, Bytes)>,
        pool: &BufferPool,
    ) {
        for (kind, range, payload) in pieces {
            let seq = counter.draw();
            self.dirty.end_write(disk, range, Some(seq));
            self.push(Record { seq, kind, disk, range, payload }, pool);
        }
    }

    fn push(&mut self, record: Record, pool: &BufferPool) {
        debug_assert!(record.seq > self.last());
        self.buffered_bytes += cost(&record);
        self.copies += u64::from(is_copy(&record));
        pool.take(cost(&record));
        self.buffer.push_back(record);
    }

    fn free(&mut self, bytes: u64, pool: &BufferPool) {
        self.buffered_bytes -= bytes;
        self.room.shrink_to(self.buffered_bytes);
        pool.give_back(bytes);
    }

    /// Looks at the intervals that checkpoints have closed. Not while the sides are compared: the other one must
    /// have every write that a comparison was asked behind.
    fn find_superseded(&mut self) {
        let settled = !self.gap_open && !self.tracking && self.dirty.unsettled_blocks() == 0;
        if let Some(superseded) = self.superseded.as_mut().filter(|_| settled) {
            self.left_out_bytes += superseded.examine(&self.buffer);
        }
    }

    fn forget_superseded(&mut self, up_to: WriteSeq) {
        if let Some(superseded) = &mut self.superseded {
            superseded.forget(up_to);
        }
    }

    fn last(&self) -> WriteSeq {
        self.buffer.back().map_or(self.spilled, |record| record.seq.max(self.spilled))
    }

    /// Says in the stream that writes are missing from here on, once. The mark always fits: it is as
    /// small as a record can be, and there is at most one between two syncs.
    fn begin_gap(&mut self, counter: &GroupCounter, pool: &BufferPool) {
        if !self.gap_open {
            self.gap_open = true;
            let seq = counter.draw();
            self.push(sync_begin(seq, seq), pool);
        }
    }
}

fn is_copy(record: &Record) -> bool {
    matches!(record.kind, Kind::Sync | Kind::SyncZero)
}

fn first_bits(count: u64) -> u64 {
    1u64.checked_shl(count as u32).map_or(u64::MAX, |bit| bit - 1)
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
        return range.split_at_multiples(RANGE_BYTES_MAX).map(|piece| (kind, piece, Bytes::new())).collect();
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

mod again;
mod copies;
mod held;
mod regions;
mod release;
mod settings;
#[cfg(test)]
mod tests;
mod unreadable;
