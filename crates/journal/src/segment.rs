//! One segment file: its header, and reading the batches in it one after the other.

use crate::layout::{ENVELOPE_BYTES, Envelope, FIRST_BATCH_AT, PAGE_BYTES, SegmentHeader};
use crate::store::{Store, StoreFile};
use batch::Batch;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use types::limits::BATCH_BYTES_MAX;

/// Something in a segment that is not as it was written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("segment {number} is missing")]
    Missing { number: u64 },
    #[error("segment {number}: {what}")]
    Header { number: u64, what: &'static str },
    #[error("segment {number} at byte {at}: {what}")]
    Batch { number: u64, at: u64, what: String },
    #[error("cannot read segment {number}")]
    Io {
        number: u64,
        #[source]
        source: io::Error,
    },
}

/// An open segment file whose header checks.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn StoreFile>,
}

/// Where a scan stands: the next envelope's place and what it must chain to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) at: u64,
    pub(crate) batch_no: u64,
    pub(crate) chain: u32,
}

/// A batch found by a scan. Its frames are there only if the scan read bodies.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) at: u64,
    pub(crate) envelope: Envelope,
    pub(crate) batch: Batch,
}

/// How much of each batch a scan reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Header and tables, which have their own checksum.
    Tables,
    /// All of it, against the envelope's checksum.
    Bodies,
}

impl Segment {
    /// Makes a new segment file and its two headers; durable but for the folder.
    pub(crate) fn create(store: &dyn Store, name: &str, header: SegmentHeader) -> io::Result<Self> {
        let file = store.open(name, true)?;
        file.set_len(0)?;
        let page = header.encode();
        file.write_at(0, &page)?;
        file.write_at(PAGE_BYTES, &page)?;
        file.sync_data()?;
        Ok(Self { header, file })
    }

    /// Opens a segment file and checks that it is the one the manifest names.
    pub(crate) fn open(
        store: &dyn Store,
        name: &str,
        number: u64,
        incarnation: &str,
    ) -> Result<Self, SegmentError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SegmentError::Missing { number },
            _ => SegmentError::Io { number, source },
        };
        let file = store.open(name, false).map_err(io)?;
        let mut refused = "shorter than a segment header";
        for copy in 0..2 {
            let mut page = vec![0; PAGE_BYTES as usize];
            match file.read_at(copy * PAGE_BYTES, &mut page) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                other => other.map_err(io)?,
            }
            match SegmentHeader::decode(&page) {
                Ok(header) if header.number != number || hex(&header.incarnation) != incarnation => {
                    refused = "another segment stands in its place";
                }
                Ok(header) => return Ok(Self { header, file }),
                Err(what) => refused = what,
            }
        }
        Err(SegmentError::Header { number, what: refused })
    }

    pub(crate) fn start(&self) -> Position {
        Position { at: FIRST_BATCH_AT, batch_no: 1, chain: self.header.seed() }
    }

    /// Reads the batch at `position` and moves it on. `Ok(None)` where the file ends.
    pub(crate) fn next(&self, position: &mut Position, depth: Depth) -> Result<Option<Found>, SegmentError> {
        let at = position.at;
        let Some((envelope, crc)) = self.envelope(at)? else {
            return Ok(None);
        };
        if envelope.batch_no != position.batch_no || envelope.chain != position.chain {
            return Err(self.damaged(at, "the batch does not follow the one before it"));
        }
        let batch = self.body(at, &envelope, depth)?;
        position.at = at + Envelope::stride(envelope.body_len as usize);
        position.batch_no += 1;
        position.chain = crc;
        Ok(Some(Found { at: at + ENVELOPE_BYTES as u64, envelope, batch }))
    }

    fn envelope(&self, at: u64) -> Result<Option<(Envelope, u32)>, SegmentError> {
        let mut bytes = [0; ENVELOPE_BYTES];
        match self.file.read_at(at, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(|source| SegmentError::Io { number: self.header.number, source })?,
        }
        Envelope::decode(&bytes, self.header.seed()).map(Some).map_err(|what| self.damaged(at, what))
    }

    fn body(&self, at: u64, envelope: &Envelope, depth: Depth) -> Result<Batch, SegmentError> {
        let total = envelope.body_len as usize;
        if total > BATCH_BYTES_MAX {
            return Err(self.damaged(at, "a batch longer than any may be"));
        }
        let read = |len: usize| -> Result<Bytes, SegmentError> {
            let mut body = vec![0; len];
            self.file.read_at(at + ENVELOPE_BYTES as u64, &mut body).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged(at, "the file ends within a batch"),
                _ => SegmentError::Io { number: self.header.number, source: error },
            })?;
            Ok(body.into())
        };
        let parsed = match depth {
            Depth::Bodies => {
                let body = read(total)?;
                if crc32c::crc32c_append(self.header.seed(), &body) != envelope.body_crc {
                    return Err(self.damaged(at, "batch: checksum does not match"));
                }
                Batch::parse(body)
            }
            Depth::Tables => {
                let start = read(total.min(64 << 10))?;
                Batch::parse_header(&start, total).and_then(|header| {
                    let tables = Batch::tables_bytes(&header).min(total);
                    let start = if tables > start.len() {
                        read(tables).map_err(|_| batch::BatchError::Short)?
                    } else {
                        start
                    };
                    Batch::parse_tables(start, total)
                })
            }
        };
        parsed.map_err(|error| self.damaged(at, &error.to_string()))
    }

    /// The highest `acked_upto` among valid envelopes at or above `from`: proof that what is missing
    /// before them had been acknowledged. Looks at every page up to `limit` bytes further.
    pub(crate) fn acked_beyond(&self, from: u64, limit: u64) -> Option<types::WriteSeq> {
        (from..from.saturating_add(limit))
            .step_by(PAGE_BYTES as usize)
            .map_while(|at| match self.envelope(at) {
                Ok(None) => None,
                Ok(Some((envelope, _))) => Some(Some(envelope.acked_upto)),
                Err(_) => Some(None),
            })
            .flatten()
            .max()
    }

    fn damaged(&self, at: u64, what: &str) -> SegmentError {
        SegmentError::Batch { number: self.header.number, at, what: what.to_owned() }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
