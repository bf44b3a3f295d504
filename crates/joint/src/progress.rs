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
    /// A sync has come to its end here: the other side may have it, whatever this side hears or becomes of it since.
    has_closed: bool,
    /// Everything of the VM up to here is at the recovery side.
    up_to: WriteSeq,
    caught_up_bytes: u64,
}

impl Progress {
    /// `caught_up_bytes`: a stream with no more than this in its buffer has caught up.
    pub fn new(caught_up_bytes: u64) -> Self {
        Self { ending: None, has_closed: false, up_to: WriteSeq::ZERO, caught_up_bytes }
    }

    /// A sync, by its state's name, has put all it had into the buffer, which reaches to `last`.
    pub fn sync_closed(&mut self, last: WriteSeq, name: &'static str) {
        (self.ending, self.has_closed) = (Some((last, name)), true);
    }

    /// The stream begins anew: what was on its way will not arrive as such.
    pub fn restarted(&mut self) {
        self.ending = None;
    }

    /// The state to show while a sync's end is on its way.
    pub fn ending_sync(&self) -> Option<&'static str> {
        self.ending.map(|(_, name)| name)
    }

    /// Whether images of the group may have the VM. From the moment its first sync was put into the buffer that may be so,
    /// before this side hears of it; it stays so where the stream falls behind again at once.
    pub fn counts(&self, has_synced: bool) -> bool {
        has_synced || self.has_closed
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
