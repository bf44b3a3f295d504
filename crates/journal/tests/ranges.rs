//! Long ranges: what they cost is told by records, and what is under and over them is right at every checkpoint.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use batch::{Batch, BatchMeta, Codec, Kind, Record, encode, encode_mark};
use bytes::Bytes;
use journal::{AppendMeta, FsStore, Journal, Mode, Settings, Store, Upkeep};
use proptest::prelude::*;
use sim::SimStore;
use std::sync::{Arc, Mutex};
use stream::SMALL;
use stream::hooked::{Access, Hooked};
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, DiskSpec, Epoch, Incarnation, VmId,
    WallTime, WriteSeq,
};

const DISK: DiskIndex = DiskIndex(0);

/// A source that only counts.
struct Source {
    journal: Arc<Journal>,
    records: Vec<Record>,
    seq: u64,
    sent: u64,
    seconds: i64,
}

impl Source {
    fn begin(store: Arc<dyn Store>, size_bytes: u64, settings: Settings) -> Self {
        let disks = [DiskSpec { name: "vda".into(), size_bytes }];
        let vm = VmId::from_bytes([1; 16]);
        let journal = Journal::create(store, vm, "web", &disks, Epoch::FIRST, settings).unwrap();
        let mut source =
            Self { journal: Arc::new(journal), records: Vec::new(), seq: 0, sent: 0, seconds: 0 };
        for kind in [Kind::SyncBegin, Kind::SyncEnd] {
            let seq = source.next();
            source.records.push(Record::mark(seq, kind, Bytes::new()));
        }
        source
    }

    fn next(&mut self) -> WriteSeq {
        self.seq += 1;
        WriteSeq::from_raw(self.seq)
    }

    fn write(&mut self, start: u64, bytes: Vec<u8>) {
        let (seq, range) = (self.next(), ByteRange::new(start, bytes.len() as u64));
        self.records.push(Record { seq, kind: Kind::Write, disk: DISK, range, payload: bytes.into() });
    }

    fn discard(&mut self, range: ByteRange) {
        let seq = self.next();
        self.records.push(Record { seq, kind: Kind::Discard, disk: DISK, range, payload: Bytes::new() });
    }

    fn checkpoint(&mut self) -> WriteSeq {
        let cut = self.next();
        let mark = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: CheckpointKind::Automatic,
            taken_at: WallTime(self.seconds * 1_000_000),
            members: 1,
            tag: String::new(),
        };
        let seq = self.next();
        self.records.push(Record::mark(seq, Kind::Checkpoint, encode_mark(&mark)));
        cut
    }

    fn send(&mut self) {
        let meta = BatchMeta {
            incarnation: Incarnation::from_bytes([1; 16]),
            prev_seq: WriteSeq::from_raw(self.sent),
            watermark: WriteSeq::from_raw(self.seq),
            taken_at: WallTime(0),
        };
        self.sent = self.seq;
        let batch = Batch::parse(encode(&meta, &std::mem::take(&mut self.records), Codec::Raw)).unwrap();
        let received_at = WallTime(self.seconds * 1_000_000);
        let entropy = [(self.seconds % 250) as u8 + 1; 16];
        self.journal.append(vec![batch], AppendMeta { epoch: Epoch::FIRST, received_at, entropy }).unwrap();
    }

    /// Upkeep as of a time.
    fn keep_up(&self, seconds: i64) {
        let now = WallTime(seconds * 1_000_000);
        while self.journal.keep_up(&Upkeep::plain(now, [9; 16])).unwrap().more {}
    }

    fn byte(&self, cut: WriteSeq, at: u64) -> u8 {
        let mut byte = [9];
        self.journal.read_at(DISK, cut, at, &mut byte).unwrap();
        byte[0]
    }
}

#[test]
fn a_disk_of_a_tebibyte_that_is_discarded_costs_its_records() {
    const SIZE: u64 = 1 << 40;
    for offset in [0, 1 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let mut source = Source::begin(Arc::new(FsStore::open(folder.path()).unwrap()), SIZE, SMALL);
        let places = [0, 4096, (1 << 30) - 4096, (3 << 30) + (17 << 20), (700 << 30) + 12_345, SIZE - 4096];
        places.iter().for_each(|at| source.write(*at, vec![1; 4096]));
        let before = source.checkpoint();
        let mut records = 0;
        // As Linux asks for it, on a disk and on a partition, and as the source cuts it.
        for asked in ByteRange::new(offset, SIZE - offset).split_at_multiples(2 << 30) {
            for range in asked.split_at_multiples(1 << 30) {
                source.discard(range);
                records += 1;
            }
        }
        let between = source.checkpoint();
        source.write(places[3], vec![2; 4096]);
        let after = source.checkpoint();
        source.send();
        let check = |source: &Source| {
            for at in places {
                assert_eq!(source.byte(before, at), 1, "{at} before");
                let is_left = at < offset;
                assert_eq!(source.byte(between, at), u8::from(is_left), "{at} between");
            }
            assert_eq!((source.byte(after, places[3]), source.byte(after, places[3] + 4096)), (2, 0));
        };
        check(&source);
        let entries = source.journal.status().index_entries;
        assert!(entries <= 3 * records + 40, "{entries} entries for {records} records");
        // Sealed, with a footer.
        source.seconds = 400;
        source.write(0, vec![3; 512]);
        let last = source.checkpoint();
        source.send();
        source.keep_up(400);
        assert!(source.journal.status().runs > 0, "a footer is written");
        check(&source);
        let entries = source.journal.status().index_entries;
        assert!(entries <= 3 * records + 40, "{entries} entries for {records} records");
        let (directory, bitmap) = source.journal.resident_index_bytes();
        assert!(directory + bitmap < 64 << 10, "{directory} + {bitmap} bytes");
        // Folded into the replica.
        source.keep_up(100_000);
        assert!(source.journal.status().applied >= between);
        assert_eq!(
            (source.byte(last, places[3]), source.byte(last, places[4]), source.byte(last, 0)),
            (2, 0, 3)
        );
    }
}

#[test]
fn zeroes_that_have_to_be_written_keep_to_the_pace_and_take_several_turns() {
    const SIZE: u64 = 4 << 30;
    for threads in [1, 4] {
        let folder = tempfile::tempdir().unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        // Each stretch that is written with zeroes is noted.
        let store = {
            let written = written.clone();
            Hooked::over(Arc::new(FsStore::open(folder.path()).unwrap()), move |name, access| {
                // Those of its checksums are beside it.
                if let Access::Zero(bytes) = access
                    && name.ends_with(".raw")
                {
                    written.lock().unwrap().push(bytes);
                }
                Ok(())
            })
            .without_holes()
        };
        let mut source = Source::begin(Arc::new(store), SIZE, SMALL);
        source.write(0, vec![1; 4096]);
        source.write(SIZE - 4096, vec![1; 4096]);
        ByteRange::new(4096, SIZE - 8192).split_at_multiples(1 << 30).for_each(|range| source.discard(range));
        let before = source.checkpoint();
        source.send();
        source.seconds = 400;
        source.write(8192, vec![2; 512]);
        let last = source.checkpoint();
        source.send();

        let paced = Mutex::new(Vec::new());
        let pace = |bytes| paced.lock().unwrap().push(bytes);
        let how = |seconds: i64| Upkeep {
            threads,
            pace: &pace,
            ..Upkeep::plain(WallTime(seconds * 1_000_000), [9; 16])
        };
        while source.journal.keep_up(&how(400)).unwrap().more {}
        let mut turns = 0;
        for turn in 1.. {
            let kept = source.journal.keep_up(&how(100_000 + turn)).unwrap();
            turns += u32::from(kept.folded_bytes > 0);
            assert!(kept.folded_bytes <= 2 << 30, "one turn wrote {}", kept.folded_bytes);
            if turns == 1 {
                assert!(source.journal.status().applied < before, "not before all of it is there");
                assert_eq!(
                    (source.byte(last, 0), source.byte(last, 8192), source.byte(last, SIZE / 2)),
                    (1, 2, 0)
                );
            }
            if !kept.more {
                break;
            }
        }
        assert!(source.journal.status().applied >= before);
        assert!(turns >= 4, "{turns} turns");
        let (paced, written) = (paced.into_inner().unwrap(), written.lock().unwrap());
        assert!(paced.iter().chain(written.iter()).all(|bytes| *bytes <= 1 << 20), "in pieces");
        let (told, done) = (paced.iter().sum::<u64>(), written.iter().sum::<u64>());
        assert_eq!(done, SIZE - 8192, "no place is written twice");
        assert!(told >= done, "{told} bytes were told of {done}");
        assert_eq!(
            (source.byte(last, 0), source.byte(last, SIZE - 4096), source.byte(last, SIZE / 2)),
            (1, 1, 0)
        );
    }
}

/// An agent that dies in it would have all of it written again before a guest's next flush.
#[test]
fn a_promotion_makes_durable_what_it_has_copied_from_time_to_time() {
    const SIZE: u64 = 1 << 30;
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let mut source = Source::begin(store.clone(), SIZE, SMALL);
    source.write(4096, vec![1; 4096]);
    let cut = source.checkpoint();
    source.send();
    let image = journal::Image::open(source.journal.clone(), cut, Some("image-1"), [1; 16]).unwrap();
    let left = std::cell::Cell::new(600 << 20);
    let pace = |bytes| {
        left.set(left.get() - bytes as i64);
        left.get() > 0
    };
    assert!(!image.promote(pace).unwrap().is_done());
    drop(image);
    let again = journal::Overlay::open(&*store, "image-1", "vda", SIZE, [1; 16]).unwrap();
    assert!(again.held_bytes() >= 590 << 20);
    assert!(again.in_doubt_bytes() <= 257 << 20, "{}", again.in_doubt_bytes());
}

/// A map that took a write for each of its 268 million blocks would take minutes.
#[test]
fn an_image_whose_disk_is_discarded_takes_it_as_one_range() {
    const SIZE: u64 = 1 << 40;
    let folder = tempfile::tempdir().unwrap();
    let store = FsStore::open(folder.path()).unwrap();
    let overlay = journal::Overlay::open(&store, "image-1", "vda", SIZE, [1; 16]).unwrap();
    let ones = |_: u64, part: &mut [u8]| -> Result<(), journal::OverlayError> {
        part.fill(1);
        Ok(())
    };
    // Unaligned at both ends.
    let range = ByteRange::new(4096 * 5 + 100, SIZE - 4096 * 9);
    overlay.zero(range, ones).unwrap();
    overlay.flush().unwrap();
    let held = range.widened_to(4096);
    assert_eq!(overlay.held_bytes(), held.len);
    for (at, expected) in [
        (0, 1),
        (range.start - 1, 1),
        (range.start, 0),
        (SIZE / 2, 0),
        (range.end() - 1, 0),
        (range.end(), 1),
        (SIZE - 1, 1),
    ] {
        let mut byte = [9];
        overlay.read_at(at, &mut byte, ones).unwrap();
        assert_eq!(byte, [expected], "at {at}");
    }
    drop(overlay);
    let again = journal::Overlay::open(&store, "image-1", "vda", SIZE, [2; 16]).unwrap();
    assert_eq!(again.held_bytes(), held.len, "as it was flushed");
}

const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 72 << 4;

#[derive(Debug, Clone)]
enum Step {
    Write { block: u64, byte: u8 },
    Discard { block: u64, blocks: u64 },
    Checkpoint,
    Send,
    KeepUp { seconds: i64, rollback: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let aligned = (0u64..9, 1u64..9).prop_map(|(at, len)| (at * 128, len * 128));
    let free = (0u64..BLOCKS, 1u64..300);
    let step = prop_oneof![
        5 => (0u64..BLOCKS, 1u8..).prop_map(|(block, byte)| Step::Write { block, byte }),
        4 => prop_oneof![aligned, free].prop_map(|(block, blocks)| Step::Discard { block, blocks }),
        2 => Just(Step::Checkpoint),
        2 => Just(Step::Send),
        2 => (1i64..1500, any::<bool>()).prop_map(|(seconds, rollback)| Step::KeepUp { seconds, rollback }),
    ];
    proptest::collection::vec(step, 10..60)
}

/// Every checkpoint that can be opened, block by block.
fn check(source: &Source, states: &[(WriteSeq, Vec<u8>)]) {
    let query = journal::CheckpointQuery { limit: usize::MAX, ..Default::default() };
    let found = source.journal.checkpoints(&query).rows;
    for facts in found {
        let cut = facts.checkpoint.cut;
        let (_, expected) = states.iter().find(|(at, _)| *at == cut).unwrap();
        for (block, byte) in expected.iter().enumerate() {
            // The first byte of one, the last one of the next.
            let at = (block as u64 * BLOCK).next_multiple_of(2 * BLOCK) - (block as u64 % 2);
            assert_eq!(source.byte(cut, at), *byte, "block {block} at {cut}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn long_ranges_and_writes_among_them_are_as_a_plain_disk_has_them(steps in steps()) {
        let small = Settings { segment_bytes: 512 << 10, ..SMALL };
        let store = SimStore::new();
        let mut source = Source::begin(Arc::new(store), BLOCKS * BLOCK, small);
        let mut disk = vec![0; BLOCKS as usize];
        let mut states = Vec::new();
        for step in steps {
            source.seconds += 1;
            match step {
                Step::Write { block, byte } => {
                    source.write(block * BLOCK, vec![byte; BLOCK as usize]);
                    disk[block as usize] = byte;
                }
                Step::Discard { block, blocks } => {
                    let blocks = blocks.min(BLOCKS - block);
                    source.discard(ByteRange::new(block * BLOCK, blocks * BLOCK));
                    disk[block as usize..(block + blocks) as usize].fill(0);
                }
                Step::Checkpoint => states.push((source.checkpoint(), disk.clone())),
                Step::Send if source.sent < source.seq => source.send(),
                Step::Send => {}
                Step::KeepUp { seconds, rollback } => {
                    source.seconds += seconds;
                    let mode = if rollback { Mode::Rollback } else { Mode::RollForward };
                    source.journal.set(Settings { mode, ..small });
                    source.keep_up(source.seconds);
                    check(&source, &states);
                }
            }
        }
        states.push((source.checkpoint(), disk));
        source.send();
        check(&source, &states);
        source.keep_up(source.seconds + 1000);
        check(&source, &states);
    }
}
