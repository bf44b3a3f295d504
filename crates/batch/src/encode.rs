//! Building a batch from captured records.

use crate::crc::{BY_FRAME, of_blocks, of_run};
use crate::decode::{Batch, BatchError};
use crate::frames::{Codec, pack, packed_frame, raw_frame, repeated_frame};
use crate::layout::{
    BLOCK_BYTES, BLOCK_ENTRY_BYTES, FLAG_STEP_END, FLAG_UNDO, FRAME_ENTRY_BYTES, Form, HEADER_BYTES, MAGIC,
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
    let plain_len: usize = records.iter().map(|record| record.payload.len()).sum();
    let frame_count = plain_len.div_ceil(FRAME_BYTES);
    let tables_at = HEADER_BYTES + records.len() * RECORD_BYTES;
    let frames_at =
        tables_at + frame_count * FRAME_ENTRY_BYTES + plain_len.div_ceil(BLOCK_BYTES) * BLOCK_ENTRY_BYTES;
    // The payload, one record's behind the other's: raw frames are that, and no more is copied.
    let mut out = Vec::with_capacity(frames_at + plain_len);
    out.resize(frames_at, 0);
    records.iter().for_each(|record| out.extend_from_slice(&record.payload));
    let blocks = of_blocks(&out[frames_at..]);
    let (table, last_seq) = record_table(meta, records, &out[frames_at..], &blocks, flags);
    assert!(meta.watermark >= last_seq, "the watermark covers what is sent");

    // Frame table and block table, which stand side by side.
    let mut frame_table = Vec::with_capacity(frames_at - tables_at);
    let sums = out[frames_at..].chunks(FRAME_BYTES).zip(blocks.chunks(FRAME_BYTES / BLOCK_BYTES));
    let sums: Vec<u32> = sums.map(|(frame, blocks)| of_run(frame, blocks)).collect();
    let stored = stored_frames(&out[frames_at..], &sums, codec);
    let lines = stored.iter().zip(out[frames_at..].chunks(FRAME_BYTES)).zip(&sums);
    for ((stored, frame), &crc) in lines {
        let line = match stored {
            Stored::Plain => raw_frame(frame.len(), crc),
            Stored::Packed(packed) => packed_frame(packed, frame.len(), codec),
            Stored::Repeats(of) => repeated_frame(frame.len(), *of),
        };
        frame_table.extend_from_slice(line.as_bytes());
    }
    if !stored.iter().all(|stored| matches!(stored, Stored::Plain)) {
        out = as_stored(&out, frames_at, &stored);
    }
    for block in &blocks {
        frame_table.extend_from_slice(&block.to_le_bytes());
    }
    assert!(out.len() <= BATCH_BYTES_MAX, "a batch of {} bytes", out.len());

    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        flags: flags.into(),
        total_len: (out.len() as u32).into(),
        records: (records.len() as u32).into(),
        frames: (frame_count as u32).into(),
        plain_len: (plain_len as u32).into(),
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
    out[HEADER_BYTES..tables_at].copy_from_slice(&table);
    out[tables_at..frames_at].copy_from_slice(&frame_table);
    out.into()
}

/// How a frame's bytes are brought.
enum Stored {
    Plain,
    Packed(Vec<u8>),
    /// The first frame with the same bytes brings them.
    Repeats(usize),
}

fn stored_frames(plain: &[u8], sums: &[u32], codec: Codec) -> Vec<Stored> {
    let frame = |at: usize| &plain[at * FRAME_BYTES..plain.len().min((at + 1) * FRAME_BYTES)];
    let same = |at: usize| (0..at).find(|&before| sums[before] == sums[at] && frame(before) == frame(at));
    let store = |at: usize| match same(at) {
        Some(of) => Stored::Repeats(of),
        None => pack(frame(at), codec).map_or(Stored::Plain, Stored::Packed),
    };
    (0..sums.len()).map(store).collect()
}

/// `out`, whose frames from `frames_at` on are all plain, with its frames as they are to be brought.
fn as_stored(out: &[u8], frames_at: usize, stored: &[Stored]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(out.len());
    packed.extend_from_slice(&out[..frames_at]);
    for (frame, stored) in out[frames_at..].chunks(FRAME_BYTES).zip(stored) {
        match stored {
            Stored::Plain => packed.extend_from_slice(frame),
            Stored::Packed(bytes) => packed.extend_from_slice(bytes),
            Stored::Repeats(_) => {}
        }
    }
    packed
}

/// The record table, and the last sequence. `plain` is all payload, `blocks` the sums of its blocks.
fn record_table(
    meta: &BatchMeta,
    records: &[Record],
    plain: &[u8],
    blocks: &[u32],
    flags: u16,
) -> (Vec<u8>, WriteSeq) {
    let mut table = Vec::with_capacity(records.len() * RECORD_BYTES);
    let (mut last_seq, mut at) = (meta.prev_seq, 0);
    for record in records {
        let repeats = flags & FLAG_UNDO != 0 && record.seq == last_seq;
        assert!(record.seq > last_seq || repeats, "{:?} does not follow {last_seq:?}", record.seq);
        last_seq = record.seq;
        let len = if record.kind.changes_disk() { record.range.len } else { record.payload.len() as u64 };
        assert!(
            !record.kind.has_payload() || record.payload.len() as u64 == len,
            "payload of another length"
        );
        let payload = &plain[at..at + record.payload.len()];
        let raw = RawRecord {
            seq: record.seq.raw().into(),
            start: record.range.start.into(),
            len: u32::try_from(len).expect("a record is cut at 1 MiB, zeroes at 4 GiB").into(),
            payload_at: (at as u32).into(),
            payload_crc: match at.is_multiple_of(BLOCK_BYTES) {
                true => of_run(payload, &blocks[at / BLOCK_BYTES..]),
                false => crc32c::crc32c(payload),
            }
            .into(),
            disk: record.disk.0.into(),
            kind: record.kind as u8,
            flags: 0,
        };
        table.extend_from_slice(raw.as_bytes());
        at += payload.len();
    }
    (table, last_seq)
}

/// The batch as it follows `after`, which may lie within it: as it is, or encoded anew without what lies below.
///
/// # Errors
/// [`BatchError`] where a frame does not check.
pub fn following(batch: &Batch, after: WriteSeq) -> Result<Bytes, BatchError> {
    let header = batch.header();
    if header.prev_seq == after {
        return Ok(batch.bytes().clone());
    }
    let meta = BatchMeta {
        incarnation: header.incarnation,
        prev_seq: after,
        watermark: header.watermark,
        taken_at: header.taken_at,
    };
    Ok(encode(&meta, &batch.records_after(after)?, Codec::Lz4))
}

/// The CRC-32C of `before`'s bytes followed by a whole batch of our own making, without a pass over its
/// frames: their sums stand in its table.
pub fn crc_with_batch(before: u32, batch: &[u8]) -> u32 {
    let Ok(parsed) = Batch::parse_tables(Form::Stream, Bytes::copy_from_slice(tables_of(batch)), batch.len())
    else {
        return crc32c::crc32c_append(before, batch);
    };
    let mut crc = crc32c::crc32c_append(before, tables_of(batch));
    for frame in parsed.frames().iter().filter(|frame| !frame.repeats) {
        let stored = frame.stored_at as usize..(frame.stored_at + frame.stored_len) as usize;
        crc = match stored.len() == FRAME_BYTES {
            true => BY_FRAME.join(crc, frame.crc),
            false => crc32c::crc32c_append(crc, &batch[stored]),
        };
    }
    crc
}

fn tables_of(batch: &[u8]) -> &[u8] {
    let end = Batch::parse_header(batch, batch.len()).map_or(0, |header| Batch::tables_bytes(&header));
    &batch[..end.min(batch.len())]
}
