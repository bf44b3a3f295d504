//! Reading a batch that came over a wire or from a file: nothing in it is believed before it checks.

use crate::frames::{Codec, FrameEntry, FrameError, REPEAT, open_frame, read_payload};
use crate::layout::{
    BLOCK_BYTES, BLOCK_ENTRY_BYTES, FLAG_STEP_END, FLAG_UNDO, FRAME_ENTRY_BYTES, Form, HEADER_BYTES, Header,
    MAGIC, RECORD_BYTES, RawFrame, RawHeader, RawRecord, VERSION,
};
use crate::record::{Kind, Record};
use bytes::Bytes;
use types::limits::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, DISK_BYTES_MAX, DISKS_MAX, FRAME_BYTES, RECORD_BYTES_MAX,
};
use types::{ByteRange, DiskIndex, Incarnation, WallTime, WriteSeq, sum_matches};
use zerocopy::{FromBytes, IntoBytes};

/// Why bytes are not a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("shorter than a batch header")]
    Short,
    #[error("not a batch: the magic does not match")]
    Magic,
    #[error("batch format version {found}, this program reads {VERSION}")]
    Version { found: u16 },
    #[error("batch header: {field} is {value}")]
    Field { field: &'static str, value: u64 },
    #[error("batch header or tables: checksum does not match")]
    Checksum,
    #[error("record {at}: {what}")]
    Record { at: usize, what: &'static str },
    #[error("frame {at}: {what}")]
    Frame { at: usize, what: &'static str },
    #[error("record {at}: checksum of the payload does not match")]
    Payload { at: usize },
    #[error(transparent)]
    Damaged(#[from] FrameError),
}

/// One line of the record table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub seq: WriteSeq,
    pub kind: Kind,
    pub disk: DiskIndex,
    /// The bytes of the disk it changes; empty for marks.
    pub range: ByteRange,
    pub payload_at: u32,
    pub payload_len: u32,
    payload_crc: u32,
}

impl Entry {
    /// CRC-32C of the plain payload.
    pub fn payload_crc(&self) -> u32 {
        self.payload_crc
    }
}

/// A batch whose header and tables check. Frames are checked when they are opened, or all at once by
/// [`Batch::verify`].
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Bytes,
    header: Header,
    entries: Vec<Entry>,
    frames: Vec<FrameEntry>,
    blocks: Vec<u32>,
    checksum: u32,
}

impl Batch {
    /// Reads header and tables of `bytes`, which are exactly one batch.
    ///
    /// # Errors
    /// [`BatchError`] naming the first thing that does not hold.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        Self::parse_as(Form::Stream, bytes)
    }

    /// As [`Batch::parse`], for a batch of either form.
    ///
    /// # Errors
    /// As [`Batch::parse`].
    pub fn parse_as(form: Form, bytes: Bytes) -> Result<Self, BatchError> {
        let batch = Self::parse_tables(form, bytes.clone(), bytes.len())?;
        Ok(Self { bytes, ..batch })
    }

    /// Reads header and tables from the beginning of a batch of `total` bytes of which `bytes` are the
    /// first: for readers that want the tables without the frames. Frames cannot be opened from it.
    ///
    /// # Errors
    /// As [`Batch::parse`]; [`BatchError::Short`] where `bytes` end within the tables.
    pub fn parse_tables(form: Form, bytes: Bytes, total: usize) -> Result<Self, BatchError> {
        let (raw, header) = parse_header(&bytes, total)?;
        let flags = raw.flags.get();
        let allowed = match form {
            Form::Stream => flags == 0,
            Form::Undo => flags & !FLAG_STEP_END == FLAG_UNDO,
        };
        if !allowed {
            return Err(BatchError::Field { field: "flags", value: flags.into() });
        }
        let tables_end = Self::tables_bytes(&header);
        let tables = bytes.get(HEADER_BYTES..tables_end).ok_or(BatchError::Short)?;
        let crc = crc32c::crc32c(RawHeader { crc: 0.into(), ..raw }.as_bytes());
        if !sum_matches(crc32c::crc32c_append(crc, tables), raw.crc.get()) {
            return Err(BatchError::Checksum);
        }
        let (records, rest) = tables.split_at(header.records * RECORD_BYTES);
        let (frames, blocks) = rest.split_at(header.frames * FRAME_ENTRY_BYTES);
        let entries = parse_entries(records, &header, form)?;
        let frames = parse_frames(frames, tables_end, &header)?;
        let blocks = blocks.as_chunks::<BLOCK_ENTRY_BYTES>().0.iter().map(|crc| u32::from_le_bytes(*crc));
        Ok(Self {
            bytes: Bytes::new(),
            header,
            entries,
            frames,
            blocks: blocks.collect(),
            checksum: raw.crc.get(),
        })
    }

    /// Where the tables of a batch with this header end and its frames begin.
    pub fn tables_bytes(header: &Header) -> usize {
        HEADER_BYTES
            + header.records * RECORD_BYTES
            + header.frames * FRAME_ENTRY_BYTES
            + header.plain_len.div_ceil(BLOCK_BYTES) * BLOCK_ENTRY_BYTES
    }

    /// Reads the fixed header alone, to learn how much to read. Its checksum is not checked.
    ///
    /// # Errors
    /// As [`Batch::parse`].
    pub fn parse_header(bytes: &[u8], total: usize) -> Result<Header, BatchError> {
        parse_header(bytes, total).map(|(_, header)| header)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// CRC-32C of each 4096 bytes of the plain payload.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The bytes as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload of one entry, its frames and its own checksum checked.
    ///
    /// # Errors
    /// [`BatchError::Damaged`] or [`BatchError::Payload`].
    pub fn payload(&self, at: usize) -> Result<Bytes, BatchError> {
        let entry = &self.entries[at];
        let payload = read_payload(&self.frames, entry.payload_at, entry.payload_len, |start, len| {
            Ok::<_, BatchError>(self.bytes.slice(start as usize..(start + len) as usize))
        })?;
        if crc32c::crc32c(&payload) != entry.payload_crc {
            return Err(BatchError::Payload { at });
        }
        Ok(payload)
    }

    /// The records above `after`, with their payload.
    ///
    /// # Errors
    /// [`BatchError`] where a frame does not check.
    pub fn records_after(&self, after: WriteSeq) -> Result<Vec<Record>, BatchError> {
        let above = self.entries.iter().enumerate().filter(|(_, entry)| entry.seq > after);
        above
            .map(|(at, entry)| {
                let payload = if entry.kind.has_payload() { self.payload(at)? } else { Bytes::new() };
                Ok(Record { seq: entry.seq, kind: entry.kind, disk: entry.disk, range: entry.range, payload })
            })
            .collect()
    }

    /// The checksum of header and tables, through which everything in the batch is bound: the tables hold
    /// the checksums of the frames.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Checks every frame's stored bytes, without decompressing them.
    ///
    /// # Errors
    /// [`BatchError::Damaged`] for the first frame that does not check.
    pub fn verify_stored(&self) -> Result<(), BatchError> {
        match self.damaged_frames().next() {
            Some((frame, ..)) => Err(FrameError::Checksum { frame }.into()),
            None => Ok(()),
        }
    }

    /// Frames whose stored bytes do not check, with those.
    fn damaged_frames(&self) -> impl Iterator<Item = (usize, &FrameEntry, &[u8])> {
        let stored = |entry: &FrameEntry| {
            &self.bytes[entry.stored_at as usize..(entry.stored_at + entry.stored_len) as usize]
        };
        let frames = self.frames.iter().enumerate().map(move |(frame, entry)| (frame, entry, stored(entry)));
        frames.filter(|(_, entry, stored)| crc32c::crc32c(stored) != entry.crc)
    }

    /// Which frames' stored bytes do not check, in words, and which blocks of those that are stored as they are. None
    /// where all do.
    pub fn stored_damage(&self) -> Option<String> {
        let in_words = |(frame, entry, stored): (usize, &FrameEntry, &[u8])| match entry.codec {
            Codec::Raw => {
                let sums = &self.blocks[frame * FRAME_BYTES / BLOCK_BYTES..];
                let blocks = stored.chunks(BLOCK_BYTES).zip(sums).enumerate();
                let damaged = blocks.filter(|(_, (block, sum))| crc32c::crc32c(block) != **sum);
                format!("{frame} (blocks {:?})", damaged.map(|(at, _)| at).collect::<Vec<_>>())
            }
            Codec::Lz4 | Codec::Zstd => frame.to_string(),
        };
        let words: Vec<String> = self.damaged_frames().map(in_words).collect();
        let frames = (!words.is_empty()).then(|| words.join(", "))?;
        Some(format!("frames {frames}: checksum of the stored bytes does not match"))
    }

    /// Checks every frame's stored bytes and that they decompress.
    ///
    /// # Errors
    /// [`BatchError::Damaged`] for the first frame that does not.
    pub fn verify(&self) -> Result<(), BatchError> {
        for (at, frame) in self.frames.iter().enumerate() {
            let stored =
                self.bytes.slice(frame.stored_at as usize..(frame.stored_at + frame.stored_len) as usize);
            open_frame(at, frame, stored)?;
        }
        Ok(())
    }
}

fn parse_header(bytes: &[u8], total: usize) -> Result<(RawHeader, Header), BatchError> {
    let (raw, _) = RawHeader::read_from_prefix(bytes).map_err(|_| BatchError::Short)?;
    if raw.magic != MAGIC {
        return Err(BatchError::Magic);
    }
    if raw.version.get() != VERSION {
        return Err(BatchError::Version { found: raw.version.get() });
    }
    let within = |field, value: u32, max: usize| {
        if value as usize <= max {
            Ok(value as usize)
        } else {
            Err(BatchError::Field { field, value: value.into() })
        }
    };
    let header = Header {
        total_len: within("total_len", raw.total_len.get(), BATCH_BYTES_MAX)?,
        records: within("records", raw.records.get(), BATCH_RECORDS_MAX)?,
        frames: within("frames", raw.frames.get(), BATCH_BYTES_MAX / FRAME_BYTES)?,
        plain_len: within("plain_len", raw.plain_len.get(), BATCH_BYTES_MAX)?,
        prev_seq: WriteSeq::from_raw(raw.prev_seq.get()),
        last_seq: WriteSeq::from_raw(raw.last_seq.get()),
        watermark: WriteSeq::from_raw(raw.watermark.get()),
        incarnation: Incarnation::from_bytes(raw.incarnation),
        taken_at: WallTime(raw.taken_at.get()),
        ends_step: raw.flags.get() & FLAG_STEP_END != 0,
    };
    if header.total_len != total || total < Batch::tables_bytes(&header) {
        return Err(BatchError::Field { field: "total_len", value: header.total_len as u64 });
    }
    if header.frames != header.plain_len.div_ceil(FRAME_BYTES) {
        return Err(BatchError::Field { field: "frames", value: header.frames as u64 });
    }
    if header.last_seq < header.prev_seq || header.watermark < header.last_seq {
        return Err(BatchError::Field { field: "last_seq", value: header.last_seq.raw() });
    }
    Ok((raw, header))
}

fn parse_entries(table: &[u8], header: &Header, form: Form) -> Result<Vec<Entry>, BatchError> {
    let raws = <[RawRecord]>::ref_from_bytes(table).map_err(|_| BatchError::Short)?;
    let mut entries = Vec::with_capacity(raws.len());
    let mut last = header.prev_seq;
    for (at, raw) in raws.iter().enumerate() {
        let refuse = |what| BatchError::Record { at, what };
        let kind = Kind::from_raw(raw.kind).ok_or(refuse("unknown kind"))?;
        let seq = WriteSeq::from_raw(raw.seq.get());
        let repeats = form == Form::Undo && seq == last;
        if seq <= last && !repeats {
            return Err(refuse("its sequence does not follow"));
        }
        last = seq;
        let len = u64::from(raw.len.get());
        let payload_len = if kind.has_payload() { raw.len.get() } else { 0 };
        if u64::from(payload_len) > RECORD_BYTES_MAX {
            return Err(refuse("longer than a record may be"));
        }
        if raw.payload_at.get() as usize + payload_len as usize > header.plain_len {
            return Err(refuse("its payload reaches past the frames"));
        }
        let range = ByteRange::new(raw.start.get(), if kind.changes_disk() { len } else { 0 });
        let known = usize::from(raw.disk.get()) < DISKS_MAX && range.fits(DISK_BYTES_MAX);
        if kind.changes_disk() && (range.is_empty() || !known) {
            return Err(refuse("no disk has such a place"));
        }
        entries.push(Entry {
            seq,
            kind,
            disk: DiskIndex(raw.disk.get()),
            range,
            payload_at: raw.payload_at.get(),
            payload_len,
            payload_crc: raw.payload_crc.get(),
        });
    }
    if last != header.last_seq {
        return Err(BatchError::Field { field: "last_seq", value: header.last_seq.raw() });
    }
    Ok(entries)
}

fn parse_frames(table: &[u8], tables_end: usize, header: &Header) -> Result<Vec<FrameEntry>, BatchError> {
    let raws = <[RawFrame]>::ref_from_bytes(table).map_err(|_| BatchError::Short)?;
    let mut frames = Vec::with_capacity(raws.len());
    let mut stored_at = tables_end;
    for (at, raw) in raws.iter().enumerate() {
        let refuse = |what| BatchError::Frame { at, what };
        let plain_len = FRAME_BYTES.min(header.plain_len - at * FRAME_BYTES);
        if raw.plain_len.get() as usize != plain_len {
            return Err(refuse("its plain length does not fit its place"));
        }
        let stored_len = raw.stored_len.get() as usize;
        if raw.codec == REPEAT {
            let of: Option<&FrameEntry> = frames.get(raw.crc.get() as usize);
            let of = of.filter(|of| of.plain_len as usize == plain_len && stored_len == 0);
            let of = *of.ok_or(refuse("repeats a frame that is not before it"))?;
            frames.push(FrameEntry { repeats: true, ..of });
            continue;
        }
        if stored_len > plain_len || stored_len == 0 {
            return Err(refuse("its stored length is impossible"));
        }
        let codec = Codec::from_raw(raw.codec).ok_or(refuse("unknown codec"))?;
        if codec == Codec::Raw && stored_len != plain_len {
            return Err(refuse("raw, but of another length"));
        }
        frames.push(FrameEntry {
            stored_at: stored_at as u32,
            stored_len: stored_len as u32,
            plain_len: plain_len as u32,
            crc: raw.crc.get(),
            codec,
            repeats: false,
        });
        stored_at += stored_len;
    }
    if stored_at != header.total_len {
        return Err(BatchError::Field { field: "total_len", value: header.total_len as u64 });
    }
    Ok(frames)
}
