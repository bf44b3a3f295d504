//! Blocks that the recovery side has lost: copied again as a sync copies what is marked, and nothing else with them.

use super::Capture;
use crate::region_log::Regions;
use types::limits::{BLOCK_BYTES, RANGE_BYTES_MAX};
use types::{ByteRange, DiskIndex};

impl Capture {
    /// Marks ranges of the disks to be copied. No cut is consistent until they have been. However long they are, nobody
    /// who writes waits for more than a part of them; it waits for the region log's disk.
    pub fn copy_again(&self, ranges: &[(DiskIndex, ByteRange)]) {
        let cold: Vec<Regions> = {
            let inner = self.lock();
            ranges.iter().flat_map(|(disk, range)| inner.dirty.cold(*disk, *range)).collect()
        };
        if !cold.is_empty()
            && let Err(error) = self.heat(&cold)
        {
            // They are lost at the other side until they come, and it asks again.
            tracing::warn!(%error, "what is to be sent again is not kept over a crash of the host");
        }
        for (disk, range) in ranges {
            for part in range.split_at_multiples(RANGE_BYTES_MAX) {
                let mut inner = self.lock();
                inner.begin_gap(&self.counter, &self.pool);
                inner.dirty.mark(*disk, part);
                inner.sync_work.asked_again += part.len.div_ceil(BLOCK_BYTES);
                drop(inner);
                self.inner.give_way();
            }
        }
        self.tell_held();
        (self.wake)();
    }
}
