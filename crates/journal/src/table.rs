//! The table: the extents of one segment in memory, until its footer has them.
//!
//! Per region the extents stand in the order of the log, so a look-up walks from the newest that counts
//! to older ones until the range is covered (undo: from the oldest to newer ones).

use crate::checkpoints::CheckpointFacts;
use crate::cover::{Cover, LogKind};
use crate::extent::{Extent, REGION_BYTES};
use std::collections::HashMap;
use types::{ByteRange, DiskIndex, WriteSeq};

/// The extents of a segment and the checkpoints in it.
#[derive(Debug)]
pub(crate) struct Table {
    kind: LogKind,
    pub(crate) segment: u64,
    pub(crate) base_page: u64,
    regions: HashMap<(DiskIndex, u64), Vec<Extent>>,
    entries: usize,
    pub(crate) checkpoints: Vec<CheckpointFacts>,
}

impl Table {
    pub(crate) fn new(kind: LogKind, segment: u64, base_page: u64) -> Self {
        Self { kind, segment, base_page, regions: HashMap::new(), entries: 0, checkpoints: Vec::new() }
    }

    /// Takes up an extent; its sequence is not below any before.
    pub(crate) fn insert(&mut self, extent: Extent) {
        let region = (extent.disk, extent.range.start / REGION_BYTES);
        self.regions.entry(region).or_default().push(extent);
        self.entries += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Extents of the region `part` lies in, in the order of the log.
    pub(crate) fn region(&self, disk: DiskIndex, part: ByteRange) -> &[Extent] {
        self.regions.get(&(disk, part.start / REGION_BYTES)).map_or(&[], Vec::as_slice)
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
        let extents = self.region(disk, part);
        let from = extents.partition_point(|extent| extent.seq <= above);
        let to = extents.partition_point(|extent| extent.seq <= upto).max(from);
        fill_in_order(cover, &extents[from..to], self.kind);
    }

    /// All extents, ordered as a run has them.
    pub(crate) fn sorted(&self) -> Vec<Extent> {
        let mut all: Vec<Extent> = self.regions.values().flatten().copied().collect();
        all.sort_unstable_by_key(Extent::sort_key);
        all
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
