//! Threads that write, spill, send and acknowledge at once: what goes out is what was committed, in order.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::spill::in_memory::InMemory;
use bytes::Bytes;
use splitter::{Boot, BufferPool, CaptureConfig, DirtyMap, MapFile, RegionLog};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use types::limits::REGION_LOG_BYTES;
use types::{ByteRange, DiskIndex, GroupCounter, VmId};

const DISK_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: u64 = 6 << 10;
const WRITE_BYTES: u64 = 512;
const WRITES: u64 = 8_000;
const SPILL_BYTES: u64 = 1 << 30;
/// So many bytes of payload are sent at a time: a few writes, so that what was sent and what was spilled meet often.
const SENT_BYTES: usize = 512;
const ONE: Incarnation = Incarnation::from_bytes([1; 16]);

/// A stream that has begun, with nothing to sync.
fn outbox(folder: &Path) -> Outbox {
    outbox_of(folder, &Arc::new(GroupCounter::new(WriteSeq::ZERO)))
}

/// The same, of a VM that draws from `counter`.
fn outbox_of(folder: &Path, counter: &Arc<GroupCounter>) -> Outbox {
    let vm = VmId::from_bytes([5; 16]);
    let disks = [(DISK_BYTES, None)];
    let file = |name: &str| Box::new(MapFile::open(&folder.join(name)).unwrap());
    let boot = Boot { id: [1; 16], at: types::WallTime(0) };
    let map = DirtyMap::open(file("map"), vm, &disks, boot.id).unwrap();
    let regions = RegionLog::open(file("regions"), vm, &disks, REGION_LOG_BYTES, boot).unwrap();
    let config = CaptureConfig {
        buffer_bytes_max: BUFFER_BYTES,
        pool: Arc::new(BufferPool::new(1 << 30)),
        sync: None,
        gate: Arc::default(),
        leaves_out: false,
    };
    let capture =
        Arc::new(Capture::new(counter.clone(), &[DISK_BYTES], map, regions, config, Box::new(|| {})));
    let outbox = Outbox::new(capture, ONE);
    outbox.give_spill(Box::new(InMemory::of(SPILL_BYTES)));
    begin(&outbox, WriteSeq::ZERO);
    outbox
}

/// What comes after that, in asynchronous mode over a link that keeps up.
fn wanted(after: WriteSeq) -> Wanted {
    Wanted {
        after,
        bytes_max: SENT_BYTES,
        lags: false,
        tells_watermark: true,
        codec: Codec::Raw,
        taken_at: WallTime(0),
    }
}

/// What the thread that spills does when it is asked to.
fn spill(outbox: &Outbox) {
    outbox.tidy();
    while let Some(spilling) = outbox.begin_spill(WallTime(0)) {
        let written = outbox.write_spill(spilling);
        if !outbox.end_spill(&written) {
            return;
        }
    }
}

fn begin(outbox: &Outbox, floor: WriteSeq) {
    outbox.restart(floor);
    outbox.capture.begin_stream(ONE, floor);
    assert!(outbox.capture.close_sync());
}

/// Writes once there is room, so that the buffer never turns into the bitmap.
fn guest_write(capture: &Capture, number: u64) {
    while capture.status().buffered_bytes * 8 > BUFFER_BYTES * 7 {
        thread::yield_now();
    }
    let range = ByteRange::new(number % (DISK_BYTES / WRITE_BYTES) * WRITE_BYTES, WRITE_BYTES);
    let payload = Bytes::from(vec![1 + (number % 250) as u8; WRITE_BYTES as usize]);
    capture.begin_write(DiskIndex(0), range).unwrap();
    capture.commit(DiskIndex(0), Kind::Write, range, &payload);
}

/// Sends and acknowledges until `done` and nothing is left, and checks that each batch follows the one before. The
/// number of guest writes that went out.
fn send_all(outbox: &Outbox, done: &AtomicBool) -> u64 {
    let (mut after, mut acknowledged, mut writes) = (outbox.capture.status().released, WriteSeq::ZERO, 0);
    loop {
        let was_done = done.load(Ordering::SeqCst);
        let next = outbox.next(&wanted(after)).unwrap().expect("watermarks are told");
        let batch = Batch::parse(next.batch.joined()).unwrap();
        assert_eq!(batch.header().prev_seq, after);
        for entry in batch.entries() {
            // One counter and one VM: each sequence is of this stream, and none is missing.
            assert_eq!(entry.seq, after.next(), "writes were passed over");
            after = entry.seq;
            writes += u64::from(entry.kind.is_guest_write());
        }
        if batch.entries().is_empty() {
            assert!(next.watermark >= after);
            if was_done {
                outbox.release(after);
                return writes;
            }
        }
        // Acknowledged late, so that the front of the spill overtakes what was sent.
        if writes % 64 == 0 {
            outbox.release(acknowledged);
            acknowledged = after;
        }
    }
}

#[test]
fn what_goes_out_is_what_was_committed_however_it_is_spilled() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            (0..WRITES).for_each(|number| guest_write(&outbox.capture, number));
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                spill(&outbox);
            }
        });
        assert_eq!(send_all(&outbox, &done), WRITES);
    });
    assert!(!outbox.capture.status().gap_open);
}

#[test]
fn a_stream_that_begins_anew_while_it_spills_loses_no_spill() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                spill(&outbox);
            }
        });
        for round in 0..30 {
            (0..100).for_each(|number| guest_write(&outbox.capture, round * 100 + number));
            outbox.restart(outbox.capture.status().last);
            (0..100).for_each(|number| guest_write(&outbox.capture, round * 100 + number));
            let released = outbox.capture.status().released;
            let next = outbox.next(&wanted(released));
            assert!(matches!(next, Ok(Some(_))) && !outbox.view().lost, "the spill is lost in round {round}");
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_quiet_vm_tells_a_watermark_whose_run_is_to_be_recorded_first() {
    let folder = tempfile::tempdir().unwrap();
    let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
    let outbox = outbox_of(folder.path(), &counter);
    let after = outbox.capture.status().last;
    // A cut that was given up has lifted the counter, and nothing was written since.
    counter.draw_exactly(WriteSeq::before_run(RunNumber(8)).next()).unwrap();
    // Past what ends the sync.
    let next = outbox.next(&wanted(after)).unwrap().unwrap();
    assert!(Batch::parse(next.batch.joined()).unwrap().entries().is_empty());
    assert_eq!((next.last, next.newest_run()), (after, counter.last().run()));
}

/// Writes until something lies in the spill.
fn write_into_the_spill(outbox: &Outbox) {
    for number in 0..64 {
        guest_write(&outbox.capture, number);
        spill(outbox);
    }
    let status = outbox.capture.status();
    assert!(status.spilled > status.released);
}

#[test]
fn a_spill_that_is_damaged_is_told_and_what_it_held_is_sent_as_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    let files = swap_spill(&outbox);
    write_into_the_spill(&outbox);
    files.damage();
    let status = outbox.capture.status();
    outbox.next(&wanted(status.released)).unwrap_err();
    let view = outbox.view();
    assert!(view.lost && !view.has_room, "{view:?}");
    spill(&outbox);
    assert_eq!(
        outbox.capture.status().spilled,
        status.spilled,
        "nothing more goes where nothing can be read"
    );

    // The stream begins anew, as the sender asks for: what was written is marked, and the spill is empty and good.
    let floor = outbox.capture.status().last;
    outbox.restart(floor);
    outbox.capture.begin_stream(ONE, floor);
    assert!(outbox.capture.is_dirty(DiskIndex(0), types::BlockIndex(0)));
    assert!(!outbox.capture.close_sync(), "not before the blocks are sent");
    assert!(outbox.wants_tidying());
    outbox.tidy();
    let view = outbox.view();
    assert!(!view.lost && view.has_room && view.bytes == 0, "{view:?}");
    write_into_the_spill(&outbox);
    let released = outbox.capture.status().released;
    let next = outbox.next(&wanted(released)).unwrap().unwrap();
    assert_eq!(Batch::parse(next.batch.joined()).unwrap().entries()[0].kind, Kind::SyncBegin);
}

/// A spill that this test has a hand in.
fn swap_spill(outbox: &Outbox) -> InMemory {
    let files = InMemory::of(SPILL_BYTES);
    outbox.lock_shelf().spill = Some(Box::new(files.clone()));
    files
}

#[test]
fn what_is_written_for_a_stream_that_has_begun_anew_meanwhile_is_of_no_use_to_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    // Begun anew before, and after, it was written.
    for before in [true, false] {
        (0..5).for_each(|number| guest_write(&outbox.capture, number));
        let spilling = outbox.begin_spill(WallTime(0)).expect("the buffer is full enough");
        let floor = outbox.capture.status().last;
        if before {
            outbox.restart(floor);
        }
        let written = outbox.write_spill(spilling);
        if !before {
            outbox.restart(floor);
        }
        assert!(!outbox.end_spill(&written), "what was taken is of the stream before");
        let status = outbox.capture.status();
        assert_eq!((status.spilled, status.released), (floor, floor), "it takes nothing out of the new one");
        (0..5).for_each(|number| guest_write(&outbox.capture, number));
        write_into_the_spill(&outbox);
        let next = outbox.next(&wanted(floor)).unwrap().unwrap();
        let first = Batch::parse(next.batch.joined()).unwrap().entries()[0];
        assert_eq!(first.kind, Kind::SyncBegin, "the first of the new stream, and nothing of the old one");
    }
}

#[test]
fn what_lies_in_the_spill_of_a_stream_before_is_gone_before_the_first_of_the_new_one_comes() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    let floor = outbox.capture.status().released;
    write_into_the_spill(&outbox);
    let before = outbox.capture.status().last;
    // The other side has been set back: the new stream begins below what lies in the spill.
    outbox.restart(floor);
    (0..5).for_each(|number| guest_write(&outbox.capture, number));
    // Nobody has tidied yet.
    let written = outbox.write_spill(outbox.begin_spill(WallTime(0)).unwrap());
    assert!(outbox.end_spill(&written));
    let next = outbox.next(&wanted(floor)).unwrap().unwrap();
    assert!(Batch::parse(next.batch.joined()).unwrap().entries()[0].seq > before);
}

#[test]
fn a_spill_that_cannot_be_written_says_why_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    let files = swap_spill(&outbox);
    files.fail(true);
    (0..5).for_each(|number| guest_write(&outbox.capture, number));
    spill(&outbox);
    let view = outbox.view();
    assert_eq!((view.has_room, view.trouble.as_deref()), (false, Some("no space left")));
    let status = outbox.capture.status();
    assert_eq!(status.spilled, status.released, "what was not written stays in the buffer");
    files.fail(false);
    outbox.try_again();
    assert!(outbox.view().has_room && outbox.view().trouble.is_none());
    write_into_the_spill(&outbox);
}

#[test]
fn a_full_spill_has_room_again_once_what_lies_in_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    outbox.lock_shelf().spill = Some(Box::new(InMemory::of(8 << 10)));
    for number in 0.. {
        if !outbox.view().has_room {
            break;
        }
        guest_write(&outbox.capture, number);
        spill(&outbox);
    }
    assert!(!outbox.wants_tidying());
    outbox.release(outbox.capture.status().spilled);
    assert!(outbox.wants_tidying() && !outbox.view().has_room);
    outbox.tidy();
    let view = outbox.view();
    assert!(!outbox.wants_tidying() && view.has_room && view.bytes == 0, "{view:?}");
}
