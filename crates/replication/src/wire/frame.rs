//! The header of a message, and the count of messages on a connection.
//!
//! ```text
//! 0   [4]  magic "HFW1"      4   u16  version     6   u16  kind (zero is invalid)
//! 8   u32  body length       12  u16  in a Hello: the highest version its sender speaks; else zero
//! 14  u16  reserved          16  u64  number on this connection, from 1
//! 24  u32  CRC-32C of the header with this field zero, and of the body
//! 28  u32  reserved          32  ..   body
//! ```

use super::message::Message;
use batch::Pieces;
use bytes::Bytes;
use types::limits::MESSAGE_BYTES_MAX;

const MAGIC: [u8; 4] = *b"HFW1";
/// The protocol this program speaks. 4: some blocks may be asked for again. 3: a journal that has lost writes is told from a
/// new one. 2: blocks are compared by hash, a replica may be seeded. 1: the first.
pub const VERSION: u16 = 4;
/// The lowest it speaks. A message has the version it came with, and is said to whoever speaks that.
pub const VERSION_MIN: u16 = 3;
/// Bytes of a message's header.
pub const HEADER_BYTES: usize = 32;

/// Why bytes are not the next message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a Holdfast stream: the magic does not match")]
    Magic,
    #[error("protocol version {theirs}, this agent speaks {VERSION_MIN} to {VERSION}")]
    Version { theirs: u16 },
    #[error("message of {len} bytes, the limit is {MESSAGE_BYTES_MAX}")]
    Oversized { len: u32 },
    #[error("message number {found} where {expected} was due")]
    Number { expected: u64, found: u64 },
    #[error("message {number}: checksum does not match")]
    Checksum { number: u64 },
    #[error("unknown message kind {kind}")]
    Kind { kind: u16 },
    #[error("message kind {kind}: {what}")]
    Body { kind: u16, what: &'static str },
}

/// A header that checks, waiting for its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u16,
    number: u64,
    crc: u32,
    partial_crc: u32,
    speaks: u16,
    /// How many bytes follow.
    pub body_len: usize,
}

/// Numbers and encodes outgoing messages.
#[derive(Debug, Default)]
pub struct FrameWriter {
    sent: u64,
}

impl FrameWriter {
    /// Header and body of the next message, to be written one behind the other.
    ///
    /// # Panics
    /// If the message is over the limit: the caller's broken invariant.
    pub fn encode(&mut self, message: &Message) -> ([u8; HEADER_BYTES], Pieces) {
        let body = message.encode_body();
        assert!(body.len() + HEADER_BYTES <= MESSAGE_BYTES_MAX, "a message of {} bytes", body.len());
        self.sent += 1;
        let mut header = [0u8; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&message.version().to_le_bytes());
        header[6..8].copy_from_slice(&message.kind().to_le_bytes());
        header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        if let Message::Hello(hello) = message {
            header[12..14].copy_from_slice(&hello.speaks.to_le_bytes());
        }
        header[16..24].copy_from_slice(&self.sent.to_le_bytes());
        let crc = match message {
            Message::Batch(_) => batch::crc_with_batch(crc32c::crc32c(&header), &body),
            _ => body.iter().fold(crc32c::crc32c(&header), |crc, piece| crc32c::crc32c_append(crc, piece)),
        };
        header[24..28].copy_from_slice(&crc.to_le_bytes());
        (header, body)
    }
}

/// Checks incoming messages and their order.
#[derive(Debug, Default)]
pub struct FrameReader {
    received: u64,
}

impl FrameReader {
    /// Reads a header; the length of the body it announces is within the limit.
    ///
    /// # Errors
    /// [`WireError`]; after one the connection cannot be read further.
    pub fn header(&self, bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if !(VERSION_MIN..=VERSION).contains(&u16_at(4)) {
            return Err(WireError::Version { theirs: u16_at(4) });
        }
        let len = u32_at(8);
        if len as usize + HEADER_BYTES > MESSAGE_BYTES_MAX {
            return Err(WireError::Oversized { len });
        }
        let number = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        let expected = self.received + 1;
        if number != expected {
            return Err(WireError::Number { expected, found: number });
        }
        let mut plain = *bytes;
        plain[24..28].fill(0);
        Ok(Header {
            kind: u16_at(6),
            number,
            crc: u32_at(24),
            partial_crc: crc32c::crc32c(&plain),
            speaks: u16_at(12),
            body_len: len as usize,
        })
    }

    /// Reads the body that followed `header`.
    ///
    /// # Errors
    /// [`WireError`]; after one the connection cannot be read further.
    pub fn message(&mut self, header: &Header, body: Bytes) -> Result<Message, WireError> {
        if crc32c::crc32c_append(header.partial_crc, &body) != header.crc || body.len() != header.body_len {
            return Err(WireError::Checksum { number: header.number });
        }
        let mut message = Message::decode_body(header.kind, body)?;
        if let Message::Hello(hello) = &mut message {
            hello.speaks = header.speaks.max(VERSION_MIN);
        }
        self.received = header.number;
        Ok(message)
    }
}
