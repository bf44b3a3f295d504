//! How fast a stream goes, taken anew each second.

use std::time::Duration;
use types::Monotonic;

#[derive(Default)]
pub(super) struct Rates {
    pub(super) at: Monotonic,
    pub(super) sent_bytes: u64,
    pub(super) sent_before: u64,
    pub(super) written_before: u64,
    pub(super) acknowledged_bytes: u64,
    pub(super) acknowledged_before: u64,
    /// Whether the window was half full when the second began.
    pub(super) was_saturated: bool,
    pub(super) sent_per_second: f64,
    pub(super) written_per_second: f64,
}

impl Rates {
    /// Takes the rates anew each second. Where the link was kept busy throughout, what it carried.
    pub(super) fn follow(
        &mut self,
        now: Monotonic,
        written: u64,
        saturated: bool,
    ) -> Option<(u64, Duration)> {
        let took = now.since(self.at);
        let elapsed = took.as_secs_f64();
        if elapsed < 1.0 {
            return None;
        }
        self.sent_per_second = (self.sent_bytes - self.sent_before) as f64 / elapsed;
        self.written_per_second = written.saturating_sub(self.written_before) as f64 / elapsed;
        let carried = self.acknowledged_bytes - self.acknowledged_before;
        let busy = self.was_saturated && saturated;
        (self.at, self.sent_before, self.written_before) = (now, self.sent_bytes, written);
        (self.acknowledged_before, self.was_saturated) = (self.acknowledged_bytes, saturated);
        busy.then_some((carried, took))
    }
}
