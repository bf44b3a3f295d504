//! Bounce buffers: aligned memory for one request's data, used again and again.
//!
//! Direct I/O wants aligned memory, and fresh memory would have to be zeroed for each request. What is given
//! back is kept up to [`BOUNCE_KEPT_BYTES`], by size; it holds old bytes, which whoever takes it overwrites.

use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Mutex;
use types::limits::BOUNCE_KEPT_BYTES;

/// Alignment and granularity, in bytes: no disk asks for more.
pub(crate) const BOUNCE_ALIGN: usize = 4096;

static KEPT: Mutex<Kept> = Mutex::new(Kept { bytes: 0, by_capacity: BTreeMap::new() });

struct Kept {
    bytes: usize,
    by_capacity: BTreeMap<usize, Vec<Memory>>,
}

struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: it owns what it points to, and nothing else knows of it.
unsafe impl Send for Memory {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Self { start: start.unwrap_or_else(|| handle_alloc_error(layout)), capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BOUNCE_ALIGN).expect("a power of two, and far below isize::MAX")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// Bytes at an aligned address. Dropped, its memory is used again.
pub(crate) struct Bounce {
    /// Taken only when dropped.
    memory: Option<Memory>,
    len: usize,
}

impl Bounce {
    /// A buffer of `len` bytes, which hold anything.
    pub(crate) fn take(len: usize) -> Self {
        let capacity = len.next_multiple_of(BOUNCE_ALIGN).max(BOUNCE_ALIGN);
        let mut kept = KEPT.lock().expect("a panic aborts the process");
        let memory = kept.by_capacity.get_mut(&capacity).and_then(Vec::pop);
        if memory.is_some() {
            kept.bytes -= capacity;
        }
        drop(kept);
        Self { memory: Some(memory.unwrap_or_else(|| Memory::new(capacity))), len }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("there until dropped")
    }
}

impl Deref for Bounce {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is at most the capacity, and all of it was initialised when it was allocated.
        unsafe { std::slice::from_raw_parts(self.memory().start.as_ptr(), self.len) }
    }
}

impl DerefMut for Bounce {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory().start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Bounce {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Bounce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bounce").field("len", &self.len).finish()
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut kept = KEPT.lock().expect("a panic aborts the process");
        if kept.bytes + memory.capacity <= BOUNCE_KEPT_BYTES {
            kept.bytes += memory.capacity;
            kept.by_capacity.entry(memory.capacity).or_default().push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_used_again_and_never_shared() {
        let mut first = Bounce::take(5000);
        first.fill(1);
        let mut second = Bounce::take(5000);
        second.fill(2);
        assert_eq!(first.as_ptr() as usize % BOUNCE_ALIGN, 0);
        assert!(first.iter().all(|&byte| byte == 1) && second.iter().all(|&byte| byte == 2));
        let bytes = first.into_bytes();
        let part = bytes.slice(4096..);
        drop(bytes);
        Bounce::take(5000).fill(3);
        assert!(part.iter().all(|&byte| byte == 1), "a part keeps the whole");
    }
}
