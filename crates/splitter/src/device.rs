//! What a front end serves: bytes at places, whatever is behind them.

use crate::disk::ProtectedDisk;
use crate::writers::Writers;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use types::ByteRange;

/// A disk as a front end sees it. Calls may come from several threads at once; ranges lie within
/// `size_bytes`, the front end has checked.
pub trait BlockDevice: Send + Sync {
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// The protected disk this is, where requests need not be waited for.
    fn as_protected(&self) -> Option<&ProtectedDisk> {
        None
    }

    /// Who may write to it; none where everybody may, or nobody.
    fn writers(&self) -> Option<&Arc<Writers>> {
        None
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// As the disk says.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes the bytes, which nobody changes any more.
    ///
    /// # Errors
    /// As the disk says.
    fn write(&self, at: u64, bytes: Bytes) -> io::Result<()>;

    /// Makes a range read as zeroes; with `unmap` its room may be given back.
    ///
    /// # Errors
    /// As the disk says.
    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()>;

    /// Whether [`BlockDevice::write_zeroes`] costs less than writing as many zeroes.
    fn zeroes_fast(&self) -> bool;

    /// A range is about to be read: it may be brought nearer. Nothing has to be done.
    ///
    /// # Errors
    /// As the disk says.
    fn cache(&self, range: ByteRange) -> io::Result<()>;

    /// Which parts of `range` the recovery side may not have yet, in order and without holes between, the first
    /// `most` of them; none where that has no meaning, as on an image.
    fn unsent(&self, range: ByteRange, most: usize) -> Option<Vec<(ByteRange, bool)>>;

    /// The guest gives a range up.
    ///
    /// # Errors
    /// As the disk says.
    fn discard(&self, range: ByteRange) -> io::Result<()>;

    /// Makes every write completed so far durable.
    ///
    /// # Errors
    /// As the disk says.
    fn flush(&self) -> io::Result<()>;

    /// Which parts of `range` hold data, in order and without holes between.
    ///
    /// # Errors
    /// As the disk says.
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>>;

    /// The first `most` of these. A disk that need not look at all of them does not.
    ///
    /// # Errors
    /// As the disk says.
    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        self.extents(range).map(|mut extents| {
            extents.truncate(most);
            extents
        })
    }
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub range: ByteRange,
    pub kind: ExtentKind,
}

/// What is known of a run without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    Data,
    /// Not allocated; reads as zeroes.
    Hole,
}
