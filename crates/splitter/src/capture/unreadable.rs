//! Blocks that the local disk does not give as a whole: a sync goes on without them, and does not forget them.
//!
//! What holds: such a block counts as missing at the recovery side until the guest has written it as a whole or a copy
//! of it was taken; and what a comparison could not read is never counted as equal.

use super::{Capture, pieces};
use batch::{Kind, Record};
use bytes::Bytes;
use types::limits::BLOCK_BYTES;
use types::{BlockIndex, ByteRange, DiskIndex};

impl Capture {
    /// Takes what could be read of a block into the stream, whose copy was begun as [`Capture::begin_copy`] does: the rest
    /// cannot be read. False where there is no room, or nothing is buffered now: then it is marked again.
    pub(crate) fn end_unreadable(
        &self,
        disk: DiskIndex,
        block: ByteRange,
        read: &[(ByteRange, Bytes)],
    ) -> bool {
        let mut inner = self.lock();
        let parts: Vec<_> =
            read.iter().flat_map(|(range, payload)| pieces(Kind::Sync, *range, payload)).collect();
        let taken = !inner.tracking && self.room_for(&inner, &parts);
        if taken {
            for (kind, range, payload) in parts {
                let seq = self.counter.draw();
                inner.push(Record { seq, kind, disk, range, payload }, &self.pool);
            }
            inner.dirty.end_unreadable(disk, BlockIndex(block.start / BLOCK_BYTES));
        } else {
            inner.dirty.end_write(disk, block, None);
        }
        drop(inner);
        (self.wake)();
        taken
    }

    /// A block that cannot be read, if there is one.
    pub fn first_unreadable(&self) -> Option<(DiskIndex, BlockIndex)> {
        self.lock().dirty.first_unreadable()
    }

    /// All of them; there are never many, see [`types::limits::UNREADABLE_BLOCKS_MAX`].
    pub(crate) fn unreadable(&self) -> Vec<(DiskIndex, BlockIndex)> {
        self.lock().dirty.unreadable()
    }

    /// A block that could not be read may give itself again: it is to be copied, and until it has been no cut is
    /// consistent. False where it is not waited for any more.
    pub(crate) fn copy_unreadable(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        let mut inner = self.lock();
        if !inner.dirty.is_unreadable(disk, block) {
            return false;
        }
        inner.begin_gap(&self.counter, &self.pool);
        inner.dirty.mark(disk, block.range(u64::MAX));
        drop(inner);
        self.tell_held();
        (self.wake)();
        true
    }

    /// The end of a comparison for which these blocks of its run could not be read, a bit for each: they are copied as
    /// far as they give themselves. The other blocks of the run are to be compared by themselves.
    pub(crate) fn end_compare_unreadable(&self, disk: DiskIndex, first: BlockIndex, unreadable: u64) {
        self.lock().dirty.compare_again(disk, first, !unreadable);
        self.settle_compare(disk, first, unreadable, u64::MAX);
    }
}
