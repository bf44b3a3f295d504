//! A journal's files with bytes changed at will: segments, footers, runs, checkpoints, before-images.
//! Opening, reading, listing, verifying and scrubbing must answer, and never panic.
#![no_main]

use batch::{Batch, BatchMeta, Codec, Kind, Record, encode, encode_mark};
use bytes::Bytes;
use journal::{AppendMeta, CheckpointQuery, Journal, Mode, Settings, Store, Thinning, Upkeep, verify};
use libfuzzer_sys::fuzz_target;
use sim::SimStore;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, DiskSpec, Epoch, Incarnation, VmId,
    WallTime, WriteSeq,
};

const DISK_BYTES: u64 = 1 << 18;
const SETTINGS: Settings = Settings {
    history: Duration::from_secs(3600),
    bytes_soft: 0,
    bytes_hard: 0,
    segment_bytes: 24 << 10,
    mode: Mode::RollForward,
    thinning: Thinning { all: Duration::from_secs(86_400), minutely: Duration::from_secs(604_800) },
    tagged_history: Duration::ZERO,
    let_go: None,
    is_locked: false,
};

/// A journal with every kind of file in it, made once.
static WHOLE: LazyLock<SimStore> = LazyLock::new(|| {
    let store = SimStore::new();
    let disks = [DiskSpec { name: "vda".into(), size_bytes: DISK_BYTES }];
    let vm = VmId::from_bytes([1; 16]);
    let journal =
        Journal::create(Arc::new(store.clone()), vm, "web", &disks, Epoch::FIRST, SETTINGS).expect("made");
    let mut prev = 0;
    for number in 0..24u64 {
        let seq = |at: u64| WriteSeq::from_raw(number * 10 + at);
        let mut records = Vec::new();
        if number == 0 {
            records.push(Record::mark(seq(1), Kind::SyncBegin, Bytes::new()));
            records.push(Record::mark(seq(2), Kind::SyncEnd, Bytes::new()));
        }
        let payload = Bytes::from(vec![number as u8 + 1; 5000]);
        let range = ByteRange::new(number * 3000, 5000);
        records.push(Record { seq: seq(3), kind: Kind::Write, disk: DiskIndex(0), range, payload });
        let checkpoint = Checkpoint {
            id: CheckpointId(seq(4)),
            cut: seq(4),
            kind: CheckpointKind::Tagged,
            taken_at: WallTime(number as i64),
            members: 1,
            tag: number.to_string(),
        };
        records.push(Record::mark(seq(5), Kind::Checkpoint, encode_mark(&checkpoint)));
        let meta = BatchMeta {
            incarnation: Incarnation::from_bytes([1; 16]),
            prev_seq: WriteSeq::from_raw(prev),
            watermark: seq(5),
            taken_at: WallTime(0),
        };
        prev = seq(5).raw();
        let codec = if number % 2 == 0 { Codec::Raw } else { Codec::Lz4 };
        let batch = Batch::parse(encode(&meta, &records, codec)).expect("a batch");
        let entropy = [number as u8 + 1; 16];
        let meta = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(number as i64), entropy };
        journal.append(vec![batch], meta).expect("appended");
        if number == 12 {
            journal.set(Settings { mode: Mode::Rollback, ..SETTINGS });
        }
        if number == 16 {
            journal.set(SETTINGS);
        }
        journal.keep_up(&Upkeep::plain(WallTime(number as i64), entropy)).expect("kept up");
    }
    store
});

fuzz_target!(|input: &[u8]| {
    let store = WHOLE.fork();
    let names: Vec<String> = store.names().into_iter().filter(|name| !name.contains('/')).collect();
    // Each change: which file, where, and up to eight bytes.
    for change in input.chunks(12).take(16).filter(|change| change.len() > 4) {
        let name = &names[usize::from(change[0]) % names.len()];
        let len = store.len_of(name).unwrap_or(0).max(1);
        let at = u64::from(u32::from_le_bytes([change[1], change[2], change[3], 0])) % len;
        let file = Store::open(&store, name, false).expect("it is there");
        let bytes = &change[4..];
        let count = bytes.len().min((len - at) as usize);
        file.write_at(at, &bytes[..count]).expect("written");
    }
    let _ = verify(&store, true, |_| {});
    let Ok(opened) = Journal::open(Arc::new(store), SETTINGS) else { return };
    let journal = opened.journal;
    let query = CheckpointQuery { limit: 1000, ..CheckpointQuery::default() };
    let cuts = journal.checkpoints(&query).rows;
    let mut buf = vec![0; DISK_BYTES as usize];
    for facts in cuts {
        let _ = journal.read_at(DiskIndex(0), facts.checkpoint.cut, 0, &mut buf);
    }
    let mut place = None;
    let how = Upkeep::plain(WallTime(0), [9; 16]);
    while let Ok(step) = journal.scrub(place, &how) {
        place = step.place;
        if place.is_none() {
            break;
        }
    }
    let _ = journal.keep_up(&how);
    let _ = journal.status();
});
