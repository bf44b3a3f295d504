//! Which cuts of a VM are consistent: its checkpoints, the gaps a sync leaves, and the tail.

use crate::journal::Journal;
use crate::manifest::Manifest;
use batch::{Batch, BatchError, Kind, decode_mark};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, Incarnation, WriteSeq};

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
    pub(crate) applied: WriteSeq,
    /// The last sequence durable.
    pub(crate) last_seq: WriteSeq,
    /// Every write at or below is durable, but for gaps.
    pub(crate) watermark: WriteSeq,
    pub(crate) incarnation: Option<Incarnation>,
    gaps: Vec<Gap>,
    checkpoints: BTreeMap<WriteSeq, Checkpoint>,
    /// Guest writes seen since the journal was opened or created.
    pub(crate) guest_writes: u64,
}

impl Timeline {
    /// The timeline of a journal whose segments have not been read yet.
    pub(crate) fn begin(manifest: &Manifest) -> Self {
        let begin = WriteSeq::from_raw(manifest.applied);
        let folded = &manifest.folded;
        Self {
            applied: WriteSeq::from_raw(manifest.retired_below),
            last_seq: WriteSeq::from_raw(folded.last_seq),
            watermark: WriteSeq::from_raw(folded.watermark),
            incarnation: folded.incarnation.as_ref().and_then(|text| text.parse().ok()),
            gaps: if manifest.gap_at_applied { vec![Gap { begin, end: None }] } else { Vec::new() },
            ..Self::default()
        }
    }

    /// Takes up the marks of a durable batch; with `frames` a checkpoint's payload is read, without it
    /// (tables only) `payload` brings it.
    pub(crate) fn insert(
        &mut self,
        batch: &Batch,
        mut payload: impl FnMut(usize) -> Result<bytes::Bytes, BatchError>,
    ) -> Result<(), BatchError> {
        for (at, entry) in batch.entries().iter().enumerate() {
            self.guest_writes += u64::from(entry.kind.is_guest_write());
            match entry.kind {
                Kind::Checkpoint => {
                    let mark = decode_mark(&payload(at)?)
                        .map_err(|_| BatchError::Record { at, what: "its payload is not a checkpoint" })?;
                    self.checkpoints.insert(mark.cut, mark);
                }
                Kind::SyncBegin => {
                    let missing_from = WriteSeq::from_raw(entry.range.start);
                    self.open_gap(missing_from.min(entry.seq));
                }
                Kind::SyncEnd => self.close_gap(entry.seq),
                Kind::Write | Kind::Zero | Kind::Discard | Kind::Sync | Kind::SyncZero => {}
            }
        }
        let header = batch.header();
        self.last_seq = header.last_seq;
        self.watermark = self.watermark.max(header.watermark);
        self.incarnation = Some(header.incarnation);
        Ok(())
    }

    /// From `begin` on writes may be missing.
    pub(crate) fn open_gap(&mut self, begin: WriteSeq) {
        if self.gaps.last().is_none_or(|gap| gap.end.is_some()) {
            self.gaps.push(Gap { begin, end: None });
        }
    }

    fn close_gap(&mut self, end: WriteSeq) {
        if let Some(gap) = self.gaps.last_mut()
            && gap.end.is_none()
        {
            gap.end = Some(end);
        }
    }

    /// The newest consistent cut at or below `cut`, if there is one.
    pub fn newest_consistent(&self, cut: WriteSeq) -> Option<WriteSeq> {
        let mut cut = cut.min(self.watermark);
        while let Some(gap) = self.gaps.iter().rev().find(|gap| gap.contains(cut)) {
            if gap.begin == WriteSeq::ZERO {
                return None;
            }
            cut = gap.begin.previous();
        }
        (cut >= self.applied && cut > WriteSeq::ZERO).then_some(cut)
    }

    /// Whether the VM can be opened exactly at `cut`.
    pub fn is_consistent(&self, cut: WriteSeq) -> bool {
        self.newest_consistent(cut) == Some(cut)
    }

    /// Checkpoints that can be opened, oldest first, from just above `after`.
    pub fn checkpoints_after(&self, after: WriteSeq) -> impl DoubleEndedIterator<Item = &Checkpoint> {
        self.checkpoints
            .range(after.next()..)
            .map(|(_, checkpoint)| checkpoint)
            .filter(|c| self.is_consistent(c.cut))
    }

    /// A checkpoint by its id, if it can be opened.
    pub fn checkpoint(&self, id: CheckpointId) -> Option<&Checkpoint> {
        self.checkpoints.get(&id.0).filter(|checkpoint| self.is_consistent(checkpoint.cut))
    }

    /// The newest checkpoint that can be opened.
    pub fn newest_checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoints_after(WriteSeq::ZERO).next_back()
    }

    /// Whether writes are missing up to now.
    pub fn is_gap_open(&self) -> bool {
        self.gaps.last().is_some_and(|gap| gap.end.is_none())
    }

    /// Whether writes are missing at `cut`.
    pub(crate) fn is_gap_at(&self, cut: WriteSeq) -> bool {
        self.gaps.iter().any(|gap| gap.contains(cut))
    }

    /// Moves the oldest end up, never down: checkpoints below go, gaps that ended below go.
    pub(crate) fn forget_below(&mut self, applied: WriteSeq) {
        if applied <= self.applied {
            return; // A fold to further up was begun before, and failed.
        }
        self.applied = applied;
        self.checkpoints = self.checkpoints.split_off(&applied);
        self.gaps.retain(|gap| gap.end.is_none_or(|end| end > applied));
    }

    /// What stands nearest above `applied`: the oldest cut that can be opened.
    pub fn oldest_checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoints_after(WriteSeq::ZERO).next()
    }
}

/// The newest cut at which every one of `journals` is consistent: the tail of a group. The index of the
/// first journal that has no consistent cut is the error.
///
/// # Errors
/// The position of that journal in `journals`.
pub fn newest_common_cut(journals: &[Arc<Journal>]) -> Result<WriteSeq, usize> {
    let mut cut = WriteSeq::MAX;
    loop {
        let mut lowest = cut;
        for (at, journal) in journals.iter().enumerate() {
            lowest = journal.with_timeline(|timeline| timeline.newest_consistent(lowest)).ok_or(at)?;
        }
        if lowest == cut {
            return Ok(cut);
        }
        cut = lowest;
    }
}
