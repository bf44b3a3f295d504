//! Places on a disk: byte ranges, tracking blocks, the disks of a VM.

use crate::limits::BLOCK_BYTES;
use std::fmt;
use std::ops::Range;

/// Which disk of its VM, counted from zero in the order of the protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskIndex(pub u16);

/// A disk of a protected VM: its name in the guest (`vda`) and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    pub name: String,
    pub size_bytes: u64,
}

/// A 64 KiB block of a disk, the unit of the dirty bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// Blocks of a disk, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRun {
    pub disk: DiskIndex,
    pub first: BlockIndex,
    pub blocks: u64,
}

/// Bytes `start .. start + len` of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    pub start: u64,
    pub len: u64,
}

impl ByteRange {
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether the range lies within a disk of `size` bytes; false also where its end would overflow.
    pub const fn fits(self, size_bytes: u64) -> bool {
        match self.start.checked_add(self.len) {
            Some(end) => end <= size_bytes,
            None => false,
        }
    }

    pub const fn overlaps(self, other: ByteRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether it starts and ends at multiples of `unit` bytes.
    pub const fn is_multiple_of(self, unit: u64) -> bool {
        self.start.is_multiple_of(unit) && self.len.is_multiple_of(unit)
    }

    /// The smallest range around it that starts and ends at multiples of `unit` bytes.
    pub const fn widened_to(self, unit: u64) -> ByteRange {
        let start = self.start / unit * unit;
        ByteRange::new(start, self.end().next_multiple_of(unit) - start)
    }

    /// The part both have, if any.
    pub fn intersection(self, other: ByteRange) -> Option<ByteRange> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| ByteRange::new(start, end - start))
    }

    /// What of it `other` does not have: what lies before, and what lies behind.
    pub fn without(self, other: ByteRange) -> impl Iterator<Item = ByteRange> {
        let parts = [(self.start, self.end().min(other.start)), (self.start.max(other.end()), self.end())];
        let parts = parts.into_iter().filter(|(start, end)| start < end);
        parts.map(|(start, end)| Self::new(start, end - start))
    }

    /// The parts that none of `covered` has; those ascend by their first byte.
    pub fn gaps(self, covered: impl IntoIterator<Item = ByteRange>) -> Vec<ByteRange> {
        let (mut gaps, mut at) = (Vec::new(), self.start);
        for one in covered.into_iter().chain([ByteRange::new(self.end(), 0)]) {
            let before = one.start.min(self.end());
            if at < before {
                gaps.push(ByteRange::new(at, before - at));
            }
            at = at.max(one.end());
        }
        gaps
    }

    /// The range in pieces that do not cross a multiple of `unit` bytes.
    pub fn split_at_multiples(self, unit: u64) -> impl Iterator<Item = ByteRange> {
        let mut at = self.start;
        let end = self.end();
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let stop = ((at / unit + 1) * unit).min(end);
                let piece = ByteRange::new(at, stop - at);
                at = stop;
                piece
            })
        })
    }

    /// The numbers of the units of `unit` bytes the range touches.
    pub const fn units(self, unit: u64) -> Range<u64> {
        let first = self.start / unit;
        let past = if self.len == 0 { first } else { (self.end() - 1) / unit + 1 };
        first..past
    }

    /// The tracking blocks the range touches.
    pub fn blocks(self) -> impl Iterator<Item = BlockIndex> {
        self.units(BLOCK_BYTES).map(BlockIndex)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

impl BlockRun {
    /// The block behind the last one.
    pub const fn end(self) -> u64 {
        self.first.0 + self.blocks
    }

    /// The bytes of it that a disk of `size` bytes has.
    pub fn range(self, size_bytes: u64) -> ByteRange {
        let (start, end) = (self.first.0.saturating_mul(BLOCK_BYTES), self.end().saturating_mul(BLOCK_BYTES));
        let start = start.min(size_bytes);
        ByteRange::new(start, end.min(size_bytes) - start)
    }
}

impl BlockIndex {
    /// The bytes of the block, cut at the end of a disk of `size` bytes.
    pub fn range(self, size_bytes: u64) -> ByteRange {
        let start = self.0 * BLOCK_BYTES;
        ByteRange::new(start, BLOCK_BYTES.min(size_bytes.saturating_sub(start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_touches_every_block_it_has_a_byte_in() {
        let blocks: Vec<_> = ByteRange::new(65_535, 2).blocks().map(|b| b.0).collect();
        assert_eq!(blocks, [0, 1]);
        assert_eq!(ByteRange::new(65_536, 0).blocks().count(), 0);
    }

    #[test]
    fn a_range_that_overflows_does_not_fit() {
        assert!(!ByteRange::new(u64::MAX, 2).fits(u64::MAX));
        assert!(ByteRange::new(0, 10).fits(10));
    }

    #[test]
    fn pieces_join_up_to_the_whole() {
        let pieces: Vec<_> = ByteRange::new(700, 2000).split_at_multiples(1024).collect();
        assert_eq!(pieces, [ByteRange::new(700, 324), ByteRange::new(1024, 1024), ByteRange::new(2048, 652)]);
    }

    #[test]
    fn gaps_are_what_nothing_covers_however_that_lies() {
        let gaps = |covered: &[(u64, u64)]| {
            let covered = covered.iter().map(|(start, len)| ByteRange::new(*start, *len));
            ByteRange::new(10, 10).gaps(covered).iter().map(|gap| (gap.start, gap.len)).collect::<Vec<_>>()
        };
        assert_eq!(gaps(&[]), [(10, 10)]);
        assert_eq!(gaps(&[(0, 30)]), []);
        assert_eq!(gaps(&[(5, 7), (11, 2), (15, 1), (18, 9)]), [(13, 2), (16, 2)]);
        assert_eq!(gaps(&[(0, 5), (40, 5)]), [(10, 10)]);
    }
}
