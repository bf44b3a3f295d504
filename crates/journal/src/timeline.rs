//! Which cuts of a VM are consistent: the gaps a sync leaves, what is retired, and the tail.

use crate::checkpoints::CheckpointFacts;
use crate::entropy::Tally;
use crate::lost::{Lost, LostPiece};
use crate::manifest::{GapEntry, Manifest, StreamPoint};
use batch::{Batch, BatchError, Kind, decode_mark};
use types::limits::LEFT_OUT_REACH_MAX;
use types::{Incarnation, WallTime, WriteSeq};

/// Cuts at or above `begin` and below `end` miss writes; without an end the sync is still going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub begin: WriteSeq,
    pub end: Option<WriteSeq>,
}

impl Gap {
    fn contains(&self, cut: WriteSeq) -> bool {
        self.begin <= cut && self.end.is_none_or(|end| cut < end)
    }
}

/// What is known of the order of one VM's stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Nothing below can be opened any more.
    pub(crate) floor: WriteSeq,
    /// The last sequence durable.
    pub(crate) last_seq: WriteSeq,
    /// Every write at or below is durable, but for gaps.
    pub(crate) watermark: WriteSeq,
    pub(crate) incarnation: Option<Incarnation>,
    /// Acknowledged writes from here on are lost: nothing but a stream that begins anew is taken. Nothing else that
    /// comes, goes or is sealed touches it.
    must_resync: Option<WriteSeq>,
    gaps: Vec<Gap>,
    /// Where writes were left out that others overwrite before the next checkpoint: in here only checkpoints are
    /// consistent. One stretch over all such places, from the first to the last: a link that is too slow for days
    /// leaves out writes in every interval, and other cuts than checkpoints matter at the tail only.
    left_out: Option<Gap>,
    lost: Lost,
    /// Something of the newest state was lost since everything was last asked for, or since the journal was opened.
    is_lost_anew: bool,
    /// Guest writes seen since the journal was opened or created.
    pub(crate) guest_writes: u64,
    tally: Tally,
}

impl Timeline {
    /// The timeline where the segments that were dropped end.
    pub(crate) fn begin(manifest: &Manifest) -> Self {
        let mut timeline = Self {
            floor: WriteSeq::from_raw(manifest.retired_below),
            gaps: manifest.gaps.iter().map(Gap::from).collect(),
            left_out: manifest.left_out.as_ref().map(Gap::from),
            must_resync: manifest.must_resync.map(WriteSeq::from_raw),
            lost: Lost::of_manifest(manifest),
            ..Self::default()
        };
        timeline.is_lost_anew = timeline.lost.is_of_newest();
        timeline.stand_at(&manifest.base);
        timeline
    }

    /// Moves to where a sealed segment ended.
    pub(crate) fn stand_at(&mut self, point: &StreamPoint) {
        self.last_seq = WriteSeq::from_raw(point.last_seq);
        self.watermark = WriteSeq::from_raw(point.watermark);
        self.incarnation = point.incarnation();
        self.tally.last_taken_at = point.checkpoint_at.map(WallTime);
    }

    /// Where the stream stands now.
    pub(crate) fn point(&self) -> StreamPoint {
        StreamPoint {
            last_seq: self.last_seq.raw(),
            watermark: self.watermark.raw(),
            incarnation: self.incarnation.map(|incarnation| incarnation.to_string()),
            checkpoint_at: self.tally.last_taken_at.map(|at| at.0),
        }
    }

    /// Takes up the marks of a durable batch with its frames; `sample` is some of its payload. The
    /// checkpoints in it.
    pub(crate) fn insert(
        &mut self,
        batch: &Batch,
        sample: &[u8],
    ) -> Result<Vec<CheckpointFacts>, BatchError> {
        self.tally.count(sample);
        let mut checkpoints = Vec::new();
        for (at, entry) in batch.entries().iter().enumerate() {
            if entry.kind.is_guest_write() {
                self.guest_writes += 1;
                self.tally.writes += 1;
                self.tally.bytes += entry.range.len;
            }
            if entry.kind.changes_disk() {
                self.lost.write_over(entry.disk, entry.range, entry.seq);
            }
            match entry.kind {
                Kind::Checkpoint => {
                    let mark = decode_mark(&batch.payload(at)?)
                        .map_err(|_| BatchError::Record { at, what: "its payload is not a checkpoint" })?;
                    checkpoints.push(self.close_tally(mark));
                }
                Kind::SyncBegin => {
                    if begins_anew(batch) {
                        // What was lost before comes with it. Any other gap may begin just so, and meets no demand.
                        self.is_lost_anew &= self.must_resync.take().is_none();
                    }
                    let missing_from = WriteSeq::from_raw(entry.range.start);
                    // Up to the watermark nothing is missing: cuts there may have been given out, and stay. Where the
                    // source has forgotten what it drew, and begins below it, cuts from there on would show half a sync.
                    let held = if entry.seq > self.watermark { self.watermark } else { self.last_seq };
                    self.open_gap(missing_from.min(entry.seq).max(held.next()));
                }
                Kind::SyncEnd => self.close_gap(entry.seq),
                Kind::LeftOut => self.leave_out(entry.seq, WriteSeq::from_raw(entry.range.start)),
                Kind::Write | Kind::Zero | Kind::Discard | Kind::Sync | Kind::SyncZero => {}
            }
        }
        let header = batch.header();
        self.last_seq = header.last_seq;
        self.watermark = self.watermark.max(header.watermark);
        self.incarnation = Some(header.incarnation);
        Ok(checkpoints)
    }

    fn close_tally(&mut self, checkpoint: types::Checkpoint) -> CheckpointFacts {
        let flags = CheckpointFacts::flags_after(self.tally.last_taken_at, checkpoint.taken_at);
        // One at which writes are missing is no use to thinning: the next one takes its place.
        let (flags, taken_at) = match self.is_gap_at(checkpoint.cut) {
            true => (0, self.tally.last_taken_at),
            false => (flags, Some(checkpoint.taken_at)),
        };
        let (writes, bytes, entropy) = (self.tally.writes, self.tally.bytes, self.tally.entropy());
        self.tally.reset();
        self.tally.last_taken_at = taken_at;
        CheckpointFacts { checkpoint, writes, bytes, entropy, damaged_bytes: 0, flags }
    }

    /// From `begin` on writes may be missing.
    pub(crate) fn open_gap(&mut self, begin: WriteSeq) {
        match self.gaps.last_mut() {
            Some(gap) if gap.end.is_none() => gap.begin = gap.begin.min(begin),
            _ => self.gaps.push(Gap { begin, end: None }),
        }
    }

    fn close_gap(&mut self, end: WriteSeq) {
        if let Some(gap) = self.gaps.last_mut()
            && gap.end.is_none()
        {
            gap.end = Some(end);
        }
    }

    /// A write stands for what overwrites it, which comes before the next checkpoint and so is never far.
    fn leave_out(&mut self, begin: WriteSeq, end: WriteSeq) {
        let farthest = WriteSeq::from_raw(begin.raw().saturating_add(LEFT_OUT_REACH_MAX));
        let end = end.clamp(begin, farthest);
        let before = self.left_out.unwrap_or(Gap { begin, end: Some(end) });
        self.left_out = Some(Gap { begin: before.begin.min(begin), end: before.end.max(Some(end)) });
    }

    /// Acknowledged writes from `from` on are lost: the source must begin anew before anything else is taken.
    pub(crate) fn demand_resync(&mut self, from: WriteSeq) {
        self.incarnation = None;
        self.is_lost_anew = false;
        self.must_resync = Some(self.must_resync.map_or(from, |before| before.min(from)));
    }

    /// Bytes are lost as of some cuts: what of that was not known.
    pub(crate) fn lose(&mut self, pieces: Vec<LostPiece>) -> Vec<LostPiece> {
        let fresh = self.lost.add(pieces);
        self.is_lost_anew |= fresh.iter().any(|piece| piece.until.is_none());
        fresh
    }

    /// Everything is to be compared for what is lost of the newest state, if that was not asked for before.
    pub(crate) fn demand_resync_for_lost(&mut self) {
        let from = self.lost.newest().map(|piece| piece.from).min();
        if let Some(from) = from.filter(|_| self.is_lost_anew) {
            self.demand_resync(from);
        }
    }

    /// Whether [`Timeline::demand_resync_for_lost`] would demand something.
    pub(crate) fn is_lost_anew(&self) -> bool {
        self.is_lost_anew && self.lost.is_of_newest()
    }

    /// What is lost, as of which cuts.
    pub(crate) fn lost(&self) -> &Lost {
        &self.lost
    }

    /// From where on acknowledged writes are lost, until a stream has begun anew.
    pub fn must_resync(&self) -> Option<WriteSeq> {
        self.must_resync
    }

    /// The newest consistent cut at or below `cut` of which nothing is `lost`, if there is one. `newest_checkpoint` tells
    /// the newest checkpoint at or below a cut that can be opened.
    pub(crate) fn newest_consistent(
        &self,
        cut: WriteSeq,
        lost: &Lost,
        mut newest_checkpoint: impl FnMut(WriteSeq) -> Option<WriteSeq>,
    ) -> Option<WriteSeq> {
        let (mut cut, lost) = (cut.min(self.watermark), lost.by_cut());
        loop {
            if cut < self.floor || cut == WriteSeq::ZERO {
                return None;
            }
            let begin = if let Some(gap) = self.gaps.iter().rev().find(|gap| gap.contains(cut)) {
                gap.begin
            } else if let Some(from) = lost.lost_from(cut) {
                from
            } else if let Some(left_out) = self.left_out_at(cut) {
                let found = newest_checkpoint(cut).filter(|found| *found >= left_out.begin);
                if found.is_some() {
                    return found;
                }
                left_out.begin
            } else {
                return Some(cut);
            };
            if begin == WriteSeq::ZERO {
                return None;
            }
            cut = begin.previous();
        }
    }

    fn left_out_at(&self, cut: WriteSeq) -> Option<Gap> {
        self.left_out.filter(|left_out| left_out.contains(cut))
    }

    /// Whether the VM can be opened exactly at `cut`, which is a checkpoint's.
    pub(crate) fn is_consistent_checkpoint(&self, cut: WriteSeq) -> bool {
        self.reaches(cut) && !self.is_gap_at(cut)
    }

    /// Whether `cut` lies between the oldest end and the newest.
    pub(crate) fn reaches(&self, cut: WriteSeq) -> bool {
        (self.floor.max(WriteSeq::ZERO.next())..=self.watermark).contains(&cut)
    }

    /// Whether writes are missing up to now.
    pub fn is_gap_open(&self) -> bool {
        self.gaps.last().is_some_and(|gap| gap.end.is_none())
    }

    /// Whether writes are missing at `cut`.
    pub(crate) fn is_gap_at(&self, cut: WriteSeq) -> bool {
        self.gaps.iter().any(|gap| gap.contains(cut))
    }

    /// Whether no cut from `from` on and below `until`, all later ones where there is none, can be opened: it was retired, or
    /// lies in a gap.
    pub(crate) fn misses(&self, from: WriteSeq, until: Option<WriteSeq>) -> bool {
        let reaches = |end: WriteSeq| until.is_some_and(|until| until <= end);
        let is_over = |gap: &Gap| gap.begin <= from && gap.end.is_none_or(reaches);
        reaches(self.floor) || self.gaps.iter().any(is_over)
    }

    /// The gap at `cut` as far as cuts go on missing writes, through all that follow one another. None where there is no
    /// gap, or one that has not ended.
    pub(crate) fn closed_gap_at(&self, cut: WriteSeq) -> Option<(WriteSeq, WriteSeq)> {
        let begin = self.gaps.iter().filter(|gap| gap.contains(cut)).map(|gap| gap.begin).min()?;
        let mut end = cut;
        while let Some(gap) = self.gaps.iter().find(|gap| gap.contains(end)) {
            end = gap.end?;
        }
        Some((begin, end))
    }

    /// Writes down what is consistent.
    pub(crate) fn write_to(&self, manifest: &mut Manifest) {
        manifest.gaps = self.gaps.iter().map(GapEntry::from).collect();
        manifest.left_out = self.left_out.as_ref().map(GapEntry::from);
        manifest.must_resync = self.must_resync.map(WriteSeq::raw);
        manifest.lost = self.lost.entries();
    }

    /// Moves the oldest end up, never down. The gaps below stay until that is written down: the manifest takes
    /// its gaps from here, and one without them, but with the old end, would call cuts consistent that are not.
    pub(crate) fn raise_floor(&mut self, floor: WriteSeq) {
        self.floor = self.floor.max(floor);
    }

    /// The oldest end is written down as `retired_below`: gaps that ended below go.
    pub(crate) fn forget_gaps(&mut self, retired_below: WriteSeq) {
        self.gaps.retain(|gap| gap.end.is_none_or(|end| end > retired_below));
        self.left_out = self.left_out.filter(|left_out| left_out.end > Some(retired_below));
        self.lost.forget(retired_below);
    }
}

/// Whether a stream begins anew with this batch: its first word is that everything above what was there before may be
/// missing.
pub(crate) fn begins_anew(batch: &Batch) -> bool {
    let missing_from = |start| WriteSeq::from_raw(start) <= batch.header().prev_seq.next();
    batch
        .entries()
        .first()
        .is_some_and(|entry| entry.kind == Kind::SyncBegin && missing_from(entry.range.start))
}

impl From<&GapEntry> for Gap {
    fn from(entry: &GapEntry) -> Self {
        Self { begin: WriteSeq::from_raw(entry.begin), end: entry.end.map(WriteSeq::from_raw) }
    }
}

impl From<&Gap> for GapEntry {
    fn from(gap: &Gap) -> Self {
        Self { begin: gap.begin.raw(), end: gap.end.map(WriteSeq::raw) }
    }
}
