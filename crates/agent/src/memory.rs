//! How the process keeps memory it has freed.
//!
//! Batches are allocated and freed by the thousand each second, a mebibyte each. What glibc gives back to
//! the system after each of them has to be mapped and zeroed again for the next: a sixth of all processor
//! time, measured on the stream.

/// Freed memory is kept up to so many bytes in each arena.
const KEPT_BYTES: i32 = 64 << 20;
/// Blocks below this come from arenas: a batch and all its copies do.
const MAPPED_BYTES_MIN: i32 = 8 << 20;

/// Lets freed memory be used again. To be called first in `main`; elsewhere than with glibc it does nothing.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets numbers inside the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}
