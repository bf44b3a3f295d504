//! The write path of one protected disk, shared by all front ends.
//!
//! A write is one copy of the payload, made before anything else; the same bytes go to the local disk
//! and to the capture, so a guest that changes the page in flight cannot make the two sides differ. The
//! range lock is held from before the local write until after the commit: of two overlapping writes,
//! the one that reaches the local disk last also has the higher sequence.

use crate::bounce::Bounce;
use crate::capture::Capture;
use crate::course::{Course, CourseOf};
use crate::device::{BlockDevice, Extent, ExtentKind};
use crate::identity::DiskIdentity;
use crate::range_lock::RangeLock;
use crate::writers::Writers;
use batch::{BlockHash, Kind};
use bytes::Bytes;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use threads::sync::{Mutex, TryLockError};
use types::limits::{RANGE_BYTES_MAX, SLOW_ZERO_BYTES_MAX, UNREADABLE_UNIT_BYTES};
use types::{BlockIndex, ByteRange, DiskIndex, WriteSeq};

/// The local disk behind a protected one: a raw image or block device, or the simulator's.
pub trait LocalDisk: Send + Sync + fmt::Debug {
    fn size_bytes(&self) -> u64;
    /// What the operator knows the disk by.
    fn label(&self) -> String;
    /// What the disk reads and writes at once, in bytes: while a unit is written in part, nobody else may write
    /// to it.
    fn unit_bytes(&self) -> u64 {
        1
    }
    /// The open file, for requests that are not waited for: at multiples of [`LocalDisk::unit_bytes`], from
    /// memory that is aligned as bounce buffers are. None where there is no file.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Whether somebody else has made a write before it comes here: then there is nothing to wait for.
    fn is_written_elsewhere(&self) -> bool {
        false
    }
    /// Whether its VM has it no more, so that nothing is written to it and it cannot be read: what is known of it stays.
    fn is_gone(&self) -> bool {
        false
    }
    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// As the disk says.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `at`.
    ///
    /// # Errors
    /// As the disk says.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeroes; with `unmap` its room may be given back.
    ///
    /// # Errors
    /// As the disk says.
    fn zero(&self, range: ByteRange, unmap: bool) -> io::Result<()>;
    /// The guest gives a range up: makes it read as zeroes where that frees its room, and else leaves it as it is,
    /// and says so by false.
    ///
    /// # Errors
    /// As the disk says.
    fn discard(&self, range: ByteRange) -> io::Result<bool> {
        self.zero(range, true).map(|()| true)
    }
    /// Whether [`LocalDisk::zero`] costs less than writing as many zeroes.
    fn zeroes_fast(&self) -> bool;
    /// A range is about to be read: it may be brought nearer.
    ///
    /// # Errors
    /// As the disk says.
    fn prefetch(&self, range: ByteRange) -> io::Result<()>;
    /// Makes every write so far durable.
    ///
    /// # Errors
    /// As the disk says.
    fn sync_data(&self) -> io::Result<()>;
    /// As [`LocalDisk::sync_data`], and what is known of the disk's file too.
    ///
    /// # Errors
    /// As the disk says.
    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
    /// Which file it is, and when it was last changed by anybody; none where nothing tells.
    ///
    /// # Errors
    /// As the file system says.
    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        Ok(None)
    }
    /// Whether the mtime of its file changes at once with a write, and with nothing else.
    fn has_prompt_times(&self) -> bool {
        false
    }
    /// Whether its name still leads to it.
    ///
    /// # Errors
    /// As the file system says.
    fn look(&self) -> io::Result<Look> {
        Ok(Look::Named { size_bytes: self.size_bytes() })
    }
    /// Has what others left in the page cache written to the disk, where that could come later and change what was
    /// read. To be said before everything is read.
    fn settle_others(&self) {}
    /// Makes it ready to be read until [`LocalDisk::end_read`]. To be said before a range of it is locked: it may wait for
    /// writes that are under way.
    ///
    /// # Errors
    /// Where it cannot be read; then it is not to be ended.
    fn begin_read(&self) -> io::Result<()> {
        Ok(())
    }
    /// To be said once nothing of it is locked any more.
    fn end_read(&self) {}
    /// Which parts of `range` are allocated, in order and without holes between.
    ///
    /// # Errors
    /// As the disk says.
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>>;
    /// The first `most` of these. A disk that need not look at all of them does not.
    ///
    /// # Errors
    /// As the disk says.
    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        self.extents(range).map(|mut extents| {
            extents.truncate(most);
            extents
        })
    }
}

/// What has become of a disk that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Its name leads to it, and it has this size now.
    Named { size_bytes: u64 },
    /// Its name leads to another file.
    Replaced,
    /// Nothing has its name.
    Gone,
}

/// What a guest changes of a disk; it lies within it.
#[derive(Debug, Clone)]
pub enum Change {
    Write {
        at: u64,
        bytes: Bytes,
    },
    /// With `unmap` its room may be given back.
    Zero {
        range: ByteRange,
        unmap: bool,
    },
    Discard {
        range: ByteRange,
    },
}

impl Change {
    pub fn range(&self) -> ByteRange {
        match self {
            Change::Write { at, bytes } => ByteRange::new(*at, bytes.len() as u64),
            Change::Zero { range, .. } | Change::Discard { range } => *range,
        }
    }
}

/// One disk of a protected VM.
#[derive(Debug)]
pub struct ProtectedDisk {
    index: DiskIndex,
    local: Box<dyn LocalDisk>,
    writing: RangeLock,
    capture: Arc<Capture>,
    writers: Arc<Writers>,
    course: CourseOf,
    /// A sync that no client had asked for has failed, and no client knows. Locked while such a sync lasts.
    failed_unheard: Mutex<bool>,
}

impl ProtectedDisk {
    pub fn new(index: DiskIndex, local: Box<dyn LocalDisk>, capture: Arc<Capture>) -> Self {
        let (writing, writers, course) = (RangeLock::default(), Arc::default(), CourseOf::default());
        Self { index, local, writing, capture, writers, course, failed_unheard: Mutex::default() }
    }

    /// The disk, for several clients that agree among themselves who writes where.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { writers: Arc::new(Writers::shared()), ..self }
    }

    /// Has what guests ask of it from here on carried out, wait or fail. What the agent itself reads is not asked by them.
    pub fn set_course(&self, course: Course) {
        self.course.set(course);
    }

    pub(crate) fn course(&self) -> &CourseOf {
        &self.course
    }

    pub(crate) fn local(&self) -> &dyn LocalDisk {
        &*self.local
    }

    /// Makes every write to the local disk durable, where no client asks for it.
    ///
    /// # Errors
    /// As the disk says. The next client that flushes is told so too.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_unasked(|local| local.sync_data())
    }

    /// As [`ProtectedDisk::sync`], and the times of its file too.
    ///
    /// # Errors
    /// As the disk says.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync_unasked(|local| local.sync_all())
    }

    /// The system tells of what it could not write once, to whoever syncs next. Where that is not the client that has
    /// written, its own flush would say that all is well.
    fn sync_unasked(&self, sync: impl FnOnce(&dyn LocalDisk) -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed_unheard.lock().expect("a panic aborts the process");
        let synced = sync(&*self.local);
        *failed |= synced.is_err();
        synced
    }

    /// To be asked behind a client's own flush: whether a sync that was not its own has failed before. None while that
    /// cannot be told, since one lasts.
    pub(crate) fn heard_elsewhere(&self) -> Option<io::Result<()>> {
        match self.failed_unheard.try_lock() {
            Ok(mut failed) => Some(as_error(&mut failed)),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => unreachable!("a panic aborts the process"),
        }
    }

    /// Which file it is, and when it was last changed; none where nothing tells.
    ///
    /// # Errors
    /// As the file system says.
    pub fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        self.local.identity()
    }

    /// Whether its name still leads to it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn look(&self) -> io::Result<Look> {
        self.local.look()
    }

    /// Whether the mtime of its file changes at once with a write, and with nothing else.
    pub fn has_prompt_times(&self) -> bool {
        self.local.has_prompt_times()
    }

    pub(crate) fn index(&self) -> DiskIndex {
        self.index
    }

    pub(crate) fn capture(&self) -> &Capture {
        &self.capture
    }

    /// What has to be locked for a write: all units it touches.
    fn locked(&self, range: ByteRange) -> ByteRange {
        range.widened_to(self.local.unit_bytes())
    }

    /// Makes a change locally, then commits it, and waits for nobody: the guest may be told once
    /// [`Capture::may_acknowledge`] says so of the sequence that is returned. Of an empty change, and of one that was
    /// not made, there is none.
    ///
    /// A long range is changed in pieces: other writes into it wait for one of them, and what is done under the
    /// sequencer lock is bounded by one of them.
    ///
    /// # Errors
    /// As the disk says. A failed change gets no sequence, but its range is suspect.
    pub fn change(&self, change: &Change) -> io::Result<Option<WriteSeq>> {
        let unit = if self.local.zeroes_fast() { RANGE_BYTES_MAX } else { SLOW_ZERO_BYTES_MAX };
        match change {
            Change::Write { .. } => self.change_at_once(change),
            Change::Zero { range, .. } | Change::Discard { range } => {
                range.split_at_multiples(unit).try_fold(None, |last, range| {
                    let piece = match change {
                        Change::Zero { unmap, .. } => Change::Zero { range, unmap: *unmap },
                        _ => Change::Discard { range },
                    };
                    Ok(self.change_at_once(&piece)?.or(last))
                })
            }
        }
    }

    fn change_at_once(&self, change: &Change) -> io::Result<Option<WriteSeq>> {
        let range = change.range();
        if range.is_empty() {
            return Ok(None);
        }
        let _guard = self.writing.lock(self.locked(range));
        self.capture.begin_write(self.index, range)?;
        let done = |made: io::Result<()>| made.map(|()| true);
        let (kind, payload, made) = match change {
            Change::Write { at, bytes } => {
                (Kind::Write, bytes.clone(), done(self.local.write_at(*at, bytes)))
            }
            Change::Zero { unmap, .. } => (Kind::Zero, Bytes::new(), done(self.local.zero(range, *unmap))),
            Change::Discard { .. } => (Kind::Discard, Bytes::new(), self.local.discard(range)),
        };
        match made {
            Ok(true) => Ok(Some(self.capture.commit(self.index, kind, range, &payload))),
            Ok(false) => {
                self.capture.abandon(self.index, range);
                Ok(None)
            }
            Err(error) => {
                self.capture.suspect(self.index, range);
                Err(error)
            }
        }
    }

    /// As [`ProtectedDisk::change`], and waits until the guest may be told.
    fn change_and_hold(&self, change: &Change) -> io::Result<()> {
        let seq = self.change(change)?;
        seq.into_iter().for_each(|seq| self.capture.hold(seq));
        Ok(())
    }

    /// Begins a write that is made elsewhere and then told to [`ProtectedDisk::end_write`]. False where it would
    /// have to wait: for another write, or for the region log.
    pub(crate) fn try_begin_write(&self, range: ByteRange) -> io::Result<bool> {
        let locked = self.locked(range);
        if !self.writing.try_hold(locked) {
            return Ok(false);
        }
        let begun = self.capture.try_begin_write(self.index, range);
        if !matches!(begun, Ok(true)) {
            self.writing.release(locked);
        }
        begun
    }

    /// The local disk has completed a write that was begun, or failed to: commits it, or suspects its range.
    /// The sequence that [`Capture::hold`] wants before the guest is told.
    pub(crate) fn end_write(&self, range: ByteRange, payload: &Bytes, written: bool) -> Option<WriteSeq> {
        let seq = if written {
            Some(self.capture.commit(self.index, Kind::Write, range, payload))
        } else {
            self.capture.suspect(self.index, range);
            None
        };
        self.writing.release(self.locked(range));
        seq
    }

    /// Reads and hashes a run of blocks for a comparison, as they are once everything up to the sequence
    /// that is returned has been written, and nothing above.
    pub(crate) fn hash_run(&self, first: BlockIndex, len: u64) -> io::Result<(WriteSeq, Vec<BlockHash>)> {
        let size = self.local.size_bytes();
        let start = first.range(size).start;
        let range = ByteRange::new(start, BlockIndex(first.0 + len - 1).range(size).end() - start);
        let turn = ReadTurn::begin(&*self.local);
        let guard = self.writing.lock(range);
        let at = self.capture.begin_compare(self.index, first, len);
        turn.check()?;
        let is_hole = self.local.extents(range)?.iter().all(|extent| extent.kind == ExtentKind::Hole);
        if is_hole {
            let blocks = (first.0..first.0 + len).map(BlockIndex);
            return Ok((
                at,
                blocks.map(|block| BlockHash::of_zeroes(block.range(size).len as usize)).collect(),
            ));
        }
        let mut bytes = Bounce::take(range.len as usize);
        self.local.read_at(range.start, &mut bytes)?;
        drop(guard);
        Ok((at, BlockHash::of_run(&bytes)))
    }

    /// Reads a run of blocks for a sync while nobody writes to it, its marks cleared just before, and
    /// gives it to the stream; false where the stream cannot take it now, the marks being set again.
    pub(crate) fn copy_run(&self, first: BlockIndex, len: u64) -> io::Result<bool> {
        let end = BlockIndex(first.0 + len - 1).range(self.local.size_bytes()).end();
        let start = first.range(self.local.size_bytes()).start;
        let range = ByteRange::new(start, end - start);
        let turn = ReadTurn::begin(&*self.local);
        let _guard = self.writing.lock(range);
        self.capture.begin_copy(self.index, first, len);
        let mut bytes = Bounce::take(range.len as usize);
        let read = turn.check().and_then(|()| self.local.read_at(range.start, &mut bytes));
        let bytes = bytes.into_bytes();
        let taken = self.capture.end_copy(self.index, range, read.is_ok().then_some(&bytes));
        read.map(|()| taken)
    }
}

/// A disk that is ready to be read, or why it is not. Had before a range is locked, it is let go after that.
struct ReadTurn<'a> {
    local: &'a dyn LocalDisk,
    begun: io::Result<()>,
}

impl<'a> ReadTurn<'a> {
    fn begin(local: &'a dyn LocalDisk) -> Self {
        Self { local, begun: local.begin_read() }
    }

    fn check(&self) -> io::Result<()> {
        self.begun
            .as_ref()
            .map_or_else(|error| Err(io::Error::new(error.kind(), error.to_string())), |()| Ok(()))
    }
}

impl Drop for ReadTurn<'_> {
    fn drop(&mut self) {
        if self.begun.is_ok() {
            self.local.end_read();
        }
    }
}

impl ProtectedDisk {
    /// Copies what can be read of a block that cannot be as a whole; false as [`ProtectedDisk::copy_run`].
    pub(crate) fn copy_what_can_be_read(&self, block: BlockIndex) -> bool {
        let range = block.range(self.local.size_bytes());
        let _guard = self.writing.lock(range);
        self.capture.begin_copy(self.index, block, 1);
        let unit = UNREADABLE_UNIT_BYTES.max(self.local.unit_bytes());
        let mut read = Vec::new();
        for part in range.split_at_multiples(unit) {
            let mut bytes = Bounce::take(part.len as usize);
            if self.local.read_at(part.start, &mut bytes).is_ok() {
                read.push((part, Bytes::copy_from_slice(&bytes)));
            }
        }
        self.capture.end_unreadable(self.index, range, &read)
    }

    /// Which blocks of a run cannot be read now as a whole, a bit for each.
    pub(crate) fn unreadable_of(&self, first: BlockIndex, len: u64) -> u64 {
        let bits = (0..len.min(u64::from(u64::BITS))).map(|at| {
            let range = BlockIndex(first.0 + at).range(self.local.size_bytes());
            let mut bytes = Bounce::take(range.len as usize);
            u64::from(self.local.read_at(range.start, &mut bytes).is_err()) << at
        });
        bits.fold(0, |all, bit| all | bit)
    }

    /// Whether the disk gives anything at all: one that does not is away, and will be back.
    pub(crate) fn gives_something(&self) -> bool {
        let (size, unit) = (self.local.size_bytes(), UNREADABLE_UNIT_BYTES.max(self.local.unit_bytes()));
        let mut bytes = Bounce::take(unit.min(size) as usize);
        let last = (size - unit.min(size)) / unit * unit;
        [0, last / 2 / unit * unit, last].iter().any(|&at| self.local.read_at(at, &mut bytes).is_ok())
    }
}

fn as_error(failed: &mut bool) -> io::Result<()> {
    match std::mem::take(failed) {
        true => Err(io::Error::from_raw_os_error(libc::EIO)),
        false => Ok(()),
    }
}

impl BlockDevice for ProtectedDisk {
    fn size_bytes(&self) -> u64 {
        self.local.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn as_protected(&self) -> Option<&ProtectedDisk> {
        Some(self)
    }

    fn writers(&self) -> Option<&Arc<Writers>> {
        Some(&self.writers)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.local.read_at(at, buf)
    }

    fn write(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        self.change_and_hold(&Change::Write { at, bytes })
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        self.change_and_hold(&Change::Zero { range, unmap })
    }

    fn zeroes_fast(&self) -> bool {
        self.local.zeroes_fast()
    }

    fn cache(&self, range: ByteRange) -> io::Result<()> {
        self.local.prefetch(range)
    }

    fn unsent(&self, range: ByteRange, most: usize) -> Option<Vec<(ByteRange, bool)>> {
        Some(self.capture.unsent(self.index, range, most))
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.change_and_hold(&Change::Discard { range })
    }

    fn flush(&self) -> io::Result<()> {
        self.local.sync_data()?;
        // Behind it: one that began before this may have been told what is this one's to tell.
        as_error(&mut self.failed_unheard.lock().expect("a panic aborts the process"))
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        self.local.extents(range)
    }

    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        self.local.first_extents(range, most)
    }
}

#[cfg(test)]
mod tests;
