//! How old the newest state of a VM is that is known to be complete at the recovery side, across restarts.
//!
//! The age is measured on the monotonic clock. What is written down is how old it was and when that was, by the clock
//! that runs on while the host is up; over a restart of the host only the wall clock can add to it, and never takes
//! away. So an age goes on growing whatever happens, and what was never complete stays unknown.

use super::record::ProtectionRecord;
use crate::clock::{self, UpTime};
use crate::state::StateDir;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use types::{Monotonic, WallTime};

/// Written down again at least so often while it is kept fresh.
const SAVE_INTERVAL_MAX: Duration = Duration::from_secs(15);
const SAVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Where the age of a VM's newest complete checkpoint counts from, or that of its protection where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Freshness {
    /// Whether anything was ever complete.
    complete: bool,
    /// How old it was at `seen_at`.
    age: Duration,
    seen_at: Monotonic,
    saved_at: Option<Monotonic>,
}

/// It, as `state/freshness/VM.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FreshnessRecord {
    complete: bool,
    age_seconds: f64,
    boot_id: [u8; 16],
    up_seconds: f64,
    wall: i64,
}

impl FreshnessRecord {
    /// How old it is by now.
    fn age(&self, boot_id: [u8; 16], up: UpTime, wall: WallTime) -> Duration {
        let passed = if self.boot_id == boot_id {
            up.seconds() - self.up_seconds
        } else {
            (wall.0.saturating_sub(self.wall)) as f64 / 1e6
        };
        let seconds = self.age_seconds.max(0.0) + passed.max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

impl Freshness {
    /// Of a VM that nobody knows anything of, from `now` on.
    pub(super) fn unknown(now: Monotonic) -> Self {
        Self { complete: false, age: Duration::ZERO, seen_at: now, saved_at: None }
    }

    /// What is known of a VM when it is taken up.
    pub(super) fn load(state: &StateDir, record: &ProtectionRecord, boot_id: [u8; 16]) -> Self {
        let now = clock::now();
        let unknown = Self::unknown(now);
        match state.load::<FreshnessRecord>(&record.freshness_name()) {
            Ok(Some(known)) => Self {
                complete: known.complete,
                age: known.age(boot_id, clock::up_time(), clock::wall()),
                ..unknown
            },
            Ok(None) => unknown,
            Err(error) => {
                tracing::warn!(
                    vm = record.name,
                    error = format!("{error:#}"),
                    "how old its newest checkpoint is, is not known"
                );
                unknown
            }
        }
    }

    /// Age of the newest complete checkpoint; none where none ever was.
    pub(super) fn age(&self, now: Monotonic) -> Option<Duration> {
        self.complete.then(|| self.unproven(now))
    }

    /// For how long no fresh copy is proven: since the newest complete checkpoint, or since the protection began.
    pub(super) fn unproven(&self, now: Monotonic) -> Duration {
        self.age + now.since(self.seen_at)
    }

    /// A checkpoint taken at `taken_at` is complete.
    pub(super) fn complete_at(&mut self, taken_at: Monotonic) {
        if !self.complete || taken_at > self.seen_at {
            *self = Self { complete: true, age: Duration::ZERO, seen_at: taken_at, saved_at: self.saved_at };
        }
    }

    /// Writes it down where the last time is long ago, as its bound goes.
    pub(super) fn save_sometimes(&mut self, state: &StateDir, record: &ProtectionRecord, boot_id: [u8; 16]) {
        let now = clock::now();
        let interval =
            (Duration::from_secs(record.policy.rpo_seconds) / 4).clamp(SAVE_INTERVAL_MIN, SAVE_INTERVAL_MAX);
        if self.saved_at.is_some_and(|at| now.since(at) < interval) {
            return;
        }
        self.saved_at = Some(now);
        let written = FreshnessRecord {
            complete: self.complete,
            age_seconds: self.unproven(now).as_secs_f64(),
            boot_id,
            up_seconds: clock::up_time().seconds(),
            wall: clock::wall().0,
        };
        if let Err(error) = state.save(&record.freshness_name(), &written) {
            tracing::warn!(
                vm = record.name,
                error = format!("{error:#}"),
                "the age of its newest checkpoint is not recorded"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: [u8; 16] = [1; 16];

    fn record() -> FreshnessRecord {
        FreshnessRecord {
            complete: true,
            age_seconds: 8.0,
            boot_id: BOOT,
            up_seconds: 100.0,
            wall: 50_000_000,
        }
    }

    #[test]
    fn an_age_goes_on_over_a_restart_of_the_agent_whatever_the_wall_clock_does() {
        for wall in [0, 50_000_000, 9_000_000_000_000] {
            let age = record().age(BOOT, UpTime::from_seconds(130.0), WallTime(wall));
            assert_eq!(age, Duration::from_secs(38), "wall clock at {wall}");
        }
    }

    #[test]
    fn over_a_restart_of_the_host_the_wall_clock_adds_and_never_takes_away() {
        let later = record().age([2; 16], UpTime::from_seconds(1.0), WallTime(80_000_000));
        assert_eq!(later, Duration::from_secs(38));
        let back = record().age([2; 16], UpTime::from_seconds(1.0), WallTime(0));
        assert_eq!(back, Duration::from_secs(8));
    }

    #[test]
    fn what_was_never_complete_is_unknown_and_its_account_grows() {
        let seconds = |count| Monotonic(Duration::from_secs(count));
        let mut fresh =
            Freshness { complete: false, age: Duration::from_secs(5), seen_at: seconds(10), saved_at: None };
        assert_eq!(fresh.age(seconds(20)), None);
        assert_eq!(fresh.unproven(seconds(20)), Duration::from_secs(15));
        fresh.complete_at(seconds(18));
        assert_eq!(fresh.age(seconds(20)), Some(Duration::from_secs(2)));
        fresh.complete_at(seconds(15));
        assert_eq!(fresh.age(seconds(20)), Some(Duration::from_secs(2)), "an older one changes nothing");
    }
}
