//! What was lost, in pieces: bytes of a disk as of a range of cuts. Everything else can be read, at every cut.
//!
//! A piece begins at the write that is damaged, or at what stands in for it, and ends at the first write that lies over it:
//! whatever is written from then on is there. So each write ends what is open of a piece below it, and what the source sends
//! again does. The pieces stand in the manifest as gaps do: as of the end of the last sealed segment.
//!
//! Of too many pieces those that lie next to each other become one around both: that costs more than was damaged, and
//! never shows anything that was.
//!
//! Writes end pieces, and reads ask for them, under the lock of what readers see: both find them by their place.

mod by_cut;
mod ended;
mod looks;
mod open;
mod piece;
mod pieces;

use crate::manifest::{LostEntry, Manifest};
use by_cut::ByCut;
use pieces::{Pieces, joined};
use std::sync::{Arc, OnceLock};
use types::{ByteRange, DiskIndex, WriteSeq};

#[cfg(test)]
pub(crate) use looks::during;
pub(crate) use open::Open;
pub use piece::LostPiece;

/// All pieces of a journal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lost {
    pieces: Arc<Pieces>,
    /// What they come to, once somebody has asked.
    by_cut: Arc<OnceLock<ByCut>>,
}

impl PartialEq for Lost {
    fn eq(&self, other: &Self) -> bool {
        self.pieces == other.pieces
    }
}

impl Eq for Lost {}

impl Lost {
    pub(crate) fn of_manifest(manifest: &Manifest) -> Self {
        let sizes = &manifest.disks;
        let fits = |piece: &LostPiece| {
            let disk = sizes.get(usize::from(piece.disk.0));
            let is_of_a_cut = piece.until.is_none_or(|until| piece.from < until);
            is_of_a_cut && disk.is_some_and(|disk| piece.range.fits(disk.size_bytes))
        };
        let mut lost = Self::default();
        lost.add(manifest.lost.iter().map(LostPiece::from).filter(fits));
        lost
    }

    pub(crate) fn entries(&self) -> Vec<LostEntry> {
        self.pieces().iter().map(LostEntry::from).collect()
    }

    /// By disk, then first byte, then first cut.
    pub(crate) fn pieces(&self) -> Vec<LostPiece> {
        self.pieces.sorted()
    }

    /// What is lost of the newest state, in the order of the disks; no byte twice.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &LostPiece> {
        self.pieces.open.iter()
    }

    /// Whether anything of the newest state is.
    pub(crate) fn is_of_newest(&self) -> bool {
        self.newest().next().is_some()
    }

    /// How many bytes of it.
    pub(crate) fn newest_bytes(&self) -> u64 {
        self.pieces.open.bytes()
    }

    /// Adds pieces: what of them was not known.
    pub(crate) fn add(&mut self, pieces: impl IntoIterator<Item = LostPiece>) -> Vec<LostPiece> {
        let mut added = Vec::new();
        for piece in joined(pieces.into_iter().filter(|piece| !piece.range.is_empty()).collect()) {
            let mut fresh = Pieces::default();
            fresh.insert(piece);
            self.pieces.over(piece.disk, piece.range).for_each(|known| fresh.take_out(known));
            let fresh = fresh.sorted();
            if !fresh.is_empty() {
                let all = Arc::make_mut(&mut self.pieces);
                fresh.iter().for_each(|part| all.insert_joined(*part));
                all.bound();
                self.by_cut = Arc::default();
                added.extend(fresh);
            }
        }
        joined(added)
    }

    /// A write, or what its source has sent again, lies over a range.
    pub(crate) fn write_over(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) {
        if self.pieces.open.over(disk, range).any(|piece| piece.from < seq) {
            Arc::make_mut(&mut self.pieces).write_over(disk, range, seq);
            self.by_cut = Arc::default();
        }
    }

    /// Those that lie over some of a range as of a cut, by their first byte.
    fn over_at(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<LostPiece> {
        let over = self.pieces.over(disk, range).filter(|piece| piece.is_at(cut));
        let mut over = over.copied().collect::<Vec<_>>();
        over.sort_unstable();
        over
    }

    /// The first piece that lies over some of a range as of a cut.
    pub(crate) fn first_at(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Option<LostPiece> {
        let over = self.pieces.over(disk, range).filter(|piece| piece.is_at(cut));
        over.min_by_key(|piece| (piece.range.start, piece.from)).copied()
    }

    /// What of a range is lost as of a cut.
    pub(crate) fn of_at(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<ByteRange> {
        let over = self.over_at(disk, range, cut).into_iter();
        over.filter_map(|piece| piece.range.intersection(range)).collect()
    }

    /// The parts of a range that are not lost as of a cut.
    pub(crate) fn left_of(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<ByteRange> {
        range.gaps(self.over_at(disk, range, cut).into_iter().map(|piece| piece.range))
    }

    /// What is lost as of each cut; counted when that is first asked for, by no one who holds a lock.
    pub(crate) fn by_cut(&self) -> &ByCut {
        self.by_cut.get_or_init(|| ByCut::of(&self.pieces.sorted()))
    }

    /// Nothing below can be opened any more.
    pub(crate) fn forget(&mut self, below: WriteSeq) {
        let is_gone = |piece: &LostPiece| piece.until.is_some_and(|until| until <= below);
        if self.pieces.ended.iter().any(is_gone) {
            Arc::make_mut(&mut self.pieces).ended.retain(|piece| !is_gone(piece));
            self.by_cut = Arc::default();
        }
    }
}

#[cfg(test)]
mod tests;
