//! Pieces that nothing was written over. No two have a byte in common, so that whoever asks for a range finds the first one by
//! its place, and looks at no others than those that lie there.

use super::looks;
use super::piece::LostPiece;
use std::collections::BTreeMap;
use types::{ByteRange, DiskIndex, WriteSeq};

/// By disk and first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Open {
    pieces: BTreeMap<(DiskIndex, u64), LostPiece>,
    bytes: u64,
}

impl Open {
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// All bytes that they have.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of them, in the order of the disks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &LostPiece> {
        self.pieces.values().inspect(|_| looks::count())
    }

    /// Those over some of a range, in ascending order.
    pub(crate) fn over(&self, disk: DiskIndex, range: ByteRange) -> impl Iterator<Item = &LostPiece> {
        let at_it = (disk, range.start);
        let before = self.pieces.range(..=at_it).next_back().map(|(key, _)| *key);
        let first = before.filter(|before| before.0 == disk).unwrap_or(at_it);
        let near = self.pieces.range(first..(disk, range.end().max(range.start))).map(|(_, piece)| piece);
        near.inspect(|_| looks::count()).filter(move |piece| piece.is_about(disk, range))
    }

    /// Adds one that has nothing in common with the others.
    pub(crate) fn insert(&mut self, piece: LostPiece) {
        debug_assert!(piece.until.is_none() && self.over(piece.disk, piece.range).next().is_none());
        self.bytes += piece.range.len;
        self.pieces.insert((piece.disk, piece.range.start), piece);
    }

    pub(super) fn remove(&mut self, piece: &LostPiece) {
        if self.pieces.remove(&(piece.disk, piece.range.start)).is_some() {
            self.bytes -= piece.range.len;
        }
    }

    /// A write lies over a range: what of them ends with it. What is lost as of later cuts only is none of its business.
    pub(crate) fn write_over(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) -> Vec<LostPiece> {
        let hit = self.over(disk, range).filter(|piece| piece.from < seq).copied().collect::<Vec<_>>();
        let write = LostPiece { disk, range, from: seq, until: None };
        let mut ended = Vec::with_capacity(hit.len());
        for piece in hit {
            self.remove(&piece);
            for part in piece.without(&write) {
                match part.until {
                    None => self.insert(part),
                    Some(_) => ended.push(part),
                }
            }
        }
        ended
    }
}
