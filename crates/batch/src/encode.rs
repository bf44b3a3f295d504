//! Building a batch from captured records.

use crate::crc::{join, of_run};
use crate::decode::{Batch, BatchError};
use crate::frames::{Codec, pack, packed_frame, raw_frame, repeated_frame};
use crate::layout::{
    BLOCK_BYTES, BLOCK_ENTRY_BYTES, FLAG_STEP_END, FLAG_UNDO, FRAME_ENTRY_BYTES, Form, HEADER_BYTES, MAGIC,
    RECORD_BYTES, RawHeader, RawRecord, VERSION,
};
use crate::pieces::{Gatherer, Pieces};
use crate::plain::Plain;
use crate::record::Record;
use bytes::Bytes;
use std::ops::Range;
use types::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
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
    encode_flagged(meta, records, codec, 0).joined()
}

/// As [`encode`], with payload that is stored as it is left where it lies. The tables are in the first piece.
///
/// # Panics
/// As [`encode`].
pub fn encode_in_pieces(meta: &BatchMeta, records: &[Record], codec: Codec) -> Pieces {
    encode_flagged(meta, records, codec, 0)
}

/// Encodes before-images, in which several records may have the sequence of the write they undo; the last
/// batch of a step says so.
///
/// # Panics
/// As [`encode`].
pub fn encode_undo(meta: &BatchMeta, records: &[Record], codec: Codec, ends_step: bool) -> Bytes {
    let flags = if ends_step { FLAG_UNDO | FLAG_STEP_END } else { FLAG_UNDO };
    encode_flagged(meta, records, codec, flags).joined()
}

fn encode_flagged(meta: &BatchMeta, records: &[Record], codec: Codec, flags: u16) -> Pieces {
    assert!(records.len() <= BATCH_RECORDS_MAX, "a batch of {} records", records.len());
    let plain = Plain::of(records);
    let blocks = plain.block_sums();
    let (record_table, last_seq) = record_table(meta, records, &blocks, flags);
    assert!(meta.watermark >= last_seq, "the watermark covers what is sent");
    let sums = plain.frame_sums(&blocks);
    let stored = stored_frames(&plain, &sums, codec);
    let tables = [record_table, frame_and_block_tables(&plain, &stored, &sums, &blocks, codec)].concat();
    let frames_len: usize = plain.frames().zip(&stored).map(|(frame, stored)| stored.len(&frame)).sum();
    let total_len = HEADER_BYTES + tables.len() + frames_len;
    assert!(total_len <= BATCH_BYTES_MAX, "a batch of {total_len} bytes");

    let mut header = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        flags: flags.into(),
        total_len: (total_len as u32).into(),
        records: (records.len() as u32).into(),
        frames: (stored.len() as u32).into(),
        plain_len: (plain.len() as u32).into(),
        prev_seq: meta.prev_seq.raw().into(),
        last_seq: last_seq.raw().into(),
        watermark: meta.watermark.raw().into(),
        incarnation: meta.incarnation.to_bytes(),
        taken_at: meta.taken_at.0.into(),
        crc: 0.into(),
        reserved: 0.into(),
    };
    header.crc = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), &tables).into();
    let mut gathered = Gatherer::default();
    gathered.push([header.as_bytes(), &tables].concat().into());
    for (frame, stored) in plain.frames().zip(stored) {
        match stored {
            Stored::Plain => plain.gather(frame, &mut gathered),
            Stored::Packed(packed) => gathered.push(packed.into()),
            Stored::Repeats(_) => {}
        }
    }
    gathered.finish()
}

/// How a frame's bytes are brought.
enum Stored {
    Plain,
    Packed(Vec<u8>),
    /// The first frame with the same bytes brings them.
    Repeats(usize),
}

impl Stored {
    /// Bytes of it in the batch.
    fn len(&self, frame: &Range<usize>) -> usize {
        match self {
            Stored::Plain => frame.len(),
            Stored::Packed(packed) => packed.len(),
            Stored::Repeats(_) => 0,
        }
    }
}

fn stored_frames(plain: &Plain<'_>, sums: &[u32], codec: Codec) -> Vec<Stored> {
    let frames: Vec<Range<usize>> = plain.frames().collect();
    let bytes = |at: usize| plain.bytes(frames[at].clone());
    let same = |at: usize| (0..at).find(|&before| sums[before] == sums[at] && bytes(before) == bytes(at));
    let store = |at: usize| match (same(at), codec) {
        (Some(of), _) => Stored::Repeats(of),
        (None, Codec::Raw) => Stored::Plain,
        (None, _) => pack(&bytes(at), codec).map_or(Stored::Plain, Stored::Packed),
    };
    (0..frames.len()).map(store).collect()
}

/// Frame table and block table, which stand side by side.
fn frame_and_block_tables(
    plain: &Plain<'_>,
    stored: &[Stored],
    sums: &[u32],
    blocks: &[u32],
    codec: Codec,
) -> Vec<u8> {
    let mut table = Vec::with_capacity(stored.len() * FRAME_ENTRY_BYTES + blocks.len() * BLOCK_ENTRY_BYTES);
    for ((stored, frame), &crc) in stored.iter().zip(plain.frames()).zip(sums) {
        let line = match stored {
            Stored::Plain => raw_frame(frame.len(), crc),
            Stored::Packed(packed) => packed_frame(packed, frame.len(), codec),
            Stored::Repeats(of) => repeated_frame(frame.len(), *of),
        };
        table.extend_from_slice(line.as_bytes());
    }
    blocks.iter().for_each(|block| table.extend_from_slice(&block.to_le_bytes()));
    table
}

/// The record table, and the last sequence. `blocks` are the sums of the payload's blocks.
fn record_table(meta: &BatchMeta, records: &[Record], blocks: &[u32], flags: u16) -> (Vec<u8>, WriteSeq) {
    let mut table = Vec::with_capacity(records.len() * RECORD_BYTES);
    let (mut last_seq, mut at) = (meta.prev_seq, 0_usize);
    for record in records {
        let repeats = flags & FLAG_UNDO != 0 && record.seq == last_seq;
        assert!(record.seq > last_seq || repeats, "{:?} does not follow {last_seq:?}", record.seq);
        last_seq = record.seq;
        let len = if record.kind.changes_disk() { record.range.len } else { record.payload.len() as u64 };
        assert!(
            !record.kind.has_payload() || record.payload.len() as u64 == len,
            "payload of another length"
        );
        let payload = &record.payload;
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
pub fn following(batch: &Batch, after: WriteSeq) -> Result<Pieces, BatchError> {
    let header = batch.header();
    if header.prev_seq == after {
        return Ok(batch.bytes().clone().into());
    }
    let meta = BatchMeta {
        incarnation: header.incarnation,
        prev_seq: after,
        watermark: header.watermark,
        taken_at: header.taken_at,
    };
    Ok(encode_in_pieces(&meta, &batch.records_after(after)?, Codec::Lz4))
}

/// The CRC-32C of `before`'s bytes followed by a whole batch of our own making, its tables in one piece, without a pass
/// over its frames: their sums stand in its table.
pub fn crc_with_batch(before: u32, batch: &Pieces) -> u32 {
    let first = batch.iter().next().cloned().unwrap_or_default();
    let tables = Batch::parse_header(&first, batch.len()).map_or(0, |header| Batch::tables_bytes(&header));
    let tables = first.slice(..tables.min(first.len()));
    let Ok(parsed) = Batch::parse_tables(Form::Stream, tables.clone(), batch.len()) else {
        return batch.iter().fold(before, |crc, piece| crc32c::crc32c_append(crc, piece));
    };
    let frames = parsed.frames().iter().filter(|frame| !frame.repeats);
    let before = crc32c::crc32c_append(before, &tables);
    frames.fold(before, |crc, frame| join(crc, frame.crc, frame.stored_len as usize))
}
