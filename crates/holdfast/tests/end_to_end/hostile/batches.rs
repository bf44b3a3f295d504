//! What may be wrong within a batch: with what came before, with the VM's disks, with itself.

use super::peer::Said;
use super::words::{KINDS, Word};
use batch::{BatchMeta, Codec, Kind, Record, encode, encode_mark, encode_undo};
use bytes::Bytes;
use replication::wire::{Hello, Message};
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, Incarnation, WallTime, WriteSeq,
};

/// What follows `durable` in the stream of `hello`, with nothing wrong: one block is written.
pub(super) fn good(hello: &Hello, durable: WriteSeq) -> Message {
    let write = write(durable.next(), 0, ByteRange::new(0, 512));
    Message::Batch(encode(&meta(hello, durable, durable.next()), &[write], Codec::Raw).into())
}

fn meta(hello: &Hello, prev_seq: WriteSeq, watermark: WriteSeq) -> BatchMeta {
    BatchMeta { incarnation: hello.incarnation, prev_seq, watermark, taken_at: WallTime(1) }
}

fn write(seq: WriteSeq, disk: u16, range: ByteRange) -> Record {
    let payload = vec![5; range.len as usize].into();
    Record { seq, kind: Kind::Write, disk: DiskIndex(disk), range, payload }
}

/// Every batch that is wrong, or strange.
pub(super) fn batches(hello: &Hello, durable: WriteSeq) -> Vec<Word> {
    let next = durable.next();
    let size = hello.disks[0].size_bytes;
    let sector = ByteRange::new(0, 512);
    let usual = meta(hello, durable, next);
    let mut all: Vec<(String, Bytes)> = Vec::new();
    let mut add = |name: &str, bytes: Bytes| all.push((name.to_owned(), bytes));
    let of = |meta: &BatchMeta, records: &[Record]| encode(meta, records, Codec::Raw);

    add("nothing but a watermark", of(&usual, &[]));
    for prev in [WriteSeq::ZERO, durable.previous(), next] {
        let after = prev.next().max(next);
        add("that follows another", of(&meta(hello, prev, after), &[write(after, 0, sector)]));
    }
    let other = BatchMeta { incarnation: Incarnation::from_bytes([0xdd; 16]), ..usual };
    add("of another incarnation", of(&other, &[write(next, 0, sector)]));
    for at in [i64::MIN, -1, i64::MAX] {
        add("of another time", of(&BatchMeta { taken_at: WallTime(at), ..usual }, &[write(next, 0, sector)]));
    }
    for disk in [1, u16::MAX] {
        add("to a disk there is not", of(&usual, &[write(next, disk, sector)]));
    }
    for range in [
        ByteRange::new(size, 512),
        ByteRange::new(size - 512, 1024),
        ByteRange::new(u64::MAX - 511, 512),
        ByteRange::new(1, 511),
        ByteRange::new(0, 0),
    ] {
        add("to a range that is odd", of(&usual, &[write(next, 0, range)]));
    }
    for kind in [Kind::Zero, Kind::Discard, Kind::SyncZero] {
        // The last is as long as a record can say.
        for range in [
            ByteRange::new(0, size),
            ByteRange::new(0, size + 512),
            ByteRange::new(u64::MAX - 511, 0xffff_fe00),
        ] {
            let record = Record { seq: next, kind, disk: DiskIndex(0), range, payload: Bytes::new() };
            add("of zeroes without data", of(&usual, &[record]));
        }
    }
    for kind in [Kind::SyncBegin, Kind::SyncEnd] {
        add("of a sync nobody knows of", of(&usual, &[Record::mark(next, kind, Bytes::new())]));
    }
    for (start, len) in [(0, 0), (next.raw(), 0), (u64::MAX, 0), (durable.raw() + 100, 7)] {
        let left_out =
            Record { range: ByteRange::new(start, len), ..Record::mark(next, Kind::LeftOut, Bytes::new()) };
        add("that leaves out", of(&usual, &[left_out]));
    }
    for mark in marks(next) {
        add("with a checkpoint", of(&usual, &[Record::mark(next, Kind::Checkpoint, mark)]));
    }
    for mark in [&b""[..], &[0xff; 29], &[0xff; 30], &[0xff; 4096]] {
        let record = Record::mark(next, Kind::Checkpoint, Bytes::from_static(b"x"));
        add(
            "with a checkpoint that is none",
            of(&usual, &[Record { payload: mark.to_vec().into(), ..record }]),
        );
    }
    let undo = Record { kind: Kind::Write, ..write(next, 0, sector) };
    add("of before-images", encode_undo(&usual, std::slice::from_ref(&undo), Codec::Raw, false));
    add("of before-images that end a step", encode_undo(&usual, &[undo], Codec::Raw, true));
    broken(of(&usual, &[write(next, 0, sector)]), &mut all);
    for (name, bytes) in far(hello, durable) {
        all.push((name.to_owned(), bytes));
    }
    let word = |(name, bytes): (String, Bytes)| Word {
        name: format!("batch {name}"),
        kind: Some(KINDS[3]),
        said: Said::from(&Message::Batch(bytes.into())),
    };
    all.into_iter().map(word).collect()
}

/// Checkpoints that say of themselves what cannot be.
fn marks(next: WriteSeq) -> Vec<Bytes> {
    let usual = Checkpoint {
        id: CheckpointId(next),
        cut: next,
        kind: CheckpointKind::Automatic,
        taken_at: WallTime(1),
        members: 1,
        tag: String::new(),
    };
    let mut all = vec![
        Checkpoint { members: 0, ..usual.clone() },
        Checkpoint { members: u16::MAX, ..usual.clone() },
        Checkpoint { tag: "x".repeat(200), kind: CheckpointKind::Tagged, ..usual.clone() },
        Checkpoint { tag: "latest".into(), kind: CheckpointKind::Tagged, ..usual.clone() },
        Checkpoint { tag: "\u{1b}[2J\n".into(), ..usual.clone() },
    ];
    for seq in [WriteSeq::ZERO, next.previous(), next.next(), WriteSeq::FOREIGN_MAX, WriteSeq::MAX] {
        all.push(Checkpoint { id: CheckpointId(seq), ..usual.clone() });
        all.push(Checkpoint { cut: seq, ..usual.clone() });
    }
    all.extend([i64::MIN, -1, i64::MAX].map(|at| Checkpoint { taken_at: WallTime(at), ..usual.clone() }));
    all.iter().map(encode_mark).collect()
}

/// A whole batch, cut off, lengthened and changed.
fn broken(whole: Bytes, all: &mut Vec<(String, Bytes)>) {
    let len = whole.len();
    for end in [1, 16, 64, len / 2, len - 1] {
        all.push(("that is cut off".into(), whole.slice(..end)));
    }
    let twice = [&whole[..], &whole[..]].concat();
    all.push(("twice".into(), twice.into()));
    for at in (0..len.min(512)).step_by(37) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x40;
        all.push(("with a byte changed".into(), bytes.into()));
    }
}

/// Sequences that nothing comes after. They are said last, for a VM is done with then.
fn far(hello: &Hello, durable: WriteSeq) -> Vec<(&'static str, Bytes)> {
    let watermark = |at: WriteSeq| encode(&meta(hello, durable, at), &[], Codec::Raw);
    let far = WriteSeq::FOREIGN_MAX;
    let last = |at: WriteSeq| {
        let records = [write(at, 0, ByteRange::new(0, 512))];
        encode(&meta(hello, durable, at), &records, Codec::Raw)
    };
    vec![
        ("with a watermark too far", watermark(far.next())),
        ("with the last watermark", watermark(WriteSeq::MAX)),
        ("with a sequence too far", last(far.next())),
        ("with the last sequence of all", last(WriteSeq::MAX)),
        ("with a watermark as far as can be", watermark(far)),
        ("with a sequence as far as can be", last(far)),
    ]
}
