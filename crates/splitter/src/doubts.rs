//! Differences that prove nothing yet.
//!
//! A disk that is written before its writes are told of may hold one already that the comparison's cut does not have: a
//! block that is written again and again differs now and then though nothing is wrong. A block counts as different only
//! once it has differed at each of [`LOOKS`] looks in a row.

use std::collections::BTreeMap;
use types::limits::DOUBTED_BLOCKS_MAX;
use types::{BlockIndex, DiskIndex};

/// How often a block is looked at before a difference is believed.
const LOOKS: u8 = 3;

#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// How often in a row a block has differed.
    looks: BTreeMap<(DiskIndex, u64), u8>,
}

impl Doubts {
    /// What is believed of an answer for a run of `blocks`, a bit for each that differs; the others are to be looked at
    /// again. Where too many are doubted already everything is believed.
    pub(crate) fn believed(&mut self, disk: DiskIndex, first: BlockIndex, blocks: u64, differs: u64) -> u64 {
        let mut believed = 0;
        for at in 0..blocks.min(64) {
            let (block, bit) = ((disk, first.0 + at), 1 << at);
            if differs & bit == 0 {
                self.looks.remove(&block);
                continue;
            }
            let looks = self.looks.get(&block).copied().unwrap_or(0) + 1;
            if looks >= LOOKS || self.looks.len() >= DOUBTED_BLOCKS_MAX {
                self.looks.remove(&block);
                believed |= bit;
            } else {
                self.looks.insert(block, looks);
            }
        }
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_believed_to_differ_once_it_has_at_every_look() {
        let mut doubts = Doubts::default();
        let mut look = |first, differs| doubts.believed(DiskIndex(0), BlockIndex(first), 4, differs);
        assert_eq!(look(8, 0b1001), 0);
        assert_eq!(look(8, 0b1011), 0);
        // The last one was equal once, the second differs for the second time.
        assert_eq!(look(8, 0b0011), 0b0001);
        assert_eq!(look(8, 0b0011), 0b0010);
        assert_eq!(look(100, 0b0001), 0, "another block");
    }

    #[test]
    fn what_differs_everywhere_is_not_remembered() {
        let mut doubts = Doubts::default();
        let runs = 2 * DOUBTED_BLOCKS_MAX as u64 / 64;
        let believed = (0..runs).map(|at| doubts.believed(DiskIndex(0), BlockIndex(at * 64), 64, u64::MAX));
        assert!(believed.last().is_some_and(|last| last == u64::MAX));
        assert!(doubts.looks.len() <= DOUBTED_BLOCKS_MAX);
    }
}
