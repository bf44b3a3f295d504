//! The only place of the bench that reads a clock, and what processes have spent.
#![allow(clippy::disallowed_methods, reason = "this is the clock module")]

use anyhow::{Context, Result};
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

/// How fast bytes were moved, and at what cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) mib_per_second: f64,
    /// Seconds of processor time that this process spent for each GiB.
    pub(crate) cpu_per_gib: f64,
}

impl Rate {
    /// Of `work`, which moves `bytes`.
    ///
    /// # Errors
    /// What `work` fails with.
    pub(crate) fn of(bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let before = own_cpu()?;
        let (seconds, done) = timed(work);
        done?;
        let cpu = own_cpu()? - before;
        let mib = bytes as f64 / f64::from(1 << 20);
        Ok(Self { mib_per_second: mib / seconds, cpu_per_gib: cpu / (mib / 1024.0) })
    }
}

/// Seconds of processor time this process has spent.
pub(crate) fn own_cpu() -> Result<f64> {
    cpu_of("self")
}

/// Seconds of processor time a process has spent, to the hundredth.
pub(crate) fn cpu_of(process: impl std::fmt::Display) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
