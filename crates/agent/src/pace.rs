//! A rate: whoever spends more than it allows waits.

use crate::clock;
use std::sync::Mutex;
use std::time::Duration;
use types::Monotonic;

/// Bytes a second for all who share it.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// Up to when what was spent so far is paid for.
    paid_until: Mutex<Monotonic>,
}

impl Pace {
    /// A rate of zero bytes a second is no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid_until: Mutex::new(clock::now()) }
    }

    /// Spends `bytes` and waits as long as that takes.
    pub(crate) fn spend(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = clock::now();
        let until = {
            let mut paid_until = self.paid_until.lock().expect("a panic aborts the process");
            *paid_until = (*paid_until).max(now).plus(cost);
            *paid_until
        };
        std::thread::sleep(until.since(now));
    }
}
