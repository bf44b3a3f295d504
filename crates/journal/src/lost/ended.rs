//! Pieces that something was written over: of one byte there may be many, as of cuts that follow one another.
//!
//! They stand apart by how long they are, from one power of two up to the next: whoever asks for a range looks from as far
//! before it as those of one class are long, and so at few that do not reach it.

use super::looks;
use super::piece::LostPiece;
use std::collections::{BTreeMap, BTreeSet};
use types::{ByteRange, DiskIndex, WriteSeq};

/// By disk and class, then by place and cuts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    classes: BTreeMap<(DiskIndex, u32), BTreeSet<LostPiece>>,
    count: usize,
}

/// Pieces of a class have at most 2^class bytes, and more than half of that.
fn class_of(piece: &LostPiece) -> (DiskIndex, u32) {
    (piece.disk, u64::BITS - piece.range.len.saturating_sub(1).leading_zeros())
}

/// Before all that begin at a byte.
fn at(disk: DiskIndex, start: u64) -> LostPiece {
    LostPiece { disk, range: ByteRange::new(start, 0), from: WriteSeq::ZERO, until: None }
}

impl Ended {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LostPiece> {
        self.classes.values().flatten()
    }

    /// Those over some of a range.
    pub(super) fn over(&self, disk: DiskIndex, range: ByteRange) -> impl Iterator<Item = &LostPiece> {
        let classes = self.classes.range((disk, 0)..=(disk, u64::BITS));
        let near = classes.flat_map(move |((_, class), pieces)| {
            let longest = 1u64.checked_shl(*class).unwrap_or(u64::MAX);
            let first = range.start.saturating_sub(longest - 1);
            pieces.range(at(disk, first)..at(disk, range.end()))
        });
        near.inspect(|_| looks::count()).filter(move |piece| piece.is_about(disk, range))
    }

    pub(super) fn insert(&mut self, piece: LostPiece) {
        let is_new = self.classes.entry(class_of(&piece)).or_default().insert(piece);
        self.count += usize::from(is_new);
    }

    pub(super) fn remove(&mut self, piece: &LostPiece) {
        let class = class_of(piece);
        let Some(pieces) = self.classes.get_mut(&class) else { return };
        self.count -= usize::from(pieces.remove(piece));
        if pieces.is_empty() {
            self.classes.remove(&class);
        }
    }

    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&LostPiece) -> bool) {
        for pieces in self.classes.values_mut() {
            pieces.retain(&mut is_kept);
        }
        self.classes.retain(|_, pieces| !pieces.is_empty());
        self.count = self.classes.values().map(BTreeSet::len).sum();
    }
}
