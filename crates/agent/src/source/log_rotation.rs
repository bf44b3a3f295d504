//! When the change logs of a VM under the tap are begun anew, and old ones forgotten.
//!
//! A log goes at the second rotation behind its begin: what it says has been told to us by then, if no write waits for
//! longer. In synchronous mode writes do while the link is away, and behind those that are held others wait in the VM:
//! they are in its image, nobody was told of them, and an old log alone knows which blocks they are. So nothing is rotated
//! while writes are held, nor before those that waited behind them have had time to come.

use std::time::Duration;
use types::Monotonic;

/// How long writes that waited in the VM may take to come once none is held any more.
const COMES_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct LogRotation {
    interval: Duration,
    due_at: Monotonic,
}

impl LogRotation {
    pub(super) fn begin(now: Monotonic, interval: Duration) -> Self {
        Self { interval, due_at: now.plus(interval) }
    }

    /// Whether logs are to be begun anew now. To be asked several times in each interval; `holds`: a write that was made
    /// before this was last asked is not answered yet.
    pub(super) fn is_due(&mut self, now: Monotonic, holds: bool) -> bool {
        if holds {
            self.due_at = self.due_at.max(now.plus(self.interval.max(COMES_WITHIN)));
        }
        let is_due = now >= self.due_at;
        if is_due {
            self.due_at = now.plus(self.interval);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_rotated_while_writes_are_held_nor_right_behind() {
        let at = |seconds: u64| Monotonic(Duration::from_secs(seconds));
        let mut rotation = LogRotation::begin(at(0), Duration::from_secs(5));
        let asked = |rotation: &mut LogRotation, from: u64, to: u64, holds: bool| -> Vec<u64> {
            (from..to).filter(|&second| rotation.is_due(at(second), holds)).collect()
        };
        assert_eq!(asked(&mut rotation, 0, 12, false), [5, 10]);
        assert_eq!(asked(&mut rotation, 12, 100, true), Vec::<u64>::new());
        assert_eq!(asked(&mut rotation, 100, 120, false), [109, 114, 119]);
    }
}
