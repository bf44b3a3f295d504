//! Pieces to be searched and changed: those that nothing was written over, and those that something was.

use super::ended::Ended;
use super::looks;
use super::open::Open;
use super::piece::LostPiece;
use types::limits::LOST_PIECES_MAX;
use types::{ByteRange, DiskIndex, WriteSeq};

/// How many are left where there were too many: fewer than there may be, so that not each write that makes two of one has to
/// look for those that cost least.
const LEFT: usize = LOST_PIECES_MAX - LOST_PIECES_MAX / 8;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    pub(super) open: Open,
    pub(super) ended: Ended,
}

impl Pieces {
    pub(super) fn len(&self) -> usize {
        self.open.len() + self.ended.len()
    }

    /// By disk, then first byte, then first cut.
    pub(super) fn sorted(&self) -> Vec<LostPiece> {
        let mut all = self.open.iter().chain(self.ended.iter()).copied().collect::<Vec<_>>();
        all.sort_unstable_by_key(|piece| (piece.disk, piece.range.start, piece.from, piece.until));
        all
    }

    pub(super) fn over(&self, disk: DiskIndex, range: ByteRange) -> impl Iterator<Item = &LostPiece> {
        self.open.over(disk, range).chain(self.ended.over(disk, range))
    }

    /// Of those that nothing was written over it has nothing in common with any.
    pub(super) fn insert(&mut self, piece: LostPiece) {
        match piece.until {
            None => self.open.insert(piece),
            Some(_) => self.ended.insert(piece),
        }
    }

    fn remove(&mut self, piece: &LostPiece) {
        match piece.until {
            None => self.open.remove(piece),
            Some(_) => self.ended.remove(piece),
        }
    }

    /// Takes what `other` has out of them.
    pub(super) fn take_out(&mut self, other: &LostPiece) {
        let hit = self.over(other.disk, other.range).copied().collect::<Vec<_>>();
        for piece in hit {
            self.remove(&piece);
            piece.without(other).into_iter().for_each(|part| self.insert(part));
        }
    }

    pub(super) fn write_over(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) {
        self.open.write_over(disk, range, seq).into_iter().for_each(|ended| self.ended.insert(ended));
        self.bound();
    }

    /// Inserts one, as one with those that differ only in that they lie before or behind it.
    pub(super) fn insert_joined(&mut self, mut piece: LostPiece) {
        let around = ByteRange::new(piece.range.start.saturating_sub(1), piece.range.len + 2);
        let touches = |other: &&LostPiece| {
            let is_beside = other.range.end() == piece.range.start || piece.range.end() == other.range.start;
            is_beside && (other.from, other.until) == (piece.from, piece.until)
        };
        for other in self.over(piece.disk, around).filter(touches).copied().collect::<Vec<_>>() {
            self.remove(&other);
            piece = piece.around(&other);
        }
        self.insert(piece);
    }

    /// At most as many as are kept: neighbours become one, where that costs least; one around what nothing was written over
    /// has nothing of what something was.
    pub(super) fn bound(&mut self) {
        if self.len() <= LOST_PIECES_MAX {
            return;
        }
        let open = self.open.iter().copied().collect();
        let mut ended = self.ended.iter().copied().collect::<Vec<_>>();
        ended.sort_unstable_by_key(|piece| (piece.disk, piece.range.start, piece.from, piece.until));
        *self = Self::default();
        let [open, ended] = bounded([open, ended], LEFT);
        open.into_iter().for_each(|piece| self.open.insert(piece));
        ended.into_iter().for_each(|piece| self.ended.insert(piece));
    }
}

/// Pieces that differ only in that one lies behind the other as one.
pub(super) fn joined(mut pieces: Vec<LostPiece>) -> Vec<LostPiece> {
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

/// Two lists that are `most` together: neighbours of one list become one, where that costs least. There is one of each disk in
/// each at least.
fn bounded(lists: [Vec<LostPiece>; 2], most: usize) -> [Vec<LostPiece>; 2] {
    let excess = lists.iter().map(Vec::len).sum::<usize>().saturating_sub(most);
    let neighbours = lists.iter().enumerate().flat_map(|(list, pieces)| {
        let costs_of = move |(at, two): (usize, &[LostPiece])| {
            looks::count();
            (two[0].disk == two[1].disk).then(|| (two[0].worse_around(&two[1]), list, at + 1))
        };
        pieces.windows(2).enumerate().filter_map(costs_of)
    });
    let mut costs = neighbours.collect::<Vec<_>>();
    costs.sort_unstable();
    let mut is_joined = lists.each_ref().map(|pieces| vec![false; pieces.len()]);
    costs.iter().take(excess).for_each(|(_, list, at)| is_joined[*list][*at] = true);
    let mut is_joined = is_joined.into_iter();
    lists.map(|pieces| {
        let mut kept: Vec<LostPiece> = Vec::with_capacity(pieces.len());
        for (piece, is_joined) in pieces.into_iter().zip(is_joined.next().expect("one of each list")) {
            match kept.last_mut().filter(|_| is_joined) {
                Some(last) => *last = last.around(&piece),
                None => kept.push(piece),
            }
        }
        kept
    })
}
