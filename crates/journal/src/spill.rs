//! The spill: batches that wait at the source for a link, in segment files like a journal's redo log.
//!
//! What holds: batches lie in the order of the stream, each following the one before; what was appended is
//! read back as it was or an error names the place. Nothing here is durable or opened again: after the
//! agent's death the dirty map knows what is missing, and old files are removed. Files are closed at
//! [`SPILL_FILE_BYTES`], and removed once everything in them is acknowledged.

use crate::cover::LogKind;
use crate::layout::{ENVELOPE_BYTES, Envelope, FIRST_BATCH_AT, SegmentHeader};
use crate::page::PAGE_BYTES;
use crate::segment::{Position, Segment, SegmentError};
use crate::store::Store;
use batch::Batch;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use types::limits::SPILL_FILE_BYTES;
use types::{Epoch, VmId, WallTime, WriteSeq};

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    #[error("the spill holds as much as it may, {bytes_max} bytes")]
    Full { bytes_max: u64 },
    #[error("cannot write the spill")]
    Io(#[from] io::Error),
}

/// Batches of one VM's stream on their way to the link.
#[derive(Debug)]
pub struct Spill {
    store: Arc<dyn Store>,
    vm: VmId,
    bytes_max: u64,
    files: VecDeque<SpillFile>,
    next_number: u64,
}

#[derive(Debug)]
struct SpillFile {
    segment: Segment,
    end: Position,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    last: WriteSeq,
    at: u64,
    body_len: u32,
}

impl Spill {
    /// An empty spill in a folder of its own; what lies there from before is removed.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(store: Arc<dyn Store>, vm: VmId, bytes_max: u64) -> io::Result<Self> {
        for name in store.names()?.iter().filter(|name| name.starts_with("segment-")) {
            store.remove(name)?;
        }
        Ok(Self { store, vm, bytes_max, files: VecDeque::new(), next_number: 1 })
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.end.at).sum()
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Changes how much it may hold. What lies in it stays.
    pub fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// The last sequence in it.
    pub fn last(&self) -> Option<WriteSeq> {
        self.files.back().and_then(|file| file.rows.last()).map(|row| row.last)
    }

    /// The last sequence in its oldest file: up to there all must be acknowledged for that one to go.
    pub fn first_end(&self) -> Option<WriteSeq> {
        self.files.front().and_then(|file| file.rows.last()).map(|row| row.last)
    }

    /// Appends a batch that follows the one before. `incarnation` is of chance, in case a file is begun.
    ///
    /// # Errors
    /// [`SpillError`]; the batch is not in it then.
    pub fn append(&mut self, batch: &Batch, incarnation: [u8; 16], now: WallTime) -> Result<(), SpillError> {
        let last = batch.header().last_seq;
        assert!(
            self.last().is_none_or(|before| before <= batch.header().prev_seq),
            "the spill goes on in order"
        );
        let body = batch.bytes();
        let stride = Envelope::stride(body.len());
        let begins = self.files.back().is_none_or(|file| file.end.at + stride > SPILL_FILE_BYTES);
        let more = stride + if begins { FIRST_BATCH_AT } else { 0 };
        if self.bytes() + more > self.bytes_max {
            return Err(SpillError::Full { bytes_max: self.bytes_max });
        }
        if begins {
            self.begin_file(incarnation, now)?;
        }
        let file = self.files.back_mut().expect("begun where there was none");
        let envelope = Envelope {
            body_len: body.len() as u32,
            body_crc: batch.checksum(),
            batch_no: file.end.batch_no,
            acked_upto: WriteSeq::ZERO,
            epoch: Epoch(0),
            received_at: now,
            chain: file.end.chain,
        };
        let (head, crc) = envelope.encode(file.segment.header.seed());
        let mut memory = BytesMut::zeroed(stride as usize + PAGE_BYTES as usize);
        // At a multiple of a page, so that direct I/O needs no copy.
        let skew = memory.as_ptr().align_offset(PAGE_BYTES as usize);
        let page = &mut memory[skew..skew + stride as usize];
        page[..ENVELOPE_BYTES].copy_from_slice(&head);
        page[ENVELOPE_BYTES..ENVELOPE_BYTES + body.len()].copy_from_slice(body);
        file.segment.file.write_at(file.end.at, page)?;
        file.rows.push(Row { last, at: file.end.at, body_len: envelope.body_len });
        file.end = Position { at: file.end.at + stride, batch_no: file.end.batch_no + 1, chain: crc };
        Ok(())
    }

    fn begin_file(&mut self, incarnation: [u8; 16], now: WallTime) -> io::Result<()> {
        let number = self.next_number;
        let header = SegmentHeader { kind: LogKind::Redo, number, vm: self.vm, incarnation, created_at: now };
        let segment = Segment::create(&*self.store, None, header)?;
        let end = segment.start();
        self.next_number += 1;
        self.files.push_back(SpillFile { segment, end, rows: Vec::new() });
        Ok(())
    }

    /// The first batch that has anything above `after`; none where everything lies at or below.
    ///
    /// # Errors
    /// [`SegmentError`] where it is not as it was written.
    pub fn next_after(&self, after: WriteSeq) -> Result<Option<Batch>, SegmentError> {
        let at = self.files.partition_point(|file| file.rows.last().is_none_or(|row| row.last <= after));
        let Some(file) = self.files.get(at) else { return Ok(None) };
        let row = file.rows[file.rows.partition_point(|row| row.last <= after)];
        file.read(row).map(Some)
    }

    /// Removes the files in which everything is acknowledged.
    pub fn release(&mut self, up_to: WriteSeq) -> Released {
        let is_done = |file: &SpillFile| file.rows.last().is_some_and(|row| row.last <= up_to);
        let done = self.files.iter().take_while(|file| is_done(file)).count();
        let files: Vec<SpillFile> = self.files.drain(..done).collect();
        self.remove(files)
    }

    /// Removes everything.
    pub fn clear(&mut self) -> Released {
        let files: Vec<SpillFile> = self.files.drain(..).collect();
        self.remove(files)
    }

    /// Files that the spill has forgotten already, so that none it holds is out of order however this ends.
    fn remove(&self, files: Vec<SpillFile>) -> Released {
        let mut released = Released { any: !files.is_empty(), left_behind: None };
        // Each of them is tried: that one cannot be removed says nothing of the others.
        for file in files {
            if let Err(error) = self.store.remove(&file.segment.name) {
                released.left_behind = Some(error);
            }
        }
        released
    }
}

/// What has left the spill.
#[must_use]
#[derive(Debug)]
pub struct Released {
    /// Whether anything has.
    pub any: bool,
    /// Why a file of it still lies there. It is removed when the spill is made anew.
    pub left_behind: Option<io::Error>,
}

impl SpillFile {
    fn read(&self, row: Row) -> Result<Batch, SegmentError> {
        let name = &self.segment.name;
        let damaged =
            |what: &str| SegmentError::Batch { name: name.clone(), at: row.at, what: what.to_owned() };
        let len = Envelope::stride(row.body_len as usize) as usize;
        let mut memory = BytesMut::zeroed(len + PAGE_BYTES as usize);
        let skew = memory.as_ptr().align_offset(PAGE_BYTES as usize);
        self.segment
            .file
            .read_at(row.at, &mut memory[skew..skew + len])
            .map_err(|source| SegmentError::Io { name: name.clone(), source })?;
        let bytes: Bytes = memory.freeze().slice(skew..skew + len);
        let head = bytes[..ENVELOPE_BYTES].try_into().expect("as many bytes as an envelope has");
        let (envelope, _) = Envelope::decode(head, self.segment.header.seed()).map_err(damaged)?;
        if envelope.body_len != row.body_len {
            return Err(damaged("another batch stands here"));
        }
        let body = bytes.slice(ENVELOPE_BYTES..ENVELOPE_BYTES + row.body_len as usize);
        let batch = Batch::parse(body)
            .and_then(|batch| batch.verify_stored().map(|()| batch))
            .map_err(|error| damaged(&error.to_string()))?;
        if batch.checksum() != envelope.body_crc || batch.header().last_seq != row.last {
            return Err(damaged("another batch stands behind its envelope"));
        }
        Ok(batch)
    }
}
