//! Order, overflow and sync, by hand.

use super::*;
use types::{CheckpointId, CheckpointKind, WallTime};

fn capture(buffer_bytes_max: u64) -> Capture {
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let capture = Capture::new(counter, &[1 << 20], buffer_bytes_max, Box::new(|| {}));
    capture.restart(WriteSeq::ZERO);
    assert!(capture.close_sync());
    capture
}

fn write(capture: &Capture, start: u64, byte: u8) {
    let payload = Bytes::from(vec![byte; 4096]);
    capture.commit(DiskIndex(0), Kind::Write, ByteRange::new(start, 4096), &payload);
}

fn kinds(taken: &Taken) -> Vec<Kind> {
    taken.records.iter().map(|record| record.kind).collect()
}

#[test]
fn writes_come_out_in_the_order_they_were_committed() {
    let capture = capture(1 << 20);
    let before = capture.status().last;
    write(&capture, 0, 1);
    write(&capture, 0, 2);
    let taken = capture.take_after(before);
    assert_eq!(taken.records.iter().map(|r| r.payload[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(taken.watermark, taken.records[1].seq);
    capture.release(taken.records[0].seq);
    assert_eq!(capture.take_after(before).records.len(), 1);
}

#[test]
fn a_full_buffer_turns_into_a_bitmap_and_says_so_in_the_stream() {
    let capture = capture(10_000);
    let before = capture.status().last;
    for at in 0..4 {
        write(&capture, at * 65_536, 1);
    }
    let status = capture.status();
    assert!(status.tracking && status.gap_open);
    assert_eq!(status.dirty_blocks, 2);
    let taken = capture.take_after(before);
    assert_eq!(kinds(&taken), [Kind::Write, Kind::Write, Kind::SyncBegin]);
    assert!(!capture.close_sync(), "blocks are marked");
}

#[test]
fn no_checkpoint_is_marked_while_writes_are_missing() {
    let capture = capture(10_000);
    let checkpoint = Checkpoint {
        id: CheckpointId(WriteSeq::from_raw(1)),
        cut: WriteSeq::from_raw(1),
        kind: CheckpointKind::Automatic,
        taken_at: WallTime(0),
        members: 1,
        tag: String::new(),
    };
    assert!(capture.mark_checkpoint(&checkpoint).is_some());
    capture.start_tracking();
    assert!(capture.mark_checkpoint(&checkpoint).is_none());
}

#[test]
fn whole_blocks_of_zeroes_carry_no_bytes() {
    let mut bytes = vec![0; 3 << 16];
    bytes[1 << 16..2 << 16].fill(7);
    let range = ByteRange::new(0, 3 << 16);
    let found: Vec<_> =
        pieces(Kind::Write, range, &bytes.into()).iter().map(|(k, r, p)| (*k, r.len, p.len())).collect();
    assert_eq!(found, [(Kind::Zero, 65_536, 0), (Kind::Write, 65_536, 65_536), (Kind::Zero, 65_536, 0)]);
}

#[test]
fn a_large_write_is_cut_at_one_mebibyte() {
    let range = ByteRange::new(512, 3 << 20);
    let bytes = Bytes::from(vec![1; 3 << 20]);
    let found = pieces(Kind::Write, range, &bytes);
    assert!(
        found.iter().all(|(_, range, payload)| range.len <= 1 << 20 && payload.len() as u64 == range.len)
    );
    assert_eq!(found.iter().map(|(_, range, _)| range.len).sum::<u64>(), 3 << 20);
}

#[test]
fn sequences_of_two_vms_of_a_group_follow_their_dependence() {
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let vms = [0, 1].map(|_| Capture::new(counter.clone(), &[1 << 20], 1 << 20, Box::new(|| {})));
    vms.iter().for_each(|vm| vm.restart(WriteSeq::ZERO));
    write(&vms[0], 0, 1);
    let first = vms[0].status().last;
    write(&vms[1], 0, 1);
    assert!(vms[1].status().last > first);
    assert!(vms[0].take_after(first).watermark >= vms[1].status().last);
}
