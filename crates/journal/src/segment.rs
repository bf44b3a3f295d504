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

/// Where a scan goes on behind damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onward {
    /// At the next batch.
    Next,
    /// At a later one: those between cannot be told apart.
    Further,
    /// Nothing follows that could be told apart.
    End,
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
        let (mut unread, mut is_given) = (None, false);
        for copy in 0..2 {
            let mut page = vec![0; PAGE_BYTES as usize];
            match file.read_at(copy * PAGE_BYTES, &mut page) {
                Ok(()) => is_given = true,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(error) => {
                    unread = Some(error);
                    continue;
                }
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
        match unread {
            Some(error) if !is_given && !gives_batches(&*file) => Err(io(error)),
            // A disk that gives the rest may give these never more.
            Some(_) => Err(SegmentError::Header { name, what: "neither copy of its header can be read" }),
            None => Err(SegmentError::Header { name, what: refused }),
        }
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

    /// Whether the disk gives one of the headers.
    pub(crate) fn answers(&self) -> bool {
        let mut page = vec![0; PAGE_BYTES as usize];
        (0..2).any(|copy| self.file.read_at(copy * PAGE_BYTES, &mut page).is_ok())
    }

    fn io(&self, source: io::Error) -> SegmentError {
        SegmentError::Io { name: self.name.clone(), source }
    }

    fn damaged(&self, at: u64, what: &str) -> SegmentError {
        SegmentError::Batch { name: self.name.clone(), at, what: what.to_owned() }
    }

    /// Writes what stands from `first` to `end` once more, and syncs.
    pub(crate) fn rewrite(&self, first: Option<u64>, end: u64) -> io::Result<()> {
        if let Some(start) = first {
            let len = self.file.len()?;
            let mut at = start;
            while at < end {
                let mut bytes = vec![0; (end - at).min(4 << 20) as usize];
                // The zeroes behind the last batch may not have come into the file.
                let there = len.saturating_sub(at).min(bytes.len() as u64) as usize;
                self.file.read_at(at, &mut bytes[..there])?;
                self.file.write_at(at, &bytes)?;
                at += bytes.len() as u64;
            }
        }
        self.file.sync_data()
    }

    pub(crate) fn ends_early(&self, at: u64) -> SegmentError {
        SegmentError::Batch { name: self.name.clone(), at, what: "the segment ends too early".into() }
    }
}

/// Whether the disk gives the first page behind the headers or the last one.
fn gives_batches(file: &dyn StoreFile) -> bool {
    let last = file.len().unwrap_or(0).saturating_sub(PAGE_BYTES).max(FIRST_BATCH_AT);
    let mut page = vec![0; PAGE_BYTES as usize];
    [FIRST_BATCH_AT, last].into_iter().any(|at| file.read_at(at, &mut page).is_ok())
}

/// What is to be said of a damaged batch where the scan could go on at byte `upto` only, and not with the next one.
pub(crate) fn cut_off_up_to(upto: u64) -> String {
    format!("; what stands behind it, up to byte {upto}, cannot be told apart")
}

impl SegmentError {
    /// A disk that cannot be read just now is no damage to be written down.
    pub(crate) fn io_or_damage(self) -> io::Result<String> {
        match self {
            SegmentError::Io { source, .. } => Err(source),
            other => Ok(other.to_string()),
        }
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
            .map_err(|error| segment.damaged(at, &error.to_string()))?;
        if let Some(what) = batch.stored_damage() {
            return Err(segment.damaged(at, &what));
        }
        if batch.checksum() != envelope.body_crc {
            return Err(segment.damaged(at, "another batch stands behind its envelope"));
        }
        self.position.at = at + Envelope::stride(total);
        self.position.batch_no += 1;
        self.position.chain = crc;
        Ok(Some(Found { at, envelope, batch }))
    }

    /// Bytes of the file; none where they reach past the end. What the disk does not give, though it gives the segment's
    /// header, is damaged.
    fn bytes(&mut self, at: u64, len: usize) -> Result<Option<Bytes>, SegmentError> {
        self.windows.bytes(at, len).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.segment.damaged(at, "the file ends here"),
            _ if self.segment.answers() => self.segment.damaged(at, &format!("cannot be read: {error}")),
            _ => self.segment.io(error),
        })
    }

    /// As [`Scan::bytes`]; none where they are damaged.
    fn good_bytes(&mut self, at: u64, len: usize) -> Result<Option<Bytes>, SegmentError> {
        match self.bytes(at, len) {
            Err(SegmentError::Batch { .. }) => Ok(None),
            other => other,
        }
    }

    /// The batch that did not check, where its tables do: some of its frames may be good.
    pub(crate) fn tables(&mut self) -> Result<Option<Found>, SegmentError> {
        let at = self.position.at;
        let Some((envelope, _)) = self.following_envelope()? else { return Ok(None) };
        let total = envelope.body_len as usize;
        if total > BATCH_BYTES_MAX {
            return Ok(None);
        }
        let Some(body) = self.good_bytes(at + ENVELOPE_BYTES as u64, total)? else { return Ok(None) };
        let batch = Batch::parse_as(self.segment.header.kind.form(), body).ok();
        let batch = batch.filter(|batch| batch.checksum() == envelope.body_crc);
        Ok(batch.map(|batch| Found { at, envelope, batch }))
    }

    /// Goes on behind the batch that did not check.
    ///
    /// Where its envelope is good it says where the next one stands. Otherwise that is looked for in the rest of the
    /// segment: the last envelope with the lowest number, for what an earlier life of these pages may have left lies
    /// before it.
    pub(crate) fn resume(&mut self) -> Result<Onward, SegmentError> {
        if let Some((envelope, crc)) = self.following_envelope()? {
            let at = self.position.at + Envelope::stride(envelope.body_len as usize);
            self.position = Position { at, batch_no: envelope.batch_no + 1, chain: crc };
            return Ok(Onward::Next);
        }
        let mut next: Option<Position> = None;
        for at in (self.position.at + PAGE_BYTES..self.end()).step_by(PAGE_BYTES as usize) {
            let Some((Envelope { batch_no, chain, .. }, _)) = self.envelope_at(at)? else { continue };
            if batch_no > self.position.batch_no && next.is_none_or(|next| batch_no <= next.batch_no) {
                next = Some(Position { at, batch_no, chain });
            }
        }
        let Some(next) = next else { return Ok(Onward::End) };
        let is_next = next.batch_no == self.position.batch_no + 1;
        self.position = next;
        Ok(if is_next { Onward::Next } else { Onward::Further })
    }

    /// The envelope where the scan stands, if it is the one that is due there.
    fn following_envelope(&mut self) -> Result<Option<(Envelope, u32)>, SegmentError> {
        let due = (self.position.batch_no, self.position.chain);
        let found = self.envelope_at(self.position.at)?;
        Ok(found.filter(|(envelope, _)| (envelope.batch_no, envelope.chain) == due))
    }

    /// The envelope of this segment's own life that stands at a place, with its checksum.
    fn envelope_at(&mut self, at: u64) -> Result<Option<(Envelope, u32)>, SegmentError> {
        let seed = self.segment.header.seed();
        let head = self.good_bytes(at, ENVELOPE_BYTES)?;
        Ok(head.and_then(|head| {
            Envelope::decode(head[..].try_into().expect("as many bytes as were asked for"), seed).ok()
        }))
    }

    /// The highest `acked_upto` among the valid envelopes behind the place the scan stopped at: proof that
    /// what is missing there had been acknowledged.
    pub(crate) fn acked_beyond(&mut self) -> Option<types::WriteSeq> {
        let mut highest = None;
        for at in (self.position.at..self.end()).step_by(PAGE_BYTES as usize) {
            let Ok(found) = self.envelope_at(at) else { break };
            highest = highest.max(found.map(|(envelope, _)| envelope.acked_upto));
        }
        highest
    }

    /// Where the file, or the part that is scanned, ends.
    pub(crate) fn end(&self) -> u64 {
        self.windows.end()
    }

    /// Whether an envelope of this segment's own life stands where the scan stopped.
    pub(crate) fn is_torn_here(&mut self) -> bool {
        self.envelope_at(self.position.at).is_ok_and(|found| found.is_some())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
