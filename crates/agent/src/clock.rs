//! The only place that reads clocks.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Monotonic, WallTime};

/// This process's monotonic clock.
pub fn now() -> Monotonic {
    static START: OnceLock<Instant> = OnceLock::new();
    Monotonic(START.get_or_init(Instant::now).elapsed())
}

/// This host's clock, as a label.
pub fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// When this host came up, by its clock as it stands now.
pub fn booted_at() -> WallTime {
    use rustix::time::{ClockId, clock_gettime};
    let up = clock_gettime(ClockId::Boottime);
    let up = std::time::Duration::new(up.tv_sec.unsigned_abs(), u32::try_from(up.tv_nsec).unwrap_or(0));
    wall().minus(up)
}

/// How long the host has been up, also while it slept: it goes on over a restart of the agent.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct UpTime(f64);

impl UpTime {
    pub(crate) fn from_seconds(seconds: f64) -> Self {
        Self(seconds)
    }

    pub(crate) fn seconds(self) -> f64 {
        self.0
    }

    pub(crate) fn milliseconds(self) -> u64 {
        (self.0 * 1000.0) as u64
    }
}

pub(crate) fn up_time() -> UpTime {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    UpTime::from_seconds(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// A label as RFC 3339 text in UTC.
pub fn to_text(at: WallTime) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| at.0.to_string())
}

/// A label from RFC 3339 text.
pub fn from_text(text: &str) -> Option<WallTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1000).ok().map(WallTime)
}
