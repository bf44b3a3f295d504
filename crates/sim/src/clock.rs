//! How long seeds take. Nothing that is played reads a clock.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::time::Instant;

/// Now, on the monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}
