//! The lock on an image file that QEMU respects too.
//!
//! QEMU takes open-file-description locks on single bytes of an image it uses; a write lock on the whole
//! file conflicts with any of them, in both directions, and dies with the file description.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes the file for this process alone; `Ok(false)` where somebody else uses it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: all-zero is a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open for the length of the call and `lock` outlives it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
