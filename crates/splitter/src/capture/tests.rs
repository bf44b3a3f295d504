//! Order, overflow and sync, by hand.

use super::*;
use crate::dirty_map::MapStore;
use crate::identity::{DiskIdentity, FileTime};
use crate::kept_header::Boot;
use types::limits::REGION_LOG_BYTES;
use types::{CheckpointId, CheckpointKind, VmId, WallTime};

const DISK_BYTES: u64 = 64 << 20;
const ONE: Incarnation = Incarnation::from_bytes([1; 16]);

/// A map in memory, shared by those who open it one after the other.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl MapStore for Memory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock().unwrap();
        let end = at as usize + bytes.len();
        let len = all.len().max(end);
        all.resize(len, 0);
        all[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        self.0.lock().unwrap().clear();
        Ok(())
    }
}

fn open_map(memory: &Memory, boot: u8) -> DirtyMap {
    changed_map(memory, boot, 0)
}

/// A disk that was last changed at this second.
fn changed_at(second: i64) -> DiskIdentity {
    DiskIdentity { changed_at: FileTime(second * 1_000_000_000), ..DiskIdentity::without_times(1, 1) }
}

/// The region log of a disk that was last changed at this second, after a boot at another.
fn open_log(log: &Memory, second: i64, boot: u8, booted_at: i64) -> RegionLog {
    let boot = Boot { id: [boot; 16], at: WallTime(booted_at * 1_000_000) };
    let disks = [(DISK_BYTES, Some(changed_at(second)))];
    let vm = VmId::from_bytes([5; 16]);
    RegionLog::open(Box::new(log.clone()), vm, &disks, REGION_LOG_BYTES, boot).unwrap()
}

/// The map of a disk that was last changed at this second.
fn changed_map(memory: &Memory, boot: u8, second: i64) -> DirtyMap {
    let disks = [(DISK_BYTES, Some(changed_at(second)))];
    DirtyMap::open(Box::new(memory.clone()), VmId::from_bytes([5; 16]), &disks, [boot; 16]).unwrap()
}

fn on_map(memory: &Memory, boot: u8, buffer_bytes_max: u64) -> Capture {
    on_map_and_log(memory, &Memory::default(), boot, buffer_bytes_max)
}

fn on_map_and_log(memory: &Memory, log: &Memory, boot: u8, bytes_max: u64) -> Capture {
    of_group(Arc::new(GroupCounter::new(WriteSeq::ZERO)), memory, log, boot, bytes_max)
}

fn of_group(counter: Arc<GroupCounter>, memory: &Memory, log: &Memory, boot: u8, bytes_max: u64) -> Capture {
    let log = open_log(log, 0, boot, 0);
    let (pool, gate) = (Arc::new(BufferPool::new(1 << 30)), Arc::default());
    let buffer = CaptureConfig { buffer_bytes_max: bytes_max, pool, sync: None, gate, leaves_out: true };
    Capture::new(counter, &[DISK_BYTES], open_map(memory, boot), log, buffer, Box::new(|| {}))
}

/// A capture whose stream has begun and has nothing to sync.
fn begun(memory: &Memory, buffer_bytes_max: u64) -> Capture {
    let capture = on_map(memory, 1, buffer_bytes_max);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    assert!(capture.close_sync());
    capture
}

pub(super) fn capture(buffer_bytes_max: u64) -> Capture {
    begun(&Memory::default(), buffer_bytes_max)
}

fn write(capture: &Capture, start: u64, byte: u8) {
    let payload = Bytes::from(vec![byte; 4096]);
    let range = ByteRange::new(start, 4096);
    capture.begin_write(DiskIndex(0), range).unwrap();
    capture.commit(DiskIndex(0), Kind::Write, range, &payload);
}

fn take(capture: &Capture, after: WriteSeq) -> Taken {
    capture.take_after(after, 1 << 20, false).expect("nothing above it was spilled")
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
    let taken = take(&capture, before);
    assert_eq!(taken.records.iter().map(|r| r.payload[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(taken.watermark, taken.records[1].seq);
    capture.release(taken.records[0].seq);
    assert_eq!(take(&capture, capture.status().released).records.len(), 1);
}

#[test]
fn what_is_spilled_between_a_look_and_a_take_is_not_passed_over() {
    let capture = capture(1 << 20);
    for at in 0..10 {
        write(&capture, at * 65_536, 1);
    }
    let released = capture.status().released;
    let records = take(&capture, released).records;
    let after = records[3].seq;
    assert!(after >= capture.status().spilled, "whoever sends has looked");
    capture.spilled(records[6].seq);
    assert!(capture.take_after(after, 1 << 20, false).is_none(), "what follows lies in the spill");
    assert_eq!(take(&capture, records[6].seq).records[0].seq, records[7].seq);
}

#[test]
fn an_answer_to_a_comparison_that_nobody_asked_for_is_nothing() {
    let capture = capture(1 << 20);
    for first in [0, 3, DISK_BYTES / BLOCK_BYTES, u64::MAX] {
        for disk in [0, 9, u16::MAX] {
            assert_eq!(capture.end_compare(DiskIndex(disk), BlockIndex(first), u64::MAX), 0);
        }
    }
    // What is said of blocks behind the end of the run, or of the disk, is nothing as well.
    let last = BlockIndex(DISK_BYTES / BLOCK_BYTES - 1);
    capture.mark_suspect(DiskIndex(0), last.range(DISK_BYTES), false);
    capture.begin_compare(DiskIndex(0), last, 1);
    assert_eq!(capture.end_compare(DiskIndex(0), last, u64::MAX), 1);
    assert_eq!(capture.status().dirty_blocks, 1);
}

#[test]
fn no_watermark_is_told_over_what_was_spilled_meanwhile() {
    let capture = capture(1 << 20);
    let before = capture.status().last;
    write(&capture, 0, 1);
    capture.spilled(capture.status().last);
    assert!(capture.take_after(before, 1 << 20, false).is_none());
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
    let taken = take(&capture, before);
    assert_eq!(kinds(&taken), [Kind::Write, Kind::Write, Kind::SyncBegin]);
    assert!(!capture.close_sync(), "blocks are marked");
}

#[test]
fn no_checkpoint_is_marked_while_writes_are_missing() {
    let capture = capture(10_000);
    assert!(capture.mark_checkpoint(&checkpoint(1)).is_some());
    capture.start_tracking();
    assert!(capture.mark_checkpoint(&checkpoint(1)).is_none());
}

#[test]
fn checkpoints_of_a_vm_that_writes_nothing_fill_no_more_than_its_buffer() {
    let capture = capture(10_000);
    let marked = (1..1000).filter(|number| capture.mark_checkpoint(&checkpoint(*number)).is_some()).count();
    let status = capture.status();
    assert!(marked > 20 && status.buffered_bytes <= status.buffer_bytes_max, "{marked}: {status:?}");
    assert!(!status.gap_open, "nothing is missing");
    capture.release(status.last);
    assert!(capture.mark_checkpoint(&checkpoint(1000)).is_some(), "there is room again");
}

fn checkpoint(cut: u64) -> Checkpoint {
    let cut = WriteSeq::from_raw(cut);
    Checkpoint {
        id: CheckpointId(cut),
        cut,
        kind: CheckpointKind::Automatic,
        taken_at: WallTime(0),
        members: 1,
        tag: String::new(),
    }
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
    let vms = [0, 1].map(|_| of_group(counter.clone(), &Memory::default(), &Memory::default(), 1, 1 << 20));
    vms.iter().for_each(|vm| vm.restart(WriteSeq::ZERO));
    write(&vms[0], 0, 1);
    let first = vms[0].status().last;
    write(&vms[1], 0, 1);
    assert!(vms[1].status().last > first);
    assert!(take(&vms[0], first).watermark >= vms[1].status().last);
}

/// The blocks that are marked after the agent was killed and has started again.
fn marked_after_a_kill(memory: &Memory, boot: u8) -> (Vec<u64>, usize) {
    let kept = open_map(memory, boot).kept().len();
    let after = on_map(memory, boot, 1 << 20);
    let blocks = (0..16).filter(|&block| after.is_dirty(DiskIndex(0), BlockIndex(block)));
    (blocks.collect(), kept)
}

#[test]
fn a_killed_agent_finds_marked_what_was_not_acknowledged_and_nothing_else() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    write(&capture, 0, 1);
    write(&capture, 65_536, 1);
    let acked = capture.status().last;
    write(&capture, 65_536 + 4096, 2);
    write(&capture, 5 * 65_536, 2);
    capture.release(acked);
    // A write that was begun and of which nobody knows how far it came.
    capture.begin_write(DiskIndex(0), ByteRange::new(9 * 65_536, 512)).unwrap();
    drop(capture);
    assert_eq!(marked_after_a_kill(&memory, 1), (vec![1, 5, 9], 1));
}

#[test]
fn what_was_marked_or_being_copied_is_marked_again() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    capture.start_tracking();
    write(&capture, 2 * 65_536, 1);
    write(&capture, 3 * 65_536, 1);
    capture.begin_copy(DiskIndex(0), BlockIndex(3), 1);
    drop(capture);
    assert_eq!(marked_after_a_kill(&memory, 1).0, [2, 3]);
}

#[test]
fn a_map_is_believed_after_a_reboot_only_if_the_agent_had_stopped_cleanly() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    write(&capture, 65_536, 1);
    capture.close(WallTime(0), &[Some(changed_at(0))]);
    drop(capture);
    assert_eq!(marked_after_a_kill(&memory, 2), (vec![1], 1), "a clean stop");
    assert_eq!(marked_after_a_kill(&memory, 3), (vec![], 0), "but it counts once");
}

/// A bit that rots away is a block that is never sent again.
#[test]
fn a_map_whose_bits_have_rotted_since_a_clean_stop_is_not_believed() {
    for byte in [0, 1] {
        let memory = Memory::default();
        let capture = begun(&memory, 1 << 20);
        write(&capture, 65_536, 1);
        capture.close(WallTime(0), &[Some(changed_at(0))]);
        drop(capture);
        memory.0.lock().unwrap()[112 + byte] ^= 2;
        assert_eq!(marked_after_a_kill(&memory, 2), (vec![], 0), "byte {byte}");
    }
}

#[test]
fn a_damaged_map_is_not_believed() {
    let memory = Memory::default();
    drop(begun(&memory, 1 << 20));
    memory.0.lock().unwrap()[60] ^= 1;
    assert_eq!(marked_after_a_kill(&memory, 1), (vec![], 0));
}

#[test]
fn a_disk_that_was_changed_while_the_agent_was_away_is_not_believed() {
    let second = |second: i64| WallTime(second * 1_000_000);
    for (clean, now) in [(true, 105), (false, 105), (true, 3599), (false, 700), (true, 99)] {
        let memory = Memory::default();
        let capture = begun(&memory, 1 << 20);
        // The clock runs an hour ahead for a while: no distance between two times proves anything.
        capture.note_alive(second(3600), &[Some(changed_at(100))]);
        if clean {
            capture.close(second(3600), &[Some(changed_at(100))]);
        }
        drop(capture);
        let before = Memory(Arc::new(Mutex::new(memory.0.lock().unwrap().clone())));
        assert_eq!(changed_map(&before, 1, now).kept().len(), 0, "clean: {clean}, changed at {now}");
        assert_eq!(changed_map(&memory, 1, 100).kept().len(), 1, "clean: {clean}, unchanged");
    }
}

#[test]
fn a_disk_that_was_noted_in_the_tick_of_its_last_change_is_not_believed() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    let in_this_tick = DiskIdentity { is_settled: false, ..changed_at(100) };
    capture.close(WallTime(0), &[Some(in_this_tick)]);
    drop(capture);
    assert_eq!(changed_map(&memory, 1, 100).kept().len(), 0);
}

#[test]
fn a_map_of_the_form_before_is_not_believed() {
    let memory = Memory::default();
    begun(&memory, 1 << 20).close(WallTime(0), &[Some(changed_at(0))]);
    {
        let mut bytes = memory.0.lock().unwrap();
        bytes[4] = 1;
        let crc = crc32c::crc32c(&bytes[..108]).to_le_bytes();
        bytes[108..112].copy_from_slice(&crc);
    }
    assert_eq!(marked_after_a_kill(&memory, 1), (vec![], 0));
}

#[test]
fn after_a_crash_of_the_host_a_disk_that_was_changed_since_is_compared_whole() {
    let log = Memory::default();
    let capture = on_map_and_log(&Memory::default(), &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    capture.note_durable(WallTime(110 * 1_000_000), &[Some(changed_at(100))]);
    drop(capture);
    let kept = |changed, boot, booted_at| {
        let copy = Memory(Arc::new(Mutex::new(log.0.lock().unwrap().clone())));
        open_log(&copy, changed, boot, booted_at).kept().len()
    };
    assert_eq!(kept(105, 2, 200), 1, "as the agent's own writes until the crash leave it");
    assert_eq!(kept(205, 2, 200), 0, "somebody's since the host is up again");
    assert_eq!(kept(99, 2, 200), 0, "the disk is older than it was");
    assert_eq!(kept(105, 2, 109), 0, "the clock was put back");
    assert_eq!(kept(105, 1, 200), 0, "the host was not down");
    assert_eq!(kept(100, 1, 200), 1, "nobody has written");
}

/// Ends an agent's stream of a disk that was last changed in second 100, and says as what a disk is seen that was last
/// changed at some second by the next one, after a boot in second 200.
fn kept_after_a_reboot(clean: bool) -> impl Fn(i64) -> usize {
    let log = Memory::default();
    let capture = on_map_and_log(&Memory::default(), &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    write(&capture, 17 << 20, 1);
    capture.note_durable(WallTime(100 * 1_000_000), &[Some(changed_at(100))]);
    if clean {
        capture.close(WallTime(101 * 1_000_000), &[Some(changed_at(100))]);
        // A look that was under way, and a region that was about to be cooled.
        capture.note_durable(WallTime(102 * 1_000_000), &[Some(changed_at(102))]);
        capture.cool_regions(|| Ok(())).unwrap();
    }
    drop(capture);
    move |changed| {
        let copy = Memory(Arc::new(Mutex::new(log.0.lock().unwrap().clone())));
        open_log(&copy, changed, 2, 200).kept().len()
    }
}

#[test]
fn what_others_wrote_between_a_clean_stop_and_a_reboot_is_compared() {
    let kept = kept_after_a_reboot(true);
    for changed in [99, 101, 102, 150, 199, 201] {
        assert_eq!(kept(changed), 0, "no write of the agent's explains a change in second {changed}");
    }
    assert_eq!(kept(100), 1, "nobody has written");
}

#[test]
fn what_others_wrote_long_after_a_kill_and_before_a_reboot_is_compared() {
    let kept = kept_after_a_reboot(false);
    assert_eq!((kept(100), kept(119)), (1, 1), "the agent's own writes until the host went down");
    for changed in [121, 150, 199] {
        assert_eq!(kept(changed), 0, "the agent would have noted second {changed}");
    }
}

#[test]
fn a_closed_log_is_closed_once() {
    let log = Memory::default();
    let capture = on_map_and_log(&Memory::default(), &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    capture.close(WallTime(0), &[Some(changed_at(0))]);
    drop(capture);
    let capture = on_map_and_log(&Memory::default(), &log, 2, 1 << 20);
    capture.note_durable(WallTime(100 * 1_000_000), &[Some(changed_at(100))]);
    drop(capture);
    assert_eq!(open_log(&log, 105, 3, 200).kept().len(), 1, "the next agent's writes explain it");
}

#[test]
fn a_closed_map_takes_no_writes() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    write(&capture, 65_536, 1);
    capture.close(WallTime(0), &[Some(changed_at(0))]);
    for at in [0, 65_536] {
        capture.begin_write(DiskIndex(0), ByteRange::new(at, 4096)).expect_err("nobody would know of it");
        capture.try_begin_write(DiskIndex(0), ByteRange::new(at, 4096)).expect_err("nobody would know of it");
    }
}

/// A store of which writes and discards fail while it says so.
#[derive(Debug, Clone, Default)]
struct Failing(Memory, Arc<std::sync::atomic::AtomicBool>);

impl Failing {
    fn check(&self) -> io::Result<()> {
        let fails = self.1.load(std::sync::atomic::Ordering::SeqCst);
        if fails { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl MapStore for Failing {
    fn load(&self) -> io::Result<Vec<u8>> {
        self.0.load()
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.check().and_then(|()| self.0.write_at(at, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.check()
    }

    fn discard(&self) -> io::Result<()> {
        self.check().and_then(|()| self.0.discard())
    }
}

#[test]
fn nothing_is_written_while_a_map_can_be_neither_kept_nor_given_up() {
    for fails_in_log in [false, true] {
        let (map, log) = (Failing::default(), Failing::default());
        let failing = if fails_in_log { log.1.clone() } else { map.1.clone() };
        let (disks, vm) = ([(DISK_BYTES, Some(changed_at(0)))], VmId::from_bytes([5; 16]));
        let boot = Boot { id: [1; 16], at: WallTime(0) };
        let opened = DirtyMap::open(Box::new(map.clone()), vm, &disks, boot.id).unwrap();
        let regions = RegionLog::open(Box::new(log), vm, &disks, REGION_LOG_BYTES, boot).unwrap();
        let (pool, gate) = (Arc::new(BufferPool::new(1 << 30)), Arc::default());
        let buffer = CaptureConfig { buffer_bytes_max: 1 << 20, pool, sync: None, gate, leaves_out: true };
        let counter = Arc::new(GroupCounter::new(WriteSeq::ZERO));
        let capture = Capture::new(counter, &[DISK_BYTES], opened, regions, buffer, Box::new(|| {}));
        capture.restart(WriteSeq::ZERO);
        capture.begin_stream(ONE, WriteSeq::ZERO);
        if !fails_in_log {
            write(&capture, 0, 1);
        }
        failing.store(true, std::sync::atomic::Ordering::SeqCst);
        if !fails_in_log {
            // The header alone is what fails to be written.
            capture.note_alive(WallTime(1), &[Some(changed_at(0))]);
        }
        for _ in 0..2 {
            capture
                .begin_write(DiskIndex(0), ByteRange::new(0, 4096))
                .expect_err("a restarted agent would believe what it says now");
        }
        failing.store(false, std::sync::atomic::Ordering::SeqCst);
        write(&capture, 0, 1);
        drop(capture);
        if !fails_in_log {
            let again = DirtyMap::open(Box::new(map), vm, &disks, boot.id).unwrap();
            assert_eq!(again.kept().len(), 0, "it was given up");
        }
    }
}

#[test]
fn a_sync_ends_once_everything_suspect_was_compared() {
    let capture = begun(&Memory::default(), 1 << 20);
    capture.mark_suspect(DiskIndex(0), ByteRange::new(0, 2 * BLOCK_BYTES), false);
    assert!(!capture.close_sync(), "two blocks are to be compared");
    let (disk, first, len) = capture.next_suspects(64).unwrap();
    capture.begin_compare(disk, first, len);
    assert!(!capture.close_sync(), "they are being compared");
    capture.end_compare(disk, first, 0b10);
    assert!(!capture.close_sync(), "one of them differs and is to be copied");
    let (disk, first, len) = capture.next_dirty_run(64).unwrap();
    capture.begin_copy(disk, first, len);
    let block = ByteRange::new(BLOCK_BYTES, BLOCK_BYTES);
    assert!(capture.end_copy(disk, block, Some(&Bytes::from(vec![1; BLOCK_BYTES as usize]))));
    assert!(capture.close_sync());
}

#[test]
fn a_copy_that_cannot_be_taken_is_marked_again() {
    let capture = capture(200_000);
    let block = ByteRange::new(0, 65_536);
    let copy = Bytes::from(vec![1; 65_536]);
    let try_copy = |payload| {
        capture.begin_copy(DiskIndex(0), BlockIndex(0), 1);
        let taken = capture.end_copy(DiskIndex(0), block, payload);
        (taken, capture.is_dirty(DiskIndex(0), BlockIndex(0)))
    };
    capture.mark_dirty(DiskIndex(0), block);
    assert_eq!(try_copy(None), (false, true), "the disk could not be read");
    assert_eq!(try_copy(Some(&copy)), (true, false));
    assert_eq!(try_copy(Some(&copy)), (true, false));
    assert_eq!(try_copy(Some(&copy)), (true, false));
    assert_eq!(try_copy(Some(&copy)), (false, true), "the buffer has no room");
    capture.start_tracking();
    capture.release(WriteSeq::MAX);
    assert_eq!(try_copy(Some(&copy)), (false, true), "nothing is buffered");
}

#[test]
fn a_batch_that_leaves_something_behind_has_a_watermark_of_its_own_end() {
    let capture = capture(8 << 20);
    let before = capture.status().last;
    for _ in 0..300 {
        write(&capture, 0, 1);
    }
    let first = take(&capture, before);
    let last = first.records.last().unwrap().seq;
    assert!(last < capture.status().last, "300 writes of 4 KiB are more than a batch holds");
    assert_eq!(first.watermark, last);
    assert_eq!(take(&capture, last).watermark, capture.status().last);
}

/// The blocks that are suspect after the host went down, and whether a stream can be continued from them.
fn suspect_after_a_crash(log: &Memory) -> (Vec<u64>, usize) {
    let kept = open_log(log, 0, 2, 0).kept().len();
    let capture = on_map_and_log(&Memory::default(), log, 2, 1 << 20);
    let mut blocks = Vec::new();
    while let Some((disk, first, len)) = capture.next_suspects(1 << 20) {
        capture.begin_compare(disk, first, len);
        blocks.extend(first.0..first.0 + len);
    }
    (blocks, kept)
}

#[test]
fn after_a_crash_of_the_host_the_regions_written_to_are_suspect_and_no_others() {
    let log = Memory::default();
    let capture = on_map_and_log(&Memory::default(), &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    write(&capture, 17 << 20, 1);
    let (blocks, kept) = suspect_after_a_crash(&log);
    assert_eq!((blocks, kept), ((256..512).collect(), 1));
}

#[test]
fn a_region_is_cold_only_once_its_writes_are_durable_there_and_flushed_here() {
    let log = Memory::default();
    let capture = on_map_and_log(&Memory::default(), &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    let mut flushed = 0;
    let mut cool = |capture: &Capture| {
        let flush = || {
            flushed += 1;
            Ok(())
        };
        capture.cool_regions(flush).unwrap();
    };
    write(&capture, 0, 1);
    cool(&capture);
    assert_eq!(suspect_after_a_crash(&log).0.len(), 256, "not yet acknowledged");
    capture.release(capture.status().last);
    assert!(capture.cool_regions(|| Err(io::Error::other("a flush that fails"))).is_err());
    assert_eq!(suspect_after_a_crash(&log).0.len(), 256, "not flushed");
    capture
        .cool_regions(|| {
            write(&capture, 0, 2);
            Ok(())
        })
        .unwrap();
    assert_eq!(suspect_after_a_crash(&log).0.len(), 256, "written to meanwhile");
    capture.release(capture.status().last);
    cool(&capture);
    assert_eq!(suspect_after_a_crash(&log), (vec![], 1));
    assert_eq!(flushed, 1, "nothing is flushed for regions that cannot be cooled");
}

#[test]
fn the_stream_before_is_continued_only_until_the_new_one_is_acknowledged() {
    const TWO: Incarnation = Incarnation::from_bytes([2; 16]);
    let (map, log) = (Memory::default(), Memory::default());
    let names = |kept: Vec<crate::Kept>| kept.iter().map(|kept| kept.incarnation).collect::<Vec<_>>();
    let copy = |memory: &Memory| Memory(Arc::new(Mutex::new(memory.0.lock().unwrap().clone())));
    let kept = || (names(open_map(&copy(&map), 1).kept()), names(open_log(&copy(&log), 0, 1, 0).kept()));
    let capture = on_map_and_log(&map, &log, 1, 1 << 20);
    capture.restart(WriteSeq::ZERO);
    capture.begin_stream(ONE, WriteSeq::ZERO);
    write(&capture, 0, 1);
    capture.release(capture.status().last);
    capture.cool_regions(|| Ok(())).unwrap();
    let floor = capture.status().last;
    capture.restart(floor);
    capture.begin_stream(TWO, floor);
    capture.release(floor);
    assert_eq!(kept(), (vec![TWO, ONE], vec![TWO, ONE]), "the journal may still be at the stream before");
    write(&capture, 0, 2);
    capture.release(capture.status().last);
    assert_eq!(kept(), (vec![TWO], vec![TWO, ONE]), "the log has not cleared anything yet");
    capture.cool_regions(|| Ok(())).unwrap();
    assert_eq!(
        kept(),
        (vec![TWO], vec![TWO]),
        "a journal without the new stream's writes would never get them"
    );
}

#[test]
fn a_comparison_that_finds_no_difference_leaves_no_mark_and_one_that_does_opens_a_gap() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    capture.mark_suspect(DiskIndex(0), ByteRange::new(0, 4 * 65_536), true);
    let (disk, first, len) = capture.next_suspects(16).unwrap();
    assert_eq!((first, len), (BlockIndex(0), 4));
    capture.begin_compare(disk, first, len);
    assert_eq!(capture.next_suspects(16), None);
    assert_eq!(capture.end_compare(disk, first, 0), 0);
    assert!(!capture.status().gap_open);
    capture.mark_suspect(DiskIndex(0), ByteRange::new(0, 4 * 65_536), true);
    capture.begin_compare(disk, first, len);
    assert_eq!(capture.end_compare(disk, first, 0b1010), 2);
    let status = capture.status();
    assert!(status.gap_open && status.dirty_blocks == 2 && status.unsettled_blocks == 0);
    drop(capture);
    assert_eq!(marked_after_a_kill(&memory, 1).0, [1, 3]);
}

#[test]
fn a_comparison_cut_short_by_a_kill_goes_on_as_one() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    capture.suspect_everything();
    let (disk, first, len) = capture.next_suspects(16).unwrap();
    capture.begin_compare(disk, first, len);
    capture.end_compare(disk, first, 0);
    let (disk, first, len) = capture.next_suspects(16).unwrap();
    capture.begin_compare(disk, first, len);
    drop(capture);
    let after = on_map(&memory, 1, 1 << 20).status();
    assert_eq!((after.dirty_blocks, after.suspect_blocks), (0, 1024 - 16));
}

#[test]
fn what_was_spilled_leaves_the_buffer_and_stays_unsent_until_it_is_swept() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    let before = capture.status().last;
    write(&capture, 65_536, 1);
    write(&capture, 2 * 65_536, 1);
    let taken = take(&capture, before);
    capture.spilled(taken.records[0].seq);
    let status = capture.status();
    assert_eq!((status.spilled, status.last), (taken.records[0].seq, taken.records[1].seq));
    assert_eq!(take(&capture, status.spilled).records.len(), 1);
    capture.release(status.last);
    capture.sweep();
    drop(capture);
    assert_eq!(marked_after_a_kill(&memory, 1).0, Vec::<u64>::new());
}

#[test]
fn a_total_that_is_used_up_turns_every_capture_to_its_bitmap() {
    let capture = capture(1 << 20);
    capture.pool.take(1 << 30);
    write(&capture, 0, 1);
    assert!(capture.status().tracking);
    capture.pool.give_back(1 << 30);
}

#[test]
fn while_writes_are_not_heard_of_no_cut_is_consistent() {
    let capture = capture(1 << 20);
    capture.lose_writes();
    assert!(capture.status().gap_open && capture.status().deaf);
    assert!(!capture.close_sync(), "it is known only to the next capture what was missed");
}

#[test]
fn a_difference_that_is_doubted_is_compared_again_and_breaks_no_cut() {
    for keeps in [false, true] {
        let memory = Memory::default();
        let capture = begun(&memory, 1 << 20);
        let (disk, first) = (DiskIndex(0), BlockIndex(4));
        capture.mark_suspect(disk, ByteRange::new(4 << 16, 2 << 16), true);
        for look in 1.. {
            let (_, at, len) = capture.next_suspects(16).expect("it is to be compared");
            assert_eq!((at, len), (first, if look == 1 { 2 } else { 1 }));
            capture.begin_compare(disk, first, len);
            // As a block that is written all the time, which differs twice, or one that is damaged.
            let differs = u64::from(keeps || look < 3);
            let believed = capture.believed(disk, first, differs);
            assert_eq!(capture.end_compare(disk, first, believed), believed);
            if believed != 0 || differs == 0 {
                break;
            }
            assert_eq!(marked_after_a_kill(&memory, 1).0, Vec::<u64>::new(), "it counts as equal until then");
        }
        let status = capture.status();
        assert_eq!(
            (status.gap_open, status.dirty_blocks, status.unsettled_blocks),
            (keeps, u64::from(keeps), 0)
        );
    }
}

mod copies;

#[test]
fn blocks_that_the_other_side_has_lost_are_marked_behind_a_gap_and_none_else() {
    let memory = Memory::default();
    let capture = begun(&memory, 1 << 20);
    write(&capture, 0, 1);
    capture.release(capture.status().last);
    let ranges =
        [(DiskIndex(0), ByteRange::new(5 << 16, 2 << 16)), (DiskIndex(0), ByteRange::new(40 << 16, 100))];
    capture.copy_again(&ranges);
    let status = capture.status();
    assert!(status.gap_open && !status.tracking);
    assert_eq!((status.dirty_blocks, status.unsettled_blocks, status.sync_work.asked_again), (3, 0, 3));
    assert_eq!(kinds(&take(&capture, status.released)), [Kind::SyncBegin]);
    assert!(!capture.close_sync(), "they are yet to be copied");
    let dirty = [5, 6, 40].map(|block| capture.is_dirty(DiskIndex(0), BlockIndex(block)));
    assert_eq!(dirty, [true; 3]);
    // They are kept where the agent's death cannot lose them.
    drop(capture);
    let again = on_map(&memory, 1, 1 << 20);
    assert_eq!(again.status().dirty_blocks, 3);
}
