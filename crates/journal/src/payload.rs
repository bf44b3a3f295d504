//! Reading payload out of segments: what is read is checked to be what the index meant.
//!
//! An extent names a batch by its page and a record by its sequence. The batch's tables are read first
//! (and kept in a cache), its record is looked up by sequence and place, and the bytes are checked against
//! the checksum of their frame, or of their block where the frame is stored as it is: so bit rot, a lost write that left an older batch in its place,
//! and a write that went to another place are all found here, by name, and never given to a reader.

use crate::cover::LogKind;
use crate::layout::{ENVELOPE_BYTES, Envelope, SegmentHeader};
use crate::lost::LostPiece;
use crate::page::PAGE_BYTES;
use crate::store::StoreFile;
use batch::{BLOCK_BYTES, Batch, Codec, Entry, FrameEntry};
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
    /// Nobody knows any more what it had.
    #[error(
        "writes at or below {cut} are lost with their index: {what}; open a checkpoint before them, or one after the next sync"
    )]
    Lost { cut: WriteSeq, what: String },
    /// The same of some bytes.
    #[error(
        "disk {disk} at byte {}, {} bytes: damaged in the journal as of {}{}",
        piece.range.start, piece.range.len, piece.from, up_to(piece)
    )]
    LostBytes { disk: String, piece: LostPiece },
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    #[error("cannot read the replica")]
    Replica(#[source] io::Error),
    #[error("replica of disk {disk} at byte {at}, {len} bytes: checksum does not match")]
    Rotten { disk: String, at: u64, len: u64 },
    #[error("replica of disk {disk} at byte {at}, {len} bytes: cannot be read")]
    Unread {
        disk: String,
        at: u64,
        len: u64,
        #[source]
        source: io::Error,
    },
    #[error("read {range:?} past the end of the disk")]
    OutOfRange { range: ByteRange },
}

fn up_to(piece: &LostPiece) -> String {
    piece.until.map_or(" and later".to_owned(), |until| format!(" up to what was written at {until}"))
}

impl ReadError {
    /// Whether it is for the bytes of a batch, which are not what they were or are not given by the disk.
    pub(crate) fn is_of_a_batch(&self) -> bool {
        matches!(self, ReadError::Damaged { .. } | ReadError::Segment { .. })
    }

    /// Whether what was there is gone for good, so that no later look brings it back.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::LostBytes { .. } | Self::Rotten { .. })
    }

    /// Which bytes of a replica it is for, which are not what they were or are not given by the disk.
    pub(crate) fn in_replica(&self) -> Option<ByteRange> {
        match self {
            ReadError::Rotten { at, len, .. } | ReadError::Unread { at, len, .. } => {
                Some(ByteRange::new(*at, *len))
            }
            _ => None,
        }
    }

    /// The file of a log that it is for.
    pub(crate) fn file(&self) -> Option<&str> {
        match self {
            ReadError::Damaged { segment, .. } | ReadError::Segment { segment, .. } => Some(segment),
            ReadError::Run(error) => Some(error.file()),
            _ => None,
        }
    }
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
        (batch.entries().len() * 48 + batch.frames().len() * 20 + batch.blocks().len() * 4 + 256) as u64
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

/// Forgets what was read of a journal. What is damaged on the disk would be read out of memory for some time yet, and
/// count as good when the sides are compared.
pub(crate) fn forget(journal: u64) {
    TABLES.retain(|key, _| key.journal != journal);
    FRAMES.retain(|(key, _), _| key.journal != journal);
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
        debug_assert!(entry.payload_at <= wanted.payload_at);
        let mut filled = 0;
        while filled < buf.len() {
            let at = wanted.payload_at as usize + filled;
            let (number, from) = (at / FRAME_BYTES, at % FRAME_BYTES);
            let frame = batch.frames().get(number);
            let frame =
                frame.ok_or_else(|| self.damaged(wanted.at, "the payload reaches past the frames"))?;
            let count = (frame.plain_len as usize).saturating_sub(from).min(buf.len() - filled);
            if count == 0 {
                return Err(self.damaged(wanted.at, "the payload reaches past the frames"));
            }
            let part = &mut buf[filled..filled + count];
            match frame.codec {
                Codec::Raw => {
                    let stored_at = body_at + u64::from(frame.stored_at);
                    self.read_raw(wanted.at, stored_at, &batch, (number, from), part)?;
                }
                Codec::Lz4 | Codec::Zstd => {
                    let plain = self.frame(wanted, body_at, frame, number)?;
                    part.copy_from_slice(&plain[from..from + count]);
                }
            }
            filled += count;
        }
        Ok(())
    }

    /// Reads a part of a frame that is stored as it is: whole blocks, each against its own checksum.
    fn read_raw(
        &self,
        batch_at: u64,
        stored_at: u64,
        batch: &Batch,
        (frame, from): (usize, usize),
        part: &mut [u8],
    ) -> Result<(), ReadError> {
        let plain_len = batch.frames()[frame].plain_len as usize;
        let first = from / BLOCK_BYTES * BLOCK_BYTES;
        let past = (from + part.len()).next_multiple_of(BLOCK_BYTES).min(plain_len);
        let check = |bytes: &[u8]| {
            let blocks = &batch.blocks()[(frame * FRAME_BYTES + first) / BLOCK_BYTES..];
            match bytes.chunks(BLOCK_BYTES).zip(blocks).all(|(block, crc)| crc32c::crc32c(block) == *crc) {
                true => Ok(()),
                false => Err(self.damaged(batch_at, format!("frame {frame}: checksum does not match"))),
            }
        };
        if (first, past) == (from, from + part.len()) {
            self.read_at(stored_at + first as u64, part)?;
            return check(part);
        }
        let mut blocks = vec![0; past - first];
        self.read_at(stored_at + first as u64, &mut blocks)?;
        check(&blocks)?;
        part.copy_from_slice(&blocks[from - first..from - first + part.len()]);
        Ok(())
    }

    /// One frame, checked and decompressed.
    fn frame(
        &self,
        wanted: &Wanted,
        body_at: u64,
        frame: &FrameEntry,
        number: usize,
    ) -> Result<Bytes, ReadError> {
        let key = (wanted.key, number as u32);
        if let Some(plain) = FRAMES.get(&key) {
            return Ok(plain);
        }
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
        if let Err(error) = self.read_at(at, &mut head) {
            if !matches!(error, ReadError::Segment { .. }) {
                return Err(error);
            }
            // It may be a sector behind the tables, of another batch even.
            head.truncate(PAGE_BYTES as usize);
            self.read_at(at, &mut head)?;
        }
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
        if batch.checksum() != envelope.body_crc {
            return Err(self.damaged(at, "another batch stands behind its envelope"));
        }
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
