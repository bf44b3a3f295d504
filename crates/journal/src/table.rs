//! The table: the extents of one segment in memory, until its footer has them.
//!
//! Per region the extents stand in the order of the log, so a look-up walks from the newest that counts
//! to older ones until the range is covered (undo: from the oldest to newer ones). Wide ones stand apart, by piece and
//! sequence: of the few pieces around a region the one that counts first is asked for.

use crate::checkpoints::CheckpointFacts;
use crate::cover::{Cover, LogKind};
use crate::extent::{Extent, REGION_BYTES, WidePiece, Width};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use types::{ByteRange, DiskIndex, WriteSeq};

/// The extents of a segment and the checkpoints in it.
#[derive(Debug)]
pub(crate) struct Table {
    kind: LogKind,
    pub(crate) segment: u64,
    pub(crate) base_page: u64,
    regions: HashMap<(DiskIndex, u64), Vec<Extent>>,
    wide: BTreeSet<(WidePiece, WriteSeq)>,
    entries: usize,
    pub(crate) checkpoints: Vec<CheckpointFacts>,
}

impl Table {
    pub(crate) fn new(kind: LogKind, segment: u64, base_page: u64) -> Self {
        let (regions, wide) = (HashMap::new(), BTreeSet::new());
        Self { kind, segment, base_page, regions, wide, entries: 0, checkpoints: Vec::new() }
    }

    /// Takes up an extent; its sequence is not below any before.
    pub(crate) fn insert(&mut self, extent: Extent) {
        self.entries += 1;
        if let Some(piece) = extent.wide_piece() {
            self.wide.insert((piece, extent.seq));
            return;
        }
        let region = (extent.disk, extent.range.start / REGION_BYTES);
        self.regions.entry(region).or_default().push(extent);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// What counts of the region `part` lies in, in the order of the log: above `above` and at or below `upto`.
    pub(crate) fn counted(
        &self,
        disk: DiskIndex,
        part: ByteRange,
        above: WriteSeq,
        upto: WriteSeq,
    ) -> Cow<'_, [Extent]> {
        let extents = self.regions.get(&(disk, part.start / REGION_BYTES)).map_or(&[][..], Vec::as_slice);
        let from = extents.partition_point(|extent| extent.seq <= above);
        let to = extents.partition_point(|extent| extent.seq <= upto).max(from);
        let narrow = &extents[from..to];
        if self.wide.is_empty() || above >= upto {
            return Cow::Borrowed(narrow);
        }
        let wide = WidePiece::around(disk, part.start).filter_map(|piece| {
            let mut counted =
                self.wide.range((Bound::Excluded((piece, above)), Bound::Included((piece, upto))));
            let first = if self.kind == LogKind::Redo { counted.next_back() } else { counted.next() };
            first.map(|(piece, seq)| piece.extent(*seq))
        });
        let mut wide: Vec<Extent> = wide.collect();
        if wide.is_empty() {
            return Cow::Borrowed(narrow);
        }
        wide.extend_from_slice(narrow);
        wide.sort_by_key(|extent| extent.seq);
        Cow::Owned(wide)
    }

    /// All extents over a part of a region, above `above` and at or below `upto`.
    pub(crate) fn between(
        &self,
        disk: DiskIndex,
        part: ByteRange,
        (above, upto): (WriteSeq, WriteSeq),
    ) -> impl Iterator<Item = Extent> {
        let narrow = self.regions.get(&(disk, part.start / REGION_BYTES)).map_or(&[][..], Vec::as_slice);
        let first = narrow.partition_point(|extent| extent.seq <= above);
        let wide = WidePiece::around(disk, part.start).flat_map(move |piece| {
            self.wide
                .range((piece, WriteSeq::ZERO)..=(piece, WriteSeq::MAX))
                .map(|(piece, seq)| piece.extent(*seq))
        });
        let counts = move |extent: &Extent| extent.seq > above && extent.seq <= upto;
        narrow[first..]
            .iter()
            .copied()
            .chain(wide)
            .filter(move |extent| counts(extent) && extent.range.overlaps(part))
    }

    /// Lets the extents fill `cover`, which lies in one region: redo, those above `above` and at or below
    /// `upto`, newest first; undo, those above `above`, oldest first.
    pub(crate) fn fill(
        &self,
        cover: &mut Cover,
        disk: DiskIndex,
        part: ByteRange,
        above: WriteSeq,
        upto: WriteSeq,
    ) {
        fill_in_order(cover, &self.counted(disk, part, above, upto), self.kind);
    }

    /// All extents of one width, ordered as a run has them.
    pub(crate) fn of_width(&self, width: Width) -> Vec<Extent> {
        match width {
            Width::Narrow => {
                let mut all: Vec<Extent> = self.regions.values().flatten().copied().collect();
                all.sort_unstable_by_key(Extent::sort_key);
                all
            }
            Width::Wide => self.wide.iter().map(|(piece, seq)| piece.extent(*seq)).collect(),
        }
    }

    /// All extents, ordered as a run has them.
    pub(crate) fn sorted(&self) -> impl Iterator<Item = Extent> {
        Width::BOTH.into_iter().flat_map(|width| self.of_width(width))
    }
}

/// Lets `extents`, ascending by sequence, fill `cover`: redo from the newest, undo from the oldest.
pub(crate) fn fill_in_order(cover: &mut Cover, extents: &[Extent], kind: LogKind) {
    let mut take = |extent: &Extent| {
        if !cover.is_done() {
            cover.take(extent, kind);
        }
    };
    match kind {
        LogKind::Redo => extents.iter().rev().for_each(&mut take),
        LogKind::Undo => extents.iter().for_each(&mut take),
    }
}
