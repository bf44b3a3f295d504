//! The byte tables of a segment file (`docs/formats/journal.md`), sizes checked at compile time.
//!
//! ```text
//! 0      segment header, 4 KiB          4096   the same once more
//! 8192   envelope, batch, zeroes up to the next 4 KiB; and so on
//! ..     once sealed, a run: the footer (`run.rs`)
//! ```
//! All numbers are little-endian. Every checksum is seeded with the segment's random incarnation, so
//! that an old segment's bytes in the same place never check.

use crate::cover::LogKind;
use crate::page::PAGE_BYTES;
use types::{Epoch, VmId, WallTime, WriteSeq, sum_matches};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the first envelope stands.
pub(crate) const FIRST_BATCH_AT: u64 = 2 * PAGE_BYTES;
pub(crate) const ENVELOPE_BYTES: usize = 64;

const SEGMENT_MAGIC: [u8; 4] = *b"HFJS";
const ENVELOPE_MAGIC: [u8; 4] = *b"HFJB";
/// 1: the first.
const VERSION: u16 = 1;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSegmentHeader {
    magic: [u8; 4],
    version: U16,
    /// 1 redo, 2 undo.
    kind: U16,
    number: U64,
    vm: [u8; 16],
    incarnation: [u8; 16],
    created_at: I64,
    reserved: [u8; 4],
    /// CRC-32C of the fields above.
    crc: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEnvelope {
    magic: [u8; 4],
    version: U16,
    flags: U16,
    body_len: U32,
    /// The checksum in the batch's header, through which its tables and frames are bound.
    body_crc: U32,
    /// From 1 in each segment.
    batch_no: U64,
    /// What the source had been told is durable when this was written.
    acked_upto: U64,
    epoch: U64,
    received_at: I64,
    /// The `crc` of the envelope before; the seed in the first of a segment.
    chain: U32,
    reserved: [u8; 4],
    reserved2: [u8; 4],
    /// CRC-32C of the fields above, seeded.
    crc: U32,
}

const _: () = assert!(size_of::<RawSegmentHeader>() == 64);
const _: () = assert!(size_of::<RawEnvelope>() == ENVELOPE_BYTES);

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) kind: LogKind,
    pub(crate) number: u64,
    pub(crate) vm: VmId,
    pub(crate) incarnation: [u8; 16],
    pub(crate) created_at: WallTime,
}

impl SegmentHeader {
    /// One page; it is written twice.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut raw = RawSegmentHeader {
            magic: SEGMENT_MAGIC,
            version: VERSION.into(),
            kind: match self.kind {
                LogKind::Redo => 1.into(),
                LogKind::Undo => 2.into(),
            },
            number: self.number.into(),
            vm: self.vm.to_bytes(),
            incarnation: self.incarnation,
            created_at: self.created_at.0.into(),
            reserved: [0; 4],
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..60]).into();
        let mut page = raw.as_bytes().to_vec();
        page.resize(PAGE_BYTES as usize, 0);
        page
    }

    pub(crate) fn decode(page: &[u8]) -> Result<Self, &'static str> {
        let (raw, _) =
            RawSegmentHeader::read_from_prefix(page).map_err(|_| "shorter than a segment header")?;
        if raw.magic != SEGMENT_MAGIC {
            return Err("not a segment: the magic does not match");
        }
        if raw.version.get() != VERSION {
            return Err("a segment of another format version");
        }
        if !sum_matches(crc32c::crc32c(&raw.as_bytes()[..60]), raw.crc.get()) {
            return Err("segment header: checksum does not match");
        }
        Ok(Self {
            kind: match raw.kind.get() {
                1 => LogKind::Redo,
                2 => LogKind::Undo,
                _ => return Err("a segment of an unknown kind"),
            },
            number: raw.number.get(),
            vm: VmId::from_bytes(raw.vm),
            incarnation: raw.incarnation,
            created_at: WallTime(raw.created_at.get()),
        })
    }

    /// What every checksum in the segment begins with.
    pub(crate) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.incarnation)
    }
}

/// What stands before each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) body_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) batch_no: u64,
    pub(crate) acked_upto: WriteSeq,
    pub(crate) epoch: Epoch,
    pub(crate) received_at: WallTime,
    pub(crate) chain: u32,
}

impl Envelope {
    /// The bytes and their checksum, which the next envelope chains to.
    pub(crate) fn encode(&self, seed: u32) -> ([u8; ENVELOPE_BYTES], u32) {
        let mut raw = RawEnvelope {
            magic: ENVELOPE_MAGIC,
            version: VERSION.into(),
            flags: 0.into(),
            body_len: self.body_len.into(),
            body_crc: self.body_crc.into(),
            batch_no: self.batch_no.into(),
            acked_upto: self.acked_upto.raw().into(),
            epoch: self.epoch.0.into(),
            received_at: self.received_at.0.into(),
            chain: self.chain.into(),
            reserved: [0; 4],
            reserved2: [0; 4],
            crc: 0.into(),
        };
        let crc = crc32c::crc32c_append(seed, &raw.as_bytes()[..60]);
        raw.crc = crc.into();
        (raw.as_bytes().try_into().expect("64 bytes"), crc)
    }

    /// The envelope and its checksum.
    pub(crate) fn decode(bytes: &[u8; ENVELOPE_BYTES], seed: u32) -> Result<(Self, u32), &'static str> {
        let raw = RawEnvelope::read_from_bytes(bytes).map_err(|_| "shorter than an envelope")?;
        if raw.magic != ENVELOPE_MAGIC {
            return Err("no batch stands here");
        }
        if !sum_matches(crc32c::crc32c_append(seed, &bytes[..60]), raw.crc.get()) {
            return Err("envelope: checksum does not match");
        }
        if raw.version.get() != VERSION {
            return Err("a batch of another format version");
        }
        let envelope = Self {
            body_len: raw.body_len.get(),
            body_crc: raw.body_crc.get(),
            batch_no: raw.batch_no.get(),
            acked_upto: WriteSeq::from_raw(raw.acked_upto.get()),
            epoch: Epoch(raw.epoch.get()),
            received_at: WallTime(raw.received_at.get()),
            chain: raw.chain.get(),
        };
        Ok((envelope, raw.crc.get()))
    }

    /// Room an envelope with its batch takes in the file.
    pub(crate) fn stride(body_len: usize) -> u64 {
        ((ENVELOPE_BYTES + body_len) as u64).next_multiple_of(PAGE_BYTES)
    }
}
