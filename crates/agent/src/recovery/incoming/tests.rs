//! A protected side with a valid certificate and a malicious program behind it, over the real driver, receiver, shards
//! and journal: whatever its messages can hold, nothing that was acknowledged before is lost, and no number is taken that
//! honest sides would not go on from.

use super::*;
use crate::ledger::Asker;
use crate::link::PeerIdentity;
use crate::pki::PeerRole;
use crate::recovery::tests::{close, hello, recovery};
use batch::{BatchMeta, Codec, Kind, Record, encode, encode_mark};
use bytes::Bytes;
use joint::life::Use;
use proptest::prelude::*;
use replication::wire::{
    Ack, ArtifactHash, ArtifactOffer, ArtifactPart, CutMessage, FrameReader, FrameWriter, HEADER_BYTES, Join,
    Leave, Welcome,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use types::{
    BlockIndex, BlockRun, ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, DiskSpec, Epoch,
    GroupId, Incarnation, RunNumber, VmId, WallTime, WriteSeq,
};

const CASES: u32 = 150;
/// Messages read ahead of the machine that takes them.
const MESSAGES_AHEAD: usize = 4;
const DISK_BYTES: u64 = 1 << 20;
const MINE: Incarnation = Incarnation::from_bytes([3; 16]);
const CUT: WriteSeq = WriteSeq::from_raw(4);
const LAST: WriteSeq = WriteSeq::from_raw(5);

/// A recovery side, and what a protected one of another site shows to it.
struct Rome {
    recovery: Arc<Recovery>,
    pki: Pki,
    paris: Pki,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Rome {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (pki, paris) = (Pki::new(folder.path().join("rome")), Pki::new(folder.path().join("paris")));
        pki.init("rome").unwrap();
        let authority = paris.init("paris").unwrap();
        paris.issue("agent-1", "agent", &[], 30).unwrap();
        pki.trust("paris", &authority).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { recovery: recovery(folder.path()), pki, paris, runtime, _folder: folder }
    }

    /// Says all of it over one connection, and hears what is answered: until `enough`, where that is given, and then, or
    /// once all is said, the connection is closed.
    fn talk(&self, say: Vec<Message>, enough: Option<fn(&Message) -> bool>) -> Vec<Message> {
        let shown = self.paris.certificates("agent.pem").unwrap();
        let peer = PeerIdentity::of(&self.pki, Some(&shown), PeerRole::Connects).unwrap();
        let (recovery, pki) = (self.recovery.clone(), self.pki.clone());
        self.runtime.block_on(async move {
            let (outgoing, mut queue) = mpsc::unbounded_channel();
            let (messages, mut inbox) = mpsc::channel(MESSAGES_AHEAD);
            let mut said = through_the_wire(&say).into_iter();
            let first = said.next().expect("something is said");
            let running =
                tokio::spawn(
                    async move { serve_stream(recovery, pki, peer, first, outgoing, &mut inbox).await },
                );
            let stays = enough.map(|_| messages.clone());
            let feeding = tokio::spawn(async move {
                for message in said {
                    if messages.send(message).await.is_err() {
                        return;
                    }
                }
                drop(messages);
            });
            let mut heard = Vec::new();
            let hearing = async {
                while let Some(Outgoing { message, .. }) = queue.recv().await {
                    let is_enough = enough.is_some_and(|enough| enough(&message));
                    heard.push(message);
                    if is_enough {
                        break;
                    }
                }
            };
            hearing.await;
            feeding.await.unwrap();
            drop(stays);
            running.await.unwrap();
            while let Ok(Outgoing { message, .. }) = queue.try_recv() {
                heard.push(message);
            }
            heard
        })
    }
}

/// As they come out of a socket at the other end.
fn through_the_wire(messages: &[Message]) -> Vec<Result<Message, ReadError>> {
    let (mut writer, mut reader) = (FrameWriter::default(), FrameReader::default());
    let mut read = Vec::new();
    for message in messages {
        let (header, body): ([u8; HEADER_BYTES], _) = writer.encode(message);
        let header = reader.header(&header).unwrap();
        let message = reader.message(&header, body.joined()).map_err(ReadError::Wire);
        let ends = message.is_err();
        read.push(message);
        if ends {
            break;
        }
    }
    read
}

fn mark(seq: u64, kind: Kind) -> Record {
    Record::mark(WriteSeq::from_raw(seq), kind, Bytes::new())
}

/// A short history with one checkpoint, at which the first block is all 7.
fn honest_batch() -> Message {
    let checkpoint = Checkpoint {
        id: CheckpointId(CUT),
        cut: CUT,
        kind: CheckpointKind::Tagged,
        taken_at: WallTime(0),
        members: 1,
        tag: "good".into(),
    };
    let range = ByteRange::new(0, 4096);
    let payload = Bytes::from(vec![7; 4096]);
    let begin = Record { range: ByteRange::new(1, 0), ..mark(1, Kind::SyncBegin) };
    let records = [
        begin,
        Record { seq: WriteSeq::from_raw(2), kind: Kind::Sync, disk: DiskIndex(0), range, payload },
        mark(3, Kind::SyncEnd),
        Record::mark(LAST, Kind::Checkpoint, encode_mark(&checkpoint)),
    ];
    Message::Batch(encode(&meta(WriteSeq::ZERO, LAST), &records, Codec::Raw).into())
}

fn meta(prev_seq: WriteSeq, watermark: WriteSeq) -> BatchMeta {
    BatchMeta { incarnation: MINE, prev_seq, watermark, taken_at: WallTime(0) }
}

/// Numbers at and around everything that somebody compares with.
fn edge() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        4096,
        DISK_BYTES - 1,
        DISK_BYTES,
        DISK_BYTES + 1,
        u64::from(u32::MAX),
        1 << 46,
        WriteSeq::before_run(RunNumber(1)).raw(),
        WriteSeq::LIFT_MAX.raw(),
        WriteSeq::CUT_MAX.raw(),
        WriteSeq::FOREIGN_MAX.raw() - 1,
        WriteSeq::FOREIGN_MAX.raw(),
        WriteSeq::FOREIGN_MAX.raw() + 1,
        Epoch::LIFT_MAX.0,
        Epoch::FOREIGN_MAX.0 - 1,
        Epoch::FOREIGN_MAX.0,
        Epoch::FOREIGN_MAX.0 + 1,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop_oneof![3 => 0u64..12, 2 => prop::sample::select(edges.to_vec())]
}

fn epoch() -> impl Strategy<Value = u64> {
    let edges = [Epoch::FIRST, Epoch::LIFT_MAX, Epoch::GREETING_MAX, Epoch::FOREIGN_MAX];
    let around = edges.iter().flat_map(|edge| [edge.0, edge.0 + 1]);
    prop::sample::select(around.chain([0, u64::MAX]).collect::<Vec<_>>())
}

fn name() -> impl Strategy<Value = String> {
    let names = ["", ".", "..", "../x", "vda", "vdb", "a b", "\u{0}", "\u{fffd}"].map(str::to_owned);
    prop_oneof![prop::sample::select(names.to_vec()), Just("n".repeat(64)), Just("n".repeat(65))]
}

/// One field of a greeting that is otherwise good.
#[derive(Debug, Clone)]
enum Twist {
    Speaks(u16),
    Vm(u8),
    Group(u8),
    Names(String, String),
    Epoch(u64),
    Incarnation(u8),
    Seqs(u64, u64),
    Wishes(u64, u64),
    Times(u64, u32, u32),
    Disks(Vec<(String, u64)>),
    Artifacts(Vec<(String, u64)>),
}

fn twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        1 => (0u16..6).prop_map(Twist::Speaks),
        1 => any::<u8>().prop_map(Twist::Vm),
        1 => any::<u8>().prop_map(Twist::Group),
        1 => (name(), name()).prop_map(|(vm, group)| Twist::Names(vm, group)),
        3 => epoch().prop_map(Twist::Epoch),
        1 => (2u8..5).prop_map(Twist::Incarnation),
        1 => (edge(), edge()).prop_map(|(acked, last)| Twist::Seqs(acked, last)),
        1 => (edge(), edge()).prop_map(|(history, bytes)| Twist::Wishes(history, bytes)),
        1 => (edge(), any::<u32>(), any::<u32>()).prop_map(|(at, rpo, every)| Twist::Times(at, rpo, every)),
        1 => prop::collection::vec((name(), edge()), 0..4).prop_map(Twist::Disks),
        1 => prop::collection::vec((name(), edge()), 0..3).prop_map(Twist::Artifacts),
    ]
}

fn twisted(vm: u8, twists: &[Twist]) -> Message {
    let mut hello = honest_hello(vm);
    for twist in twists {
        match twist.clone() {
            Twist::Speaks(version) => hello.speaks = version,
            Twist::Vm(other) => hello.vm = VmId::from_bytes([other; 16]),
            Twist::Group(other) => hello.group = GroupId::from_bytes([other; 16]),
            Twist::Names(vm, group) => (hello.vm_name, hello.group_name) = (vm, group),
            Twist::Epoch(epoch) => hello.epoch = Epoch(epoch),
            Twist::Incarnation(other) => hello.incarnation = Incarnation::from_bytes([other; 16]),
            Twist::Seqs(acked, last) => {
                (hello.acked, hello.last_seq) = (WriteSeq::from_raw(acked), WriteSeq::from_raw(last));
            }
            Twist::Wishes(history, bytes) => {
                (hello.history_seconds, hello.journal_bytes_max) = (history, bytes)
            }
            Twist::Times(at, rpo, every) => {
                hello.sent_at = WallTime(at as i64);
                (hello.rpo_seconds, hello.checkpoint_interval_seconds) = (rpo, every);
            }
            Twist::Disks(disks) => {
                hello.disks =
                    disks.into_iter().map(|(name, size_bytes)| DiskSpec { name, size_bytes }).collect();
            }
            Twist::Artifacts(files) => {
                let offer = |(name, size_bytes)| ArtifactOffer { name, hash: HASH, size_bytes };
                hello.artifacts = files.into_iter().map(offer).collect();
            }
        }
    }
    Message::Hello(Box::new(hello))
}

const HASH: ArtifactHash = ArtifactHash([9; 32]);

fn honest_hello(vm: u8) -> Hello {
    Hello { incarnation: MINE, ..hello(vm) }
}

/// What comes after a greeting. Batches follow one another, as far as their author cares.
#[derive(Debug, Clone)]
enum Word {
    Batch { prev: Option<u64>, steps: Vec<u64>, ahead: u64, kind: u8, disk: u64, at: u64, len: u64 },
    Garbage(Vec<u8>),
    Compare { disk: u64, first: u64, at: u64, hashes: u8 },
    Part { offset: u64, size: u64, bytes: u8 },
    Other(u8, u64, u64),
}

fn word() -> impl Strategy<Value = Word> {
    // Most of it is near enough to the truth to be taken.
    let step = || prop_oneof![9 => 1u64..5, 1 => edge()];
    let steps = prop::collection::vec(step(), 0..4);
    let disk = prop_oneof![9 => Just(0), 1 => edge()];
    let prev = prop::option::weighted(0.1, edge());
    let batch = (prev, steps, step(), any::<u8>(), disk, edge(), edge()).prop_map(
        |(prev, steps, ahead, kind, disk, at, len)| Word::Batch { prev, steps, ahead, kind, disk, at, len },
    );
    prop_oneof![
        4 => batch,
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Word::Garbage),
        2 => (edge(), edge(), edge(), any::<u8>())
            .prop_map(|(disk, first, at, hashes)| Word::Compare { disk, first, at, hashes }),
        1 => (edge(), edge(), any::<u8>()).prop_map(|(offset, size, bytes)| Word::Part { offset, size, bytes }),
        2 => (any::<u8>(), edge(), edge()).prop_map(|(which, a, b)| Word::Other(which, a, b)),
    ]
}

const KINDS: [Kind; 9] = [
    Kind::Write,
    Kind::Zero,
    Kind::Discard,
    Kind::Sync,
    Kind::SyncZero,
    Kind::Checkpoint,
    Kind::SyncBegin,
    Kind::SyncEnd,
    Kind::LeftOut,
];

/// The message, where `last` is what the batches before have come to.
fn message(word: &Word, vm: u8, last: &mut u64) -> Message {
    match word.clone() {
        Word::Batch { prev, steps, ahead, kind, disk, at, len } => {
            let prev = prev.unwrap_or(*last);
            let mut seq = prev;
            let mut records = Vec::new();
            for step in steps {
                let Some(next) = seq.checked_add(step.max(1)) else { break };
                seq = next;
                let kind = KINDS[(usize::from(kind) + records.len()) % KINDS.len()];
                let len = if kind.has_payload() { len % 8192 } else { len % (1 << 32) };
                let payload = Bytes::from(vec![0x5a; if kind.has_payload() { len as usize } else { 0 }]);
                let (seq, range) = (WriteSeq::from_raw(seq), ByteRange { start: at, len });
                records.push(Record { seq, kind, disk: DiskIndex(disk as u16), range, payload });
            }
            *last = seq;
            let meta = meta(WriteSeq::from_raw(prev), WriteSeq::from_raw(seq.saturating_add(ahead)));
            Message::Batch(encode(&meta, &records, Codec::Lz4).into())
        }
        Word::Garbage(bytes) => Message::Batch(Bytes::from(bytes).into()),
        Word::Compare { disk, first, at, hashes } => Message::Compare(Compare {
            disk: DiskIndex(disk as u16),
            first: BlockIndex(first),
            at: WriteSeq::from_raw(at),
            hashes: vec![batch::BlockHash::of_zeroes(1 << 16); usize::from(hashes % 66)],
        }),
        Word::Part { offset, size, bytes } => Message::ArtifactPart(ArtifactPart {
            hash: HASH,
            offset,
            size_bytes: size,
            bytes: vec![1; bytes.into()].into(),
        }),
        Word::Other(which, a, b) => other(which, vm, a, b),
    }
}

fn other(which: u8, vm: u8, a: u64, b: u64) -> Message {
    let (seq, vm) = (WriteSeq::from_raw, VmId::from_bytes([vm; 16]));
    let group = GroupId::from_bytes([1; 16]);
    match which % 11 {
        0 => Message::Heartbeat,
        1 => Message::AskClock(WallTime(a as i64)),
        2 => Message::ClockAnswer(ClockAnswer { asked_at: WallTime(a as i64), says: WallTime(b as i64) }),
        3 => {
            Message::Compared(Compared { disk: DiskIndex(a as u16), first: BlockIndex(b), differs: u64::MAX })
        }
        4 => Message::Ack(Ack {
            durable: seq(a),
            watermark: seq(b),
            applied: seq(a),
            journal_bytes: b,
            history_seconds: a,
            projected_history_seconds: Some(b),
        }),
        5 => Message::Cut(CutMessage::Prepare { cut: seq(a) }),
        6 => Message::Join(Join { group_name: "web".into(), vms: a as u16 }),
        7 => Message::Leave(Leave { vm, group, epoch: Epoch(a), at: seq(b) }),
        8 => Message::Left(vm),
        9 => {
            let disk = DiskIndex(a as u16);
            Message::SendAgain(vec![BlockRun { disk, first: BlockIndex(b), blocks: a }])
        }
        _ => Message::Welcome(Welcome {
            epoch: Epoch(a),
            durable: seq(b),
            incarnation: None,
            must_compare: false,
            seeded: false,
            missing: Vec::new(),
        }),
    }
}

/// (1) A batch is written, and its sync fails: it stands in the open segment, and nobody counts it; (2) another comes with
/// a higher epoch; (3) the journal is opened again. It would be the newest write, of one who has no authority any more.
#[test]
fn what_a_failed_write_has_left_behind_is_not_found_after_a_greeting_of_a_higher_epoch() {
    let rome = Rome::new();
    let greeting = |epoch| Message::Hello(Box::new(Hello { epoch, ..honest_hello(1) }));
    let is_kept: fn(&Message) -> bool = |word| matches!(word, Message::Ack(ack) if ack.durable == LAST);
    rome.talk(vec![greeting(Epoch::FIRST), honest_batch()], Some(is_kept));
    let vm = rome.recovery.list()[0].clone();
    let files = vm.folder(&rome.recovery.journal_dir);
    let aside = tempfile::tempdir().unwrap();
    copy_all(&files, aside.path());
    let store = Arc::new(journal::FsStore::open(aside.path()).unwrap());
    let copy = journal::Journal::open(store, vm.journal().unwrap().status().settings).unwrap().journal;
    let range = ByteRange::new(0, 4096);
    let payload = Bytes::from(vec![8; 4096]);
    let late = Record { seq: LAST.next(), kind: Kind::Write, disk: DiskIndex(0), range, payload };
    let batch = batch::Batch::parse(encode(&meta(LAST, LAST.next()), &[late], Codec::Raw)).unwrap();
    let how = journal::AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(0), entropy: [9; 16] };
    copy.append(vec![batch], how).unwrap();
    for row in std::fs::read_dir(aside.path()).unwrap() {
        let (path, name) = (row.as_ref().unwrap().path(), row.unwrap().file_name());
        if name.to_str().unwrap().starts_with("segment-") {
            std::fs::write(files.join(name), std::fs::read(path).unwrap()).unwrap();
        }
    }
    rome.talk(vec![greeting(Epoch::FIRST.next())], Some(|word| matches!(word, Message::Welcome(_))));
    close(&vm);
    let journal = rome.recovery.open_journal(&vm, Use::Look).unwrap();
    assert_eq!(journal.status().last_seq, LAST);
    assert!(journal.status().damage.is_empty(), "{:?}", journal.status().damage);
}

#[test]
fn what_is_damaged_is_asked_for_and_compared_where_nobody_can_be_asked() {
    let rome = Rome::new();
    let is_kept: fn(&Message) -> bool = |word| matches!(word, Message::Ack(ack) if ack.durable == LAST);
    rome.talk(vec![Message::Hello(Box::new(honest_hello(1))), honest_batch()], Some(is_kept));
    let vm = rome.recovery.list()[0].clone();
    let rows =
        std::fs::read_dir(vm.folder(&rome.recovery.journal_dir)).unwrap().map(|row| row.unwrap().path());
    let segment = rows.into_iter().find(|path| path.to_str().unwrap().contains("segment-")).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 8192 + 200).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], 8192 + 200).unwrap();
    file.sync_all().unwrap();
    crate::recovery::scrub::scrub_now(&vm);
    rome.recovery.tell_damage(&vm);
    let is_told =
        rome.recovery.alerts.to_api().iter().any(|alert| alert.text.contains("4096 bytes of its newest"));
    assert!(is_told, "{:?}", rome.recovery.alerts.to_api());
    let greet = |speaks, enough| {
        let hello = Hello { speaks, ..honest_hello(1) };
        rome.talk(vec![Message::Hello(Box::new(hello))], Some(enough))
    };
    let run = BlockRun { disk: DiskIndex(0), first: BlockIndex(0), blocks: 1 };
    let heard = greet(4, |word| matches!(word, Message::SendAgain(_)));
    let [Message::Welcome(welcome), asked] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((welcome.incarnation, welcome.must_compare), (Some(MINE), false), "the stream goes on");
    assert_eq!(*asked, Message::SendAgain(vec![run]));
    let heard = greet(3, |word| matches!(word, Message::Welcome(_)));
    let [Message::Welcome(welcome)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((welcome.incarnation, welcome.must_compare), (None, true));
    // That was said, and is so for all.
    let heard = greet(4, |word| matches!(word, Message::Welcome(_)));
    assert!(matches!(&heard[..], [Message::Welcome(welcome)] if welcome.must_compare), "{heard:?}");
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    for row in std::fs::read_dir(from).unwrap() {
        let (row, target) = (row.as_ref().unwrap(), to.join(row.as_ref().unwrap().file_name()));
        if row.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_all(&row.path(), &target);
        } else if row.file_name() != "lock" {
            std::fs::copy(row.path(), target).unwrap();
        }
    }
}

/// What must hold afterwards; up to where the journal reaches.
fn check(rome: &Rome, vm: u8) -> Result<WriteSeq, TestCaseError> {
    let id = VmId::from_bytes([vm; 16]);
    let kept = rome.recovery.vms().get(&id).cloned().expect("it was kept");
    // As it is on the disk.
    close(&kept);
    let journal = rome.recovery.open_journal(&kept, Use::Look).unwrap();
    let status = journal.status();
    prop_assert!(status.last_seq >= LAST && status.last_seq <= WriteSeq::FOREIGN_MAX, "{}", status.last_seq);
    prop_assert!(status.epoch.next() <= Epoch::FOREIGN_MAX, "no failover can be told of: {}", status.epoch);
    prop_assert!(status.damage.is_empty(), "{:?}", status.damage);
    let found = journal.checkpoint(CheckpointId(CUT)).unwrap();
    prop_assert!(found.is_some_and(|facts| facts.checkpoint.tag == "good"), "the checkpoint is gone");
    let mut block = vec![0; 4096];
    journal.read_at(DiskIndex(0), CUT, 0, &mut block).unwrap();
    prop_assert!(block.iter().all(|byte| *byte == 7), "the checkpoint shows something else");
    let record = kept.record();
    prop_assert_eq!(record.group_id, honest_hello(vm).group.to_string());
    // Whoever comes after it, with the authority that was taken, is let in.
    let hello = Hello { epoch: status.epoch, ..honest_hello(vm) };
    let answers = rome.talk(vec![Message::Hello(Box::new(hello))], Some(|_| true));
    let has_left = record.left.is_some();
    prop_assert!(has_left || matches!(answers[0], Message::Welcome(_)), "{:?}", answers[0]);
    Ok(status.last_seq)
}

#[test]
fn a_protected_side_that_lies_costs_no_acknowledged_history() {
    let rome = Rome::new();
    let (next, believed) = (AtomicU8::new(100), AtomicU32::new(0));
    let twists = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(twist(), 1..3)];
    let connection = (twists, prop::collection::vec(word(), 0..8));
    let case = prop::collection::vec(connection, 1..3);
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = runner.run(&case, |connections| {
        // One after the other: what a case has done to its VM is gone with it.
        let vm = next.fetch_add(1, Ordering::Relaxed) % 100 + 100;
        let honest = vec![Message::Hello(Box::new(honest_hello(vm))), honest_batch()];
        let heard = rome.talk(honest, Some(|word| matches!(word, Message::Ack(ack) if ack.durable == LAST)));
        prop_assert!(matches!(heard.last(), Some(Message::Ack(_))), "{:?}", heard);
        for (twists, words) in &connections {
            let mut last = LAST.raw();
            let mut say = vec![twisted(vm, twists)];
            say.extend(words.iter().map(|word| message(word, vm, &mut last)));
            let said = say.len();
            let heard = rome.talk(say, None);
            prop_assert!(heard.len() <= said + 2, "{} answers to {said} messages", heard.len());
        }
        let kept = check(&rome, vm)?;
        believed.fetch_add(u32::from(kept > LAST), Ordering::Relaxed);
        let names: BTreeSet<_> = rome.recovery.list().iter().map(|kept| kept.id()).collect();
        for id in &names {
            rome.recovery.forget(&id.to_string(), &Asker::default()).unwrap();
        }
        Ok(())
    });
    run.unwrap();
    let believed = believed.into_inner();
    assert!(believed >= CASES / 20, "only {believed} cases brought something that was taken");
}
