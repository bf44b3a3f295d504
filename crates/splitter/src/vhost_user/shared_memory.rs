//! Memory that another process may take away.
//!
//! A mapped file that is cut short gives SIGBUS to whoever touches the pages that are gone, which would end the
//! agent and with it the disks of every other VM. So each such mapping is registered here: touched after it is gone,
//! it becomes plain zeroes of our own, and is told of as lost.

use rustix::mm::{MapFlags, ProtFlags};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use types::limits::SHARED_MAPPINGS_MAX;

struct Slot {
    /// 0 where the slot is free, 1 while it is being filled.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

const FREE: usize = 0;
const TAKEN: usize = 1;

static SLOTS: [Slot; SHARED_MAPPINGS_MAX] = [const {
    Slot { start: AtomicUsize::new(FREE), len: AtomicUsize::new(0), lost: AtomicBool::new(false) }
}; SHARED_MAPPINGS_MAX];

/// A mapping that is watched over until this is dropped. To be dropped before it is unmapped.
#[derive(Debug)]
pub(super) struct Watched(usize);

impl Watched {
    /// Watches over a mapping; none where there are too many.
    pub(super) fn begin(start: *const u8, len: usize) -> Option<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install);
        let take = |slot: &Slot| {
            slot.start.compare_exchange(FREE, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let at = SLOTS.iter().position(take)?;
        SLOTS[at].lost.store(false, Ordering::SeqCst);
        SLOTS[at].len.store(len, Ordering::SeqCst);
        SLOTS[at].start.store(start as usize, Ordering::SeqCst);
        Some(Self(at))
    }

    /// Whether part of it was gone when it was touched.
    pub(super) fn is_lost(&self) -> bool {
        SLOTS[self.0].lost.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        SLOTS[self.0].len.store(0, Ordering::SeqCst);
        SLOTS[self.0].start.store(FREE, Ordering::SeqCst);
    }
}

fn install() {
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: the handler only uses atomics and system calls, as a handler may.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    assert_eq!(done, 0, "SIGBUS can be handled");
}

extern "C" fn on_bus_error(_signal: libc::c_int, facts: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo; of SIGBUS it has an address.
    let address = unsafe { (*facts).si_addr() } as usize;
    for slot in &SLOTS {
        let (start, len) = (slot.start.load(Ordering::SeqCst), slot.len.load(Ordering::SeqCst));
        if start > TAKEN && address >= start && address - start < len {
            // SAFETY: the range is a mapping of ours that nothing but raw reads and writes refers to; zeroes take
            // the place of pages that nobody can reach any more.
            let mapped = unsafe {
                rustix::mm::mmap_anonymous(
                    start as *mut _,
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::FIXED,
                )
            };
            if mapped.is_ok() {
                slot.lost.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
    // Not one of these: as if there were no handler, once the instruction is tried again.
    // SAFETY: sets the default action.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_cut_short_becomes_zeroes_and_is_told_of() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16384).unwrap();
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 16384, flags, MapFlags::SHARED, &file, 0) };
        let start: *mut u8 = start.unwrap().cast();
        let watched = Watched::begin(start, 16384).unwrap();
        // SAFETY: within the mapping.
        unsafe { start.add(8192).write_volatile(7) };
        assert!(!watched.is_lost());
        file.set_len(4096).unwrap();
        // SAFETY: within the mapping, whose page is gone.
        assert_eq!(unsafe { start.add(8192).read_volatile() }, 0);
        assert!(watched.is_lost());
        drop(watched);
        // SAFETY: mapped above, with this length.
        unsafe { rustix::mm::munmap(start.cast(), 16384) }.unwrap();
    }
}
