//! How old things are, for retention: by time that was seen to pass, never by what a clock says.
//!
//! The age clock counts microseconds during which somebody kept the journal up, by his monotonic clock. It stands
//! in the manifest. While no agent runs it stands still: nothing is written then, and so nothing has to go. A
//! sealed segment is as old as it has been known to be sealed, so that a wall clock that jumps, here or at the
//! source, makes nothing older and keeps nothing young.

use crate::manifest::Sealed;
use crate::upkeep::{Clock, Upkeep};
use std::time::Duration;
use types::Monotonic;

/// Microseconds that were seen to pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AgeClock {
    pub(crate) now: i64,
    /// The reading that `now` is of.
    read_at: Option<Monotonic>,
}

impl AgeClock {
    pub(crate) fn begin(saved: i64) -> Self {
        Self { now: saved, read_at: None }
    }

    /// Lets it go on; what new segments are to be stamped with.
    pub(crate) fn tick(&mut self, how: &Upkeep<'_>) -> Stamp {
        match how.clock {
            Clock::Monotonic(at) => {
                let passed = at.since(self.read_at.unwrap_or(at));
                self.now = self.now.saturating_add(micros(passed));
                self.read_at = Some(at);
            }
            Clock::Label => self.now = self.now.max(how.now.0),
        }
        Stamp { now: self.now, by_label: matches!(how.clock, Clock::Label) }
    }
}

impl AgeClock {
    /// What it would say now, also where nobody has kept the journal up for a while.
    pub(crate) fn at(&self, now: Monotonic) -> i64 {
        self.now.saturating_add(micros(now.since(self.read_at.unwrap_or(now))))
    }
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// When a segment counts as sealed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    now: i64,
    by_label: bool,
}

impl Stamp {
    pub(crate) fn put(self, sealed: &mut Sealed) {
        let at = if self.by_label { self.now.min(sealed.newest_at) } else { self.now };
        sealed.aged_from = sealed.aged_from.or(Some(at));
    }
}
