//! Reading a whole journal offline, changing nothing: is every byte as it was written, and which
//! checkpoints are good?

use crate::manifest::{Manifest, ManifestError, SegmentInfo};
use crate::segment::{Depth, Segment};
use crate::store::Store;
use crate::timeline::Timeline;
use types::{ByteRange, Checkpoint, DiskIndex, WriteSeq};

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    pub number: u64,
    pub sealed: bool,
    pub bytes: u64,
    pub batches: u64,
    pub records: u64,
    pub first_seq: Option<WriteSeq>,
    pub last_seq: Option<WriteSeq>,
}

/// What a journal holds.
#[derive(Debug)]
pub struct VerifyReport {
    pub manifest: Manifest,
    pub segments: Vec<SegmentReport>,
    /// Checkpoints that can be opened, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The newest cut that can be opened.
    pub tail: Option<WriteSeq>,
    pub guest_writes: u64,
    /// What does not check, by place. Checkpoints above the first are not listed as good.
    pub damage: Vec<String>,
    /// Bytes at the end that are no whole batch and were never acknowledged: not damage.
    pub torn_bytes: u64,
}

/// One record, for those who want to see them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRow {
    pub seq: WriteSeq,
    pub kind: &'static str,
    pub disk: DiskIndex,
    pub range: ByteRange,
    /// CRC-32C of the plain payload; that of nothing where it has none.
    pub payload_crc: u32,
}

/// Reads every byte of every segment and, with `deep`, decompresses every frame and checks every
/// payload. Each record is told to `on_record`, in the order of the stream.
///
/// # Errors
/// [`ManifestError`] where there is nothing to go by.
pub fn verify(
    store: &dyn Store,
    deep: bool,
    on_record: impl FnMut(RecordRow),
) -> Result<VerifyReport, ManifestError> {
    let manifest = Manifest::load(store)?;
    let mut report = VerifyReport {
        segments: Vec::new(),
        checkpoints: Vec::new(),
        tail: None,
        guest_writes: 0,
        damage: Vec::new(),
        torn_bytes: 0,
        manifest: manifest.clone(),
    };
    let mut timeline = Timeline::begin(&manifest);
    let mut reading = Reading { deep, timeline: &mut timeline, on_record };
    for (at, info) in manifest.segments.iter().enumerate() {
        let is_last = at + 1 == manifest.segments.len();
        report.read_segment(store, info, is_last, &mut reading);
    }
    report.checkpoints = timeline.checkpoints_after(WriteSeq::ZERO).cloned().collect();
    report.tail = timeline.newest_consistent(WriteSeq::MAX);
    report.guest_writes = timeline.guest_writes;
    Ok(report)
}

/// What goes along while segments are read.
struct Reading<'a, F> {
    deep: bool,
    timeline: &'a mut Timeline,
    on_record: F,
}

impl VerifyReport {
    fn read_segment(
        &mut self,
        store: &dyn Store,
        info: &SegmentInfo,
        is_last: bool,
        reading: &mut Reading<'_, impl FnMut(RecordRow)>,
    ) {
        let name = SegmentInfo::file_name(info.number);
        let mut row = SegmentReport {
            number: info.number,
            sealed: info.sealed.is_some(),
            bytes: 0,
            batches: 0,
            records: 0,
            first_seq: None,
            last_seq: None,
        };
        match Segment::open(store, &name, info.number, &info.incarnation) {
            Err(error) => self.damage.push(error.to_string()),
            Ok(segment) => {
                let mut position = segment.start();
                let end = info.sealed.as_ref().map(|sealed| sealed.bytes);
                while end.is_none_or(|end| position.at < end) {
                    match segment.next(&mut position, Depth::Bodies) {
                        Ok(Some(found)) => self.take(&found.batch, info.number, found.at, &mut row, reading),
                        Ok(None) => break,
                        Err(error) => {
                            let acked = segment.acked_beyond(position.at, u64::MAX / 2);
                            let was_acked = acked.is_some_and(|acked| acked > reading.timeline.last_seq);
                            if end.is_none() && is_last && !was_acked {
                                let len = segment.file.len().unwrap_or(position.at);
                                self.torn_bytes = len.saturating_sub(position.at);
                            } else {
                                self.damage.push(error.to_string());
                            }
                            break;
                        }
                    }
                }
                row.bytes = position.at;
            }
        }
        self.segments.push(row);
    }

    fn take(
        &mut self,
        batch: &batch::Batch,
        number: u64,
        at: u64,
        row: &mut SegmentReport,
        reading: &mut Reading<'_, impl FnMut(RecordRow)>,
    ) {
        let timeline = &mut *reading.timeline;
        row.batches += 1;
        row.records += batch.entries().len() as u64;
        row.first_seq = row.first_seq.or(batch.entries().first().map(|entry| entry.seq));
        row.last_seq = Some(batch.header().last_seq);
        let place = |what: String| format!("segment {number} at byte {at}: {what}");
        if batch.header().prev_seq != timeline.last_seq {
            self.damage.push(place("the batch does not follow the stream before it".into()));
            timeline.open_gap(timeline.last_seq.next());
        }
        for entry in batch.entries() {
            (reading.on_record)(RecordRow {
                seq: entry.seq,
                kind: entry.kind.name(),
                disk: entry.disk,
                range: entry.range,
                payload_crc: entry.payload_crc(),
            });
        }
        if reading.deep {
            for entry in 0..batch.entries().len() {
                if let Err(error) = batch.payload(entry) {
                    self.damage.push(place(error.to_string()));
                }
            }
        }
        if let Err(error) = timeline.insert(batch, |entry| batch.payload(entry)) {
            self.damage.push(place(error.to_string()));
        }
    }
}
