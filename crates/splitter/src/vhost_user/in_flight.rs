//! The in-flight region: what was taken from the queues and not finished, in memory that outlives the agent.
//!
//! QEMU keeps the region and hands it to the next agent. For each queue, at a multiple of 64 bytes, after "Inflight
//! I/O tracking" for split queues in <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>:
//!
//! | Offset | Bytes | |
//! |---|---|---|
//! | 0 | 8 | features, 0 |
//! | 8 | 2 | version, 1; 0 in a region that is new |
//! | 10 | 2 | descriptors |
//! | 12 | 2 | head of the last request that was finished |
//! | 14 | 2 | `used_idx` when it was |
//! | 16 + 16 n | 1 | of descriptor n: 1 while a request that begins there is in flight |
//! | 22 + 16 n | 2 | next, unused |
//! | 24 + 16 n | 8 | counter: the order in which requests were taken |
//!
//! Finishing a request takes three stores, and a crash may come between any two of them:
//!
//! 1. its head is noted as the last one;
//! 2. the guest's used ring says so, and counts up;
//! 3. its mark is taken off, and `used_idx` noted.
//!
//! A region whose `used_idx` is not the ring's was left between 2 and 3: the last head is finished.

use super::shared_memory::Watched;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use types::limits::VIRTIO_QUEUE_SIZE_MAX;

const HEADER_BYTES: usize = 16;
const DESCRIPTOR_BYTES: usize = 16;
const QUEUE_ALIGN: usize = 64;
const VERSION: u16 = 1;

const VERSION_AT: usize = 8;
const DESCRIPTORS_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;
const COUNTER_IN: usize = 8;

/// Bytes of a queue's part.
fn queue_bytes(queue_size: u16) -> usize {
    (HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(queue_size)).next_multiple_of(QUEUE_ALIGN)
}

/// A mapped region. It is unmapped once nobody uses a queue of it any more.
#[derive(Debug)]
pub(super) struct Region {
    /// None once it is unmapped.
    watched: Option<Watched>,
    start: *mut u8,
    len: usize,
    queues: u16,
    queue_size: u16,
}

// SAFETY: the mapping is this object's alone within the process, and is only accessed by atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Bytes of the file for so many queues.
    pub(super) fn bytes(queues: u16, queue_size: u16) -> u64 {
        (queue_bytes(queue_size) * usize::from(queues)) as u64
    }

    /// Maps a region that lies at `offset` of a file.
    ///
    /// # Errors
    /// Where the file is shorter than the region, or cannot be mapped.
    pub(super) fn map(file: &File, offset: u64, queues: u16, queue_size: u16) -> io::Result<Self> {
        let len = Self::bytes(queues, queue_size);
        let enough =
            offset.checked_add(len).is_some_and(|end| file.metadata().is_ok_and(|facts| facts.len() >= end));
        if !enough || queues == 0 || queue_size == 0 || queue_size > VIRTIO_QUEUE_SIZE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an in-flight region of an impossible size",
            ));
        }
        let len = len as usize;
        // SAFETY: a new shared mapping at an address the kernel picks.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let region =
            Self { watched: Watched::begin(start.cast(), len), start: start.cast(), len, queues, queue_size };
        match region.watched {
            Some(_) => Ok(region),
            None => Err(io::Error::other("too many guests share their memory")),
        }
    }

    /// The part of one queue; none where the region has none for it.
    pub(super) fn queue(self: &Arc<Self>, index: u16, size: u16) -> Option<InFlight> {
        let fits = index < self.queues && size <= self.queue_size;
        fits.then(|| InFlight {
            region: self.clone(),
            base: usize::from(index) * queue_bytes(self.queue_size),
            size,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.watched = None;
        // SAFETY: mapped by `map` with this length; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.len) };
    }
}

/// One queue's part of the region.
#[derive(Debug)]
pub(super) struct InFlight {
    region: Arc<Region>,
    base: usize,
    size: u16,
}

impl InFlight {
    /// Whether the hypervisor has taken it away.
    pub(super) fn is_lost(&self) -> bool {
        self.region.watched.as_ref().is_some_and(Watched::is_lost)
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        let at = self.base + offset;
        assert!(at + bytes <= self.region.len && at.is_multiple_of(bytes));
        // SAFETY: within the mapping, as just checked.
        unsafe { self.region.start.add(at) }
    }

    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: mapped and aligned; atomics are made for what another process may change.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(self.at(HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(head), 1)) }
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        let offset = HEADER_BYTES + DESCRIPTOR_BYTES * usize::from(head) + COUNTER_IN;
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Makes a new region ready, or finds what one that was left behind holds: the heads that were taken and not
    /// finished, in the order they were taken, and the last counter. `used` is the ring's own.
    pub(super) fn recover(&self, used: u16) -> (Vec<u16>, u64) {
        if self.u16(VERSION_AT).load(Ordering::SeqCst) != VERSION {
            self.u16(DESCRIPTORS_AT).store(self.size, Ordering::SeqCst);
            self.u16(USED_INDEX_AT).store(used, Ordering::SeqCst);
            self.u16(VERSION_AT).store(VERSION, Ordering::SeqCst);
        }
        if self.u16(USED_INDEX_AT).load(Ordering::SeqCst) != used {
            let last = self.u16(LAST_HEAD_AT).load(Ordering::SeqCst);
            if last < self.size {
                self.mark(last).store(0, Ordering::SeqCst);
            }
            self.u16(USED_INDEX_AT).store(used, Ordering::SeqCst);
        }
        let marked = (0..self.size).filter(|&head| self.mark(head).load(Ordering::SeqCst) == 1);
        let mut heads: Vec<(u64, u16)> =
            marked.map(|head| (self.counter(head).load(Ordering::SeqCst), head)).collect();
        heads.sort_unstable();
        let last = heads.last().map_or(0, |&(counter, _)| counter);
        (heads.into_iter().map(|(_, head)| head).collect(), last)
    }

    /// A request was taken from the queue.
    pub(super) fn taken(&self, head: u16, counter: u64) {
        self.counter(head).store(counter, Ordering::Relaxed);
        self.mark(head).store(1, Ordering::SeqCst);
    }

    /// A request is about to be put on the used ring.
    pub(super) fn finishing(&self, head: u16) {
        self.u16(LAST_HEAD_AT).store(head, Ordering::SeqCst);
    }

    /// It was put there, and the ring has counted up to `used`.
    pub(super) fn finished(&self, head: u16, used: u16) {
        self.mark(head).store(0, Ordering::SeqCst);
        self.u16(USED_INDEX_AT).store(used, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Arc<Region> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(Region::bytes(2, 8)).unwrap();
        Arc::new(Region::map(&file, 0, 2, 8).unwrap())
    }

    #[test]
    fn what_was_taken_and_not_finished_comes_back_in_order() {
        let region = region();
        let queue = region.queue(1, 8).unwrap();
        assert_eq!(queue.recover(40), (vec![], 0));
        for (counter, head) in [(1, 5), (2, 0), (3, 7)] {
            queue.taken(head, counter);
        }
        queue.finishing(0);
        queue.finished(0, 41);
        assert_eq!(queue.recover(41), (vec![5, 7], 3));
        assert_eq!(region.queue(0, 8).unwrap().recover(0), (vec![], 0), "queues do not share");
    }

    #[test]
    fn a_crash_between_the_used_ring_and_the_mark_finishes_the_last_head() {
        let region = region();
        let queue = region.queue(0, 8).unwrap();
        queue.recover(0);
        queue.taken(3, 1);
        queue.taken(4, 2);
        queue.finishing(3);
        // The ring has not counted up: head 3 is to be done again.
        assert_eq!(queue.recover(0).0, vec![3, 4]);
        // It has.
        assert_eq!(queue.recover(1).0, vec![4]);
        assert_eq!(queue.recover(1).0, vec![4], "and is not looked at twice");
    }

    #[test]
    fn impossible_regions_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        assert!(Region::map(&file, 0, 2, 8).is_err());
        assert!(Region::map(&file, u64::MAX, 1, 1).is_err());
        assert!(Region::map(&file, 0, 0, 8).is_err());
        assert!(region().queue(2, 8).is_none() && region().queue(0, 9).is_none());
    }
}
