//! Time as a label, and time as a distance. Nothing here reads a clock.

use std::time::Duration;

/// Microseconds since 1970 by somebody's clock: a label for people, never an order (DESIGN §3.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(pub i64);

impl WallTime {
    /// This label moved `back` into the past.
    pub fn minus(self, back: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(back.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This label moved `on` into the future.
    pub fn plus(self, on: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(on.as_micros()).unwrap_or(i64::MAX)))
    }

    /// From `earlier` to this, zero where it would be negative.
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A reading of one process's monotonic clock; only distances between two of them mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// From `earlier` to this.
    pub fn since(self, earlier: Monotonic) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This reading and `more`.
    pub fn plus(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}
