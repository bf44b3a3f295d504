//! Building a batch from captured records.

use crate::frames::{Codec, push_frame};
use crate::layout::{
    BLOCK_BYTES, BLOCK_ENTRY_BYTES, FLAG_STEP_END, FLAG_UNDO, FRAME_ENTRY_BYTES, HEADER_BYTES, MAGIC,
    RECORD_BYTES, RawHeader, RawRecord, VERSION,
};
use crate::record::Record;
use bytes::Bytes;
use types::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, FRAME_BYTES};
use types::{Incarnation, WallTime, WriteSeq};
use zerocopy::IntoBytes;

/// What a batch says beside its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMeta {
    pub incarnation: Incarnation,
    pub prev_seq: WriteSeq,
    pub watermark: WriteSeq,
    pub taken_at: WallTime,
}

/// Encodes `records`, which ascend strictly from above `meta.prev_seq`; none at all makes a batch that
/// only moves the watermark.
///
/// # Panics
/// If the order does not hold or the records do not fit the limits: the caller's broken invariant.
pub fn encode(meta: &BatchMeta, records: &[Record], codec: Codec) -> Bytes {
    encode_flagged(meta, records, codec, 0)
}

/// Encodes before-images, in which several records may have the sequence of the write they undo; the last
/// batch of a step says so.
///
/// # Panics
/// As [`encode`].
pub fn encode_undo(meta: &BatchMeta, records: &[Record], codec: Codec, ends_step: bool) -> Bytes {
    encode_flagged(meta, records, codec, if ends_step { FLAG_UNDO | FLAG_STEP_END } else { FLAG_UNDO })
}

fn encode_flagged(meta: &BatchMeta, records: &[Record], codec: Codec, flags: u16) -> Bytes {
    assert!(records.len() <= BATCH_RECORDS_MAX, "a batch of {} records", records.len());
    let mut plain = Vec::with_capacity(records.iter().map(|record| record.payload.len()).sum());
    let mut table = Vec::with_capacity(records.len() * RECORD_BYTES);
    let mut last_seq = meta.prev_seq;
    for record in records {
        let repeats = flags & FLAG_UNDO != 0 && record.seq == last_seq;
        assert!(record.seq > last_seq || repeats, "{:?} does not follow {last_seq:?}", record.seq);
        last_seq = record.seq;
        let len = if record.kind.changes_disk() { record.range.len } else { record.payload.len() as u64 };
        assert!(
            !record.kind.has_payload() || record.payload.len() as u64 == len,
            "payload of another length"
        );
        let raw = RawRecord {
            seq: record.seq.raw().into(),
            start: record.range.start.into(),
            len: u32::try_from(len).expect("a record is cut at 1 MiB, zeroes at 4 GiB").into(),
            payload_at: (plain.len() as u32).into(),
            payload_crc: crc32c::crc32c(&record.payload).into(),
            disk: record.disk.0.into(),
            kind: record.kind as u8,
            flags: 0,
        };
        table.extend_from_slice(raw.as_bytes());
        plain.extend_from_slice(&record.payload);
    }
    assert!(meta.watermark >= last_seq, "the watermark covers what is sent");

    let frame_count = plain.len().div_ceil(FRAME_BYTES);
    let blocks_at = HEADER_BYTES + table.len() + frame_count * FRAME_ENTRY_BYTES;
    let frames_at = blocks_at + plain.len().div_ceil(BLOCK_BYTES) * BLOCK_ENTRY_BYTES;
    // Frame table and block table, which stand side by side.
    let mut frame_table = Vec::with_capacity(frames_at - HEADER_BYTES - table.len());
    let mut out = vec![0; frames_at];
    for chunk in plain.chunks(FRAME_BYTES) {
        frame_table.extend_from_slice(push_frame(chunk, codec, &mut out).as_bytes());
    }
    for block in plain.chunks(BLOCK_BYTES) {
        frame_table.extend_from_slice(&crc32c::crc32c(block).to_le_bytes());
    }
    assert!(out.len() <= BATCH_BYTES_MAX, "a batch of {} bytes", out.len());

    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        flags: flags.into(),
        total_len: (out.len() as u32).into(),
        records: (records.len() as u32).into(),
        frames: (frame_count as u32).into(),
        plain_len: (plain.len() as u32).into(),
        prev_seq: meta.prev_seq.raw().into(),
        last_seq: last_seq.raw().into(),
        watermark: meta.watermark.raw().into(),
        incarnation: meta.incarnation.to_bytes(),
        taken_at: meta.taken_at.0.into(),
        crc: 0.into(),
        reserved: 0.into(),
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), &table);
    header.crc = crc32c::crc32c_append(crc, &frame_table).into();
    out[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    out[HEADER_BYTES..HEADER_BYTES + table.len()].copy_from_slice(&table);
    out[HEADER_BYTES + table.len()..frames_at].copy_from_slice(&frame_table);
    out.into()
}
