//! One step of before-images: gathered, written, synced, published.

use super::writer::UndoWriter;
use crate::extent::{Extent, REGION_BYTES, extents_of};
use crate::fold::{CameUpon, Contain, FoldError};
use crate::layout::{Envelope, FIRST_BATCH_AT};
use crate::page::{PAGE_BYTES, PageBuf};
use crate::payload::ReadError;
use crate::read::Reads;
use crate::segment::Position;
use crate::state::State;
use batch::{Batch, BatchMeta, Codec, Form, Kind, Record, encode_undo};
use bytes::Bytes;
use types::limits::{BATCH_BYTES_TARGET, BATCH_RECORDS_MAX, RANGE_BYTES_MAX};
use types::{ByteRange, Epoch, Incarnation, WallTime, WriteSeq};

/// A step being written.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a State,
    pub(crate) reads: &'a Reads,
    pub(crate) contain: Contain<'a>,
    pub(crate) undo: &'a mut UndoWriter,
    pub(crate) records: Vec<Record>,
    pub(crate) record_bytes: usize,
    /// Written but not published: each batch with its page.
    pub(crate) written: Vec<(Batch, u64)>,
    pub(crate) position: Position,
    pub(crate) last_seq: WriteSeq,
    pub(crate) now: WallTime,
}

impl Step<'_> {
    /// Adds what `extent` changed, as it was just before.
    pub(crate) fn push(&mut self, extent: &Extent) -> Result<(), FoldError> {
        extent.range.split_at_multiples(REGION_BYTES).try_for_each(|range| self.push_region(extent, range))
    }

    /// Adds what `extent` changed of one region, or of a part of it. What is lost is left out: whoever reads it is told.
    fn push_region(&mut self, extent: &Extent, range: ByteRange) -> Result<(), FoldError> {
        self.known_of(extent, range).into_iter().try_for_each(|part| self.push_known(extent, part))
    }

    /// What of a range is not known to be lost as of just before `extent`.
    fn known_of(&self, extent: &Extent, range: ByteRange) -> Vec<ByteRange> {
        let shared = self.state.read_shared();
        shared.timeline.lost().left_of(extent.disk, range, extent.seq.previous())
    }

    /// Adds what `extent` changed of what is not known to be lost.
    fn push_known(&mut self, extent: &Extent, range: ByteRange) -> Result<(), FoldError> {
        match self.before(extent, range) {
            Ok(before) => self.add(extent, range, before),
            Err(error) if error.is_of_a_batch() => {
                for part in self.still_needed(extent, range)?.ok_or(error)? {
                    let before = self.before(extent, part)?;
                    self.add(extent, part, before)?;
                }
                Ok(())
            }
            Err(error) => match error.in_replica() {
                Some(_) if self.is_needed_by_nobody(extent) => Ok(()),
                Some(place) => {
                    (self.contain)(extent.disk, CameUpon::Unread(place))?;
                    match self.known_of(extent, range) == [range] {
                        true => Err(error.into()),
                        false => self.push_region(extent, range),
                    }
                }
                None => Err(error.into()),
            },
        }
    }

    /// Whether no cut below a write can be opened, nor is one open: of a block that rotted in the replica, once that was
    /// made good.
    fn is_needed_by_nobody(&self, extent: &Extent) -> bool {
        let before = extent.seq.previous();
        let shared = self.state.read_shared();
        let gap = shared.timeline.closed_gap_at(before);
        gap.is_some_and(|(begin, _)| begin.raw() <= shared.manifest.retired_below)
            && shared.lowest_pin().is_none_or(|cut| cut > before)
    }

    fn before(&self, extent: &Extent, range: ByteRange) -> Result<Vec<u8>, ReadError> {
        let mut before = vec![0; range.len as usize];
        self.reads.read_at(extent.disk, extent.seq.previous(), range.start, &mut before)?;
        Ok(before)
    }

    fn add(&mut self, extent: &Extent, range: ByteRange, before: Vec<u8>) -> Result<(), FoldError> {
        let is_zero = batch::is_zero(&before);
        // Zeroes of one extent are one record, so that they are as few extents as it was.
        if let Some(last) = self.records.last_mut().filter(|last| is_zero && last.kind == Kind::Zero)
            && (last.seq, last.disk, last.range.end()) == (extent.seq, extent.disk, range.start)
            && last.range.len + range.len <= RANGE_BYTES_MAX
        {
            last.range.len += range.len;
            return Ok(());
        }
        self.record_bytes += if is_zero { 0 } else { before.len() };
        self.records.push(Record {
            seq: extent.seq,
            kind: if is_zero { Kind::Zero } else { Kind::Write },
            disk: extent.disk,
            range,
            payload: if is_zero { Bytes::new() } else { before.into() },
        });
        if self.record_bytes >= BATCH_BYTES_TARGET || self.records.len() >= BATCH_RECORDS_MAX {
            self.write(false, self.last_seq)?;
        }
        Ok(())
    }

    /// Of which parts of a region of `extent` some cut that can be opened needs what was there before. In a gap that has ended those
    /// are not needed that were written in it before: older cuts have the before-images of that. An image that was opened
    /// before the gap was found needs what was written up to its cut. None where there is no such gap.
    fn still_needed(&self, extent: &Extent, range: ByteRange) -> Result<Option<Vec<ByteRange>>, ReadError> {
        let before = extent.seq.previous();
        let after = {
            let shared = self.state.read_shared();
            let Some((begin, _)) = shared.timeline.closed_gap_at(before) else { return Ok(None) };
            let pin = shared.highest_pin_upto(before).unwrap_or_default();
            begin.previous().max(shared.manifest.applied()).max(pin)
        };
        self.reads.unwritten_between(extent.disk, range, after, before).map(Some)
    }

    /// Writes the batch that has been gathered; the last one of the step says where the step ends.
    fn write(&mut self, ends_step: bool, target: WriteSeq) -> Result<(), FoldError> {
        let records = std::mem::take(&mut self.records);
        self.record_bytes = 0;
        let last = records.last().map_or(self.last_seq, |record| record.seq);
        let meta = BatchMeta {
            incarnation: Incarnation::from_bytes([0; 16]),
            prev_seq: self.last_seq,
            watermark: target.max(last),
            taken_at: self.now,
        };
        self.last_seq = last;
        let bytes = encode_undo(&meta, &records, Codec::Lz4, ends_step);
        let batch = Batch::parse_as(Form::Undo, bytes).expect("encoded just now");
        let (segment, base_page, _) = self.undo.open.as_ref().expect("a step has an open segment");
        let seed = segment.header.seed();
        let envelope = Envelope {
            body_len: batch.bytes().len() as u32,
            body_crc: batch.checksum(),
            batch_no: self.position.batch_no,
            acked_upto: self.undo.upto,
            epoch: Epoch(self.state.read_shared().manifest.epoch),
            received_at: self.now,
            chain: self.position.chain,
        };
        let (head, crc) = envelope.encode(seed);
        let stride = Envelope::stride(batch.bytes().len());
        let mut buf = PageBuf::with_capacity(stride as usize);
        buf.push(&head);
        buf.push(batch.bytes());
        buf.pad_to(stride as usize);
        segment.file.write_at(self.position.at, buf.as_slice()).map_err(FoldError::Undo)?;
        self.written.push((batch, base_page + self.position.at / PAGE_BYTES));
        self.position.at += stride;
        self.position.batch_no += 1;
        self.position.chain = crc;
        Ok(())
    }

    /// Ends the step at `target`, syncs it and publishes it.
    pub(crate) fn finish(mut self, target: WriteSeq) -> Result<(), FoldError> {
        self.write(true, target)?;
        let (segment, _, end) = self.undo.open.as_mut().expect("a step has an open segment");
        segment.file.sync_data().map_err(FoldError::Undo)?;
        *end = self.position;
        self.undo.upto = target;
        let mut shared = self.state.write_shared();
        shared.undo_open_bytes = self.position.at.max(FIRST_BATCH_AT);
        for (batch, page) in &self.written {
            for extent in batch.entries().iter().flat_map(|entry| extents_of(entry, *page)) {
                shared.undo_table.insert(extent);
            }
        }
        Ok(())
    }
}
