//! Ranges on a disk of which the calls are counted, and syncs that fail.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::disks_in_tests::{self, Plain};

const SIZE: u64 = 8 << 30;

fn protected(frees: bool) -> (ProtectedDisk, Plain, Arc<Capture>) {
    let local = Plain { size_bytes: SIZE, frees, ..Plain::default() };
    let (disk, capture) = disks_in_tests::protected(Box::new(local.clone()), None);
    (disk, local, capture)
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

#[test]
fn what_a_sync_of_the_agents_own_was_told_fails_the_clients_next_flush() {
    let (disk, local, _) = protected(true);
    for unasked in [ProtectedDisk::sync, ProtectedDisk::sync_all] {
        local.fails_sync.store(true, std::sync::atomic::Ordering::SeqCst);
        unasked(&disk).unwrap_err();
        unasked(&disk).unwrap();
        assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.flush().unwrap();
    }
}
