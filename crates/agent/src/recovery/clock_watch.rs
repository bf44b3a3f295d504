//! Watches this host's clock beside the monotonic one: a jump is an alert. Nothing is done for it, for nothing that is
//! kept goes by what the clock says.

use super::Recovery;
use crate::clock;
use std::sync::Arc;
use std::time::Duration;
use types::{Monotonic, WallTime};

const INTERVAL: Duration = Duration::from_secs(1);
/// Off by less than this it may be slewing, or the host was busy.
const TOLERANCE: i64 = 30 * 1_000_000;
/// After this time with no other jump the clock is taken for right: somebody has set it.
const ACCEPTED_AFTER: Duration = Duration::from_secs(24 * 3600);
const CAUSE: &str = "clock";

/// What is known of the clock.
#[derive(Debug, Default)]
struct ClockWatch {
    last: Option<(Monotonic, WallTime)>,
    /// By how many microseconds it is ahead of what passed, and since when.
    off: Option<(i64, Monotonic)>,
    /// What it said when the newest write kept came.
    newest_known: Option<WallTime>,
}

impl ClockWatch {
    fn look(&mut self, now: Monotonic, wall: WallTime) -> Option<String> {
        let last = self.last.replace((now, wall));
        if let Some((last_now, last_wall)) = last {
            let passed = i64::try_from(now.since(last_now).as_micros()).unwrap_or(i64::MAX);
            let ahead = wall.0.saturating_sub(last_wall.0).saturating_sub(passed);
            if ahead.abs() > TOLERANCE {
                let before = self.off.map_or(0, |(off, _)| off);
                self.off = Some((before.saturating_add(ahead), now));
            }
        }
        self.off = self.off.filter(|(off, at)| off.abs() > TOLERANCE && now.since(*at) < ACCEPTED_AFTER);
        let behind = self.newest_known.filter(|known| known.0 > wall.0.saturating_add(TOLERANCE));
        let (what, by) = match (self.off, behind) {
            (Some((off, _)), _) if off > 0 => ("has jumped ahead", off),
            (Some((off, _)), _) => ("was set back", off.saturating_neg()),
            (None, Some(known)) => ("is behind what it said when the newest write came", known.0 - wall.0),
            (None, None) => return None,
        };
        Some(format!(
            "this host's clock {what} by {} s: no checkpoint is let go for it, history ages by the time that passes, \
             but times that are shown may be wrong; see whether the clock is right (`timedatectl`)",
            by / 1_000_000
        ))
    }
}

impl Recovery {
    /// Says so while this host's clock cannot be relied on.
    pub(crate) async fn watch_clock(self: Arc<Self>) {
        let newest = self.list().into_iter().filter_map(|vm| vm.journal()?.status().newest_at).max();
        let mut watch = ClockWatch { newest_known: newest, ..ClockWatch::default() };
        loop {
            match watch.look(clock::now(), clock::wall()) {
                Some(text) => self.alerts.raise(CAUSE, text),
                None => self.alerts.clear(CAUSE),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    #[test]
    fn a_jump_is_said_until_the_clock_agrees_again() {
        for jump in [7200 * SECOND, -7200 * SECOND] {
            let mut watch = ClockWatch::default();
            let today = 1_800_000_000 * SECOND;
            for second in 0..10 {
                assert_eq!(watch.look(at(second), WallTime(today + second as i64 * SECOND)), None);
            }
            for second in 10..50 {
                let said = watch.look(at(second), WallTime(today + second as i64 * SECOND + jump)).unwrap();
                assert!(said.contains("by 7200 s"), "{said}");
            }
            assert_eq!(watch.look(at(50), WallTime(today + 50 * SECOND)), None);
        }
    }

    #[test]
    fn a_clock_that_was_set_for_good_is_accepted_in_a_day() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.look(at(0), WallTime(0)), None);
        let right = |seconds: u64| WallTime(1_800_000_000 * SECOND + seconds as i64 * SECOND);
        assert!(watch.look(at(1), right(1)).is_some());
        assert!(watch.look(at(3600), right(3600)).is_some());
        assert_eq!(watch.look(at(86_402), right(86_402)), None);
    }

    #[test]
    fn a_clock_behind_the_newest_write_is_said() {
        let mut watch = ClockWatch { newest_known: Some(WallTime(9000 * SECOND)), ..ClockWatch::default() };
        assert!(watch.look(at(0), WallTime(0)).is_some());
        assert_eq!(watch.look(at(9000), WallTime(9000 * SECOND)), None);
    }

    #[test]
    fn slewing_is_no_jump() {
        let mut watch = ClockWatch::default();
        for second in 0..100_000 {
            assert_eq!(watch.look(at(second), WallTime(second as i64 * (SECOND + 500))), None);
        }
    }
}
