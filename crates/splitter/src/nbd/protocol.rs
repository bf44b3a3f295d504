//! Numbers of the NBD protocol, reading them from bytes, and what every handshake begins with.

use std::io::{self, Read, Write};

pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags: fixed newstyle, no zeroes.
pub(super) const HANDSHAKE_FLAGS: u16 = 0b11;
pub(super) const CLIENT_NO_ZEROES: u32 = 0b10;

pub(super) mod option {
    pub(in crate::nbd) const EXPORT_NAME: u32 = 1;
    pub(in crate::nbd) const ABORT: u32 = 2;
    pub(in crate::nbd) const LIST: u32 = 3;
    pub(in crate::nbd) const STARTTLS: u32 = 5;
    pub(in crate::nbd) const INFO: u32 = 6;
    pub(in crate::nbd) const GO: u32 = 7;
    pub(in crate::nbd) const STRUCTURED_REPLY: u32 = 8;
    pub(in crate::nbd) const LIST_META_CONTEXT: u32 = 9;
    pub(in crate::nbd) const SET_META_CONTEXT: u32 = 10;
}

pub(super) mod reply {
    pub(in crate::nbd) const ACK: u32 = 1;
    pub(in crate::nbd) const SERVER: u32 = 2;
    pub(in crate::nbd) const INFO: u32 = 3;
    pub(in crate::nbd) const META_CONTEXT: u32 = 4;
    pub(in crate::nbd) const ERR_UNSUP: u32 = 0x8000_0001;
    pub(in crate::nbd) const ERR_POLICY: u32 = 0x8000_0002;
    pub(in crate::nbd) const ERR_INVALID: u32 = 0x8000_0003;
    pub(in crate::nbd) const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub(in crate::nbd) const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub(in crate::nbd) const ERR_TOO_BIG: u32 = 0x8000_0009;
}

pub(super) mod info {
    pub(in crate::nbd) const EXPORT: u16 = 0;
    pub(in crate::nbd) const NAME: u16 = 1;
    pub(in crate::nbd) const DESCRIPTION: u16 = 2;
    pub(in crate::nbd) const BLOCK_SIZE: u16 = 3;
}

pub(super) mod command {
    pub(in crate::nbd) const READ: u16 = 0;
    pub(in crate::nbd) const WRITE: u16 = 1;
    pub(in crate::nbd) const DISCONNECT: u16 = 2;
    pub(in crate::nbd) const FLUSH: u16 = 3;
    pub(in crate::nbd) const TRIM: u16 = 4;
    pub(in crate::nbd) const CACHE: u16 = 5;
    pub(in crate::nbd) const WRITE_ZEROES: u16 = 6;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 7;
}

pub(super) mod flag {
    pub(in crate::nbd) const FUA: u16 = 1;
    pub(in crate::nbd) const NO_HOLE: u16 = 1 << 1;
    pub(in crate::nbd) const DF: u16 = 1 << 2;
    pub(in crate::nbd) const REQ_ONE: u16 = 1 << 3;
    pub(in crate::nbd) const FAST_ZERO: u16 = 1 << 4;
}

pub(super) mod transmission {
    pub(in crate::nbd) const HAS_FLAGS: u16 = 1;
    pub(in crate::nbd) const READ_ONLY: u16 = 1 << 1;
    pub(in crate::nbd) const SEND_FLUSH: u16 = 1 << 2;
    pub(in crate::nbd) const SEND_FUA: u16 = 1 << 3;
    pub(in crate::nbd) const SEND_TRIM: u16 = 1 << 5;
    pub(in crate::nbd) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in crate::nbd) const SEND_DF: u16 = 1 << 7;
    pub(in crate::nbd) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(in crate::nbd) const SEND_CACHE: u16 = 1 << 10;
    pub(in crate::nbd) const SEND_FAST_ZERO: u16 = 1 << 11;
}

pub(super) mod chunk {
    pub(in crate::nbd) const DONE: u16 = 1;
    pub(in crate::nbd) const NONE: u16 = 0;
    pub(in crate::nbd) const OFFSET_DATA: u16 = 1;
    pub(in crate::nbd) const OFFSET_HOLE: u16 = 2;
    pub(in crate::nbd) const BLOCK_STATUS: u16 = 5;
    pub(in crate::nbd) const IS_ERROR: u16 = 0x8000;
    pub(in crate::nbd) const ERROR: u16 = 0x8001;
}

pub(super) mod errno {
    pub(in crate::nbd) const EPERM: u32 = 1;
    pub(in crate::nbd) const EIO: u32 = 5;
    pub(in crate::nbd) const EINVAL: u32 = 22;
    pub(in crate::nbd) const ENOSPC: u32 = 28;
    pub(in crate::nbd) const EOVERFLOW: u32 = 75;
    pub(in crate::nbd) const ENOTSUP: u32 = 95;
}

/// State flags of `base:allocation`: a hole that reads as zeroes.
pub(super) const STATE_HOLE_ZERO: u32 = 0b11;
/// State flag of `holdfast:unsent`: the recovery side may not have it yet.
pub(super) const STATE_UNSENT: u32 = 1;

/// What block status tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Allocation,
    /// Blocks of a protected disk that are not yet at the recovery side.
    Unsent,
}

impl Context {
    pub(super) const ALL: [Context; 2] = [Context::Allocation, Context::Unsent];

    pub(super) fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Unsent => "holdfast:unsent",
        }
    }

    pub(super) fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::Unsent => 2,
        }
    }
}

/// Greets a client, and reads its flags.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> io::Result<u32> {
    stream.write_all(&hello())?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    client_flags(flags)
}

/// What a server says first.
pub(super) fn hello() -> [u8; 18] {
    let mut hello = [0; 18];
    hello[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    hello[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello[16..].copy_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
    hello
}

/// The client's flags, if it has none that we do not know.
pub(super) fn client_flags(bytes: [u8; 4]) -> io::Result<u32> {
    let flags = u32::from_be_bytes(bytes);
    if flags & !u32::from(HANDSHAKE_FLAGS) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown client flags"));
    }
    Ok(flags)
}

/// Magic, option, length.
pub(super) const OPTION_HEAD_BYTES: usize = 16;

/// The next option and the length of its data, which follows.
pub(super) fn read_option_head(stream: &mut impl Read) -> io::Result<(u32, u32)> {
    let mut head = [0; OPTION_HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let mut fields = Fields(&head);
    let magic = fields.u64();
    let (option, len) = (fields.u32().expect("sixteen bytes"), fields.u32().expect("sixteen bytes"));
    if magic != Some(OPTION_MAGIC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD option"));
    }
    Ok((option, len))
}

/// Answers an option.
pub(super) fn write_reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut out = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    stream.write_all(&out)
}

/// Reads big-endian numbers from the front of a slice; `None` where it ends.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_be_bytes(b.try_into().expect("two bytes")))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|b| u32::from_be_bytes(b.try_into().expect("four bytes")))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes(8).map(|b| u64::from_be_bytes(b.try_into().expect("eight bytes")))
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    /// A text with its 32-bit length in front.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        self.bytes(len)
    }
}
