//! Messages survive the wire; anything else is refused by name.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use types::{
    BlockIndex, BlockRun, DiskIndex, DiskSpec, Epoch, GroupId, Incarnation, VmId, WallTime, WriteSeq,
};

fn hello() -> Message {
    Message::Hello(Box::new(Hello {
        speaks: VERSION,
        vm: VmId::from_bytes([1; 16]),
        vm_name: "web".into(),
        group: GroupId::from_bytes([2; 16]),
        group_name: "shop".into(),
        epoch: Epoch(3),
        incarnation: Incarnation::from_bytes([4; 16]),
        acked: WriteSeq::from_raw(5),
        last_seq: WriteSeq::from_raw(6),
        sent_at: WallTime(7),
        history_seconds: 8,
        journal_bytes_max: 9,
        rpo_seconds: 10,
        checkpoint_interval_seconds: 11,
        spans_hosts: true,
        disks: vec![DiskSpec { name: "vda".into(), size_bytes: 1 << 30 }],
        definition: "name = \"web\"".into(),
        artifacts: vec![ArtifactOffer { name: "kernel".into(), hash: ArtifactHash([9; 32]), size_bytes: 12 }],
    }))
}

fn run(disk: u16, first: u64, blocks: u64) -> BlockRun {
    BlockRun { disk: DiskIndex(disk), first: BlockIndex(first), blocks }
}

fn every_message() -> Vec<Message> {
    let mut messages = vec![
        hello(),
        Message::Welcome(Welcome {
            epoch: Epoch(1),
            durable: WriteSeq::from_raw(2),
            incarnation: Some(Incarnation::from_bytes([3; 16])),
            must_compare: false,
            seeded: true,
            missing: vec![ArtifactHash([1; 32])],
        }),
        Message::Batch(Bytes::from_static(b"whatever the batch room says").into()),
        Message::Ack(Ack {
            durable: WriteSeq::from_raw(1),
            watermark: WriteSeq::from_raw(2),
            applied: WriteSeq::from_raw(3),
            journal_bytes: 4,
            history_seconds: 5,
            projected_history_seconds: None,
        }),
        Message::ArtifactPart(ArtifactPart {
            hash: ArtifactHash([5; 32]),
            offset: 6,
            size_bytes: 7,
            bytes: Bytes::from_static(b"part"),
        }),
        Message::Heartbeat,
        Message::Compare(Compare {
            disk: DiskIndex(1),
            first: BlockIndex(2),
            at: WriteSeq::from_raw(3),
            hashes: vec![batch::BlockHash([4; 32]), batch::BlockHash([5; 32])],
        }),
        Message::Compared(Compared { disk: DiskIndex(1), first: BlockIndex(2), differs: 3 }),
        Message::AskClock(WallTime(-1)),
        Message::ClockAnswer(ClockAnswer { asked_at: WallTime(-1), says: WallTime(2) }),
        Message::Join(Join { group_name: "shop".into(), vms: 3 }),
        Message::Cut(CutMessage::Joined { group: GroupId::from_bytes([1; 16]) }),
        Message::Cut(CutMessage::Prepare { cut: WriteSeq::from_raw(1) }),
        Message::Cut(CutMessage::Prepared { cut: WriteSeq::from_raw(1), refused: None }),
        Message::Cut(CutMessage::Prepared {
            cut: WriteSeq::from_raw(1),
            refused: Some(CutRefusal::Passed(WriteSeq::from_raw(2))),
        }),
        Message::Cut(CutMessage::Prepared { cut: WriteSeq::from_raw(1), refused: Some(CutRefusal::Syncing) }),
        Message::Cut(CutMessage::Settle { cut: WriteSeq::from_raw(1), mark: None }),
        Message::Cut(CutMessage::Settle { cut: WriteSeq::from_raw(1), mark: Some(Bytes::from_static(b"m")) }),
        Message::Cut(CutMessage::Durable { cut: WriteSeq::from_raw(1) }),
        Message::Leave(Leave {
            vm: VmId::from_bytes([1; 16]),
            group: GroupId::from_bytes([2; 16]),
            epoch: Epoch(3),
            at: WriteSeq::from_raw(4),
        }),
        Message::Left(VmId::from_bytes([1; 16])),
        Message::SendAgain(vec![run(0, 1, 2), run(0, 3, 1), run(5, 0, 1 << 30)]),
    ];
    for why in [
        Refusal::Fenced { epoch: Epoch(4), released: false },
        Refusal::Fenced { epoch: Epoch(4), released: true },
        Refusal::JournalFull,
        Refusal::JournalFailed,
        Refusal::DisksDiffer,
        Refusal::Busy,
        Refusal::Protocol,
        Refusal::Version,
        Refusal::NotAccepted,
    ] {
        messages.push(Message::Refuse(Refuse { why, detail: "said so".into() }));
    }
    messages
}

#[test]
fn every_message_survives_the_wire() {
    let (mut writer, mut reader) = (FrameWriter::default(), FrameReader::default());
    for message in every_message() {
        let (header, body) = writer.encode(&message);
        let header = reader.header(&header).unwrap();
        assert_eq!(reader.message(&header, body.joined()).unwrap(), message);
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    for message in every_message() {
        let (header, body) = FrameWriter::default().encode(&message);
        let whole: Vec<u8> = [&header[..], &body.joined()].concat();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            let mut reader = FrameReader::default();
            let noticed = match reader.header(bad[..HEADER_BYTES].try_into().unwrap()) {
                Err(_) => true,
                Ok(header) => reader.message(&header, bad[HEADER_BYTES..].to_vec().into()).is_err(),
            };
            assert!(noticed, "byte {at} of kind {} may change unnoticed", message.kind());
        }
    }
}

#[test]
fn a_message_said_twice_or_left_out_is_refused() {
    let mut writer = FrameWriter::default();
    let (first, _) = writer.encode(&Message::Heartbeat);
    let (second, _) = writer.encode(&Message::Heartbeat);
    let mut reader = FrameReader::default();
    assert_eq!(reader.header(&second), Err(WireError::Number { expected: 1, found: 2 }));
    let header = reader.header(&first).unwrap();
    reader.message(&header, Bytes::new()).unwrap();
    assert_eq!(reader.header(&first), Err(WireError::Number { expected: 2, found: 1 }));
}

#[test]
fn a_version_from_the_future_is_named() {
    let (mut header, _) = FrameWriter::default().encode(&Message::Heartbeat);
    header[4] = 9;
    assert_eq!(FrameReader::default().header(&header), Err(WireError::Version { theirs: 9 }));
}

proptest! {
    #[test]
    fn random_bodies_never_panic(kind in 0u16..18, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode_body(kind, bytes.into());
    }
}

#[test]
fn numbers_that_no_agent_comes_to_are_no_message() {
    let far = WriteSeq::FOREIGN_MAX.next();
    let ack = Ack {
        durable: far,
        watermark: WriteSeq::ZERO,
        applied: WriteSeq::ZERO,
        journal_bytes: 0,
        history_seconds: 0,
        projected_history_seconds: None,
    };
    let refusal = Refusal::Fenced { epoch: Epoch(u64::MAX), released: true };
    let messages = [
        Message::Ack(ack),
        Message::Refuse(Refuse { why: refusal, detail: String::new() }),
        Message::Cut(CutMessage::Prepare { cut: far }),
        Message::Cut(CutMessage::Prepared { cut: far, refused: None }),
        Message::Cut(CutMessage::Prepared {
            cut: WriteSeq::ZERO,
            refused: Some(CutRefusal::Passed(WriteSeq::from_raw(u64::MAX - 2))),
        }),
    ];
    for message in messages {
        let body = message.encode_body().joined();
        assert!(Message::decode_body(message.kind(), body).is_err(), "{message:?}");
    }
}

#[test]
fn runs_of_blocks_that_no_disk_has_are_no_message() {
    let of_a_disk = |blocks| vec![run(0, 0, blocks)];
    let most = types::limits::DISK_BYTES_MAX / types::limits::BLOCK_BYTES;
    let body = |runs: Vec<BlockRun>| Message::SendAgain(runs).encode_body().joined();
    assert!(Message::decode_body(16, body(of_a_disk(most))).is_ok());
    let many = (0..=types::limits::SEND_AGAIN_RUNS_MAX as u64).map(|at| run(0, at * 2, 1)).collect();
    for runs in [
        Vec::new(),
        of_a_disk(0),
        of_a_disk(most + 1),
        vec![run(0, u64::MAX, 1)],
        vec![run(0, 1, u64::MAX)],
        vec![run(64, 0, 1)],
        vec![run(0, 5, 2), run(0, 6, 1)],
        vec![run(0, 5, 1), run(0, 2, 1)],
        vec![run(1, 0, 1), run(0, 2, 1)],
        vec![run(0, 5, 1), run(0, 5, 1)],
        many,
    ] {
        assert!(Message::decode_body(16, body(runs.clone())).is_err(), "{runs:?}");
    }
}

/// What a version that went before makes of it, and what is made of what it says.
#[test]
fn a_version_from_before_reads_all_but_what_it_does_not_know() {
    for message in every_message() {
        let (mut header, body) = FrameWriter::default().encode(&message);
        let is_known = u16::from_le_bytes([header[4], header[5]]) == 3;
        assert_eq!(is_known, !matches!(message, Message::SendAgain(_)));
        // It has zeroes where the highest version stands now.
        header[12..14].fill(0);
        header[24..28].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header), &body.joined());
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        let mut reader = FrameReader::default();
        let header = reader.header(&header).unwrap();
        match (reader.message(&header, body.joined()).unwrap(), message) {
            (Message::Hello(read), Message::Hello(said)) => {
                assert_eq!((read.speaks, said.speaks), (3, 4));
                assert_eq!(Hello { speaks: 4, ..*read }, *said);
            }
            (read, said) => assert_eq!(read, said),
        }
    }
}
