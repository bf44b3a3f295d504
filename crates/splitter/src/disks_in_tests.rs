//! Disks that tests are about only in part: one that does nothing, and a protected one on it.

#![allow(clippy::unwrap_used, reason = "for tests")]

use crate::capture::{Capture, CaptureConfig};
use crate::device::{BlockDevice, Extent, ExtentKind};
use crate::dirty_map::{DirtyMap, MapStore};
use crate::disk::{LocalDisk, ProtectedDisk};
use crate::kept_header::Boot;
use crate::region_log::RegionLog;
use crate::sync_gate::{OnTimeout, SyncPolicy};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::limits::REGION_LOG_BYTES;
use types::{ByteRange, DiskIndex, GroupCounter, Incarnation, VmId, WallTime, WriteSeq};

/// Reads as zeroes and takes everything.
pub(crate) struct Blank {
    pub(crate) size_bytes: u64,
    /// At most so many of a range's.
    pub(crate) extents: fn(ByteRange, usize) -> Vec<Extent>,
}

impl Blank {
    pub(crate) fn of(size_bytes: u64) -> Self {
        Self { size_bytes, extents: |_, _| Vec::new() }
    }
}

impl BlockDevice for Blank {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _at: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write(&self, _at: u64, _bytes: Bytes) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _range: ByteRange, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
    fn zeroes_fast(&self) -> bool {
        true
    }
    fn cache(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn unsent(&self, _range: ByteRange, _most: usize) -> Option<Vec<(ByteRange, bool)>> {
        None
    }
    fn discard(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok((self.extents)(range, usize::MAX))
    }
    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        Ok((self.extents)(range, most))
    }
}

/// A map that keeps nothing.
#[derive(Debug)]
pub(crate) struct NoBytes;

impl MapStore for NoBytes {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A local disk without content. It has no cheap way to make zeroes and cannot give room back, or has and can.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plain {
    pub(crate) size_bytes: u64,
    pub(crate) frees: bool,
    /// It says that nothing is on it.
    pub(crate) is_hole: bool,
    pub(crate) zeroed: Arc<Mutex<Vec<ByteRange>>>,
    /// What a ring works on.
    pub(crate) file: Option<Arc<File>>,
    /// The next sync fails, as that of a file does whose pages could not be written.
    pub(crate) fails_sync: Arc<AtomicBool>,
    /// Nothing that overlaps one of these is read.
    pub(crate) unreadable: Arc<Mutex<Vec<ByteRange>>>,
}

impl LocalDisk for Plain {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn label(&self) -> String {
        "a disk in a test".into()
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.as_fd())
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = ByteRange::new(at, buf.len() as u64);
        if self.unreadable.lock().unwrap().iter().any(|bad| bad.overlaps(range)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buf.fill(0x55);
        Ok(())
    }
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.zeroed.lock().unwrap().push(range);
        Ok(())
    }
    fn discard(&self, range: ByteRange) -> io::Result<bool> {
        if self.frees { self.zero(range, true).map(|()| true) } else { Ok(false) }
    }
    fn zeroes_fast(&self) -> bool {
        self.frees
    }
    fn prefetch(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        match self.fails_sync.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    }
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let kind = if self.is_hole { ExtentKind::Hole } else { ExtentKind::Data };
        Ok(vec![Extent { range, kind }])
    }
}

/// A disk whose stream has begun and has nothing to sync.
pub(crate) fn protected(
    local: Box<dyn LocalDisk>,
    sync: Option<SyncPolicy>,
) -> (ProtectedDisk, Arc<Capture>) {
    let size = local.size_bytes();
    let (vm, disks) = (VmId::from_bytes([5; 16]), [(size, None)]);
    let boot = Boot { id: [1; 16], at: WallTime(0) };
    let map = DirtyMap::open(Box::new(NoBytes), vm, &disks, boot.id).unwrap();
    let log = RegionLog::open(Box::new(NoBytes), vm, &disks, REGION_LOG_BYTES, boot).unwrap();
    let config = CaptureConfig {
        buffer_bytes_max: 64 << 20,
        pool: Arc::new(crate::BufferPool::new(1 << 30)),
        sync,
        gate: Arc::default(),
        leaves_out: false,
    };
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let capture = Arc::new(Capture::new(counter, &[size], map, log, config, Box::new(|| {})));
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(Incarnation::from_bytes([1; 16]), WriteSeq::ZERO);
    assert!(capture.close_sync());
    (ProtectedDisk::new(DiskIndex(0), local, capture.clone()), capture)
}

/// A disk in synchronous mode whose other side says nothing, and whose guest waits for it for ever.
pub(crate) fn held() -> (Arc<ProtectedDisk>, Arc<Capture>) {
    let local = Plain { size_bytes: 1 << 30, frees: true, ..Plain::default() };
    let policy = SyncPolicy { timeout: Duration::from_secs(1), on_timeout: OnTimeout::Hold };
    let (disk, capture) = protected(Box::new(local), Some(policy));
    capture.release(capture.status().last);
    assert!(capture.return_to_sync());
    (Arc::new(disk), capture)
}
