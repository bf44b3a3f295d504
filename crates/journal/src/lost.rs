//! What was lost, in pieces: bytes of a disk as of a range of cuts. Everything else can be read, at every cut.
//!
//! A piece begins at the write that is damaged, or at what stands in for it, and ends at the first write that lies over it:
//! whatever is written from then on is there. So each write ends what is open of a piece below it, and what the source sends
//! again does. The pieces stand in the manifest as gaps do: as of the end of the last sealed segment.
//!
//! Of too many pieces those that lie next to each other become one around both: that costs more than was damaged, and
//! never shows anything that was.

use crate::manifest::{LostEntry, Manifest};
use std::sync::Arc;
use types::limits::LOST_PIECES_MAX;
use types::{ByteRange, DiskIndex, WriteSeq};

/// Bytes of a disk that nobody knows any more as of some cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn is_about(&self, disk: DiskIndex, range: ByteRange) -> bool {
        self.disk == disk && self.range.overlaps(range)
    }

    /// What of it `other` does not have.
    fn without(self, other: &Self) -> Vec<Self> {
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

    /// It in parts, after a write over a range.
    pub(crate) fn written_over(self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) -> Vec<Self> {
        match self.until.is_none() && self.from < seq && self.is_about(disk, range) {
            true => self.without(&Self { disk, range, from: seq, until: None }),
            false => vec![self],
        }
    }

    /// The smallest one around both, which are of one disk.
    fn around(self, other: &Self) -> Self {
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

    /// How much worse one piece around both is: worst where it opens again what was written over.
    fn worse_around(&self, other: &Self) -> (bool, u64) {
        let is_opened = self.until.is_some() != other.until.is_some();
        (is_opened, self.around(other).range.len - self.range.len.max(other.range.len))
    }
}

/// All pieces of a journal, which have nothing in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// By disk, then first byte, then first cut.
    pieces: Arc<Vec<LostPiece>>,
}

impl Lost {
    pub(crate) fn of_manifest(manifest: &Manifest) -> Self {
        let sizes = &manifest.disks;
        let fits = |piece: &LostPiece| {
            sizes.get(usize::from(piece.disk.0)).is_some_and(|disk| piece.range.fits(disk.size_bytes))
        };
        let mut lost = Self::default();
        lost.add(manifest.lost.iter().map(LostPiece::from).filter(fits));
        lost
    }

    pub(crate) fn entries(&self) -> Vec<LostEntry> {
        self.pieces.iter().map(LostEntry::from).collect()
    }

    pub(crate) fn pieces(&self) -> Vec<LostPiece> {
        (*self.pieces).clone()
    }

    /// What is lost of the newest state.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &LostPiece> {
        self.pieces.iter().filter(|piece| piece.until.is_none())
    }

    /// Adds pieces: what of them was not known.
    pub(crate) fn add(&mut self, pieces: impl IntoIterator<Item = LostPiece>) -> Vec<LostPiece> {
        let mut all = (*self.pieces).clone();
        let mut added = Vec::new();
        let pieces = pieces.into_iter().filter(|piece| !piece.range.is_empty()).collect();
        for piece in bounded(joined(pieces)) {
            let mut fresh = vec![piece];
            for known in all.iter().filter(|known| known.is_about(piece.disk, piece.range)) {
                fresh = fresh.into_iter().flat_map(|part| part.without(known)).collect();
            }
            all.extend_from_slice(&fresh);
            added.extend(fresh);
        }
        if !added.is_empty() {
            self.pieces = Arc::new(bounded(joined(all)));
        }
        joined(added)
    }

    /// A write, or what its source has sent again, lies over a range.
    pub(crate) fn write_over(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) {
        let is_open = |piece: &LostPiece| piece.until.is_none() && piece.is_about(disk, range);
        if self.pieces.iter().any(is_open) {
            let parts = self.pieces.iter().flat_map(|piece| piece.written_over(disk, range, seq));
            self.pieces = Arc::new(bounded(joined(parts.collect())));
        }
    }

    /// The first piece that lies over some of a range as of a cut.
    pub(crate) fn first_at(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Option<&LostPiece> {
        self.pieces.iter().find(|piece| piece.is_at(cut) && piece.is_about(disk, range))
    }

    /// What of a range is lost as of a cut.
    pub(crate) fn of_at(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<ByteRange> {
        let pieces = self.pieces.iter().filter(|piece| piece.is_at(cut) && piece.disk == disk);
        pieces.filter_map(|piece| piece.range.intersection(range)).collect()
    }

    /// The parts of a range that are not lost as of a cut.
    pub(crate) fn left_of(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<ByteRange> {
        let mut left = vec![range];
        for piece in self.pieces.iter().filter(|piece| piece.is_at(cut) && piece.is_about(disk, range)) {
            left = left.into_iter().flat_map(|part| part.without(piece.range)).collect();
        }
        left
    }

    /// From where on pieces of a cut are lost; none where all of it is there.
    pub(crate) fn lost_from(&self, cut: WriteSeq) -> Option<WriteSeq> {
        self.pieces.iter().filter(|piece| piece.is_at(cut)).map(|piece| piece.from).min()
    }

    /// How many bytes are lost as of a cut.
    pub(crate) fn bytes_at(&self, cut: WriteSeq) -> u64 {
        let (mut bytes, mut disk, mut upto) = (0, DiskIndex(0), 0);
        for piece in self.pieces.iter().filter(|piece| piece.is_at(cut)) {
            if piece.disk != disk {
                (disk, upto) = (piece.disk, 0);
            }
            bytes += piece.range.end().saturating_sub(piece.range.start.max(upto));
            upto = upto.max(piece.range.end());
        }
        bytes
    }

    /// Nothing below can be opened any more.
    pub(crate) fn forget(&mut self, below: WriteSeq) {
        let is_gone = |piece: &LostPiece| piece.until.is_some_and(|until| until <= below);
        if self.pieces.iter().any(is_gone) {
            Arc::make_mut(&mut self.pieces).retain(|piece| !is_gone(piece));
        }
    }
}

/// Pieces that differ only in that one lies behind the other as one.
fn joined(mut pieces: Vec<LostPiece>) -> Vec<LostPiece> {
    pieces.sort_unstable_by_key(|piece| (piece.disk, piece.from, piece.until, piece.range.start));
    let mut joined: Vec<LostPiece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let follows = |last: &&mut LostPiece| {
            (last.disk, last.from, last.until, last.range.end())
                == (piece.disk, piece.from, piece.until, piece.range.start)
        };
        match joined.last_mut().filter(follows) {
            Some(last) => last.range.len += piece.range.len,
            None => joined.push(piece),
        }
    }
    joined.sort_unstable_by_key(|piece| (piece.disk, piece.range.start, piece.from));
    joined
}

/// At most as many as are kept: neighbours become one, where that costs least.
fn bounded(pieces: Vec<LostPiece>) -> Vec<LostPiece> {
    let Some(excess) = pieces.len().checked_sub(LOST_PIECES_MAX).filter(|excess| *excess > 0) else {
        return pieces;
    };
    let mut costs: Vec<_> = pieces
        .windows(2)
        .enumerate()
        .filter(|(_, two)| two[0].disk == two[1].disk)
        .map(|(at, two)| (two[0].worse_around(&two[1]), at + 1))
        .collect();
    costs.sort_unstable();
    let mut is_joined = vec![false; pieces.len()];
    costs.iter().take(excess).for_each(|(_, at)| is_joined[*at] = true);
    let mut kept: Vec<LostPiece> = Vec::with_capacity(LOST_PIECES_MAX);
    for (piece, is_joined) in pieces.into_iter().zip(is_joined) {
        match kept.last_mut().filter(|_| is_joined) {
            Some(last) => *last = last.around(&piece),
            None => kept.push(piece),
        }
    }
    kept
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

#[cfg(test)]
mod tests;
