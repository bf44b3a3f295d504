//! Rollback mode: before-images go to the undo log, then the replica is brought up to the newest write.
//!
//! One step, as a numbered story: (1) for every write above `applied` up to the step's target, in the
//! order of the writes, what its range held just before goes to the undo log, the last batch marked as
//! the step's end; (2) it is synced; (3) its extents are published: from here on a reader whose cut lies
//! below a write finds the before-image instead of the replica; (4) the manifest says up to where there are
//! before-images; (5) readers that looked up before (3) are waited for; (6) the replica is written and synced;
//! (7) the manifest with the new `applied` is saved.
//!
//! A crash before the mark of (1) is on the disk: the replica is untouched, the part of a step is cut off
//! when the journal is opened. A crash after it: the step is whole, so (6) and (7) are done again and
//! nothing is read out of a replica that is half the one and half the other. A log that ends below what (4)
//! says is damaged, however its end looks: without its steps older cuts would be read out of the replica.

use crate::cover::LogKind;
use crate::extent::{Extent, REGION_BYTES, Width, extents_of};
use crate::fold::FoldError;
use crate::journal::Journal;
use crate::layout::{Envelope, FIRST_BATCH_AT};
use crate::manifest::StreamPoint;
use crate::merge::Merge;
use crate::page::{PAGE_BYTES, PageBuf};
use crate::payload::ReadError;
use crate::roll;
use crate::segment::{Position, Segment};
use crate::upkeep::{Kept, Upkeep};
use batch::{Batch, BatchMeta, Codec, Form, Kind, Record, encode_undo};
use bytes::Bytes;
use std::io;
use types::limits::{
    BATCH_BYTES_TARGET, BATCH_RECORDS_MAX, RANGE_BYTES_MAX, TABLE_ENTRIES_MAX, UNDO_STEP_BYTES,
};
use types::{ByteRange, Epoch, Incarnation, VmId, WallTime, WriteSeq};

/// The end of the undo log.
#[derive(Debug)]
pub(crate) struct UndoWriter {
    pub(crate) vm: VmId,
    pub(crate) open: Option<(Segment, u64, Position)>,
    /// The end of the last whole step.
    pub(crate) upto: WriteSeq,
    pub(crate) opened_at: Option<WallTime>,
    /// Nothing more may go to the open segment: sealing it has been tried.
    pub(crate) must_seal: bool,
}

impl UndoWriter {
    /// Whether before-images are there of writes the replica does not have yet.
    pub(crate) fn has_unfinished_step(&self, journal: &Journal) -> bool {
        self.upto > journal.read_shared().manifest.applied()
    }
}

/// A step being written.
struct Step<'a> {
    journal: &'a Journal,
    undo: &'a mut UndoWriter,
    records: Vec<Record>,
    record_bytes: usize,
    /// Written but not published: each batch with its page.
    written: Vec<(Batch, u64)>,
    position: Position,
    last_seq: WriteSeq,
    now: WallTime,
}

impl Journal {
    /// Brings the replica up to the newest durable write, or as far as one step goes.
    pub(crate) fn apply(&self, undo: &mut UndoWriter, how: &Upkeep<'_>) -> Result<Kept, FoldError> {
        let mut kept = Kept::default();
        if !undo.has_unfinished_step(self) {
            let Some(more) = self.write_before_images(undo, how)? else { return Ok(kept) };
            kept.more = more;
        }
        self.note_before_images(undo.upto).map_err(FoldError::Manifest)?;
        self.reads.wait_for_readers();
        let written = self.write_replica(undo.upto, how)?;
        kept.folded_bytes = written.bytes;
        if !written.is_whole {
            return Ok(Kept { more: true, ..kept });
        }
        kept.segments = self.finish_fold(undo.upto).map_err(FoldError::Manifest)?;
        Ok(kept)
    }

    /// Steps (1) to (3). None where there is nothing to do; else whether more is left for another step.
    fn write_before_images(
        &self,
        undo: &mut UndoWriter,
        how: &Upkeep<'_>,
    ) -> Result<Option<bool>, FoldError> {
        let (applied, durable, settings) = {
            let shared = self.read_shared();
            (shared.manifest.applied(), shared.timeline.last_seq, shared.settings)
        };
        if durable <= applied {
            return Ok(None);
        }
        let (extents, target) = self.next_step(applied, durable)?;
        // A clock that was set back would keep it open for as long.
        undo.opened_at = undo.opened_at.map(|opened| opened.min(how.now));
        let old = undo.opened_at.is_some_and(|opened| how.now.since(opened) > settings.history / 12);
        let full = undo.open.as_ref().is_some_and(|(_, _, end)| end.at >= settings.segment_bytes)
            || self.read_shared().undo_table.len() >= TABLE_ENTRIES_MAX;
        if old || full || undo.must_seal {
            self.seal_undo(undo).map_err(FoldError::Undo)?;
        }
        if undo.open.is_none() {
            let begun = roll::begin_segment(&self.state, LogKind::Undo, undo.vm, how.now, how.entropy);
            let (info, segment) = begun.map_err(FoldError::Undo)?;
            let start = segment.start();
            undo.open = Some((segment, info.base_page, start));
            undo.opened_at = Some(how.now);
        }
        let position = undo.open.as_ref().expect("opened above").2;
        let mut step = Step {
            journal: self,
            records: Vec::new(),
            record_bytes: 0,
            written: Vec::new(),
            position,
            last_seq: undo.upto,
            now: how.now,
            undo,
        };
        for extent in &extents {
            (how.pace)(extent.range.len);
            step.push(extent)?;
        }
        step.finish(target)?;
        Ok(Some(target < durable))
    }

    /// Step (4).
    fn note_before_images(&self, upto: WriteSeq) -> io::Result<()> {
        if self.read_shared().manifest.before_images_upto == upto.raw() {
            return Ok(());
        }
        self.change_manifest(
            |manifest| manifest.before_images_upto = upto.raw(),
            |shared, manifest| shared.set_manifest(manifest, |_| {}),
        )
    }

    /// The extents of the next step in the order of the writes, and the step's target.
    fn next_step(&self, applied: WriteSeq, durable: WriteSeq) -> Result<(Vec<Extent>, WriteSeq), FoldError> {
        // A segment at a time, so that what is sorted in memory has a bound.
        let ends = |shared: &crate::view::Shared| {
            let sealed = shared.manifest.redo.segments.iter().filter_map(|segment| segment.sealed.as_ref());
            let mut ends = sealed.map(|sealed| WriteSeq::from_raw(sealed.point.last_seq));
            ends.find(|end| *end > applied)
        };
        let mut target = ends(&self.read_shared()).unwrap_or(durable).min(durable);
        let mut extents = Vec::new();
        for width in Width::BOTH {
            let mut merge = Merge::new(self.sources_between(applied, target, width)?)?;
            while let Some(extent) = merge.next()? {
                if extent.seq > applied && extent.seq <= target {
                    extents.push(extent);
                }
            }
        }
        extents.sort_by_key(|extent| extent.seq);
        let mut bytes = 0;
        for at in 1..extents.len() {
            bytes += extents[at - 1].range.len;
            if bytes > UNDO_STEP_BYTES && extents[at].seq > extents[at - 1].seq {
                target = extents[at - 1].seq;
                extents.truncate(at);
                break;
            }
        }
        Ok((extents, target))
    }

    /// Ends the open undo segment.
    pub(crate) fn seal_undo(&self, undo: &mut UndoWriter) -> io::Result<()> {
        let Some((_, _, end)) = &undo.open else { return Ok(()) };
        let point = StreamPoint { last_seq: undo.upto.raw(), ..StreamPoint::default() };
        let newest_at = self.read_shared().newest_at.unwrap_or_default();
        // Where it fails, the manifest on the disk may have it sealed all the same.
        undo.must_seal = true;
        roll::seal(&self.state, LogKind::Undo, end.at, point, newest_at)?;
        undo.must_seal = false;
        undo.open = None;
        Ok(())
    }
}

impl Step<'_> {
    /// Adds what `extent` changed, as it was just before.
    fn push(&mut self, extent: &Extent) -> Result<(), FoldError> {
        extent.range.split_at_multiples(REGION_BYTES).try_for_each(|range| self.push_region(extent, range))
    }

    /// Adds what `extent` changed of one region.
    fn push_region(&mut self, extent: &Extent, range: ByteRange) -> Result<(), FoldError> {
        match self.before(extent, range) {
            Ok(before) => self.add(extent, range, before),
            Err(error) if error.is_of_a_batch() => {
                for part in self.still_needed(extent, range)?.ok_or(error)? {
                    let before = self.before(extent, part)?;
                    self.add(extent, part, before)?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn before(&self, extent: &Extent, range: ByteRange) -> Result<Vec<u8>, ReadError> {
        let mut before = vec![0; range.len as usize];
        self.journal.read_at(extent.disk, extent.seq.previous(), range.start, &mut before)?;
        Ok(before)
    }

    fn add(&mut self, extent: &Extent, range: ByteRange, before: Vec<u8>) -> Result<(), FoldError> {
        let is_zero = before.iter().all(|&byte| byte == 0);
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
    /// are not needed that were written in it before: older cuts have the before-images of that. None where there is
    /// no such gap.
    fn still_needed(&self, extent: &Extent, range: ByteRange) -> Result<Option<Vec<ByteRange>>, ReadError> {
        let (journal, before) = (self.journal, extent.seq.previous());
        let Some((begin, _)) = journal.with_timeline(|timeline| timeline.closed_gap_at(before)) else {
            return Ok(None);
        };
        let after = begin.previous().max(journal.read_shared().manifest.applied());
        journal.reads.unwritten_between(extent.disk, range, after, before).map(Some)
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
            epoch: Epoch(self.journal.read_shared().manifest.epoch),
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
    fn finish(mut self, target: WriteSeq) -> Result<(), FoldError> {
        self.write(true, target)?;
        let (segment, _, end) = self.undo.open.as_mut().expect("a step has an open segment");
        segment.file.sync_data().map_err(FoldError::Undo)?;
        *end = self.position;
        self.undo.upto = target;
        let mut shared = self.journal.write_shared();
        shared.undo_open_bytes = self.position.at.max(FIRST_BATCH_AT);
        for (batch, page) in &self.written {
            for extent in batch.entries().iter().flat_map(|entry| extents_of(entry, *page)) {
                shared.undo_table.insert(extent);
            }
        }
        Ok(())
    }
}
