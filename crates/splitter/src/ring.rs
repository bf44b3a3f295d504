//! One `io_uring`: requests to files that are not waited for, and descriptors that are watched.
//!
//! The ring owns every buffer from the start of its request to the end, so a caller cannot free or change what
//! the kernel still uses. Dropped, it waits for what is in flight.

use crate::bounce::Bounce;
use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use types::limits::QUEUE_DEPTH_MAX;

/// Completions of watched descriptors carry this bit.
const WATCHED: u64 = 1 << 63;

/// What a request works on, and where it starts.
#[derive(Debug)]
pub(crate) enum Transfer {
    Read { at: u64, buffer: Bounce },
    Write { at: u64, bytes: Bytes, durable: bool },
    Sync,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) token: u64,
    pub(crate) transfer: Transfer,
    /// Bytes that were moved.
    pub(crate) result: io::Result<usize>,
}

pub(crate) struct Ring {
    ring: IoUring,
    in_flight: Vec<Option<(u64, Transfer)>>,
    free: Vec<usize>,
    /// Watched now, as their completions will say; what was ready is not any more.
    watched: Vec<u64>,
}

impl Ring {
    /// A ring of its own; it is to be used by one thread only.
    ///
    /// # Errors
    /// Where the kernel does not have it or does not allow it.
    pub(crate) fn new() -> io::Result<Self> {
        let entries = QUEUE_DEPTH_MAX as u32;
        // What has ended is looked at when this thread enters the kernel anyway: nothing interrupts it before.
        let modern = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries);
        let ring = modern.or_else(|_| IoUring::new(entries))?;
        Ok(Self {
            ring,
            in_flight: (0..QUEUE_DEPTH_MAX).map(|_| None).collect(),
            free: (0..QUEUE_DEPTH_MAX).collect(),
            watched: Vec::new(),
        })
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len()
    }

    /// Starts a request, for which there must be room. The disk has it at once: what would be gathered here would
    /// wait for no gain, since a disk's own work takes longer than a system call.
    pub(crate) fn start(&mut self, file: RawFd, token: u64, mut transfer: Transfer) {
        let fd = Fd(file);
        let entry = match &mut transfer {
            Transfer::Read { at, buffer } => {
                opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(*at).build()
            }
            Transfer::Write { at, bytes, durable } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).offset(*at).rw_flags(flags).build()
            }
            Transfer::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        let slot = self.free.pop().expect("the caller has looked");
        self.in_flight[slot] = Some((token, transfer));
        self.push(&entry.user_data(slot as u64));
        self.enter(0);
    }

    /// Lets the next [`Ring::wait`] end when a descriptor becomes ready for `events`, as `poll` has them. One
    /// that is watched already stays as it is.
    pub(crate) fn watch(&mut self, descriptor: BorrowedFd<'_>, events: i16) {
        let fd = descriptor.as_raw_fd();
        let mask = u32::from(events.cast_unsigned());
        let data = WATCHED | u64::from(mask) << 32 | u64::from(fd.cast_unsigned());
        if !self.watched.contains(&data) {
            self.watched.push(data);
            self.push(&opcode::PollAdd::new(Fd(fd), mask).build().user_data(data));
        }
    }

    fn push(&mut self, entry: &Entry) {
        // SAFETY: what a request points to is owned by `in_flight` until its completion was seen, and `Bytes`
        // and `Bounce` do not move their bytes when they are moved; a watched descriptor may close meanwhile.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Whether a descriptor is being watched: it was not ready, as far as completions were looked at.
    pub(crate) fn is_watched(&self, descriptor: BorrowedFd<'_>) -> bool {
        let fd = u64::from(descriptor.as_raw_fd().cast_unsigned());
        self.watched.iter().any(|data| data & u64::from(u32::MAX) == fd)
    }

    /// Waits until something ends or becomes ready.
    pub(crate) fn wait(&mut self) {
        self.enter(1);
    }

    /// Has what has ended by now be found, and waits for nothing.
    pub(crate) fn look(&mut self) {
        self.enter(0);
    }

    /// Hands over what stands in the ring, and waits until so many have ended or become ready.
    fn enter(&mut self, want: usize) {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return,
                // Out of memory for a moment, or completions have to be taken first: both pass.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("a ring in use cannot be entered: {error}"),
            }
        }
    }

    /// The next request that has ended, if there is one.
    pub(crate) fn next_ended(&mut self) -> Option<Ended> {
        loop {
            let completion = self.ring.completion().next()?;
            let (data, result) = (completion.user_data(), completion.result());
            if data & WATCHED != 0 {
                self.watched.retain(|&watched| watched != data);
                continue;
            }
            let slot = data as usize;
            let (token, transfer) = self.in_flight[slot].take().expect("one completion for each request");
            self.free.push(slot);
            let result = match result {
                failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
                moved => Ok(moved as usize),
            };
            return Some(Ended { token, transfer, result });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.is_idle() {
            self.wait();
            while self.next_ended().is_some() {}
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &(self.in_flight.len() - self.free.len()))
            .finish_non_exhaustive()
    }
}
