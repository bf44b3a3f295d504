//! The seam to the disk: named files in one folder. The simulator has the other implementation.
//!
//! Names may have one `/`. A write is certain to survive a crash only after `sync_data` of its file; a
//! name only after `sync_folder`.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use threads::sync::atomic::AtomicU64;
use types::ByteRange;

/// A folder of files.
pub trait Store: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing; with `create` it is made where it does not exist.
    ///
    /// # Errors
    /// As the file system says.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>>;
    /// As [`Store::open`], for bulk data that passes the page cache by where the file system can do so.
    ///
    /// # Errors
    /// As the file system says.
    fn open_direct(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        self.open(name, create)
    }
    /// Whether the file exists.
    ///
    /// # Errors
    /// As the file system says.
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Names of the files that lie in the folder itself.
    ///
    /// # Errors
    /// As the file system says.
    fn names(&self) -> io::Result<Vec<String>>;
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
    /// How many threads may read at once for one request that is scattered over many places.
    fn readers(&self) -> usize {
        1
    }
    /// Counts the journals that were opened in this folder: only the newest may change it. None where the caller sees to
    /// that himself.
    fn lives(&self) -> Option<&AtomicU64> {
        None
    }
    /// What answers or hangs together with it: the number of its file system. 0 where that is not known.
    fn file_system(&self) -> u64 {
        0
    }
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
    /// Writes `parts` at `at`, one behind the other.
    ///
    /// # Errors
    /// As the file system says.
    fn write_parts_at(&self, at: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.write_at(at, &parts.iter().map(|part| &**part).collect::<Vec<_>>().concat())
    }
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
    /// Makes a hole of a range, which costs next to nothing however long it is. False, and nothing is done, where the file
    /// system makes no holes.
    ///
    /// # Errors
    /// As the file system says.
    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        self.zero(range).map(|()| true)
    }
    /// The first byte at or behind `at` that may be anything but zero, for holes that a file has; none up to its end.
    ///
    /// # Errors
    /// As the file system says.
    fn next_data(&self, at: u64) -> io::Result<Option<u64>> {
        Ok((at < self.len()?).then_some(at))
    }
    /// Makes a range read as zeroes, giving its room back where the file system can; it is written where it cannot, so
    /// that a long range takes long.
    ///
    /// # Errors
    /// As the file system says.
    fn zero(&self, range: ByteRange) -> io::Result<()>;
}

/// Keeps a file that is damaged under another name, for whoever wants to look at it.
pub(crate) fn set_aside(store: &dyn Store, name: &str) -> io::Result<()> {
    match store.exists(name)? {
        true => store.rename(name, &format!("damaged-{name}")),
        false => Ok(()),
    }
}
