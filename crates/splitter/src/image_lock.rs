//! The lock on an image file that QEMU respects too.
//!
//! QEMU takes open-file-description locks on single bytes of an image it uses; a write lock on the whole
//! file conflicts with any of them, in both directions, and dies with the file description.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The byte that QEMU locks while it may write. Its NBD servers and tools lock no other: each lets the next one in.
const WRITE_AT: libc::off_t = 101;
/// The byte that QEMU locks for "nobody else may write", which it looks for before it writes itself.
const UNSHARED_WRITE_AT: libc::off_t = 201;

/// Takes the file for this process alone; `Ok(false)` where somebody else uses it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    try_lock_bytes(file, libc::F_WRLCK, 0, 0)
}

/// A file that nobody but its holder may write to, as long as this lives: neither QEMU, nor a protection of this agent or
/// of another, since locks of two open files conflict within one process too. Everybody may read it.
#[derive(Debug)]
pub struct WriterLock(#[allow(dead_code, reason = "the lock is gone with it")] File);

impl WriterLock {
    /// None where somebody else writes to the file.
    ///
    /// # Errors
    /// As the file system says.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let is_ours = try_lock_bytes(&file, libc::F_RDLCK, UNSHARED_WRITE_AT, 1)?;
        // As QEMU does: only once its own lock is taken, so that of two at once one at least sees the other.
        let is_free = is_ours && !is_locked_by_others(&file, WRITE_AT)?;
        Ok(is_free.then(|| Self(file)))
    }
}

/// Whether somebody else has a lock of any kind on this byte.
fn is_locked_by_others(file: &File, at: libc::off_t) -> io::Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK, at, 1);
    // SAFETY: the descriptor is open for the length of the call and `lock` outlives it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn lock_of(kind: i32, at: libc::off_t, len: libc::off_t) -> libc::flock {
    // SAFETY: all-zero is a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (at, len);
    lock
}

fn try_lock_bytes(file: &File, kind: i32, at: libc::off_t, len: libc::off_t) -> io::Result<bool> {
    let lock = lock_of(kind, at, len);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RawDisk, RawDiskError};

    /// What an NBD server of QEMU locks of an image that it exports for writing.
    #[test]
    fn a_file_that_an_nbd_server_of_qemu_writes_to_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let server = File::options().read(true).write(true).open(&path).unwrap();
        assert!(try_lock_bytes(&server, libc::F_RDLCK, WRITE_AT, 1).unwrap());
        assert!(WriterLock::take(&path).unwrap().is_none());
        assert!(matches!(RawDisk::open(&path), Err(RawDiskError::InUse { .. })));
        drop(server);
        assert!(WriterLock::take(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_kept_from_writers_is_in_use_within_the_same_process_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let lock = WriterLock::take(&path).unwrap().unwrap();
        assert!(WriterLock::take(&path).unwrap().is_some(), "two that do not write");
        assert!(matches!(RawDisk::open(&path), Err(RawDiskError::InUse { .. })));
        assert_eq!(std::fs::read(&path).unwrap().len(), 1 << 20);
        drop(lock);
        let _disk = RawDisk::open(&path).unwrap();
        assert!(WriterLock::take(&path).unwrap().is_none());
    }
}
