//! The write path of one protected disk, shared by all front ends.
//!
//! A write is one copy of the payload, made before anything else; the same bytes go to the local disk
//! and to the capture, so a guest that changes the page in flight cannot make the two sides differ. The
//! range lock is held from before the local write until after the commit: of two overlapping writes,
//! the one that reaches the local disk last also has the higher sequence.

use crate::capture::Capture;
use crate::device::{BlockDevice, Extent};
use crate::range_lock::RangeLock;
use crate::raw::RawDisk;
use batch::Kind;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use types::{BlockIndex, ByteRange, DiskIndex};

/// One disk of a protected VM.
#[derive(Debug)]
pub struct ProtectedDisk {
    index: DiskIndex,
    raw: RawDisk,
    writing: RangeLock,
    capture: Arc<Capture>,
}

impl ProtectedDisk {
    pub fn new(index: DiskIndex, raw: RawDisk, capture: Arc<Capture>) -> Self {
        Self { index, raw, writing: RangeLock::default(), capture }
    }

    pub fn raw(&self) -> &RawDisk {
        &self.raw
    }

    pub(crate) fn index(&self) -> DiskIndex {
        self.index
    }

    /// Writes locally, then commits; a failed write gets no sequence, but its range is suspect.
    fn change(
        &self,
        kind: Kind,
        range: ByteRange,
        payload: &Bytes,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _guard = self.writing.lock(range);
        match write() {
            Ok(()) => {
                self.capture.commit(self.index, kind, range, payload);
                Ok(())
            }
            Err(error) => {
                self.capture.suspect(self.index, range);
                Err(error)
            }
        }
    }

    /// Reads a run of blocks for a sync while nobody writes to it, its marks cleared just before, and
    /// gives it to the stream; false where the stream cannot take it now, the marks being set again.
    pub(crate) fn copy_run(&self, first: BlockIndex, len: u64) -> io::Result<bool> {
        let end = BlockIndex(first.0 + len - 1).range(self.raw.size_bytes()).end();
        let start = first.range(self.raw.size_bytes()).start;
        let range = ByteRange::new(start, end - start);
        let _guard = self.writing.lock(range);
        self.capture.clear_dirty_run(self.index, first, len);
        let mut bytes = vec![0; range.len as usize];
        let read = self.raw.read_at(range.start, &mut bytes);
        let taken = read.is_ok() && self.capture.push_copy(self.index, range, &bytes.into());
        if !taken {
            self.capture.mark_dirty(self.index, range);
        }
        read.map(|()| taken)
    }
}

impl BlockDevice for ProtectedDisk {
    fn size_bytes(&self) -> u64 {
        self.raw.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.raw.read_at(at, buf)
    }

    fn write(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        let range = ByteRange::new(at, bytes.len() as u64);
        self.change(Kind::Write, range, &bytes, || self.raw.write_at(at, &bytes))
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        self.change(Kind::Zero, range, &Bytes::new(), || self.raw.zero(range, unmap))
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.change(Kind::Discard, range, &Bytes::new(), || self.raw.zero(range, true))
    }

    fn flush(&self) -> io::Result<()> {
        self.raw.sync_data()
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        self.raw.extents(range)
    }
}
