//! A recovery side with a valid certificate and a malicious program behind it, against the protected side as the
//! agent runs it: whatever its answers can hold, nothing panics, no queue or
//! counter grows beyond what is checked, and an honest one that comes later gets all of the disk.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::played::{BLOCKS, Munich, Paris};
use super::*;
use proptest::prelude::*;
use replication::SenderEvent;
use replication::wire::{
    Ack, ClockAnswer, Compared, FrameReader, FrameWriter, Leave, Message, Refusal, Refuse, Welcome,
};
use types::limits::SEND_AGAIN_INTERVAL;
use types::{BlockIndex, BlockRun, DiskIndex, GroupId, VmId};

const CASES: u32 = 200;

/// An answer, its numbers relative to what was said where that is a lie that could be believed.
#[derive(Debug, Clone)]
enum Answer {
    Ack { near: bool, durable: u64, other: u64 },
    Welcome { near: bool, epoch: u64, durable: u64, incarnation: u8, flags: u8 },
    Refuse { why: u8, epoch: u64 },
    Compared { asked: bool, disk: u64, first: u64, differs: u64 },
    SendAgain(Vec<(u64, u64, u64)>),
    Other(u8, u64),
    LinkLost,
    LinkUp,
    Write(u64),
    Wait { seconds: u64 },
}

fn edge() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        BLOCKS,
        1 << 46,
        WriteSeq::LIFT_MAX.raw(),
        WriteSeq::LIFT_MAX.raw() + 1,
        WriteSeq::FOREIGN_MAX.raw(),
        WriteSeq::FOREIGN_MAX.raw() + 1,
        Epoch::LIFT_MAX.0,
        Epoch::LIFT_MAX.0 + 1,
        Epoch::FOREIGN_MAX.0,
        Epoch::FOREIGN_MAX.0 + 1,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop_oneof![1 => 0u64..4, 1 => prop::sample::select(edges.to_vec())]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        3 => (any::<bool>(), edge(), edge())
            .prop_map(|(near, durable, other)| Answer::Ack { near, durable, other }),
        4 => (any::<bool>(), edge(), edge(), any::<u8>(), any::<u8>()).prop_map(
            |(near, epoch, durable, incarnation, flags)| Answer::Welcome { near, epoch, durable, incarnation, flags }
        ),
        2 => (any::<u8>(), edge()).prop_map(|(why, epoch)| Answer::Refuse { why, epoch }),
        3 => (any::<bool>(), edge(), edge(), any::<u64>())
            .prop_map(|(asked, disk, first, differs)| Answer::Compared { asked, disk, first, differs }),
        3 => prop::collection::vec((prop_oneof![4 => Just(0), 1 => edge()], edge(), edge()), 0..4)
            .prop_map(Answer::SendAgain),
        2 => (0..BLOCKS, 1..BLOCKS).prop_map(|(first, blocks)| Answer::SendAgain(vec![(0, first, blocks)])),
        1 => (any::<u8>(), edge()).prop_map(|(which, number)| Answer::Other(which, number)),
        1 => Just(Answer::LinkLost),
        4 => Just(Answer::LinkUp),
        4 => (0..BLOCKS).prop_map(Answer::Write),
        2 => (0u64..70).prop_map(|seconds| Answer::Wait { seconds }),
    ]
}

impl Paris {
    fn hear(&mut self, answer: &Answer) {
        let about = |near: bool, base: WriteSeq, number: u64| {
            WriteSeq::from_raw(if near {
                base.raw().saturating_add(number).saturating_sub(1)
            } else {
                number
            })
        };
        let message = match answer.clone() {
            Answer::Ack { near, durable, other } => {
                let durable = about(near, self.sent, durable);
                let (watermark, applied) = (WriteSeq::from_raw(other), durable);
                Message::Ack(Ack {
                    durable,
                    watermark,
                    applied,
                    journal_bytes: other,
                    history_seconds: other,
                    projected_history_seconds: Some(other),
                })
            }
            Answer::Welcome { near, epoch, durable, incarnation, flags } => Message::Welcome(Welcome {
                epoch: if near { self.epoch } else { Epoch(epoch) },
                durable: about(near, self.sent, durable),
                incarnation: (incarnation % 3 > 0 && flags & 1 == 0)
                    .then(|| Incarnation::from_bytes([incarnation % 3; 16])),
                must_compare: flags & 1 != 0,
                seeded: flags & 2 != 0,
                missing: Vec::new(),
            }),
            Answer::Refuse { why, epoch } => {
                Message::Refuse(Refuse { why: refusal(why, Epoch(epoch)), detail: "no".into() })
            }
            Answer::Compared { asked, disk, first, differs } => {
                let (disk, first) = if asked { (0, 0) } else { (disk as u16, first) };
                Message::Compared(Compared { disk: DiskIndex(disk), first: BlockIndex(first), differs })
            }
            Answer::SendAgain(runs) => Message::SendAgain(runs.into_iter().map(run).collect()),
            Answer::Other(which, number) => other(which, number),
            Answer::LinkLost => return self.step(SenderEvent::LinkLost),
            Answer::LinkUp => {
                self.step(SenderEvent::Tick);
                return self.step(SenderEvent::LinkUp);
            }
            Answer::Write(block) => {
                self.write(block);
                return self.step(SenderEvent::Tick);
            }
            Answer::Wait { seconds } => {
                self.now = Monotonic(self.now.0 + Duration::from_secs(seconds));
                return self.step(SenderEvent::Tick);
            }
        };
        // What cannot be read ends the link.
        let (header, body) = FrameWriter::default().encode(&message);
        let mut reader = FrameReader::default();
        let header = reader.header(&header).unwrap();
        match reader.message(&header, body.joined()) {
            Ok(message) => self.step(SenderEvent::Received(message)),
            Err(_) => self.step(SenderEvent::LinkLost),
        }
    }
}

fn run((disk, first, blocks): (u64, u64, u64)) -> BlockRun {
    BlockRun { disk: DiskIndex(disk as u16), first: BlockIndex(first), blocks }
}

fn refusal(why: u8, epoch: Epoch) -> Refusal {
    match why % 9 {
        0 => Refusal::Fenced { epoch, released: false },
        1 => Refusal::Fenced { epoch, released: true },
        2 => Refusal::JournalFull,
        3 => Refusal::JournalFailed,
        4 => Refusal::DisksDiffer,
        5 => Refusal::Busy,
        6 => Refusal::Protocol,
        7 => Refusal::Version,
        _ => Refusal::NotAccepted,
    }
}

fn other(which: u8, number: u64) -> Message {
    let (vm, group) = (VmId::from_bytes([5; 16]), GroupId::from_bytes([1; 16]));
    match which % 5 {
        0 => Message::Heartbeat,
        1 => Message::AskClock(WallTime(number as i64)),
        2 => {
            Message::ClockAnswer(ClockAnswer { asked_at: WallTime(number as i64), says: WallTime(i64::MIN) })
        }
        3 => Message::Leave(Leave { vm, group, epoch: Epoch(number), at: WriteSeq::from_raw(number) }),
        _ => Message::Left(vm),
    }
}

#[test]
fn a_recovery_side_that_lies_costs_an_honest_one_nothing() {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = runner.run(&prop::collection::vec(answer(), 0..40), |answers| {
        let folder = tempfile::tempdir().unwrap();
        let mut paris = Paris::new(folder.path());
        paris.step(SenderEvent::Tick);
        answers.iter().for_each(|answer| paris.hear(answer));
        let mut munich = Munich::of(&mut paris);
        prop_assert!(munich.gets_all(&mut paris), "what an honest side has afterwards is not the disk");
        Ok(())
    });
    run.unwrap();
}

/// It asks for all of the disk with each word, whatever it hears, and takes what comes.
#[test]
fn a_recovery_side_that_asks_for_everything_all_the_time_costs_itself_and_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let mut paris = Paris::new(folder.path());
    paris.step(SenderEvent::Tick);
    let mut munich = Munich::of(&mut paris);
    assert!(munich.gets_all(&mut paris));
    let (began, before) = (paris.now, paris.core.status());
    let (mut heard, mut ends) = (0, 0);
    for round in 0..3000 {
        let said = Message::SendAgain(vec![run((0, 0, BLOCKS))]);
        paris.step(SenderEvent::Received(said));
        heard += 1;
        paris.write(round % BLOCKS);
        munich.acknowledge(&mut paris, usize::MAX);
        munich.answer(&mut paris);
        ends += u64::from(!paris.core.status().gap_open);
    }
    let (after, took) = (paris.core.status(), paris.now.since(began));
    let asked = (after.sync_work.asked_again - before.sync_work.asked_again) / BLOCKS;
    let most = 1 + took.as_secs() / SEND_AGAIN_INTERVAL.as_secs();
    assert!((2..=most).contains(&asked) && asked < heard / 10, "{asked} times in {took:?}, {most} at most");
    assert!(ends > heard / 2, "it syncs all the time: {ends} of {heard}");
    assert_eq!(after.sync_work.compared, before.sync_work.compared, "nothing is compared");
    assert!(after.sync_work.copied - before.sync_work.copied <= asked * BLOCKS);
    assert_eq!(after.writes, before.writes + 3000, "every write was taken");
    assert!(munich.gets_all(&mut paris));
}

/// Blocks that the guest has written meanwhile are sent as they are when they are read.
#[test]
fn blocks_that_are_lost_come_again_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut paris = Paris::new(folder.path());
    paris.step(SenderEvent::Tick);
    let mut munich = Munich::of(&mut paris);
    assert!(munich.gets_all(&mut paris));
    let before = paris.core.status().sync_work;
    munich.spoil(3);
    munich.spoil(7);
    paris.step(SenderEvent::Received(Message::SendAgain(vec![run((0, 3, 1)), run((0, 7, 1))])));
    paris.write(7);
    assert!(munich.gets_all(&mut paris), "both sides are equal");
    let after = paris.core.status().sync_work;
    assert_eq!((after.asked_again - before.asked_again, after.copied - before.copied), (2, 2));
    assert_eq!(after.compared, before.compared);
    // It is not believed that it has lost what no disk has, and it is heard again later.
    for runs in [vec![run((0, BLOCKS, 1))], vec![run((1, 0, 1))]] {
        paris.step(SenderEvent::Received(Message::SendAgain(runs)));
        let why = replication::Failure::Disbelieved;
        assert_eq!(paris.core.sender().state(), replication::State::Failed { why });
        paris.now = Monotonic(paris.now.0 + Duration::from_secs(60));
        assert!(munich.gets_all(&mut paris));
    }
    assert_eq!(paris.core.status().sync_work.asked_again, after.asked_again);
}
