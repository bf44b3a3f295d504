//! A folder of a real file system, held by this process alone.
//!
//! Files opened as direct pass the page cache by. What is not aligned to pages goes through a scratch
//! buffer when read and through the page cache when written; where the file system has no direct I/O at
//! all, everything goes through the page cache and [`FsStore::is_direct`] says so.

use crate::page::PAGE_BYTES;
use crate::store::{Store, StoreFile};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use threads::sync::Mutex;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use types::ByteRange;

/// Threads that read for one request, where it is scattered.
const READERS: usize = 4;
/// Parts that one system call takes: IOV_MAX of Linux.
const PARTS_MAX: usize = 1024;

/// Names below this folder are the replicas', which may lie elsewhere.
const REPLICA_PREFIX: &str = "replica/";

/// A folder of files, and another one for replicas if wanted.
#[derive(Debug)]
pub struct FsStore {
    root: PathBuf,
    replica_root: Option<PathBuf>,
    direct_refused: AtomicBool,
    lives: AtomicU64,
    file_system: u64,
    /// Folders in which names have changed since they were last synced.
    changed: Mutex<BTreeSet<PathBuf>>,
    /// Holds the lock while the store lives.
    _lock: File,
}

/// Why a folder could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("folder {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot use folder {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl FsStore {
    /// Takes the folder for this process, making it where it does not exist.
    ///
    /// # Errors
    /// [`LockError::InUse`] where another process has it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LockError> {
        let root = root.into();
        let io = |source| LockError::Io { path: root.clone(), source };
        let above = root.parent().filter(|_| !root.exists()).map(Path::to_path_buf);
        std::fs::create_dir_all(&root).map_err(io)?;
        let options = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"));
        let lock = options.map_err(io)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::InUse { path: root }),
            Err(errno) => return Err(io(errno.into())),
        }
        let file_system = lock.metadata().map_err(io)?.dev();
        Ok(Self {
            root,
            file_system,
            replica_root: None,
            direct_refused: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            changed: Mutex::new(above.into_iter().collect()),
            _lock: lock,
        })
    }

    /// Keeps the replicas in another folder, on another device perhaps.
    #[must_use]
    pub fn with_replicas_in(mut self, folder: Option<PathBuf>) -> Self {
        self.replica_root = folder;
        self
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a disk's replica lies.
    pub fn replica_path(&self, disk: &str) -> PathBuf {
        self.path(&format!("{REPLICA_PREFIX}{disk}.raw"))
    }

    /// Whether the file system took direct I/O wherever it was asked for.
    pub fn is_direct(&self) -> bool {
        !self.direct_refused.load(Ordering::Relaxed)
    }

    fn path(&self, name: &str) -> PathBuf {
        match (&self.replica_root, name.strip_prefix(REPLICA_PREFIX)) {
            (Some(root), Some(name)) => root.join(name),
            _ => self.root.join(name),
        }
    }

    /// A name is about to be made, changed or removed.
    fn note_change(&self, path: &Path) {
        let parent = path.parent().map(Path::to_path_buf);
        self.changed.lock().expect("a panic aborts the process").extend(parent);
    }

    fn open_buffered(&self, name: &str, create: bool) -> io::Result<File> {
        let path = self.path(name);
        if create && let Some(parent) = path.parent() {
            if !parent.exists() {
                self.note_change(parent);
                std::fs::create_dir_all(parent)?;
            }
            if !path.exists() {
                self.note_change(&path);
            }
        }
        OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)
    }
}

impl Store for FsStore {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(FsFile(self.open_buffered(name, create)?)))
    }

    fn open_direct(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        let buffered = self.open_buffered(name, create)?;
        let flags = OFlags::DIRECT.bits().cast_signed();
        match OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.path(name)) {
            Ok(direct) => Ok(Arc::new(DirectFile { direct, buffered: FsFile(buffered) })),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.direct_refused.store(true, Ordering::Relaxed);
                Ok(Arc::new(FsFile(buffered)))
            }
            Err(error) => Err(error),
        }
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path(name).try_exists()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for row in std::fs::read_dir(&self.root)? {
            let row = row?;
            if row.file_type()?.is_file()
                && let Ok(name) = row.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.note_change(&self.path(from));
        self.note_change(&self.path(to));
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        self.note_change(&path);
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        let changed = std::mem::take(&mut *self.changed.lock().expect("a panic aborts the process"));
        let sync = |folder: &PathBuf| match File::open(folder) {
            // What was in it went with it, and its own name is another folder's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened?.sync_all(),
        };
        let synced = changed.iter().chain([&self.root]).try_for_each(sync);
        if synced.is_err() {
            self.changed.lock().expect("a panic aborts the process").extend(changed);
        }
        synced
    }

    fn readers(&self) -> usize {
        READERS
    }

    fn file_system(&self) -> u64 {
        self.file_system
    }

    fn lives(&self) -> Option<&AtomicU64> {
        Some(&self.lives)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let facts = rustix::fs::statvfs(&self.root)?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
}

/// Writes `parts` one behind the other, as few system calls as they take.
fn write_all_parts_at(file: &File, mut at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let mut parts = parts.to_vec();
    let mut rest = &mut parts[..];
    IoSlice::advance_slices(&mut rest, 0); // Leads past empty ones.
    while !rest.is_empty() {
        match rustix::io::pwritev(file, &rest[..rest.len().min(PARTS_MAX)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut rest, written);
                at += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[derive(Debug)]
struct FsFile(File);

impl StoreFile for FsFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, at)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(buf, at)
    }

    fn write_parts_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        write_all_parts_at(&self.0, at, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|facts| facts.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, range.start, range.len) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(false),
            other => other.map(|()| true).map_err(Into::into),
        }
    }

    fn next_data(&self, at: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(at)) {
            Ok(next) => Ok(Some(next)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                Ok((at < self.len()?).then_some(at))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        if self.punch(range)? {
            return Ok(());
        }
        let zeroes = vec![0; 64 << 10];
        range
            .split_at_multiples(zeroes.len() as u64)
            .try_for_each(|piece| self.0.write_all_at(&zeroes[..piece.len as usize], piece.start))
    }
}

/// The same file twice: for what is aligned, and for the rest.
#[derive(Debug)]
struct DirectFile {
    direct: File,
    buffered: FsFile,
}

thread_local! {
    /// Room for one aligned read, kept from call to call.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn is_aligned(at: u64, buf: &[u8]) -> bool {
    at.is_multiple_of(PAGE_BYTES)
        && (buf.len() as u64).is_multiple_of(PAGE_BYTES)
        && (buf.as_ptr().addr() as u64).is_multiple_of(PAGE_BYTES)
}

impl StoreFile for DirectFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if is_aligned(at, buf) {
            return self.direct.read_exact_at(buf, at);
        }
        let from = at / PAGE_BYTES * PAGE_BYTES;
        let to = (at + buf.len() as u64).next_multiple_of(PAGE_BYTES);
        let (skip, len) = ((at - from) as usize, (to - from) as usize);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(scratch.len().max(len + PAGE_BYTES as usize), 0);
            let skew = scratch.as_ptr().align_offset(PAGE_BYTES as usize);
            let window = &mut scratch[skew..skew + len];
            // The last page of the file may be a part of one.
            let mut read = 0;
            while read < skip + buf.len() {
                match self.direct.read_at(&mut window[read..], from + read as u64) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(more) => read += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            buf.copy_from_slice(&window[skip..skip + buf.len()]);
            Ok(())
        })
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        if is_aligned(at, buf) { self.direct.write_all_at(buf, at) } else { self.buffered.write_at(at, buf) }
    }

    fn write_parts_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let aligned = at.is_multiple_of(PAGE_BYTES) && parts.iter().all(|part| is_aligned(0, part));
        write_all_parts_at(if aligned { &self.direct } else { &self.buffered.0 }, at, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.direct.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.buffered.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.buffered.set_len(len)
    }

    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        self.buffered.punch(range)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<u64>> {
        self.buffered.next_data(at)
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.buffered.zero(range)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    /// A name in a folder below is no more durable by a sync of the journal's own than one elsewhere is.
    #[test]
    fn every_folder_in_which_a_name_has_changed_is_synced() {
        let place = tempfile::tempdir().unwrap();
        let (root, replicas) = (place.path().join("journal"), place.path().join("replicas/1"));
        let store = FsStore::open(&root).unwrap().with_replicas_in(Some(replicas.clone()));
        let changed = || store.changed.lock().unwrap().iter().cloned().collect::<Vec<_>>();
        assert_eq!(changed(), [place.path()], "the journal's own name");
        store.open("image-1/vda.data", true).unwrap();
        store.open("replica/vda.raw", true).unwrap();
        let beside = place.path().join("replicas");
        let expected = [place.path().to_path_buf(), root.clone(), root.join("image-1"), beside, replicas];
        assert_eq!(changed(), expected);
        store.sync_folder().unwrap();
        assert!(changed().is_empty());
        store.open("image-1/vda.data", true).unwrap();
        assert!(changed().is_empty(), "it is there already");
        store.remove("image-1").unwrap();
        assert_eq!(changed(), std::slice::from_ref(&root));
        store.open("image-2/vda.data", true).unwrap();
        store.remove("image-2").unwrap();
        store.sync_folder().unwrap();
        assert!(changed().is_empty(), "also of folders that are gone");
    }
}
