//! Syncs of disks that do not give everything.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::disks_in_tests::{Plain, protected};
use bytes::Bytes;
use std::sync::Mutex;

const SIZE: u64 = 8 << 20;

/// A disk of which some places cannot be read, all of it marked in a stream that has begun anew.
fn to_be_copied(unreadable: &[ByteRange]) -> ([Arc<ProtectedDisk>; 1], Arc<Capture>) {
    failing(&Arc::new(Mutex::new(unreadable.to_vec())))
}

/// As there, of a disk whose places come and go.
fn failing(unreadable: &Arc<Mutex<Vec<ByteRange>>>) -> ([Arc<ProtectedDisk>; 1], Arc<Capture>) {
    let local = Plain { size_bytes: SIZE, unreadable: unreadable.clone(), ..Plain::default() };
    let (disk, capture) = protected(Box::new(local), None);
    capture.restart(WriteSeq::ZERO);
    capture.mark_dirty(DiskIndex(0), ByteRange::new(0, SIZE));
    ([Arc::new(disk)], capture)
}

#[test]
fn a_sync_ends_without_the_sectors_that_cannot_be_read() {
    let bad = ByteRange::new((3 << 20) + 5 * 512, 512);
    let (disks, capture) = to_be_copied(&[bad]);
    while capture.status().dirty_blocks > 0 {
        assert!(copy_some_blocks(&capture, &disks).unwrap());
    }
    assert!(capture.close_sync(), "nothing is left that could be copied");
    assert_eq!(capture.first_unreadable(), Some((DiskIndex(0), BlockIndex(48))));
    let records = capture.take_after(WriteSeq::ZERO, usize::MAX, false).unwrap().records;
    let sent: Vec<ByteRange> = records
        .iter()
        .map(|record| record.range)
        .filter(|range| range.len > 0 && range.start < SIZE)
        .collect();
    assert_eq!(sent.iter().map(|range| range.len).sum::<u64>(), SIZE - 4096, "all but the page it is in");
    assert!(!sent.iter().any(|range| range.overlaps(bad)));
    capture.release(capture.status().last);
    let block = BlockIndex(48).range(SIZE);
    assert_eq!(capture.unsent(DiskIndex(0), block, 9), [(block, true)], "it is not said to be there");
    // What the guest writes as a whole is known again.
    disks[0]
        .change(&crate::Change::Write { at: block.start, bytes: Bytes::from(vec![7; 64 << 10]) })
        .unwrap();
    capture.release(capture.status().last);
    assert_eq!(
        (capture.first_unreadable(), capture.unsent(DiskIndex(0), block, 9)),
        (None, vec![(block, false)])
    );
}

#[test]
fn what_cannot_be_read_is_tried_again_when_the_stream_begins_anew() {
    let (disks, capture) = to_be_copied(&[ByteRange::new(0, 512)]);
    while capture.status().dirty_blocks > 0 {
        assert!(copy_some_blocks(&capture, &disks).unwrap());
    }
    assert_eq!(capture.status().unreadable_blocks, 1);
    capture.restart(WriteSeq::ZERO);
    assert_eq!(capture.status().unreadable_blocks, 0);
    assert!(capture.is_dirty(DiskIndex(0), BlockIndex(0)));
}

#[test]
fn a_disk_that_gives_nothing_is_waited_for() {
    let (disks, capture) = to_be_copied(&[ByteRange::new(0, SIZE)]);
    copy_some_blocks(&capture, &disks).unwrap_err();
    let status = capture.status();
    assert_eq!((status.unreadable_blocks, status.dirty_blocks), (0, SIZE / BLOCK_BYTES));
}

/// What was made zeroes and is not durable yet comes back when the host loses power, in regions that no log has.
#[test]
fn a_hole_is_believed_once_what_was_done_before_is_durable() {
    let local = Plain { size_bytes: SIZE, is_hole: true, ..Plain::default() };
    let fails_sync = local.fails_sync.clone();
    let (disk, capture) = protected(Box::new(local), None);
    let disks = [Arc::new(disk)];
    mark_allocated(&capture, &disks).unwrap();
    assert_eq!(capture.status().dirty_blocks, 0, "there is nothing to be copied");
    fails_sync.store(true, std::sync::atomic::Ordering::SeqCst);
    mark_allocated(&capture, &disks).unwrap_err();
    assert_eq!(capture.status().dirty_blocks, SIZE / BLOCK_BYTES, "nobody knows what will be there");
}

fn copy_all(capture: &Capture, disks: &[Arc<ProtectedDisk>]) {
    while capture.status().dirty_blocks > 0 {
        assert!(copy_some_blocks(capture, disks).unwrap());
    }
}

#[test]
fn a_comparison_of_what_cannot_be_read_says_how_much_and_compares_the_rest() {
    let (disks, capture) = to_be_copied(&[ByteRange::new(1 << 16, 512)]);
    copy_all(&capture, &disks);
    assert!(capture.close_sync());
    verify_everything(&capture, &disks);
    let mut hashed = Vec::new();
    while capture.status().suspect_blocks > 0 {
        hashed.extend(hash_some_blocks(&capture, &disks).unwrap());
    }
    assert_eq!(capture.status().uncompared_blocks, 1);
    assert_eq!(capture.status().dirty_blocks, 1, "it is copied, as far as it can be");
    let mut compared: Vec<u64> =
        hashed.iter().flat_map(|run| (0..run.hashes.len() as u64).map(|at| run.first.0 + at)).collect();
    compared.sort_unstable();
    let others: Vec<u64> = (0..SIZE / BLOCK_BYTES).filter(|&block| block != 1).collect();
    assert_eq!(compared, others, "each of its neighbours is compared once");
    for run in &hashed {
        capture.end_compare(run.disk, run.first, 0);
    }
    copy_all(&capture, &disks);
    assert_eq!((capture.status().unreadable_blocks, capture.status().unsettled_blocks), (1, 0));
}

#[test]
fn what_cannot_be_read_is_copied_once_it_gives_itself_again() {
    let places = Arc::new(Mutex::new(vec![ByteRange::new(0, 512), ByteRange::new(5 << 16, 512)]));
    let (disks, capture) = failing(&places);
    copy_all(&capture, &disks);
    assert!(capture.close_sync());
    assert_eq!(retry_unreadable(&capture, &disks, || true), 0);
    let status = capture.status();
    assert_eq!((status.unreadable_blocks, status.gap_open), (2, false), "a try in vain costs no checkpoint");
    places.lock().unwrap().remove(0);
    assert_eq!(retry_unreadable(&capture, &disks, || true), 1);
    let status = capture.status();
    assert_eq!((status.unreadable_blocks, status.dirty_blocks, status.gap_open), (1, 1, true));
    copy_all(&capture, &disks);
    assert!(capture.close_sync());
    assert_eq!(capture.first_unreadable(), Some((DiskIndex(0), BlockIndex(5))));
}
