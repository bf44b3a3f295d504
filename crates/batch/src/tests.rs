//! What goes in comes out; what was changed on the way is refused.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, Incarnation, WallTime, WriteSeq,
};

fn meta(prev: u64, watermark: u64) -> BatchMeta {
    BatchMeta {
        incarnation: Incarnation::from_bytes([7; 16]),
        prev_seq: WriteSeq::from_raw(prev),
        watermark: WriteSeq::from_raw(watermark),
        taken_at: WallTime(5),
    }
}

fn write(seq: u64, start: u64, payload: Vec<u8>) -> Record {
    Record {
        seq: WriteSeq::from_raw(seq),
        kind: Kind::Write,
        disk: DiskIndex(1),
        range: ByteRange::new(start, payload.len() as u64),
        payload: payload.into(),
    }
}

#[test]
fn an_empty_batch_moves_the_watermark() {
    let batch = Batch::parse(encode(&meta(4, 9), &[], Codec::Zstd)).unwrap();
    assert_eq!(batch.header().last_seq, WriteSeq::from_raw(4));
    assert_eq!(batch.header().watermark, WriteSeq::from_raw(9));
    assert!(batch.entries().is_empty());
}

#[test]
fn every_changed_byte_is_noticed() {
    let records = [write(5, 512, vec![1; 700]), write(6, 4096, (0..255).cycle().take(90_000).collect())];
    let good = encode(&meta(4, 6), &records, Codec::Lz4);
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x40;
        let noticed = match Batch::parse(bad.into()) {
            Err(_) => true,
            Ok(batch) => batch.verify().is_err(),
        };
        assert!(noticed, "byte {at} may change unnoticed");
    }
}

#[test]
fn every_shorter_prefix_is_refused() {
    let good = encode(&meta(0, 1), &[write(1, 0, vec![3; 5000])], Codec::Raw);
    for len in 0..good.len() {
        assert!(Batch::parse(good.slice(..len)).is_err());
    }
}

#[test]
fn a_checkpoint_survives_its_mark() {
    let checkpoint = Checkpoint {
        id: CheckpointId(WriteSeq::from_raw(77)),
        cut: WriteSeq::from_raw(76),
        kind: CheckpointKind::Tagged,
        taken_at: WallTime(-3),
        members: 2,
        tag: "before the disaster".into(),
    };
    assert_eq!(decode_mark(&encode_mark(&checkpoint)), Ok(checkpoint));
    assert!(decode_mark(&[0; 30]).is_err());
}

fn any_record() -> impl Strategy<Value = (u64, Kind, u64, Vec<u8>)> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..2000),
        (1usize..200_000).prop_map(|len| (0..=250u8).cycle().take(len).collect::<Vec<u8>>()),
    ];
    let kind = prop_oneof![Just(Kind::Write), Just(Kind::Sync), Just(Kind::Zero), Just(Kind::SyncBegin)];
    (1u64..5, kind, 0u64..1 << 40, payload)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_goes_in_comes_out(parts in proptest::collection::vec(any_record(), 0..12), codec in 0u8..3) {
        let mut seq = 100;
        let records: Vec<Record> = parts.into_iter().map(|(step, kind, start, payload)| {
            seq += step;
            match kind {
                Kind::SyncBegin => Record::mark(WriteSeq::from_raw(seq), kind, Bytes::new()),
                _ => Record {
                    kind,
                    payload: if kind.has_payload() { payload.clone().into() } else { Bytes::new() },
                    ..write(seq, start, payload)
                },
            }
        }).collect();
        let codec = Codec::from_raw(codec).unwrap();
        let pieces = encode_in_pieces(&meta(100, seq), &records, codec);
        let bytes = pieces.joined();
        prop_assert_eq!((pieces.len(), &bytes), (bytes.len(), &encode(&meta(100, seq), &records, codec)));
        prop_assert_eq!(crate::crc_with_batch(5, &pieces), crc32c::crc32c_append(5, &bytes));
        let batch = Batch::parse(bytes).unwrap();
        batch.verify().unwrap();
        prop_assert_eq!(batch.entries().len(), records.len());
        for (at, record) in records.iter().enumerate() {
            let entry = batch.entries()[at];
            prop_assert_eq!((entry.seq, entry.kind, entry.range), (record.seq, record.kind, record.range));
            prop_assert_eq!(batch.payload(at).unwrap(), record.payload.clone());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Batch::parse(bytes.into());
    }
}

#[test]
fn frames_with_the_same_bytes_are_stored_once() {
    let one: Vec<u8> = (0..65_536u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let payload: Vec<u8> = [&one[..], &vec![7; 65_536], &one, &one].concat();
    let record = Record {
        seq: WriteSeq::from_raw(1),
        kind: Kind::Write,
        disk: DiskIndex(0),
        range: ByteRange::new(0, payload.len() as u64),
        payload: payload.clone().into(),
    };
    let meta = BatchMeta {
        incarnation: Incarnation::from_bytes([1; 16]),
        prev_seq: WriteSeq::ZERO,
        watermark: WriteSeq::from_raw(1),
        taken_at: WallTime(0),
    };
    for codec in [Codec::Raw, Codec::Lz4] {
        let bytes = encode(&meta, std::slice::from_ref(&record), codec);
        assert!(bytes.len() < 3 * 65_536, "{}", bytes.len());
        assert_eq!(crate::crc_with_batch(5, &bytes.clone().into()), crc32c::crc32c_append(5, &bytes));
        let batch = Batch::parse(bytes).unwrap();
        batch.verify().unwrap();
        assert_eq!(batch.payload(0).unwrap(), payload);
    }
}
