//! Overlapping writes in flight to one disk are serialised; all others go on side by side.

use std::sync::{Condvar, Mutex};
use types::ByteRange;

/// The ranges of a disk that are being written.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    held: Mutex<Vec<ByteRange>>,
    released: Condvar,
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
        let mut held = self.held.lock().expect("a panic aborts the process");
        while held.iter().any(|other| other.overlaps(range)) {
            held = self.released.wait(held).expect("a panic aborts the process");
        }
        held.push(range);
        RangeGuard { lock: self, range }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.lock.held.lock().expect("a panic aborts the process");
        let at = held.iter().position(|range| *range == self.range).expect("held until dropped");
        held.swap_remove(at);
        drop(held);
        self.lock.released.notify_all();
    }
}
