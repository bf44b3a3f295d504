//! Which 64 KiB blocks of a disk the recovery side does not have: bits in memory, set, cleared and searched by the word.

use std::ops::Range;
use types::limits::BLOCK_BYTES;
use types::{BlockIndex, ByteRange};

const WORD_BITS: u64 = u64::BITS as u64;

/// One bit per block of a disk, in memory: 2 MiB per TiB. It counts other units as well.
#[derive(Debug, Clone)]
pub struct Bitmap {
    words: Vec<u64>,
    units: u64,
    set: u64,
    /// Where the next search begins: blocks are taken in order around the disk.
    cursor: u64,
}

impl Bitmap {
    /// A bitmap with no block marked.
    pub fn new(size_bytes: u64) -> Self {
        Self::of_units(size_bytes.div_ceil(BLOCK_BYTES))
    }

    pub(crate) fn of_units(units: u64) -> Self {
        Self { words: vec![0; units.div_ceil(WORD_BITS) as usize], units, set: 0, cursor: 0 }
    }

    /// Marks every block `range` touches.
    pub fn mark(&mut self, range: ByteRange) {
        self.set(range.units(BLOCK_BYTES));
    }

    /// Sets a run of bits, as far as there are any.
    pub(crate) fn set(&mut self, run: Range<u64>) {
        for (word, mask) in masks(run.start..run.end.min(self.units)) {
            self.set += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Clears a run of bits, as far as there are any.
    pub(crate) fn clear(&mut self, run: Range<u64>) {
        for (word, mask) in masks(run.start..run.end.min(self.units)) {
            self.set -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    pub(crate) fn clear_all(&mut self) {
        self.words.fill(0);
        self.set = 0;
    }

    /// Whether a block is marked.
    pub fn is_marked(&self, block: BlockIndex) -> bool {
        block.0 < self.units && self.words[(block.0 / WORD_BITS) as usize] & (1 << (block.0 % WORD_BITS)) != 0
    }

    /// How many blocks are marked.
    pub fn count(&self) -> u64 {
        self.set
    }

    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// The 64 bits from this place on; there are none behind the end.
    pub(crate) fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// Which groups of `unit` blocks have a marked one: each group's number.
    pub(crate) fn marked_units(&self, unit: u64) -> impl Iterator<Item = u64> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let group = self.find(from)? / unit;
            from = (group + 1) * unit;
            Some(group)
        })
    }

    /// The next run of marked blocks, at most `blocks_max` long. They stay marked.
    pub fn next_run(&self, blocks_max: u64) -> Option<(BlockIndex, u64)> {
        if self.set == 0 {
            return None;
        }
        let first = self.find(self.cursor).or_else(|| self.find(0))?;
        let within = first..self.units.min(first.saturating_add(blocks_max));
        let (run, _) = runs(within, |at| self.word(at)).next()?;
        Some((BlockIndex(first), run.end - run.start))
    }

    fn find(&self, from: u64) -> Option<u64> {
        let mut word = (from / WORD_BITS) as usize;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % WORD_BITS));
        loop {
            if bits != 0 {
                return Some(word as u64 * WORD_BITS + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *self.words.get(word)?;
        }
    }

    /// Clears a run and moves the search on behind it.
    pub fn clear_run(&mut self, first: BlockIndex, len: u64) {
        self.clear(first.0..first.0 + len);
        self.cursor = first.0 + len;
    }
}

/// The words that hold the bits of a run, and which of their bits those are.
fn masks(run: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = run.start;
    std::iter::from_fn(move || {
        (at < run.end).then(|| {
            let (word, skip) = (at / WORD_BITS, at % WORD_BITS);
            let bits = (run.end - at).min(WORD_BITS - skip);
            at += bits;
            (word as usize, (u64::MAX >> (WORD_BITS - bits)) << skip)
        })
    })
}

/// Runs of equal bits, in order and without holes between, as `word` gives them.
pub(crate) fn runs(
    within: Range<u64>,
    word: impl Fn(usize) -> u64,
) -> impl Iterator<Item = (Range<u64>, bool)> {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }
        let first = at;
        let is_set = word((at / WORD_BITS) as usize) & (1 << (at % WORD_BITS)) != 0;
        while at < within.end {
            let others = word((at / WORD_BITS) as usize) ^ if is_set { u64::MAX } else { 0 };
            let others = others & (u64::MAX << (at % WORD_BITS));
            at = at / WORD_BITS * WORD_BITS + u64::from(others.trailing_zeros());
            if others != 0 {
                break;
            }
        }
        at = at.min(within.end);
        Some((first..at, is_set))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn words_say_what_bits_one_by_one_would(
            steps in proptest::collection::vec((any::<bool>(), 0u64..400, 0u64..400), 1..30),
            within in (0u64..400, 0u64..400),
        ) {
            const UNITS: u64 = 321;
            let mut bitmap = Bitmap::of_units(UNITS);
            let mut plain = [false; UNITS as usize];
            for (set, from, len) in steps {
                let run = from..from + len;
                run.clone().take_while(|at| *at < UNITS).for_each(|at| plain[at as usize] = set);
                if set { bitmap.set(run) } else { bitmap.clear(run) }
            }
            prop_assert_eq!(bitmap.count(), plain.iter().filter(|bit| **bit).count() as u64);
            let within = within.0.min(UNITS)..within.1.min(UNITS);
            let mut at = within.start;
            let mut before = None;
            for (run, is_set) in runs(within.clone(), |at| bitmap.word(at)) {
                prop_assert_eq!(run.start, at);
                prop_assert!(run.start < run.end && before != Some(is_set));
                prop_assert!(run.clone().all(|at| plain[at as usize] == is_set));
                (at, before) = (run.end, Some(is_set));
            }
            prop_assert!(at == within.end || within.is_empty());
            let groups: std::collections::BTreeSet<u64> =
                (0..UNITS).filter(|at| plain[*at as usize]).map(|at| at / 7).collect();
            prop_assert!(bitmap.marked_units(7).eq(groups));
        }
    }
}
