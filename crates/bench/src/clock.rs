//! The only place of the bench that reads a clock.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::time::Instant;

/// Seconds that `work` takes, and what it returns.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

/// A moment to measure from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(Instant);

impl Moment {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// Seconds since.
    pub(crate) fn elapsed(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
