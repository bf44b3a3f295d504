//! A comparison that was asked for; only what answers it is listened to.

use crate::wire::{Compare, Compared};
use types::{BlockIndex, DiskIndex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    disk: DiskIndex,
    first: BlockIndex,
    blocks: usize,
}

impl Asked {
    pub(super) fn of(compare: &Compare) -> Self {
        Self { disk: compare.disk, first: compare.first, blocks: compare.hashes.len() }
    }

    pub(super) fn is_answered_by(&self, compared: &Compared) -> bool {
        (self.disk, self.first) == (compared.disk, compared.first)
    }

    /// The answer, about nothing but what was asked.
    pub(super) fn answer(&self, compared: &Compared) -> Compared {
        let mask = 1u64.checked_shl(self.blocks as u32).map_or(u64::MAX, |bit| bit - 1);
        Compared { differs: compared.differs & mask, ..*compared }
    }
}
