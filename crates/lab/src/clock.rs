//! Waiting for something to become true.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Now, on the monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// Asks every 50 ms until `ask` has an answer.
///
/// # Errors
/// What `ask` fails with, or that it had no answer in time, naming `what`.
pub fn wait_until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
