//! Reading a whole journal offline, changing nothing: is every byte as it was written, and which
//! checkpoints are good?

use crate::checkpoint_files::Files;
use crate::checkpoints::{CheckpointFacts, CheckpointQuery};
use crate::copies;
use crate::cover::LogKind;
use crate::damage::Damage;
use crate::entropy::sample;
use crate::manifest::{Manifest, ManifestError, RunInfo, SegmentInfo, replica_name};
use crate::replica::Replica;
use crate::replica_look::{Looked, next_region};
use crate::run::Run;
use crate::segment::{Found, Onward, Scan, Segment, SegmentError, cut_off_up_to};
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
    /// Of cuts from here on some byte may be wrong, because of damage that is not contained yet.
    pub bad_from: Option<WriteSeq>,
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
    let copies::Loaded { manifest, spoilt, .. } = copies::load(store)?;
    let damage = spoilt
        .iter()
        .map(|what| format!("{what} (opening the journal makes it again out of its other copy)"));
    let report = VerifyReport {
        segments: Vec::new(),
        checkpoints: Vec::new(),
        tail: None,
        guest_writes: 0,
        damage: damage.collect(),
        bad_from: None,
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
        untold: Vec::new(),
        before_images_reach: WriteSeq::ZERO,
    };
    for info in &manifest.redo.segments {
        reading.read_segment(LogKind::Redo, info);
    }
    for info in &manifest.undo.segments {
        reading.read_segment(LogKind::Undo, info);
    }
    if let Some(missing) = manifest.missing_before_images(reading.before_images_reach) {
        reading.cuts_are_bad(missing, WriteSeq::from_raw(manifest.retired_below));
    }
    for kind in [LogKind::Redo, LogKind::Undo] {
        reading.read_runs(kind, &manifest);
    }
    if deep {
        reading.read_replicas(&manifest);
    }
    reading.list_checkpoints(&manifest);
    let mut report = reading.report;
    let newest_checkpoint = |cut: WriteSeq| {
        let cuts = report.checkpoints.iter().map(CheckpointFacts::cut);
        cuts.rev().find(|checkpoint| *checkpoint <= cut)
    };
    report.tail = timeline.newest_consistent(WriteSeq::MAX, timeline.lost(), newest_checkpoint);
    report.guest_writes = timeline.guest_writes;
    Ok(report)
}

/// A damaged part of a segment of which only an index can tell what it held.
struct Untold {
    kind: LogKind,
    segment: u64,
    damage: Damage,
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
    untold: Vec<Untold>,
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
        let result = Segment::open(self.store, kind, info)
            .and_then(|segment| self.read_around_damage(kind, info, &segment, &mut row, before));
        if let Err(error) = result {
            self.damaged(error.to_string(), kind, row.number, row.last_seq.unwrap_or(before), false);
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

    /// A segment does not check behind what was read of it, whose last sequence is `last`.
    fn damaged(&mut self, what: String, kind: LogKind, segment: u64, last: WriteSeq, has_tables: bool) {
        let from = match kind {
            LogKind::Redo => last.next(),
            // All cuts below may need a before-image.
            LogKind::Undo => WriteSeq::from_raw(self.report.manifest.retired_below),
        };
        if !has_tables {
            let damage = Damage::of_cuts(what.clone(), from, false);
            self.untold.push(Untold { kind, segment, damage });
        }
        self.cuts_are_bad(what, from);
    }

    /// Cuts from here on may miss something. Where it was contained the gaps say so, and where they end.
    fn cuts_are_bad(&mut self, what: String, from: WriteSeq) {
        if !self.report.manifest.damage.iter().any(|entry| entry.what == what) {
            self.report.bad_from = Some(self.report.bad_from.map_or(from, |bad| bad.min(from)));
        }
        self.report.damage.push(what);
    }

    /// Reads a segment; of a sealed one also what stands behind damage.
    fn read_around_damage(
        &mut self,
        kind: LogKind,
        info: &SegmentInfo,
        segment: &Segment,
        row: &mut SegmentReport,
        before: WriteSeq,
    ) -> Result<(), SegmentError> {
        let end = info.sealed.as_ref().map(|sealed| sealed.bytes);
        let mut scan = segment.scan(end)?;
        let mut is_behind_damage = false;
        loop {
            row.bytes = scan.position.at;
            let error = match scan.next() {
                Ok(Some(found)) => {
                    self.read_batch(kind, info, &found, row, std::mem::take(&mut is_behind_damage))?;
                    continue;
                }
                Ok(None) if end.is_none_or(|end| row.bytes >= end) => return Ok(()),
                Ok(None) => segment.ends_early(row.bytes),
                Err(error) if end.is_none() => {
                    return if self.is_torn(&mut scan, &error) { Ok(()) } else { Err(error) };
                }
                Err(error) => error,
            };
            let mut what = error.to_string();
            is_behind_damage = true;
            let tables = scan.tables()?;
            let last = row.last_seq.unwrap_or(before);
            row.last_seq = tables.as_ref().map(|found| found.batch.header().last_seq).or(row.last_seq);
            let onward = scan.resume()?;
            if onward != Onward::Next {
                let end = end.unwrap_or(row.bytes);
                what += &cut_off_up_to(if onward == Onward::End { end } else { scan.position.at });
            }
            let has_tables = tables.is_some() && onward == Onward::Next;
            self.damaged(what, kind, row.number, last, has_tables);
            if onward == Onward::End {
                return Ok(());
            }
        }
    }

    fn read_batch(
        &mut self,
        kind: LogKind,
        info: &SegmentInfo,
        found: &Found,
        row: &mut SegmentReport,
        is_behind_damage: bool,
    ) -> Result<(), SegmentError> {
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
            return Ok(());
        }
        if batch.header().prev_seq != self.timeline.last_seq && !is_behind_damage {
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
        if info.footer().is_none() {
            self.recent.extend(facts);
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

    /// Reads the runs of a log. One that does not check costs no data, as long as batches or another one tell what it had.
    fn read_runs(&mut self, kind: LogKind, manifest: &Manifest) {
        let log = manifest.log(kind);
        let merged: Vec<&RunInfo> =
            log.runs.iter().filter(|run| run.level > 0).filter(|run| self.read_run(kind, run)).collect();
        let footers = log.segments.iter().filter_map(SegmentInfo::footer);
        for footer in footers.filter(|footer| !self.read_run(kind, footer)).collect::<Vec<_>>() {
            let number = footer.first_segment;
            if merged.iter().any(|run| run.covers(number)) {
                continue;
            }
            let of_it = self.untold.iter().filter(|one| (one.kind, one.segment) == (kind, number));
            let unknown = of_it.map(|one| &one.damage).filter(|damage| !damage.is_known(manifest));
            if let Some(from) = unknown.map(|damage| damage.from).min() {
                self.report.bad_from = Some(self.report.bad_from.map_or(from, |bad| bad.min(from)));
            }
        }
    }

    /// Whether a run checks.
    fn read_run(&mut self, kind: LogKind, info: &RunInfo) -> bool {
        let result = Run::new(kind, info.clone()).visit(self.store, |_| {});
        if let Err(error) = &result {
            self.report.damage.push(format!("{error} (`repair` makes it again out of its batches)"));
        }
        result.is_ok()
    }

    /// Replicas against their checksums, where a fold that was cut short has not left both in part.
    fn read_replicas(&mut self, manifest: &Manifest) {
        let (applied, upto) = manifest.being_written();
        for disk in manifest.disks.iter().filter(|disk| upto <= applied && disk.summed_below > 0) {
            if !self.store.exists(&replica_name(&disk.name)).unwrap_or(true) {
                continue; // It lies elsewhere.
            }
            let looked =
                Replica::open(self.store, &manifest.vm, &disk.name, disk.size_bytes).and_then(|replica| {
                    let mut at = 0;
                    while let Some(region) = next_region(&replica, at)? {
                        for (_, what) in Looked::at(&replica, region, disk.summed_below)?.damage(&replica) {
                            self.cuts_are_bad(what, WriteSeq::from_raw(manifest.retired_below));
                        }
                        at = region.end();
                    }
                    Ok(())
                });
            if let Err(error) = looked {
                self.report.damage.push(format!("replica of disk {}: cannot be read: {error}", disk.name));
            }
        }
    }

    fn list_checkpoints(&mut self, manifest: &Manifest) {
        let files = Files { store: self.store, manifest };
        let (timeline, bad_from) = (&*self.timeline, self.report.bad_from);
        let is_good = |facts: &CheckpointFacts| {
            let cut = facts.cut();
            let is_whole = timeline.lost().by_cut().lost_from(cut).is_none();
            is_whole && timeline.is_consistent_checkpoint(cut) && bad_from.is_none_or(|from| cut < from)
        };
        let mut good = Vec::new();
        let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
        files.visit(&query, &mut Vec::new(), &mut |facts| {
            good.extend(Some(facts).filter(|facts| is_good(facts)));
            true
        });
        let (spoilt, lost) = files.look_through();
        let spoilt = spoilt.into_iter();
        let spoilt = spoilt.map(|what| format!("{what} (the scrub makes again what its other copy has)"));
        self.report.damage.extend(spoilt.chain(lost.iter().map(|lost| lost.to_string())));
        good.extend(self.recent.drain(..).filter(|facts| is_good(facts)));
        self.report.checkpoints = good;
    }
}
