//! The memory that all captures of an agent may use for their buffers together.

use threads::sync::atomic::{AtomicU64, Ordering};

/// A total that is shared. A capture that finds no room here behaves as if its own buffer were full.
#[derive(Debug)]
pub struct BufferPool {
    bytes_max: u64,
    used: AtomicU64,
}

impl BufferPool {
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: AtomicU64::new(0) }
    }

    /// Bytes that are buffered now, of all captures.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether so many more fit. Several captures that ask at once may all be told yes: each may exceed the
    /// total by one write.
    pub(crate) fn has_room(&self, more: u64) -> bool {
        self.used() + more <= self.bytes_max
    }

    pub(crate) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
