//! The one place that reads this machine's clock, for what is not waited for longer than a moment.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use std::time::{Duration, Instant};

/// Looks again and again until `look` finds something; false after `limit`.
pub(crate) fn spin(limit: Duration, mut look: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if look() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        std::hint::spin_loop();
    }
}
