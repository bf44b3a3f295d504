//! What a person sees of long work: a line per step with the time it took.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Tells steps on standard error, so that standard output stays for results.
#[derive(Debug)]
pub(crate) struct Steps {
    started: Instant,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        Self { started: lab::now() }
    }

    /// Says what is going on.
    pub(crate) fn say(&self, text: &str) {
        let at = self.started.elapsed().as_secs_f64();
        eprintln!("[{at:6.1} s] {text}");
    }

    /// A bar for work that takes a while, drawn over itself on a terminal.
    pub(crate) fn progress(&self, text: &str, done: Duration, total: Duration) {
        let mut out = std::io::stderr();
        if out.is_terminal() {
            let filled = (30.0 * done.as_secs_f64() / total.as_secs_f64().max(0.001)).min(30.0) as usize;
            let bar: String = (0..30).map(|at| if at < filled { '#' } else { '.' }).collect();
            let end = if done >= total { "\n" } else { "" };
            let _ = write!(out, "\r           [{bar}] {text}{end}");
            let _ = out.flush();
        }
    }
}
