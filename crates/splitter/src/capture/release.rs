//! Letting go of what is durable at the recovery side, in turns: whoever waits for the sequencer gets it in between.

use super::{Capture, cost, is_copy};
use crate::on_the_way::{Blocks, Place};
use types::limits::{BLOCK_BYTES, RELEASE_RECORDS_A_TURN, RUNS_A_TURN, UNSENT_BLOCKS_A_TURN};
use types::{ByteRange, DiskIndex, WriteSeq};

impl Capture {
    /// Forgets everything at or below: it is durable at the recovery side. Whoever calls this also calls
    /// [`Capture::restart`]: not both at once.
    pub fn release(&self, up_to: WriteSeq) {
        self.lock().dirty.acknowledged(up_to);
        while !self.release_some(up_to) {
            self.inner.give_way();
        }
        self.tell_held();
    }

    /// Releases as many records as one turn may; whether that was all.
    fn release_some(&self, up_to: WriteSeq) -> bool {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let (mut freed, mut released) = (0, None);
        for _ in 0..RELEASE_RECORDS_A_TURN {
            let Some(record) = inner.buffer.pop_front_if(|record| record.seq <= up_to) else { break };
            freed += cost(&record);
            inner.copies -= u64::from(is_copy(&record));
            released = Some(record.seq);
            if record.kind.changes_disk() {
                inner.dirty.released(record.disk, record.range, record.seq);
            }
        }
        let is_all = inner.buffer.front().is_none_or(|record| record.seq > up_to);
        let released = if is_all { up_to } else { released.unwrap_or(WriteSeq::ZERO) };
        inner.free(freed, &self.pool);
        inner.forget_superseded(released);
        inner.released = inner.released.max(released);
        inner.spilled = inner.spilled.max(inner.released);
        is_all
    }

    /// Everything up to here lies in the spill and leaves the buffer. It is released as if it were there,
    /// but for what [`Capture::sweep`] does.
    pub fn spilled(&self, up_to: WriteSeq) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut freed = 0;
        while let Some(record) = inner.buffer.pop_front_if(|record| record.seq <= up_to) {
            freed += cost(&record);
            inner.copies -= u64::from(is_copy(&record));
        }
        inner.free(freed, &self.pool);
        inner.forget_superseded(up_to);
        inner.spilled = inner.spilled.max(up_to);
    }

    /// Finds the blocks of spilled writes that are durable by now. It looks at all that are on their way, so
    /// it is done now and then only; until it is, blocks count as unsent that are not.
    pub fn sweep(&self) {
        let mut from = Some(Place::default());
        while let Some(place) = from {
            let mut inner = self.lock();
            let up_to = inner.released;
            from = inner.dirty.sweep(up_to, place, RUNS_A_TURN);
            drop(inner);
            self.inner.give_way();
        }
    }

    /// Which parts of a range the recovery side may not have yet, in blocks, in order: the first `most` of them, which may
    /// end before the range does.
    pub fn unsent(&self, disk: DiskIndex, range: ByteRange, most: usize) -> Vec<(ByteRange, bool)> {
        let blocks = range.units(BLOCK_BYTES);
        let mut parts: Vec<(Blocks, bool)> = Vec::new();
        let mut at = blocks.start;
        // One more is looked for, since the last one may go on.
        while at < blocks.end && parts.len() <= most {
            let turn = at..blocks.end.min(at + UNSENT_BLOCKS_A_TURN);
            at = turn.end;
            let found = self.lock().dirty.unsent(disk, turn);
            for (run, unsent) in found {
                match parts.last_mut() {
                    Some((last, state)) if *state == unsent => last.end = run.end,
                    _ => parts.push((run, unsent)),
                }
            }
            self.inner.give_way();
        }
        let bytes =
            |run: Blocks| ByteRange::new(run.start * BLOCK_BYTES, (run.end - run.start) * BLOCK_BYTES);
        let within = |(run, unsent)| Some((bytes(run).intersection(range)?, unsent));
        parts.into_iter().take(most).filter_map(within).collect()
    }
}

#[cfg(test)]
mod tests;
