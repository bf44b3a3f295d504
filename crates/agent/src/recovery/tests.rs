//! The recovery side by itself, as its tests have it.

use super::record::RecoveryRecord;
use super::*;
use crate::ledger::Asker;
use crate::sockets::SocketAccess;
use crate::state::{death, open_in_test};
use batch::{Batch, BatchMeta, Codec, Kind, Record, encode, encode_mark};
use bytes::Bytes;
use joint::admission::{Accept, Terms};
use joint::life::{Task, Use};
use journal::{AppendMeta, Upkeep};
use replication::wire::{Hello, Leave, Message, Refusal, Refuse};
use std::path::Path;
use std::thread;
use std::time::Duration;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, DiskSpec, Epoch, Incarnation, WallTime,
    WriteSeq,
};

mod greetings;
mod on_images;

pub(super) const PEER: &str = "agent-1.paris";
const DISK_BYTES: u64 = 1 << 20;

/// A recovery side in a folder, without threads or sockets of its own.
pub(super) fn recovery(folder: &Path) -> Arc<Recovery> {
    let text = "site = \"rome\"\nagent = \"agent-1\"\nstate_dir = \"state\"\nrun_dir = \"run\"\n\
                [guests]\nuids = [64100, 64355]\n";
    let mut config = Config::parse(text, &folder.join("agent.toml")).unwrap();
    // No guest is started by these tests.
    config.launcher = "true".into();
    let state = Arc::new(open_in_test(&config.state_dir));
    std::fs::create_dir_all(&config.journal_dir).unwrap();
    let run_dir = RunDir::make(&config.run_dir, SocketAccess::new(None, 0o600).unwrap()).unwrap();
    let artifacts = Arc::new(Artifacts::open(state.path("files")).unwrap());
    let alerts = Arc::new(Alerts::remembered_in(state.clone()));
    Recovery::new(&config, run_dir, state, artifacts, [7; 16], alerts)
}

pub(super) fn hello(vm: u8) -> Hello {
    Hello {
        speaks: replication::wire::VERSION,
        vm: VmId::from_bytes([vm; 16]),
        vm_name: format!("vm-{vm}"),
        group: GroupId::from_bytes([1; 16]),
        group_name: "web".into(),
        epoch: Epoch::FIRST,
        incarnation: Incarnation::from_bytes([3; 16]),
        acked: WriteSeq::ZERO,
        last_seq: WriteSeq::ZERO,
        sent_at: WallTime(0),
        history_seconds: 3600,
        journal_bytes_max: 0,
        rpo_seconds: 60,
        checkpoint_interval_seconds: 5,
        spans_hosts: false,
        disks: vec![DiskSpec { name: "vda".into(), size_bytes: DISK_BYTES }],
        definition: String::new(),
        artifacts: Vec::new(),
    }
}

/// Lets a VM in that is alone in its group.
pub(super) fn admit_named(
    recovery: &Recovery,
    vm: u8,
    name: &str,
    peer: &str,
) -> (Arc<RecoveredVm>, life::Lease) {
    let group = GroupId::from_bytes([vm + 10; 16]);
    let hello = Hello { vm_name: name.into(), group, rpo_seconds: 1, ..hello(vm) };
    recovery.admit(&hello, peer).unwrap()
}

fn farewell() -> Refuse {
    Refuse { why: Refusal::Busy, detail: "another has come".into() }
}

fn hold(vm: &RecoveredVm) -> Option<vm::StreamHold> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(vm.hold_stream(farewell()))
}

/// A first sync that has ended: the VM's disk is all 7 in its first block, and can be opened.
pub(super) fn append_sync(journal: &journal::Journal) {
    let mark =
        |seq, kind, range| Record { range, ..Record::mark(WriteSeq::from_raw(seq), kind, Bytes::new()) };
    let payload = Bytes::from(vec![7; 4096]);
    let range = ByteRange::new(0, 4096);
    let records = [
        mark(1, Kind::SyncBegin, ByteRange::new(1, 0)),
        Record { seq: WriteSeq::from_raw(2), kind: Kind::Sync, disk: DiskIndex(0), range, payload },
        mark(3, Kind::SyncEnd, ByteRange::new(0, 0)),
    ];
    let meta = BatchMeta {
        incarnation: Incarnation::from_bytes([3; 16]),
        prev_seq: WriteSeq::ZERO,
        watermark: WriteSeq::from_raw(4),
        taken_at: WallTime(0),
    };
    let batch = Batch::parse(encode(&meta, &records, Codec::Raw)).unwrap();
    let how = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(0), entropy: [9; 16] };
    journal.append(vec![batch], how).unwrap();
}

/// A checkpoint, a block of 8s, and another one, behind a first sync.
pub(super) fn append_writes(journal: &journal::Journal) {
    let checkpoint = |seq, at| {
        let cut = WriteSeq::from_raw(seq);
        let (id, kind) = (CheckpointId(cut), CheckpointKind::Automatic);
        let checkpoint = Checkpoint { id, cut, kind, taken_at: WallTime(at), members: 1, tag: String::new() };
        Record::mark(cut, Kind::Checkpoint, encode_mark(&checkpoint))
    };
    let (range, payload) = (ByteRange::new(8192, 4096), Bytes::from(vec![8; 4096]));
    let write = Record { seq: WriteSeq::from_raw(6), kind: Kind::Write, disk: DiskIndex(0), range, payload };
    let records = [checkpoint(5, 1_000_000), write, checkpoint(7, 60_000_000)];
    let meta = BatchMeta {
        incarnation: Incarnation::from_bytes([3; 16]),
        prev_seq: WriteSeq::from_raw(3),
        watermark: WriteSeq::from_raw(7),
        taken_at: WallTime(0),
    };
    let batch = Batch::parse(encode(&meta, &records, Codec::Raw)).unwrap();
    let how = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(0), entropy: [8; 16] };
    journal.append(vec![batch], how).unwrap();
}

/// A sync behind those that brings nothing, for its source cannot read what it was asked for.
pub(super) fn append_empty_sync(journal: &journal::Journal) {
    journal.begin_stream();
    let mark =
        |seq, kind, range| Record { range, ..Record::mark(WriteSeq::from_raw(seq), kind, Bytes::new()) };
    let records =
        [mark(8, Kind::SyncBegin, ByteRange::new(1, 0)), mark(9, Kind::SyncEnd, ByteRange::new(0, 0))];
    let meta = BatchMeta {
        incarnation: Incarnation::from_bytes([3; 16]),
        prev_seq: WriteSeq::from_raw(7),
        watermark: WriteSeq::from_raw(9),
        taken_at: WallTime(0),
    };
    let batch = Batch::parse(encode(&meta, &records, Codec::Raw)).unwrap();
    let how = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(0), entropy: [7; 16] };
    journal.append(vec![batch], how).unwrap();
}

/// Reads everything a journal has once.
pub(super) fn scrub(journal: &journal::Journal) {
    let mut place = None;
    loop {
        place = journal.scrub(place, &Upkeep::plain(WallTime(0), [5; 16])).unwrap().place;
        if place.is_none() {
            return;
        }
    }
}

/// Has something rot of what [`append_writes`] wrote, and a scrub find it.
pub(super) fn rot_writes(recovery: &Recovery, vm: &RecoveredVm) {
    rot(recovery, vm, 8);
}

/// The same of a block of the first segment that is all this byte.
pub(super) fn rot(recovery: &Recovery, vm: &RecoveredVm, of: u8) {
    let segment = vm.folder(&recovery.journal_dir).join("segment-00000001");
    let mut bytes = std::fs::read(&segment).unwrap();
    let written = bytes.windows(4096).position(|part| part.iter().all(|byte| *byte == of)).unwrap();
    bytes[written + 100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    scrub(&vm.journal().unwrap());
}

/// Ends a journal's life as if it had failed: the next one begins from what is on the disk.
pub(super) fn close(vm: &RecoveredVm) {
    if let Some(journal) = vm.journal().map(|lease| lease.shared().clone()) {
        vm.life().close_failed(&journal);
    }
}

/// The agent is gone, with all that it held.
pub(super) fn end(recovery: Arc<Recovery>) {
    let vms: Vec<_> = recovery.vms().values().map(Arc::downgrade).collect();
    let state = Arc::downgrade(&recovery.state);
    drop(recovery);
    for _ in 0..10_000 {
        if state.strong_count() == 0 && vms.iter().all(|vm| vm.strong_count() == 0) {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("something of it lives on");
}

/// What an agent that begins anew does: it takes up what is recorded, and goes on with what was under way.
pub(super) fn begin_anew(recovery: &Arc<Recovery>) {
    recovery.resume_all().unwrap();
    go_on_with_all(recovery);
}

pub(super) fn go_on_with_all(recovery: &Recovery) {
    for (id, plan) in recovery.operations.unended() {
        recovery.go_on_by_itself(id, &plan);
    }
}

/// A greeting for a VM of a group of its own.
pub(super) fn hello_of_group(vm: u8, group: u8, name: &str) -> Hello {
    Hello { group: GroupId::from_bytes([group; 16]), group_name: name.into(), ..hello(vm) }
}

/// Images of a VM whose first sync has ended, opened by hand.
pub(super) fn open_by_hand(recovery: &Recovery) -> Arc<images::OpenImage> {
    append_sync(&recovery.admit(&hello(1), PEER).unwrap().1);
    let request = api::OpenImageRequest { vm: "vm-1".into(), at: "latest".into(), writable: true };
    recovery.image(&recovery.open_image(&request).unwrap().id).unwrap()
}

pub(super) fn alerts_of(recovery: &Recovery, kind: &str) -> Vec<String> {
    let alerts = recovery.alerts.to_api().into_iter();
    alerts.filter(|alert| alert.kind == kind).map(|alert| alert.text).collect()
}

/// Has an operation die at every place in turn, and then the agent that goes on with it; `check` gets what is left.
pub(super) fn cut_short_everywhere(
    prepare: impl Fn(&Path) -> Arc<Recovery>,
    ask: impl Fn(&Recovery),
    check: impl Fn(&Path, &str),
) {
    let asked = |folder: &Path, place| {
        let side = prepare(folder);
        let died = death::at(place, || ask(&side)).is_none();
        end(side);
        died
    };
    let goes_on = |folder: &Path, place| {
        let side = recovery(folder);
        let died = death::at(place, || begin_anew(&side)).is_none();
        end(side);
        died
    };
    death::everywhere(asked, goes_on, check);
}
