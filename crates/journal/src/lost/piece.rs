//! One piece that is lost: bytes of a disk as of a range of cuts, and what is left of it beside another or below a write.

use crate::manifest::LostEntry;
use types::{ByteRange, DiskIndex, WriteSeq};

/// Bytes of a disk that nobody knows any more as of some cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostPiece {
    pub disk: DiskIndex,
    pub range: ByteRange,
    /// As of this cut and later ones,
    pub from: WriteSeq,
    /// and below this one, at which something was written over them; none as long as nothing was.
    pub until: Option<WriteSeq>,
}

impl LostPiece {
    /// Whether it is lost as of a cut.
    pub(crate) fn is_at(&self, cut: WriteSeq) -> bool {
        self.from <= cut && self.until.is_none_or(|until| cut < until)
    }

    fn with_cuts(self, from: WriteSeq, until: Option<WriteSeq>) -> Option<Self> {
        until.is_none_or(|until| from < until).then_some(Self { from, until, ..self })
    }

    pub(super) fn is_about(&self, disk: DiskIndex, range: ByteRange) -> bool {
        self.disk == disk && self.range.overlaps(range)
    }

    /// What of it `other` does not have.
    pub(super) fn without(self, other: &Self) -> Vec<Self> {
        let reaches = self.until.is_none_or(|until| other.from < until);
        let is_reached = other.until.is_none_or(|until| self.from < until);
        let Some(both) = self.range.intersection(other.range).filter(|_| self.disk == other.disk) else {
            return vec![self];
        };
        if !reaches || !is_reached {
            return vec![self];
        }
        let beside = self.range.without(both).map(|range| Self { range, ..self });
        let within = Self { range: both, ..self };
        let before = within.with_cuts(self.from, Some(other.from));
        let behind = other.until.and_then(|until| within.with_cuts(until, self.until));
        beside.chain(before).chain(behind).collect()
    }

    /// The smallest one around both, which are of one disk.
    pub(super) fn around(self, other: &Self) -> Self {
        let start = self.range.start.min(other.range.start);
        let end = self.range.end().max(other.range.end());
        let until = self.until.zip(other.until).map(|(one, other)| one.max(other));
        Self {
            range: ByteRange::new(start, end - start),
            from: self.from.min(other.from),
            until,
            disk: self.disk,
        }
    }

    /// How many bytes more than the longer one a piece around both has.
    pub(super) fn worse_around(&self, other: &Self) -> u64 {
        self.around(other).range.len - self.range.len.max(other.range.len)
    }
}

impl From<&LostEntry> for LostPiece {
    fn from(entry: &LostEntry) -> Self {
        Self {
            disk: DiskIndex(entry.disk),
            range: ByteRange::new(entry.start, entry.len),
            from: WriteSeq::from_raw(entry.from),
            until: entry.until.map(WriteSeq::from_raw),
        }
    }
}

impl From<&LostPiece> for LostEntry {
    fn from(piece: &LostPiece) -> Self {
        let (start, len) = (piece.range.start, piece.range.len);
        let (from, until) = (piece.from.raw(), piece.until.map(WriteSeq::raw));
        Self { disk: piece.disk.0, start, len, from, until }
    }
}
