//! Copies of a sync that wait for the link, where the guest's writes need their room.
//!
//! What holds: a copy never goes to the spill. It would be read, written, read and written once more, and be older each
//! time; its block is marked instead, and read when the link has room. That is so only while the sync is open, for
//! afterwards nothing would tell that it is missing: a sync ends once no copy waits any more.

use super::{Capture, Inner, Taken, cost, is_copy};
use types::WriteSeq;

impl Capture {
    /// What goes to the spill next, as [`Capture::take_after`] has it: what the guest has written, and marks. Copies of a
    /// sync leave the buffer, and their blocks are marked again. One that is the newest record stays, for the stream
    /// reaches up to it.
    pub fn take_to_spill(&self, after: WriteSeq, bytes_max: usize) -> Option<Taken> {
        let is_open = {
            let mut inner = self.lock();
            let freed = inner.give_copies_back();
            inner.free(freed, &self.pool);
            inner.gap_open
        };
        let mut taken = self.take_after(after, bytes_max, true)?;
        // That one, or what was copied just now.
        if let Some(at) = taken.records.iter().position(is_copy).filter(|_| is_open) {
            taken.records.truncate(at);
            taken.watermark = taken.records.last().map_or(after, |record| record.seq);
        }
        Some(taken)
    }
}

impl Inner {
    /// How many bytes are freed by it.
    fn give_copies_back(&mut self) -> u64 {
        let last = self.last();
        if !self.gap_open || self.copies == 0 {
            return 0;
        }
        let (mut freed, mut given_back) = (0, Vec::new());
        self.buffer.retain(|record| {
            let stays = !is_copy(record) || record.seq == last;
            if !stays {
                freed += cost(record);
                given_back.push((record.disk, record.range));
            }
            stays
        });
        self.copies -= given_back.len() as u64;
        for (disk, range) in given_back {
            self.dirty.mark(disk, range);
        }
        freed
    }
}
