//! Copies of a sync that the guest's writes take the room of.

use super::*;

const BLOCK: usize = 64 << 10;

/// Copies a marked block as a sync does it.
fn copy(capture: &Capture, block: u64, byte: u8) {
    let range = ByteRange::new(block * BLOCK as u64, BLOCK as u64);
    capture.mark_dirty(DiskIndex(0), range);
    capture.begin_copy(DiskIndex(0), BlockIndex(block), 1);
    assert!(capture.end_copy(DiskIndex(0), range, Some(&Bytes::from(vec![byte; BLOCK]))));
}

fn guest_write(capture: &Capture, block: u64) -> WriteSeq {
    let range = ByteRange::new(block * BLOCK as u64, BLOCK as u64);
    capture.begin_write(DiskIndex(0), range).unwrap();
    capture.commit(DiskIndex(0), Kind::Write, range, &Bytes::from(vec![9; BLOCK]))
}

/// Spills all there is, as the agent does it; the kinds of what went.
fn spill_all(capture: &Capture) -> Vec<Kind> {
    let mut kinds = Vec::new();
    loop {
        let taken = capture.take_to_spill(capture.status().spilled, 100 << 10).unwrap();
        let Some(last) = taken.records.last() else { return kinds };
        assert!(taken.watermark >= last.seq);
        kinds.extend(taken.records.iter().map(|record| record.kind));
        capture.spilled(last.seq);
    }
}

#[test]
fn copies_are_marked_again_where_the_guests_writes_are_spilled() {
    let capture = on_map(&Memory::default(), 1, 64 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    (0..4).for_each(|block| copy(&capture, block, 1));
    let mut last = guest_write(&capture, 2);
    copy(&capture, 7, 0);
    last = last.max(guest_write(&capture, 9));
    assert_eq!(capture.status().copies, 5);
    let kinds = spill_all(&capture);
    assert_eq!(kinds, [Kind::SyncBegin, Kind::Write, Kind::Write]);
    let status = capture.status();
    assert_eq!((status.copies, status.dirty_blocks, status.spilled, status.last), (0, 5, last, last));
    assert_eq!(status.buffered_bytes, 0, "their room is free");
    // What is acknowledged later clears no mark of theirs.
    capture.release(last);
    capture.sweep();
    assert!((0..4).chain([7]).all(|block| capture.is_dirty(DiskIndex(0), BlockIndex(block))));
    assert!(!capture.is_dirty(DiskIndex(0), BlockIndex(9)));
    assert!(!capture.close_sync(), "they are still missing");
}

#[test]
fn the_stream_still_reaches_to_a_copy_that_is_the_newest_record() {
    let capture = on_map(&Memory::default(), 1, 64 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    copy(&capture, 0, 1);
    guest_write(&capture, 5);
    copy(&capture, 1, 1);
    let last = capture.status().last;
    assert_eq!(spill_all(&capture), [Kind::SyncBegin, Kind::Write]);
    let status = capture.status();
    assert_eq!((status.copies, status.dirty_blocks, status.last), (1, 1, last));
    let taken = capture.take_after(status.spilled, usize::MAX, false).unwrap();
    assert_eq!(taken.records.iter().map(|record| record.kind).collect::<Vec<_>>(), [Kind::Sync]);
}
