//! Who may speak, and what follows what.

use super::*;
use crate::wire::{VERSION, VERSION_MIN};
use batch::{BatchMeta, Codec, Kind, Record, encode};
use bytes::Bytes;
use std::time::Duration;
use types::{BlockIndex, ByteRange, DiskIndex, DiskSpec, GroupId, VmId, WallTime};

const MINE: Incarnation = Incarnation::from_bytes([1; 16]);

fn seq(raw: u64) -> WriteSeq {
    WriteSeq::from_raw(raw)
}

fn hello() -> Hello {
    Hello {
        speaks: VERSION,
        vm: VmId::from_bytes([1; 16]),
        vm_name: "web".into(),
        group: GroupId::from_bytes([2; 16]),
        group_name: "web".into(),
        epoch: Epoch::FIRST,
        incarnation: MINE,
        acked: seq(0),
        last_seq: seq(0),
        sent_at: WallTime(0),
        history_seconds: 86_400,
        journal_bytes_max: 0,
        rpo_seconds: 60,
        checkpoint_interval_seconds: 5,
        spans_hosts: false,
        disks: vec![DiskSpec { name: "vda".into(), size_bytes: 8192 }],
        definition: String::new(),
        artifacts: Vec::new(),
    }
}

fn batch(prev: u64, at: u64, start: u64) -> Message {
    let record = Record {
        seq: seq(at),
        kind: Kind::Write,
        disk: DiskIndex(0),
        range: ByteRange::new(start, 512),
        payload: Bytes::from(vec![1; 512]),
    };
    let meta =
        BatchMeta { incarnation: MINE, prev_seq: seq(prev), watermark: seq(at), taken_at: WallTime(0) };
    Message::Batch(encode(&meta, &[record], Codec::Raw).into())
}

fn step(receiver: &mut Receiver, event: ReceiverEvent) -> Vec<ReceiverEffect> {
    let mut effects = Vec::new();
    receiver.step(Monotonic(Duration::ZERO), event, &mut effects);
    effects
}

fn opened(durable: u64) -> Opened {
    Opened {
        epoch: Epoch::FIRST,
        durable: seq(durable),
        incarnation: Some(MINE),
        must_compare: false,
        seeded: false,
        missing: Vec::new(),
        lost: Vec::new(),
    }
}

/// A receiver that has opened the journal for a sender that speaks this version, and what it does then.
fn welcomed(speaks: u16, opened: Opened) -> (Receiver, Vec<ReceiverEffect>) {
    let mut receiver = Receiver::new(Monotonic(Duration::ZERO));
    let hello = Hello { speaks, ..hello() };
    let effects = step(&mut receiver, ReceiverEvent::Received(Message::Hello(Box::new(hello))));
    assert!(matches!(effects[..], [ReceiverEffect::Open(_)]));
    let effects = step(&mut receiver, ReceiverEvent::Opened(Ok(opened)));
    (receiver, effects)
}

fn streaming(durable: u64) -> Receiver {
    let (receiver, effects) = welcomed(VERSION, opened(durable));
    assert!(matches!(effects[..], [ReceiverEffect::Send(Message::Welcome(_))]));
    receiver
}

fn is_refused(effects: &[ReceiverEffect]) -> bool {
    matches!(effects, [ReceiverEffect::Send(Message::Refuse(_)), ReceiverEffect::Close { .. }])
}

#[test]
fn batches_that_follow_are_appended() {
    let mut receiver = streaming(4);
    for (prev, at) in [(4, 5), (5, 9)] {
        let effects = step(&mut receiver, ReceiverEvent::Received(batch(prev, at, 0)));
        assert!(matches!(effects[..], [ReceiverEffect::Append(_)]));
    }
}

#[test]
fn a_batch_left_out_or_said_twice_is_refused() {
    assert!(is_refused(&step(&mut streaming(4), ReceiverEvent::Received(batch(5, 6, 0)))));
    let mut receiver = streaming(4);
    step(&mut receiver, ReceiverEvent::Received(batch(4, 5, 0)));
    assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(batch(4, 5, 0)))));
}

#[test]
fn a_write_past_the_end_of_the_disk_is_refused() {
    assert!(is_refused(&step(&mut streaming(4), ReceiverEvent::Received(batch(4, 5, 8000)))));
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let mut receiver = streaming(4);
    let effects = step(&mut receiver, ReceiverEvent::Received(batch(4, 5, 0)));
    assert!(!effects.iter().any(|effect| matches!(effect, ReceiverEffect::Send(Message::Ack(_)))));
    let ack = Ack {
        durable: seq(5),
        watermark: seq(5),
        applied: seq(0),
        journal_bytes: 0,
        history_seconds: 0,
        projected_history_seconds: None,
    };
    let effects = step(&mut receiver, ReceiverEvent::Durable(ack));
    assert!(matches!(effects[..], [ReceiverEffect::Send(Message::Ack(_))]));
}

#[test]
fn a_stranger_that_does_not_greet_is_refused() {
    let mut receiver = Receiver::new(Monotonic(Duration::ZERO));
    assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(batch(0, 1, 0)))));
    assert!(step(&mut receiver, ReceiverEvent::Received(batch(0, 1, 0))).is_empty(), "and then ignored");
}

#[test]
fn a_disk_of_half_a_sector_is_refused() {
    let mut bad = hello();
    bad.disks[0].size_bytes = 777;
    let mut receiver = Receiver::new(Monotonic(Duration::ZERO));
    assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(Message::Hello(Box::new(bad))))));
}

#[test]
fn a_name_that_leads_out_of_its_folder_is_refused() {
    let mut by_vm = hello();
    by_vm.vm_name = "../../etc/cron.d/x".into();
    let mut by_disk = hello();
    by_disk.disks[0].name = "a/b".into();
    for bad in [by_vm, by_disk] {
        let mut receiver = Receiver::new(Monotonic(Duration::ZERO));
        assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(Message::Hello(Box::new(bad))))));
    }
}

#[test]
fn blocks_are_compared_once_what_the_source_had_for_them_is_durable() {
    let compare = |at| {
        let (disk, first) = (DiskIndex(0), types::BlockIndex(0));
        Message::Compare(Compare { disk, first, at: seq(at), hashes: vec![batch::BlockHash([1; 32])] })
    };
    let mut receiver = streaming(4);
    step(&mut receiver, ReceiverEvent::Received(batch(4, 5, 0)));
    assert!(step(&mut receiver, ReceiverEvent::Received(compare(5))).is_empty());
    let ack = Ack {
        durable: seq(5),
        watermark: seq(5),
        applied: seq(0),
        journal_bytes: 0,
        history_seconds: 0,
        projected_history_seconds: None,
    };
    let effects = step(&mut receiver, ReceiverEvent::Durable(ack));
    assert!(matches!(effects[..], [ReceiverEffect::Send(Message::Ack(_)), ReceiverEffect::Compare(_)]));
    assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(compare(6)))), "of what was never sent");
}

#[test]
fn more_comparisons_than_the_limit_are_refused() {
    let mut receiver = streaming(4);
    step(&mut receiver, ReceiverEvent::Received(batch(4, 5, 0)));
    let (disk, first) = (DiskIndex(0), types::BlockIndex(0));
    let compare = Compare { disk, first, at: seq(5), hashes: vec![batch::BlockHash([1; 32])] };
    for _ in 0..COMPARES_MAX {
        assert!(step(&mut receiver, ReceiverEvent::Received(Message::Compare(compare.clone()))).is_empty());
    }
    assert!(is_refused(&step(&mut receiver, ReceiverEvent::Received(Message::Compare(compare)))));
}

#[test]
fn a_question_for_the_time_is_answered_once_a_second() {
    let mut receiver = streaming(4);
    let mut ask = |millis| {
        let mut effects = Vec::new();
        let event = ReceiverEvent::Received(Message::AskClock(WallTime(5)));
        receiver.step(Monotonic(Duration::from_millis(millis)), event, &mut effects);
        effects.len()
    };
    assert_eq!([ask(0), ask(1), ask(999), ask(1000)], [1, 0, 0, 1]);
}

#[test]
fn wishes_that_no_operator_could_have_are_refused() {
    let wishes: [&dyn Fn(&mut Hello); 5] = [
        &|hello| hello.history_seconds = 0,
        &|hello| hello.history_seconds = u64::MAX,
        &|hello| hello.journal_bytes_max = 1,
        &|hello| hello.journal_bytes_max = u64::MAX,
        &|hello| hello.epoch = Epoch(u64::MAX),
    ];
    for wish in wishes {
        let mut hello = hello();
        wish(&mut hello);
        let mut receiver = Receiver::new(Monotonic(Duration::ZERO));
        let effects = step(&mut receiver, ReceiverEvent::Received(Message::Hello(Box::new(hello))));
        assert!(is_refused(&effects), "{effects:?}");
    }
}

fn lost(firsts: &[u64]) -> Vec<BlockRun> {
    let run = |first: &u64| BlockRun { disk: DiskIndex(0), first: BlockIndex(*first), blocks: 1 };
    firsts.iter().map(run).collect()
}

fn asked(effects: &[ReceiverEffect]) -> Vec<Vec<u64>> {
    let asked = effects.iter().filter_map(|effect| match effect {
        ReceiverEffect::Send(Message::SendAgain(runs)) => Some(runs),
        _ => None,
    });
    asked.map(|runs| runs.iter().map(|run| run.first.0).collect()).collect()
}

#[test]
fn what_is_lost_is_asked_for_behind_the_welcome_and_nothing_is_to_be_compared() {
    let (_, effects) = welcomed(VERSION, Opened { lost: lost(&[0, 5]), ..opened(4) });
    let [ReceiverEffect::Send(Message::Welcome(welcome)), asks @ ..] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(welcome.incarnation == Some(MINE) && !welcome.must_compare, "the stream goes on");
    assert_eq!(asked(asks), [[0, 5]]);
}

#[test]
fn who_does_not_know_the_words_is_not_asked_for_blocks() {
    let (mut receiver, effects) = welcomed(VERSION_MIN, Opened { lost: lost(&[5]), ..opened(4) });
    assert!(matches!(effects[..], [ReceiverEffect::Send(Message::Welcome(_))]));
    assert!(step(&mut receiver, ReceiverEvent::Lost(lost(&[3]))).is_empty());
}

#[test]
fn what_is_found_to_be_lost_in_a_stream_is_asked_for_there_and_not_too_often() {
    let mut receiver = streaming(4);
    let mut at = |seconds: u64, event| {
        let mut effects = Vec::new();
        receiver.step(Monotonic(Duration::from_secs(seconds)), event, &mut effects);
        let heard = ReceiverEvent::Received(Message::Heartbeat);
        receiver.step(Monotonic(Duration::from_secs(seconds)), heard, &mut effects);
        asked(&effects)
    };
    let nothing = Vec::<Vec<u64>>::new();
    assert_eq!(at(1, ReceiverEvent::Lost(lost(&[3]))), [[3]]);
    assert_eq!(at(2, ReceiverEvent::Lost(lost(&[3, 4]))), nothing);
    assert_eq!(at(3, ReceiverEvent::Lost(lost(&[4, 9]))), nothing);
    assert_eq!(at(10, ReceiverEvent::Tick), nothing);
    assert_eq!(at(11, ReceiverEvent::Tick), [[4, 9]], "as it is by then");
    assert_eq!(at(20, ReceiverEvent::Tick), nothing);
    assert_eq!(at(29, ReceiverEvent::Tick), nothing);
}
