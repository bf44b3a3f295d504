//! Reading a whole journal offline, changing nothing: is every byte as it was written, and which
//! checkpoints are good?

use crate::checkpoints::{CheckpointFacts, CheckpointQuery, Files};
use crate::cover::LogKind;
use crate::entropy::sample;
use crate::manifest::{Manifest, ManifestError, SegmentInfo};
use crate::run::Run;
use crate::segment::{Scan, Segment, SegmentError};
use crate::store::Store;
use crate::timeline::Timeline;
use batch::Batch;
use types::{ByteRange, DiskIndex, WriteSeq};

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    pub number: u64,
    /// Whether it holds before-images.
    pub undo: bool,
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
    /// Checkpoints that can be opened and that no damage touches, oldest first.
    pub checkpoints: Vec<CheckpointFacts>,
    /// The newest cut that can be opened.
    pub tail: Option<WriteSeq>,
    pub guest_writes: u64,
    /// What does not check, by place.
    pub damage: Vec<String>,
    /// Of these cuts some byte may be wrong: from the first to below the second; open-ended where nothing
    /// made it good.
    pub bad_cuts: Vec<(WriteSeq, WriteSeq)>,
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

/// Reads every byte of every segment and every run and, with `deep`, decompresses every frame and checks
/// every payload. Each record of the redo log is told to `on_record`, in the order of the stream.
///
/// # Errors
/// [`ManifestError`] where there is nothing to go by.
pub fn verify(
    store: &dyn Store,
    deep: bool,
    on_record: impl FnMut(RecordRow),
) -> Result<VerifyReport, ManifestError> {
    let manifest = Manifest::load(store)?;
    let report = VerifyReport {
        segments: Vec::new(),
        checkpoints: Vec::new(),
        tail: None,
        guest_writes: 0,
        damage: Vec::new(),
        bad_cuts: Vec::new(),
        torn_bytes: 0,
        manifest: manifest.clone(),
    };
    let mut timeline = Timeline::begin(&manifest);
    let mut reading = Reading {
        store,
        deep,
        report,
        timeline: &mut timeline,
        on_record,
        recent: Vec::new(),
        before_images_reach: WriteSeq::ZERO,
    };
    for info in &manifest.redo.segments {
        reading.read_segment(LogKind::Redo, info);
    }
    for info in &manifest.undo.segments {
        reading.read_segment(LogKind::Undo, info);
    }
    if let Some(missing) = manifest.missing_before_images(reading.before_images_reach) {
        reading.damaged(missing, WriteSeq::from_raw(manifest.retired_below));
    }
    for kind in [LogKind::Redo, LogKind::Undo] {
        let log = manifest.log(kind);
        let footers = log.segments.iter().filter_map(|info| info.sealed.as_ref()?.footer.as_ref());
        let merged = log.runs.iter().filter(|run| run.file.is_some());
        for run in footers.chain(merged) {
            reading.read_run(&Run::new(kind, run.clone()));
        }
    }
    reading.list_checkpoints(&manifest);
    let mut report = reading.report;
    let newest_checkpoint = |cut: WriteSeq| {
        let cuts = report.checkpoints.iter().map(CheckpointFacts::cut);
        cuts.rev().find(|checkpoint| *checkpoint <= cut)
    };
    report.tail = timeline.newest_consistent(WriteSeq::MAX, newest_checkpoint);
    report.guest_writes = timeline.guest_writes;
    Ok(report)
}

/// What goes along while a journal is read.
struct Reading<'a, F> {
    store: &'a dyn Store,
    deep: bool,
    report: VerifyReport,
    timeline: &'a mut Timeline,
    on_record: F,
    /// Checkpoints of segments that have no footer yet.
    recent: Vec<CheckpointFacts>,
    /// The end of the last whole step of the undo log.
    before_images_reach: WriteSeq,
}

impl<F: FnMut(RecordRow)> Reading<'_, F> {
    fn read_segment(&mut self, kind: LogKind, info: &SegmentInfo) {
        let mut row = SegmentReport {
            number: info.number,
            undo: kind == LogKind::Undo,
            sealed: info.sealed.is_some(),
            bytes: 0,
            batches: 0,
            records: 0,
            first_seq: None,
            last_seq: None,
        };
        let before = self.timeline.last_seq;
        let end = info.sealed.as_ref().map(|sealed| sealed.bytes);
        let result = Segment::open(self.store, kind, info).and_then(|segment| {
            let mut scan = segment.scan(end)?;
            let result = self.read_batches(kind, info, &mut scan, &mut row);
            row.bytes = scan.position.at;
            match result {
                Err(error) if end.is_none() && self.is_torn(&mut scan, &error) => Ok(()),
                Ok(()) if end.is_some_and(|end| row.bytes < end) => Err(SegmentError::Batch {
                    name: segment.name.clone(),
                    at: row.bytes,
                    what: "the segment ends too early".into(),
                }),
                other => other,
            }
        });
        if let Err(error) = result {
            // Writes of the rest of the segment may be missing; for before-images, of all cuts below.
            let from = match kind {
                LogKind::Redo => row.last_seq.unwrap_or(before).next(),
                LogKind::Undo => WriteSeq::from_raw(self.report.manifest.retired_below),
            };
            self.damaged(error.to_string(), from);
        }
        match (kind, &info.sealed) {
            (LogKind::Redo, Some(sealed)) => self.timeline.stand_at(&sealed.point),
            (LogKind::Undo, Some(sealed)) => {
                self.before_images_reach = WriteSeq::from_raw(sealed.point.last_seq);
            }
            (_, None) => {}
        }
        self.report.segments.push(row);
    }

    fn damaged(&mut self, what: String, from: WriteSeq) {
        self.report.damage.push(what);
        self.report.bad_cuts.push((from, WriteSeq::MAX));
    }

    fn read_batches(
        &mut self,
        kind: LogKind,
        info: &SegmentInfo,
        scan: &mut Scan<'_>,
        row: &mut SegmentReport,
    ) -> Result<(), SegmentError> {
        while let Some(found) = scan.next()? {
            let batch = &found.batch;
            row.batches += 1;
            row.records += batch.entries().len() as u64;
            row.first_seq = row.first_seq.or(batch.entries().first().map(|entry| entry.seq));
            row.last_seq = Some(batch.header().last_seq);
            let name = info.file_name(kind);
            let damaged = |what: String| SegmentError::Batch { name: name.clone(), at: found.at, what };
            if self.deep {
                for entry in 0..batch.entries().len() {
                    batch.payload(entry).map_err(|error| damaged(error.to_string()))?;
                }
            }
            if kind == LogKind::Undo {
                if batch.header().ends_step {
                    self.before_images_reach = batch.header().watermark;
                }
                continue;
            }
            if batch.header().prev_seq != self.timeline.last_seq {
                return Err(damaged("the batch does not follow the stream before it".into()));
            }
            self.tell(batch);
            // Gaps of sealed segments are in the manifest already.
            let mut scratch = self.timeline.clone();
            let timeline = if info.sealed.is_some() { &mut scratch } else { &mut *self.timeline };
            let facts = timeline.insert(batch, &sample(batch)).map_err(|error| damaged(error.to_string()))?;
            if info.sealed.is_some() {
                self.timeline.stand_at(&scratch.point());
                self.timeline.guest_writes = scratch.guest_writes;
            }
            if info.sealed.as_ref().is_none_or(|sealed| sealed.footer.is_none()) {
                self.recent.extend(facts);
            }
        }
        Ok(())
    }

    fn tell(&mut self, batch: &Batch) {
        for entry in batch.entries() {
            (self.on_record)(RecordRow {
                seq: entry.seq,
                kind: entry.kind.name(),
                disk: entry.disk,
                range: entry.range,
                payload_crc: entry.payload_crc(),
            });
        }
    }

    fn is_torn(&mut self, scan: &mut Scan<'_>, error: &SegmentError) -> bool {
        let was_acked = scan.acked_beyond().is_some_and(|acked| acked > self.timeline.last_seq);
        if was_acked || matches!(error, SegmentError::Io { .. }) {
            return false;
        }
        if scan.is_torn_here() {
            self.report.torn_bytes = scan.end().saturating_sub(scan.position.at);
        }
        true
    }

    /// A run that does not check costs no data: it can be made again out of the batches.
    fn read_run(&mut self, run: &Run) {
        let result = run.guide(self.store).and_then(|guide| {
            let mut extents = Vec::new();
            for page in 0..guide.pages() {
                extents.clear();
                run.read_pages(&guide, page, 1, &mut extents)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            self.report.damage.push(format!("{error} (its batches are whole: `repair` makes it again)"));
        }
    }

    fn list_checkpoints(&mut self, manifest: &Manifest) {
        let files = Files { store: self.store, manifest };
        let (timeline, bad) = (&*self.timeline, &self.report.bad_cuts);
        let is_good = |facts: &CheckpointFacts| {
            let cut = facts.cut();
            timeline.is_consistent_checkpoint(cut) && !bad.iter().any(|(from, to)| *from <= cut && cut < *to)
        };
        let mut good = Vec::new();
        let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
        let visited = files.visit(&query, &mut |facts| {
            good.extend(Some(facts).filter(|facts| is_good(facts)));
            true
        });
        if let Err(error) = visited {
            self.report.damage.push(error.to_string());
        }
        good.extend(self.recent.drain(..).filter(|facts| is_good(facts)));
        self.report.checkpoints = good;
    }
}
