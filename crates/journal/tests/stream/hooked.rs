//! A store that asks before it reads, writes or syncs.

use journal::{Store, StoreFile};
use std::fmt;
use std::io;
use std::sync::Arc;
use types::ByteRange;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Sync,
    /// So many bytes are made zero.
    Zero(u64),
}

type Hook = dyn Fn(&str, Access) -> io::Result<()> + Send + Sync;

/// What lies below, with a hook before each read, write and sync of a file, which may wait or fail.
#[derive(Clone)]
pub(crate) struct Hooked {
    below: Arc<dyn Store>,
    hook: Arc<Hook>,
    has_holes: bool,
}

struct HookedFile {
    below: Arc<dyn StoreFile>,
    name: String,
    hook: Arc<Hook>,
    has_holes: bool,
}

impl Hooked {
    pub(crate) fn over(
        below: Arc<dyn Store>,
        hook: impl Fn(&str, Access) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { below, hook: Arc::new(hook), has_holes: true }
    }

    /// As on a file system without holes: zeroes are written.
    pub(crate) fn without_holes(self) -> Self {
        Self { has_holes: false, ..self }
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").finish_non_exhaustive()
    }
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookedFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Store for Hooked {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        let below = self.below.open(name, create)?;
        Ok(Arc::new(HookedFile {
            below,
            name: name.to_owned(),
            hook: self.hook.clone(),
            has_holes: self.has_holes,
        }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.below.exists(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.below.names()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.below.remove(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.below.sync_folder()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.below.free_bytes()
    }
}

impl StoreFile for HookedFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        (self.hook)(&self.name, Access::Read)?;
        self.below.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        (self.hook)(&self.name, Access::Write)?;
        self.below.write_at(at, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        (self.hook)(&self.name, Access::Sync)?;
        self.below.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }

    fn punch(&self, range: ByteRange) -> io::Result<bool> {
        if self.has_holes {
            self.zero(range)?;
        }
        Ok(self.has_holes)
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        (self.hook)(&self.name, Access::Zero(range.len))?;
        self.below.zero(range)
    }
}
