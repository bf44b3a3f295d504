//! What a range costs: as many stores and as much memory as records, however long they are.

#![allow(clippy::unwrap_used, reason = "a test")]

use crate::buffer_pool::BufferPool;
use crate::capture::{Capture, CaptureConfig};
use crate::dirty_map::{DirtyMap, MapStore};
use crate::region_log::RegionLog;
use batch::Kind;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use types::limits::{REGION_LOG_BYTES, RELEASE_RECORDS_A_TURN};
use types::{BlockIndex, ByteRange, DiskIndex, GroupCounter, Incarnation, VmId, WriteSeq};

const DISK: DiskIndex = DiskIndex(0);
const DISK_BYTES: u64 = 1 << 40;
const DISCARD_BYTES: u64 = 2 << 30;

/// Keeps no bytes, counts writes.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl MapStore for Counting {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Counting {
    fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn capture(map: &Counting, log: &Counting) -> Capture {
    let (vm, disks) = (VmId::from_bytes([5; 16]), [(DISK_BYTES, None)]);
    let kept = DirtyMap::open(Box::new(map.clone()), vm, &disks, [1; 16]).unwrap();
    let log = RegionLog::open(
        Box::new(log.clone()),
        vm,
        &disks,
        REGION_LOG_BYTES,
        crate::Boot { id: [1; 16], at: types::WallTime(0) },
    )
    .unwrap();
    let config = CaptureConfig {
        buffer_bytes_max: 64 << 20,
        pool: Arc::new(BufferPool::new(1 << 30)),
        sync: None,
        gate: Arc::default(),
        leaves_out: false,
    };
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let capture = Capture::new(counter, &[DISK_BYTES], kept, log, config, Box::new(|| {}));
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(Incarnation::from_bytes([1; 16]), WriteSeq::ZERO);
    assert!(capture.close_sync());
    capture
}

fn discard(capture: &Capture, range: ByteRange) {
    capture.begin_write(DISK, range).unwrap();
    capture.commit(DISK, Kind::Discard, range, &Bytes::new());
}

#[test]
fn a_whole_disk_that_is_discarded_costs_its_records_not_its_blocks() {
    let (map, log) = (Counting::default(), Counting::default());
    let capture = capture(&map, &log);
    let (maps, logs) = (map.so_far(), log.so_far());
    let ranges = ByteRange::new(0, DISK_BYTES).split_at_multiples(DISCARD_BYTES);
    let asked = ranges.inspect(|range| discard(&capture, *range)).count();
    assert!(map.so_far() - maps <= asked, "one store for a range: {}", map.so_far() - maps);
    assert!(log.so_far() - logs <= asked, "one store for its regions: {}", log.so_far() - logs);
    let last = capture.status().last;
    let records =
        capture.take_after(WriteSeq::ZERO, 1 << 20, false).expect("nothing is spilled").records.len();
    assert!(capture.lock().dirty.on_the_way_runs() <= records);
    assert_eq!(
        capture.unsent(DISK, ByteRange::new(0, DISK_BYTES), 2),
        [(ByteRange::new(0, DISK_BYTES), true)]
    );
    let maps = map.so_far();
    capture.release(last);
    assert!(map.so_far() - maps <= records + 1, "one store for a record: {}", map.so_far() - maps);
    assert_eq!(capture.lock().dirty.on_the_way_runs(), 0);
    assert_eq!(
        capture.unsent(DISK, ByteRange::new(0, DISK_BYTES), 2),
        [(ByteRange::new(0, DISK_BYTES), false)]
    );
}

#[test]
fn writes_within_a_discard_stay_unsent_until_they_are_acknowledged_themselves() {
    let (map, log) = (Counting::default(), Counting::default());
    let capture = capture(&map, &log);
    discard(&capture, ByteRange::new(0, DISCARD_BYTES));
    let discarded = capture.status().last;
    let inside = ByteRange::new(3 << 16, 4096);
    capture.begin_write(DISK, inside).unwrap();
    capture.commit(DISK, Kind::Write, inside, &Bytes::from(vec![7; 4096]));
    capture.release(discarded);
    let parts = capture.unsent(DISK, ByteRange::new(0, DISCARD_BYTES), 10);
    let unsent: Vec<ByteRange> =
        parts.into_iter().filter_map(|(part, unsent)| unsent.then_some(part)).collect();
    assert_eq!(unsent, [ByteRange::new(3 << 16, 1 << 16)]);
    assert!(!capture.is_dirty(DISK, BlockIndex(3)), "it needs no copy");
    capture.release(capture.status().last);
    assert_eq!(capture.lock().dirty.on_the_way_runs(), 0);
}

#[test]
fn a_release_lets_others_in_between() {
    let (map, log) = (Counting::default(), Counting::default());
    let capture = capture(&map, &log);
    for at in 0..RELEASE_RECORDS_A_TURN as u64 * 3 {
        discard(&capture, ByteRange::new(at << 20, 1 << 20));
    }
    let last = capture.status().last;
    let mut seen = Vec::new();
    let mut turns = 0;
    while !capture.release_some(last) {
        turns += 1;
        seen.push(capture.status());
    }
    assert!(turns >= 2, "in {turns} turns");
    for status in seen {
        assert!(status.released < last && status.last == last, "what is left is in the buffer");
    }
    assert_eq!(capture.status().released, last);
    assert_eq!(capture.status().buffered_bytes, 0);
}
