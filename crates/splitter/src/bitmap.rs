//! Which 64 KiB blocks of a disk the recovery side does not have.

use types::limits::BLOCK_BYTES;
use types::{BlockIndex, ByteRange};

/// One bit per block of a disk, in memory: 2 MiB per TiB.
#[derive(Debug, Clone)]
pub struct Bitmap {
    words: Vec<u64>,
    blocks: u64,
    set: u64,
    /// Where the next search begins: blocks are taken in order around the disk.
    cursor: u64,
}

impl Bitmap {
    /// A bitmap with no block marked.
    pub fn new(size_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        Self { words: vec![0; blocks.div_ceil(64) as usize], blocks, set: 0, cursor: 0 }
    }

    /// Marks every block `range` touches.
    pub fn mark(&mut self, range: ByteRange) {
        for BlockIndex(block) in range.blocks().take_while(|block| block.0 < self.blocks) {
            let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
            self.set += u64::from(self.words[word] & bit == 0);
            self.words[word] |= bit;
        }
    }

    /// Whether a block is marked.
    pub fn is_marked(&self, block: BlockIndex) -> bool {
        block.0 < self.blocks && self.words[(block.0 / 64) as usize] & (1 << (block.0 % 64)) != 0
    }

    /// How many blocks are marked.
    pub fn count(&self) -> u64 {
        self.set
    }

    /// Which groups of `unit` blocks have a marked one.
    pub(crate) fn marked_units(&self, unit: u64) -> Vec<u64> {
        let mut units = Vec::new();
        let mut from = 0;
        while let Some(block) = self.find(from) {
            units.push(block / unit);
            from = (block / unit + 1) * unit;
        }
        units
    }

    /// The next run of marked blocks, at most `blocks_max` long. They stay marked.
    pub fn next_run(&self, blocks_max: u64) -> Option<(BlockIndex, u64)> {
        if self.set == 0 {
            return None;
        }
        let first = self.find(self.cursor).or_else(|| self.find(0))?;
        let len = (first..self.blocks.min(first + blocks_max))
            .take_while(|&block| self.is_marked(BlockIndex(block)))
            .count() as u64;
        Some((BlockIndex(first), len))
    }

    fn find(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *self.words.get(word)?;
        }
    }

    /// Clears a run and moves the search on behind it.
    pub fn clear_run(&mut self, first: BlockIndex, len: u64) {
        for block in first.0..(first.0 + len).min(self.blocks) {
            let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
            self.set -= u64::from(self.words[word] & bit != 0);
            self.words[word] &= !bit;
        }
        self.cursor = first.0 + len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_in_order_around_the_disk() {
        let mut bitmap = Bitmap::new(200 * BLOCK_BYTES + 1);
        bitmap.mark(ByteRange::new(63 * BLOCK_BYTES, 3 * BLOCK_BYTES));
        bitmap.mark(ByteRange::new(200 * BLOCK_BYTES, 1));
        assert_eq!(bitmap.count(), 4);
        assert_eq!(bitmap.next_run(2), Some((BlockIndex(63), 2)));
        bitmap.clear_run(BlockIndex(63), 2);
        bitmap.mark(ByteRange::new(0, 1));
        assert_eq!(bitmap.next_run(16), Some((BlockIndex(65), 1)));
        bitmap.clear_run(BlockIndex(65), 1);
        assert_eq!(bitmap.next_run(16), Some((BlockIndex(200), 1)));
        bitmap.clear_run(BlockIndex(200), 1);
        assert_eq!(bitmap.next_run(16), Some((BlockIndex(0), 1)));
        bitmap.clear_run(BlockIndex(0), 1);
        assert_eq!(bitmap.next_run(16), None);
    }
}
