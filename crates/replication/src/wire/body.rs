//! Reading and writing the fields of a body: fixed little-endian numbers, and texts and lists with
//! their length in front, each against its limit.

use bytes::Bytes;
use types::{Epoch, WriteSeq};

/// Writes fields one behind the other.
#[derive(Debug, Default)]
pub(super) struct BodyWriter(Vec<u8>);

impl BodyWriter {
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.u32(value.len() as u32).bytes(value.as_bytes())
    }

    pub(super) fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }
}

/// Reads what a [`BodyWriter`] wrote; every read is bounded.
pub(super) struct BodyReader {
    rest: Bytes,
}

impl BodyReader {
    pub(super) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        if self.rest.len() < N {
            return Err("ends within a field");
        }
        Ok(self.rest.split_to(N)[..].try_into().expect("split to N bytes"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, &'static str> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    /// A sequence that a counter may be lifted to.
    pub(super) fn seq(&mut self) -> Result<WriteSeq, &'static str> {
        let seq = WriteSeq::from_raw(self.u64()?);
        if seq <= WriteSeq::FOREIGN_MAX { Ok(seq) } else { Err("a sequence that no agent comes to") }
    }

    /// An epoch that more can be minted above.
    pub(super) fn epoch(&mut self) -> Result<Epoch, &'static str> {
        let epoch = Epoch(self.u64()?);
        if epoch <= Epoch::FOREIGN_MAX { Ok(epoch) } else { Err("an epoch that no group comes to") }
    }

    pub(super) fn text(&mut self, max: usize) -> Result<String, &'static str> {
        let len = self.u32()? as usize;
        if len > max {
            return Err("a text is longer than its limit");
        }
        if self.rest.len() < len {
            return Err("ends within a text");
        }
        String::from_utf8(self.rest.split_to(len).to_vec()).map_err(|_| "a text is not UTF-8")
    }

    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn end(&self) -> Result<(), &'static str> {
        if self.rest.is_empty() { Ok(()) } else { Err("has bytes behind its last field") }
    }
}
