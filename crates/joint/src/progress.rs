//! How far one VM's stream is: whether a sync has really ended, and how far the VM's group can rest on it.
//!
//! A sync has not ended when its last block is in the buffer, but when that is durable at the recovery side. Until then
//! nothing newer can be opened there, and nobody is told that it could.

use crate::promise::Standing;
use replication::{Link, Sender, State};
use splitter::CaptureStatus;
use types::WriteSeq;

/// Followed over all connections of one run of the agent.
#[derive(Debug)]
pub struct Progress {
    /// The end of the last sync, on its way: its last sequence, and the sync's name.
    ending: Option<(WriteSeq, &'static str)>,
    /// Everything of the VM up to here is at the recovery side.
    up_to: WriteSeq,
    caught_up_bytes: u64,
}

impl Progress {
    /// `caught_up_bytes`: a stream with no more than this in its buffer has caught up.
    pub fn new(caught_up_bytes: u64) -> Self {
        Self { ending: None, up_to: WriteSeq::ZERO, caught_up_bytes }
    }

    /// A sync, by its state's name, has put all it had into the buffer, which reaches to `last`.
    pub fn sync_closed(&mut self, last: WriteSeq, name: &'static str) {
        self.ending = Some((last, name));
    }

    /// The stream begins anew: what was on its way will not arrive as such.
    pub fn restarted(&mut self) {
        self.ending = None;
    }

    /// The state to show while a sync's end is on its way.
    pub fn ending_sync(&self) -> Option<&'static str> {
        self.ending.map(|(_, name)| name)
    }

    /// How the stream stands, after whatever has just happened.
    pub fn follow(&mut self, sender: &Sender, capture: &CaptureStatus) -> Standing {
        self.ending = self.ending.filter(|(last, _)| *last > sender.acked());
        let is_whole = self.ending.is_none() && sender.state() == State::Journaling && !capture.gap_open;
        if is_whole {
            // No more than it was told is believed. A welcome tells what is durable as well, and no watermark.
            let watermark = sender.last_ack().map_or(WriteSeq::ZERO, |ack| ack.watermark);
            self.up_to = self.up_to.max(sender.acked()).max(watermark.min(sender.told_watermark()));
        }
        let caught_up = sender.state() == State::Journaling
            && sender.link() == Link::Up
            && capture.buffered_bytes <= self.caught_up_bytes
            && capture.spilled <= capture.released;
        Standing { up_to: self.up_to, missing: !is_whole, caught_up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{SpillRoom, view};
    use replication::wire::{Ack, Message, Welcome};
    use replication::{CaptureView, SenderConfig, SenderEvent, SyncReason};
    use splitter::SyncState;
    use types::{Epoch, Incarnation, Monotonic, VmId};

    fn seq(raw: u64) -> WriteSeq {
        WriteSeq::from_raw(raw)
    }

    /// A capture whose newest record is `last`, all of it in memory.
    fn capture(last: u64, gap_open: bool) -> CaptureStatus {
        CaptureStatus {
            tracking: false,
            gap_open,
            deaf: false,
            dirty_blocks: 0,
            unsettled_blocks: 0,
            suspect_blocks: 0,
            unreadable_blocks: 0,
            uncompared_blocks: 0,
            sync_work: splitter::SyncWork::default(),
            buffered_bytes: 0,
            buffer_bytes_max: 1 << 20,
            copies: 0,
            released: WriteSeq::ZERO,
            spilled: WriteSeq::ZERO,
            last: seq(last),
            watermark: seq(last),
            writes: 0,
            write_bytes: 0,
            left_out_bytes: 0,
            sync: SyncState::Asynchronous,
        }
    }

    struct Stream {
        sender: Sender,
        view: CaptureView,
    }

    impl Stream {
        fn step(&mut self, event: SenderEvent) {
            self.sender.step(Monotonic::default(), event, &self.view, &mut Vec::new());
        }

        fn ack(&mut self, durable: u64) {
            let (durable, zero) = (seq(durable), WriteSeq::ZERO);
            self.step(SenderEvent::Received(Message::Ack(Ack {
                durable,
                watermark: durable,
                applied: zero,
                journal_bytes: 0,
                history_seconds: 0,
                projected_history_seconds: None,
            })));
        }
    }

    /// A first sync of which all is in the buffer: copies up to 8, a guest's write, its end at 10.
    fn at_the_end_of_a_sync() -> Stream {
        let vm = VmId::from_bytes([1; 16]);
        let config = SenderConfig {
            vm,
            epoch: Epoch::FIRST,
            incarnation: Incarnation::from_bytes([1; 16]),
            paused: false,
            kept: Vec::new(),
            suspects_because: SyncReason::Interrupted,
            disk_sizes: vec![1 << 20],
        };
        let zero = WriteSeq::ZERO;
        let room = SpillRoom { has_room: false, lost: false };
        let view = view(&capture(10, true), room, true);
        let mut stream = Stream { sender: Sender::new(config, Monotonic::default()), view };
        stream.step(SenderEvent::LinkUp);
        let (epoch, incarnation, missing) = (Epoch::FIRST, None, Vec::new());
        let welcome =
            Welcome { epoch, durable: zero, incarnation, must_compare: false, seeded: false, missing };
        stream.step(SenderEvent::Received(Message::Welcome(welcome)));
        stream.view.gap_open = false;
        stream.step(SenderEvent::SyncClosed { closed: true });
        stream.step(SenderEvent::BatchSent { last: seq(9), watermark: seq(9), bytes: 100 });
        stream.step(SenderEvent::BatchSent { last: seq(10), watermark: seq(10), bytes: 100 });
        stream
    }

    #[test]
    fn what_a_sync_has_brought_counts_once_its_end_is_durable() {
        let mut stream = at_the_end_of_a_sync();
        let mut progress = Progress::new(0);
        progress.sync_closed(seq(10), "initial-sync");
        // The guest's write is there for good, and no image has it before the sync's end is there too.
        stream.ack(9);
        let standing = progress.follow(&stream.sender, &capture(10, false));
        assert_eq!((standing.up_to, standing.missing), (WriteSeq::ZERO, true));
        assert_eq!(progress.ending_sync(), Some("initial-sync"));
        stream.ack(10);
        let standing = progress.follow(&stream.sender, &capture(10, false));
        assert_eq!((standing.up_to, standing.missing), (seq(10), false));
        // What is missing from here on does not take back what was there.
        let standing = progress.follow(&stream.sender, &capture(11, true));
        assert_eq!((standing.up_to, standing.missing), (seq(10), true));
    }
}
