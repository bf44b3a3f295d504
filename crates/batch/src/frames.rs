//! Frames: 64 KiB of plain payload, compressed together where that pays.

use crate::layout::RawFrame;
use bytes::Bytes;
use types::limits::FRAME_BYTES;

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// Stored as it is.
    Raw = 0,
    /// LZ4 block format: cheap, for a LAN.
    Lz4 = 1,
    /// Zstandard level 1: denser, for a WAN.
    Zstd = 2,
}

impl Codec {
    pub(crate) fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Codec::Raw,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => return None,
        })
    }
}

/// A frame's line of the frame table, with the place of its stored bytes in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// From the first byte of the batch.
    pub stored_at: u32,
    pub stored_len: u32,
    pub plain_len: u32,
    pub crc: u32,
    pub codec: Codec,
    /// The stored bytes are those of an earlier frame, which has the same.
    pub repeats: bool,
}

/// A frame that does not check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame {frame}: checksum of the stored bytes does not match")]
    Checksum { frame: usize },
    #[error("frame {frame}: does not decompress to {plain_len} bytes")]
    Decompress { frame: usize, plain_len: u32 },
    #[error("payload {at}+{len} reaches past the frames")]
    OutOfRange { at: u32, len: u32 },
}

/// One frame's plain bytes compressed with `wanted`; none where less than a twentieth is saved.
pub(crate) fn pack(plain: &[u8], wanted: Codec) -> Option<Vec<u8>> {
    let packed = match wanted {
        Codec::Raw => None,
        Codec::Lz4 => Some(lz4_flex::block::compress(plain)),
        Codec::Zstd => zstd::bulk::compress(plain, 1).ok(),
    };
    packed.filter(|packed| packed.len() + plain.len() / 20 <= plain.len())
}

/// The line of a frame that is stored as `packed`.
pub(crate) fn packed_frame(packed: &[u8], plain_len: usize, codec: Codec) -> RawFrame {
    RawFrame {
        stored_len: (packed.len() as u32).into(),
        plain_len: (plain_len as u32).into(),
        crc: crc32c::crc32c(packed).into(),
        codec: codec as u8,
        reserved: [0; 3],
    }
}

/// The line of a frame that is stored as it is.
pub(crate) fn raw_frame(len: usize, crc: u32) -> RawFrame {
    RawFrame {
        stored_len: (len as u32).into(),
        plain_len: (len as u32).into(),
        crc: crc.into(),
        codec: Codec::Raw as u8,
        reserved: [0; 3],
    }
}

/// What the codec's byte says of a frame that repeats another.
pub(crate) const REPEAT: u8 = 3;

/// The line of a frame whose bytes are those of the frame `of`, and are not stored again.
pub(crate) fn repeated_frame(len: usize, of: usize) -> RawFrame {
    let of = u32::try_from(of).expect("a batch has some dozens of frames");
    RawFrame {
        stored_len: 0.into(),
        plain_len: (len as u32).into(),
        crc: of.into(),
        codec: REPEAT,
        reserved: [0; 3],
    }
}

/// Checks and decompresses one frame, the `at`-th of its batch.
///
/// # Errors
/// [`FrameError`] where its stored bytes do not check or do not decompress.
pub fn open_frame(at: usize, entry: &FrameEntry, stored: Bytes) -> Result<Bytes, FrameError> {
    if crc32c::crc32c(&stored) != entry.crc || stored.len() != entry.stored_len as usize {
        return Err(FrameError::Checksum { frame: at });
    }
    let plain_len = entry.plain_len;
    let plain: Bytes = match entry.codec {
        Codec::Raw => stored,
        Codec::Lz4 => lz4_flex::block::decompress(&stored, plain_len as usize)
            .map_err(|_| FrameError::Decompress { frame: at, plain_len })?
            .into(),
        Codec::Zstd => zstd::bulk::decompress(&stored, plain_len as usize)
            .map_err(|_| FrameError::Decompress { frame: at, plain_len })?
            .into(),
    };
    if plain.len() != plain_len as usize {
        return Err(FrameError::Decompress { frame: at, plain_len });
    }
    Ok(plain)
}

/// The `len` payload bytes that begin at `at` of a batch's plain payload. `fetch(start, len)` brings
/// stored bytes by their place in the batch, from memory or from a file; every frame touched is checked.
///
/// # Errors
/// What `fetch` fails with, or a [`FrameError`] converted to it.
pub fn read_payload<E: From<FrameError>>(
    frames: &[FrameEntry],
    at: u32,
    len: u32,
    mut fetch: impl FnMut(u32, u32) -> Result<Bytes, E>,
) -> Result<Bytes, E> {
    let mut out = Vec::new();
    let (mut at_now, end) = (at as usize, at as usize + len as usize);
    while at_now < end {
        let index = at_now / FRAME_BYTES;
        let entry = frames.get(index).ok_or(FrameError::OutOfRange { at, len })?;
        let plain = open_frame(index, entry, fetch(entry.stored_at, entry.stored_len)?)?;
        let from = at_now - index * FRAME_BYTES;
        let to = (end - index * FRAME_BYTES).min(plain.len());
        if from >= to {
            return Err(FrameError::OutOfRange { at, len }.into());
        }
        if from + len as usize == to && at_now == at as usize {
            return Ok(plain.slice(from..to));
        }
        out.extend_from_slice(&plain[from..to]);
        at_now += to - from;
    }
    Ok(out.into())
}
