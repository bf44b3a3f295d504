//! One segment file: its header, and reading the batches in it one after the other.

use crate::cover::LogKind;
use crate::layout::{ENVELOPE_BYTES, Envelope, FIRST_BATCH_AT, SegmentHeader};
use crate::manifest::{SegmentInfo, segment_name};
use crate::page::PAGE_BYTES;
use crate::store::{Store, StoreFile};
use crate::windows::Windows;
use batch::Batch;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use types::limits::BATCH_BYTES_MAX;

/// Something in a segment that is not as it was written.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("{name} is missing")]
    Missing { name: String },
    #[error("{name}: {what}")]
    Header { name: String, what: &'static str },
    #[error("{name} at byte {at}: {what}")]
    Batch { name: String, at: u64, what: String },
    #[error("cannot read {name}")]
    Io {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// An open segment file whose header checks.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn StoreFile>,
    /// Whether a scan may read in a thread of its own.
    reads_ahead: bool,
}

/// Where a scan stands: the next envelope's place and what it must chain to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) at: u64,
    pub(crate) batch_no: u64,
    pub(crate) chain: u32,
}

/// A batch found by a scan; `at` is where its envelope stands.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) at: u64,
    pub(crate) envelope: Envelope,
    pub(crate) batch: Batch,
}

impl Segment {
    /// Makes a segment file and its two headers, out of the file `spare` where there is one; durable, its
    /// name too.
    ///
    /// A spare file keeps its old bytes: they were written once, so writing them again costs the file
    /// system nothing but the data, and no checksum of theirs holds under the new incarnation.
    pub(crate) fn create(store: &dyn Store, spare: Option<&str>, header: SegmentHeader) -> io::Result<Self> {
        let name = segment_name(header.kind, header.number);
        let file = store.open_direct(spare.unwrap_or(&name), true)?;
        if spare.is_none() {
            file.set_len(0)?;
        }
        let page = header.encode();
        file.write_at(0, &page)?;
        file.write_at(PAGE_BYTES, &page)?;
        file.sync_data()?;
        if let Some(spare) = spare {
            store.rename(spare, &name)?;
        }
        store.sync_folder()?;
        Ok(Self { name, header, file, reads_ahead: store.readers() > 1 })
    }

    /// Opens a segment file and checks that it is the one the manifest names.
    pub(crate) fn open(store: &dyn Store, kind: LogKind, info: &SegmentInfo) -> Result<Self, SegmentError> {
        let name = info.file_name(kind);
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => SegmentError::Missing { name: name.clone() },
            _ => SegmentError::Io { name: name.clone(), source },
        };
        let file = store.open_direct(&name, false).map_err(io)?;
        let mut refused = "shorter than a segment header";
        for copy in 0..2 {
            let mut page = vec![0; PAGE_BYTES as usize];
            match file.read_at(copy * PAGE_BYTES, &mut page) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                other => other.map_err(io)?,
            }
            match SegmentHeader::decode(&page) {
                Ok(header)
                    if header.number != info.number
                        || header.kind != kind
                        || hex(&header.incarnation) != info.incarnation =>
                {
                    refused = "another segment stands in its place";
                }
                Ok(header) => return Ok(Self { name, header, file, reads_ahead: store.readers() > 1 }),
                Err(what) => refused = what,
            }
        }
        Err(SegmentError::Header { name, what: refused })
    }

    pub(crate) fn start(&self) -> Position {
        Position { at: FIRST_BATCH_AT, batch_no: 1, chain: self.header.seed() }
    }

    /// Reads the segment from its first batch on, up to byte `end` or the end of the file.
    pub(crate) fn scan(&self, end: Option<u64>) -> Result<Scan<'_>, SegmentError> {
        let len = self.file.len().map_err(|source| self.io(source))?;
        let end = end.unwrap_or(len).min(len);
        let windows = Windows::of(self.file.clone(), end, self.reads_ahead);
        Ok(Scan { segment: self, position: self.start(), windows })
    }

    fn io(&self, source: io::Error) -> SegmentError {
        SegmentError::Io { name: self.name.clone(), source }
    }

    fn damaged(&self, at: u64, what: &str) -> SegmentError {
        SegmentError::Batch { name: self.name.clone(), at, what: what.to_owned() }
    }
}

/// A segment read from front to back.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    segment: &'a Segment,
    pub(crate) position: Position,
    windows: Windows,
}

impl Scan<'_> {
    /// The next batch, all of it checked. `Ok(None)` where the segment ends.
    pub(crate) fn next(&mut self) -> Result<Option<Found>, SegmentError> {
        let (segment, at) = (self.segment, self.position.at);
        let Some(head) = self.bytes(at, ENVELOPE_BYTES)? else { return Ok(None) };
        let head = head[..].try_into().expect("as many bytes as were asked for");
        let (envelope, crc) =
            Envelope::decode(head, segment.header.seed()).map_err(|what| segment.damaged(at, what))?;
        if envelope.batch_no != self.position.batch_no || envelope.chain != self.position.chain {
            return Err(segment.damaged(at, "the batch does not follow the one before it"));
        }
        let total = envelope.body_len as usize;
        if total > BATCH_BYTES_MAX {
            return Err(segment.damaged(at, "a batch longer than any may be"));
        }
        let body = self.bytes(at + ENVELOPE_BYTES as u64, total)?;
        let body = body.ok_or_else(|| segment.damaged(at, "the file ends within a batch"))?;
        let batch = Batch::parse_as(segment.header.kind.form(), body)
            .and_then(|batch| batch.verify_stored().map(|()| batch))
            .map_err(|error| segment.damaged(at, &error.to_string()))?;
        if batch.checksum() != envelope.body_crc {
            return Err(segment.damaged(at, "another batch stands behind its envelope"));
        }
        self.position.at = at + Envelope::stride(total);
        self.position.batch_no += 1;
        self.position.chain = crc;
        Ok(Some(Found { at, envelope, batch }))
    }

    /// Bytes of the file; none where they reach past the end.
    fn bytes(&mut self, at: u64, len: usize) -> Result<Option<Bytes>, SegmentError> {
        self.windows.bytes(at, len).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.segment.damaged(at, "the file ends here"),
            _ => self.segment.io(error),
        })
    }

    /// The highest `acked_upto` among the valid envelopes behind the place the scan stopped at: proof that
    /// what is missing there had been acknowledged.
    pub(crate) fn acked_beyond(&mut self) -> Option<types::WriteSeq> {
        let seed = self.segment.header.seed();
        let mut highest = None;
        let mut at = self.position.at;
        while let Ok(Some(head)) = self.bytes(at, ENVELOPE_BYTES) {
            let head = head[..].try_into().expect("as many bytes as were asked for");
            highest = highest.max(Envelope::decode(head, seed).ok().map(|(envelope, _)| envelope.acked_upto));
            at += PAGE_BYTES;
        }
        highest
    }

    /// Where the file, or the part that is scanned, ends.
    pub(crate) fn end(&self) -> u64 {
        self.windows.end()
    }

    /// Whether an envelope of this segment's own life stands where the scan stopped.
    pub(crate) fn is_torn_here(&mut self) -> bool {
        let seed = self.segment.header.seed();
        let head = self.bytes(self.position.at, ENVELOPE_BYTES);
        head.is_ok_and(|head| {
            head.is_some_and(|head| {
                Envelope::decode(head[..].try_into().expect("as many bytes"), seed).is_ok()
            })
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
