//! The byte tables of a batch, as structs whose sizes are checked at compile time.
//!
//! ```text
//! 0      header        80 bytes
//! 80     record table  32 bytes each
//! ..     frame table   16 bytes each
//! ..     block table   4 bytes for each 4096 bytes of plain payload
//! ..     frames        as the frame table says, one behind the other, nothing between or behind
//! ```
//! All numbers are little-endian. `docs/formats/batch.md` is the same in words.

use types::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, FRAME_BYTES};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const MAGIC: [u8; 4] = *b"HFB2";
/// 2: the block table. 1: the first.
pub(crate) const VERSION: u16 = 2;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 80;
pub(crate) const RECORD_BYTES: usize = 32;
pub(crate) const FRAME_ENTRY_BYTES: usize = 16;
/// Plain payload that has a checksum of its own where its frame is stored raw.
pub const BLOCK_BYTES: usize = 4096;
pub(crate) const BLOCK_ENTRY_BYTES: usize = 4;
/// The batch holds before-images: its sequences may repeat. Never on the wire.
pub(crate) const FLAG_UNDO: u16 = 1;
/// The last batch of a step of before-images.
pub(crate) const FLAG_STEP_END: u16 = 2;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: [u8; 4],
    pub(crate) version: U16,
    pub(crate) flags: U16,
    /// Of the whole batch, header included.
    pub(crate) total_len: U32,
    pub(crate) records: U32,
    pub(crate) frames: U32,
    /// All payload, one record's behind the other's, before compression.
    pub(crate) plain_len: U32,
    pub(crate) prev_seq: U64,
    pub(crate) last_seq: U64,
    pub(crate) watermark: U64,
    pub(crate) incarnation: [u8; 16],
    pub(crate) taken_at: I64,
    /// CRC-32C of the header with this field zero, the record, frame and block tables.
    pub(crate) crc: U32,
    pub(crate) reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawRecord {
    pub(crate) seq: U64,
    pub(crate) start: U64,
    pub(crate) len: U32,
    /// Where the payload begins in the plain payload of the batch.
    pub(crate) payload_at: U32,
    /// CRC-32C of the plain payload.
    pub(crate) payload_crc: U32,
    pub(crate) disk: U16,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawFrame {
    pub(crate) stored_len: U32,
    pub(crate) plain_len: U32,
    /// CRC-32C of the stored bytes; the number of the repeated frame where the codec says so.
    pub(crate) crc: U32,
    pub(crate) codec: u8,
    pub(crate) reserved: [u8; 3],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);
const _: () = assert!(size_of::<RawFrame>() == FRAME_ENTRY_BYTES);
const _: () = assert!(
    HEADER_BYTES
        + BATCH_RECORDS_MAX * RECORD_BYTES
        + (BATCH_BYTES_MAX / FRAME_BYTES) * FRAME_ENTRY_BYTES
        + (BATCH_BYTES_MAX / BLOCK_BYTES) * BLOCK_ENTRY_BYTES
        < BATCH_BYTES_MAX / 2
);

/// The fixed part of a batch, read but for its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub total_len: usize,
    pub records: usize,
    pub frames: usize,
    pub plain_len: usize,
    /// The last sequence of the batch before, in the same stream.
    pub prev_seq: types::WriteSeq,
    /// The last sequence of this one; `prev_seq` where it has no records.
    pub last_seq: types::WriteSeq,
    /// Every write of the VM at or below it is in this batch or one before.
    pub watermark: types::WriteSeq,
    pub incarnation: types::Incarnation,
    /// The source's clock when the batch was closed, as a label.
    pub taken_at: types::WallTime,
    /// The last batch of a step of before-images; see [`Form::Undo`].
    pub ends_step: bool,
}

/// What a batch is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Writes of a stream: each sequence once, ascending.
    Stream,
    /// Before-images, in a journal only: several records may have the sequence of the one write that
    /// they undo.
    Undo,
}

/// The length in bytes of the batch that begins with `bytes`, from its first twelve bytes; `None` where
/// they are not the beginning of a batch this version can read.
pub fn peek_length(bytes: &[u8]) -> Option<usize> {
    let magic = bytes.get(..4)?;
    let version = u16::from_le_bytes(bytes.get(4..6)?.try_into().ok()?);
    let total = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize;
    (magic == MAGIC && version == VERSION && (HEADER_BYTES..=BATCH_BYTES_MAX).contains(&total))
        .then_some(total)
}
