//! What an operator changes while a VM is captured: how much may be buffered, whether guest writes wait, and whether writes
//! may be left out.
//!
//! What holds: no change costs a write its place in the stream. A buffer that is to be smaller becomes so as it empties.

use super::Capture;
use crate::superseded::Superseded;
use crate::sync_gate::{Others, SyncPolicy};
use threads::sync::atomic::Ordering;

impl Capture {
    /// Changes how many bytes may be buffered, from now on or as soon as no more are.
    pub fn set_buffer(&self, bytes_max: u64) {
        let mut inner = self.lock();
        let buffered = inner.buffered_bytes;
        inner.room.want(bytes_max, buffered);
    }

    /// Changes whether guest writes wait for the recovery side. Where they shall from now on, they do once the stream has
    /// caught up, and so have the `others` of its group; whoever waits and need not any more goes on at once.
    pub fn set_sync(&self, policy: Option<SyncPolicy>, others: Others) {
        let mut inner = self.lock();
        inner.others = others;
        inner.sync.set(policy);
        self.is_sync.store(policy.is_some(), Ordering::SeqCst);
        drop(inner);
        // Not only where it is chosen still.
        self.released.notify_all();
        (self.wake)();
    }

    /// Changes whether writes may be left out that others overwrite before the next checkpoint. What was drawn before is
    /// sent in any case.
    pub fn set_leaves_out(&self, may: bool) {
        let mut inner = self.lock();
        if inner.superseded.is_some() != may {
            inner.superseded = may.then(|| Superseded::above(self.counter.last()));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::capture::tests::capture;
    use batch::Kind;
    use bytes::Bytes;
    use types::{ByteRange, Checkpoint, CheckpointId, CheckpointKind, DiskIndex, WallTime, WriteSeq};

    fn write(capture: &crate::Capture) {
        let (disk, range) = (DiskIndex(0), ByteRange::new(0, 4096));
        capture.begin_write(disk, range).expect("nothing fails here");
        capture.commit(disk, Kind::Write, range, &Bytes::from(vec![7; 4096]));
    }

    #[test]
    fn a_buffer_that_is_to_be_smaller_becomes_so_as_it_empties_and_no_write_loses_its_place() {
        let capture = capture(1 << 20);
        (0..20).for_each(|_| write(&capture));
        let middle = WriteSeq::from_raw(capture.status().last.raw() - 10);
        capture.set_buffer(16 << 10);
        assert_eq!(capture.status().buffer_bytes_max, capture.status().buffered_bytes);
        assert!(!capture.status().gap_open, "what lies in it has its room");
        capture.release(middle);
        write(&capture);
        assert!(capture.status().gap_open, "it did not grow again");
        capture.set_buffer(1 << 20);
        assert_eq!(capture.status().buffer_bytes_max, 1 << 20);
        capture.set_buffer(16 << 10);
        capture.release(capture.status().last);
        assert_eq!(capture.status().buffer_bytes_max, 16 << 10);
    }

    fn mark(capture: &crate::Capture) -> WriteSeq {
        let cut = capture.counter.draw();
        let (kind, taken_at, tag) = (CheckpointKind::Automatic, WallTime::default(), String::new());
        let checkpoint = Checkpoint { id: CheckpointId(cut), cut, kind, taken_at, members: 1, tag };
        capture.mark_checkpoint(&checkpoint).expect("there is room")
    }

    #[test]
    fn what_was_written_before_writes_may_be_left_out_is_sent() {
        let capture = capture(1 << 20);
        capture.set_leaves_out(false);
        let left_out = || {
            let taken = capture.take_after(WriteSeq::ZERO, 1 << 20, true).expect("nothing is spilled");
            taken.records.iter().filter(|record| record.kind == Kind::LeftOut).count()
        };
        (0..3).for_each(|_| write(&capture));
        capture.set_leaves_out(true);
        mark(&capture);
        assert_eq!(left_out(), 0);
        (0..3).for_each(|_| write(&capture));
        mark(&capture);
        assert_eq!(left_out(), 2);
        capture.set_leaves_out(false);
        assert_eq!(left_out(), 0);
    }
}
