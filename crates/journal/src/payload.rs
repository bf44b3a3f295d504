//! Reading payload out of segments: what is read is checked to be what the index meant.
//!
//! An extent names a batch by its page and a record by its sequence. The batch's tables are read first
//! (and kept in a cache), its record is looked up by sequence and place, and the bytes are checked against
//! the record's or the frame's checksum: so bit rot, a lost write that left an older batch in its place,
//! and a write that went to another place are all found here, by name, and never given to a reader.

use crate::cover::LogKind;
use crate::layout::{ENVELOPE_BYTES, Envelope, SegmentHeader};
use crate::store::StoreFile;
use batch::{Batch, Codec, Entry, FrameError};
use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::io;
use std::sync::{Arc, LazyLock};
use types::limits::{FRAME_BYTES, FRAME_CACHE_BYTES, TABLE_CACHE_BYTES};
use types::{ByteRange, DiskIndex, WriteSeq};

/// Read of a batch at first, in the hope that its tables end within.
const FIRST_READ_BYTES: usize = 16 << 10;

/// Why bytes as of a cut could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{segment} at byte {at}: {what}")]
    Damaged { segment: String, at: u64, what: String },
    #[error("cannot read {segment}")]
    Segment {
        segment: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    #[error("cannot read the replica")]
    Replica(#[source] io::Error),
    #[error("read {range:?} past the end of the disk")]
    OutOfRange { range: ByteRange },
}

/// An open segment file and the seed of its checksums.
#[derive(Debug, Clone)]
pub(crate) struct SegmentFile {
    pub(crate) name: Arc<str>,
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn StoreFile>,
}

/// Names a batch in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BatchKey {
    pub(crate) journal: u64,
    pub(crate) kind: LogKind,
    pub(crate) page: u64,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<BatchKey, Arc<Batch>> for ByBytes {
    fn weight(&self, _: &BatchKey, batch: &Arc<Batch>) -> u64 {
        (batch.entries().len() * 48 + batch.frames().len() * 20 + 256) as u64
    }
}

impl Weighter<(BatchKey, u32), Bytes> for ByBytes {
    fn weight(&self, _: &(BatchKey, u32), plain: &Bytes) -> u64 {
        plain.len() as u64 + 128
    }
}

type Tables = Cache<BatchKey, Arc<Batch>, ByBytes>;
type Frames = Cache<(BatchKey, u32), Bytes, ByBytes>;

/// Tables of batches, for all journals of the process.
static TABLES: LazyLock<Tables> = LazyLock::new(|| Cache::with_weighter(4096, TABLE_CACHE_BYTES, ByBytes));
/// Decompressed frames, for all journals of the process.
static FRAMES: LazyLock<Frames> = LazyLock::new(|| Cache::with_weighter(512, FRAME_CACHE_BYTES, ByBytes));

/// A payload wanted: the record by its sequence, the place on the disk, the place in the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) key: BatchKey,
    /// Where the batch's envelope begins in the segment file.
    pub(crate) at: u64,
    pub(crate) seq: WriteSeq,
    pub(crate) disk: DiskIndex,
    pub(crate) range: ByteRange,
    pub(crate) payload_at: u32,
}

impl SegmentFile {
    fn damaged(&self, at: u64, what: impl ToString) -> ReadError {
        ReadError::Damaged { segment: self.name.to_string(), at, what: what.to_string() }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.file.read_at(at, buf).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(at, "the file ends here"),
            _ => ReadError::Segment { segment: self.name.to_string(), source },
        })
    }

    /// Fills `buf` with the payload that is wanted, as long as its range.
    pub(crate) fn read(&self, wanted: &Wanted, buf: &mut [u8]) -> Result<(), ReadError> {
        let batch = self.tables(wanted.key, wanted.at)?;
        let entry = find_record(&batch, wanted)
            .ok_or_else(|| self.damaged(wanted.at, "another batch stands in its place"))?;
        let body_at = wanted.at + ENVELOPE_BYTES as u64;
        if let Some(stored_at) = raw_place(&batch, entry) {
            let into = (wanted.payload_at - entry.payload_at) as usize;
            return self.read_record(wanted.at, body_at + stored_at, entry, into, buf);
        }
        let mut filled = 0;
        while filled < buf.len() {
            let at = wanted.payload_at as usize + filled;
            let (number, from) = (at / FRAME_BYTES, at % FRAME_BYTES);
            let plain = self.frame(wanted, body_at, &batch, number)?;
            let count = (plain.len() - from.min(plain.len())).min(buf.len() - filled);
            if count == 0 {
                return Err(self.damaged(wanted.at, "the payload reaches past the frames"));
            }
            buf[filled..filled + count].copy_from_slice(&plain[from..from + count]);
            filled += count;
        }
        Ok(())
    }

    /// Reads a record that lies in raw frames only, and checks it as a whole.
    fn read_record(
        &self,
        batch_at: u64,
        stored_at: u64,
        entry: &Entry,
        into: usize,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let check = |bytes: &[u8]| match crc32c::crc32c(bytes) == entry.payload_crc() {
            true => Ok(()),
            false => Err(self.damaged(batch_at, format!("write {}: checksum does not match", entry.seq))),
        };
        if buf.len() == entry.payload_len as usize {
            self.read_at(stored_at, buf)?;
            return check(buf);
        }
        let mut whole = vec![0; entry.payload_len as usize];
        self.read_at(stored_at, &mut whole)?;
        check(&whole)?;
        buf.copy_from_slice(&whole[into..into + buf.len()]);
        Ok(())
    }

    /// One frame, checked and decompressed.
    fn frame(&self, wanted: &Wanted, body_at: u64, batch: &Batch, number: usize) -> Result<Bytes, ReadError> {
        let key = (wanted.key, number as u32);
        if let Some(plain) = FRAMES.get(&key) {
            return Ok(plain);
        }
        let frame = batch.frames().get(number).ok_or_else(|| {
            self.damaged(wanted.at, FrameError::OutOfRange { at: wanted.payload_at, len: 0 })
        })?;
        let mut stored = vec![0; frame.stored_len as usize];
        self.read_at(body_at + u64::from(frame.stored_at), &mut stored)?;
        let plain = batch::open_frame(number, frame, stored.into())
            .map_err(|error| self.damaged(wanted.at, error))?;
        FRAMES.insert(key, plain.clone());
        Ok(plain)
    }

    /// The tables of the batch at `at`, from the cache or the file.
    fn tables(&self, key: BatchKey, at: u64) -> Result<Arc<Batch>, ReadError> {
        if let Some(batch) = TABLES.get(&key) {
            return Ok(batch);
        }
        let len = self
            .file
            .len()
            .map_err(|source| ReadError::Segment { segment: self.name.to_string(), source })?;
        let mut head = vec![0; FIRST_READ_BYTES.min(len.saturating_sub(at) as usize)];
        self.read_at(at, &mut head)?;
        let envelope = head.first_chunk::<ENVELOPE_BYTES>().ok_or("the file ends here");
        let (envelope, _) = envelope
            .and_then(|bytes| Envelope::decode(bytes, self.header.seed()))
            .map_err(|what| self.damaged(at, what))?;
        let total = envelope.body_len as usize;
        let body = &head[ENVELOPE_BYTES..];
        let header = Batch::parse_header(body, total).map_err(|error| self.damaged(at, error))?;
        let tables = Batch::tables_bytes(&header).min(total);
        let bytes = if tables <= body.len() {
            Bytes::copy_from_slice(&body[..tables])
        } else {
            let mut bytes = vec![0; tables];
            self.read_at(at + ENVELOPE_BYTES as u64, &mut bytes)?;
            bytes.into()
        };
        let batch =
            Batch::parse_tables(key.kind.form(), bytes, total).map_err(|error| self.damaged(at, error))?;
        let batch = Arc::new(batch);
        TABLES.insert(key, batch.clone());
        Ok(batch)
    }
}

/// The record an extent was made from.
fn find_record<'a>(batch: &'a Batch, wanted: &Wanted) -> Option<&'a Entry> {
    let entries = batch.entries();
    let first = entries.partition_point(|entry| entry.seq < wanted.seq);
    entries[first..].iter().take_while(|entry| entry.seq == wanted.seq).find(|entry| {
        entry.kind.has_payload()
            && entry.kind.changes_disk()
            && entry.disk == wanted.disk
            && entry.range.start <= wanted.range.start
            && wanted.range.end() <= entry.range.end()
            && wanted.range.start - entry.range.start
                == u64::from(wanted.payload_at.wrapping_sub(entry.payload_at))
    })
}

/// Where in the batch a record's bytes lie as they are: where all its frames are raw, and it is not so
/// long that reading a frame is less.
fn raw_place(batch: &Batch, entry: &Entry) -> Option<u64> {
    let (from, to) = (entry.payload_at as usize, (entry.payload_at + entry.payload_len) as usize);
    let frames = batch.frames().get(from / FRAME_BYTES..to.div_ceil(FRAME_BYTES))?;
    let raw =
        entry.payload_len as usize <= FRAME_BYTES && frames.iter().all(|frame| frame.codec == Codec::Raw);
    raw.then(|| u64::from(frames[0].stored_at) + (from % FRAME_BYTES) as u64)
}
