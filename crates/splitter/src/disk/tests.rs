//! Ranges on a disk of which the calls are counted.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::buffer_pool::BufferPool;
use crate::capture::CaptureConfig;
use crate::dirty_map::{DirtyMap, MapStore};
use crate::region_log::RegionLog;
use std::sync::Mutex;
use types::limits::REGION_LOG_BYTES;
use types::{GroupCounter, Incarnation, VmId};

const SIZE: u64 = 8 << 30;

#[derive(Debug)]
struct NoBytes;

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

/// A disk that has no cheap way to make zeroes and cannot give room back, or has and can.
#[derive(Debug, Clone, Default)]
struct Plain {
    frees: bool,
    zeroed: Arc<Mutex<Vec<ByteRange>>>,
}

impl LocalDisk for Plain {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn label(&self) -> String {
        "a disk in a test".into()
    }
    fn read_at(&self, _at: u64, _buf: &mut [u8]) -> io::Result<()> {
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
        Ok(())
    }
    fn extents(&self, _range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(Vec::new())
    }
}

fn protected(frees: bool) -> (ProtectedDisk, Plain, Arc<Capture>) {
    let (vm, disks) = (VmId::from_bytes([5; 16]), [(SIZE, None)]);
    let map = DirtyMap::open(Box::new(NoBytes), vm, &disks, [1; 16]).unwrap();
    let log = RegionLog::open(
        Box::new(NoBytes),
        vm,
        &disks,
        REGION_LOG_BYTES,
        crate::Boot { id: [1; 16], at: types::WallTime(0) },
    )
    .unwrap();
    let pool = Arc::new(BufferPool::new(1 << 30));
    let config = CaptureConfig {
        buffer_bytes_max: 64 << 20,
        pool,
        sync: None,
        gate: Arc::default(),
        leaves_out: false,
    };
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let capture = Arc::new(Capture::new(counter, &[SIZE], map, log, config, Box::new(|| {})));
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(Incarnation::from_bytes([1; 16]), WriteSeq::ZERO);
    assert!(capture.close_sync());
    let local = Plain { frees, zeroed: Arc::default() };
    (ProtectedDisk::new(DiskIndex(0), Box::new(local.clone()), capture.clone()), local, capture)
}

#[test]
fn a_discard_that_frees_nothing_writes_nothing_and_sends_nothing() {
    let (disk, local, capture) = protected(false);
    let before = capture.status();
    let range = ByteRange::new(0, 2 << 30);
    assert_eq!(disk.change(&Change::Discard { range }).unwrap(), None);
    assert!(local.zeroed.lock().unwrap().is_empty());
    let after = capture.status();
    assert_eq!((after.last, after.dirty_blocks, after.gap_open), (before.last, 0, false));
    assert_eq!(capture.unsent(DiskIndex(0), range, 9), [(range, false)], "it is as it was");
}

#[test]
fn what_was_on_its_way_stays_so_where_a_discard_does_nothing() {
    let (disk, _, capture) = protected(false);
    let written = ByteRange::new(1 << 16, 4096);
    disk.change(&Change::Write { at: written.start, bytes: Bytes::from(vec![7; 4096]) }).unwrap();
    disk.change(&Change::Discard { range: ByteRange::new(0, 1 << 30) }).unwrap();
    let block = ByteRange::new(1 << 16, 1 << 16);
    assert_eq!(capture.unsent(DiskIndex(0), block, 9), [(block, true)]);
    capture.release(capture.status().last);
    assert_eq!(capture.unsent(DiskIndex(0), block, 9), [(block, false)]);
}

#[test]
fn a_long_range_is_changed_in_pieces_of_which_each_has_its_record() {
    for (frees, piece) in [(true, RANGE_BYTES_MAX), (false, SLOW_ZERO_BYTES_MAX)] {
        let (disk, local, capture) = protected(frees);
        let range = ByteRange::new(512, 2 * piece);
        let before = capture.status().last;
        let last = disk.change(&Change::Zero { range, unmap: true }).unwrap();
        assert_eq!(last, Some(capture.status().last));
        let pieces = local.zeroed.lock().unwrap().clone();
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|made| made.len <= piece));
        let records = capture.take_after(before, 1 << 20, false).expect("nothing is spilled").records;
        assert_eq!(records.iter().map(|record| record.range).collect::<Vec<_>>(), pieces);
        assert!(records.iter().all(|record| record.kind == Kind::Zero));
    }
}
