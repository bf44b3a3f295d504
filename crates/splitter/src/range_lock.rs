//! Overlapping writes in flight to one disk are serialised; all others go on side by side.

use threads::sync::{Condvar, Mutex, MutexGuard};
use types::ByteRange;

/// The ranges of a disk that are being written.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    ranges: Vec<ByteRange>,
    /// How many wait: to wake nobody costs a system call too.
    waiting: usize,
}

/// A range nobody else writes until this is dropped.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    range: ByteRange,
}

impl RangeLock {
    /// Waits until no overlapping range is held, and holds this one.
    pub(crate) fn lock(&self, range: ByteRange) -> RangeGuard<'_> {
        let mut held = self.inner();
        while held.is_busy(range) {
            held.waiting += 1;
            held = self.released.wait(held).expect("a panic aborts the process");
            held.waiting -= 1;
        }
        held.ranges.push(range);
        RangeGuard { lock: self, range }
    }

    /// Holds the range until [`RangeLock::release`], if nobody holds an overlapping one.
    pub(crate) fn try_hold(&self, range: ByteRange) -> bool {
        let mut held = self.inner();
        let is_free = !held.is_busy(range);
        if is_free {
            held.ranges.push(range);
        }
        is_free
    }

    pub(crate) fn release(&self, range: ByteRange) {
        let mut held = self.inner();
        let at = held.ranges.iter().position(|other| *other == range).expect("held until it is released");
        held.ranges.swap_remove(at);
        if held.waiting > 0 {
            self.released.notify_all();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("a panic aborts the process")
    }
}

impl Held {
    fn is_busy(&self, range: ByteRange) -> bool {
        self.ranges.iter().any(|other| other.overlaps(range))
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.lock.release(self.range);
    }
}
