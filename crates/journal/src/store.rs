//! The seam to the disk: named files in one folder. The simulator has the other implementation.
//!
//! Names may have one `/`. A write is certain to survive a crash only after `sync_data` of its file; a
//! name only after `sync_folder`.

use rustix::fs::{FallocateFlags, FlockOperation};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::ByteRange;

/// A folder of files.
pub trait Store: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing; with `create` it is made where it does not exist.
    ///
    /// # Errors
    /// As the file system says.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>>;
    /// Whether the file exists.
    ///
    /// # Errors
    /// As the file system says.
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Renames, replacing what has the new name.
    ///
    /// # Errors
    /// As the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, or a folder with all in it. What is not there is fine.
    ///
    /// # Errors
    /// As the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync_folder(&self) -> io::Result<()>;
    /// Bytes left on the file system.
    ///
    /// # Errors
    /// As the file system says.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub trait StoreFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `at`; a file that ends before is an error of kind `UnexpectedEof`.
    ///
    /// # Errors
    /// As the file system says.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `at`.
    ///
    /// # Errors
    /// As the file system says.
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()>;
    /// Makes everything written durable.
    ///
    /// # Errors
    /// As the file system says; after one nothing is known of what was written.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// As the file system says.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Cuts or extends with zeroes.
    ///
    /// # Errors
    /// As the file system says.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes a range read as zeroes, giving its room back where the file system can.
    ///
    /// # Errors
    /// As the file system says.
    fn zero(&self, range: ByteRange) -> io::Result<()>;
}

/// A folder of a real file system, held by this process alone.
#[derive(Debug)]
pub struct FsStore {
    root: PathBuf,
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
        std::fs::create_dir_all(&root).map_err(io)?;
        let options = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"));
        let lock = options.map_err(io)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::InUse { path: root }),
            Err(errno) => Err(io(errno.into())),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Store for FsStore {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        let path = self.root.join(name);
        if create && let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
        Ok(Arc::new(FsFile(file)))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.root.join(name).try_exists()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.root.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.root)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let facts = rustix::fs::statvfs(&self.root)?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
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

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|facts| facts.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, range.start, range.len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeroes = vec![0; 64 << 10];
                range
                    .split_at_multiples(zeroes.len() as u64)
                    .try_for_each(|piece| self.0.write_all_at(&zeroes[..piece.len as usize], piece.start))
            }
            other => other.map_err(Into::into),
        }
    }
}
