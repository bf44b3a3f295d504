//! How old things are, for retention: by time that was seen to pass, never by what a clock says.
//!
//! The age clock counts microseconds during which somebody kept the journal up, by his monotonic clock. It stands
//! in the manifest. While no agent runs it stands still: nothing is written then, and so nothing has to go. A
//! sealed segment is as old as it has been known to be sealed, so that a wall clock that jumps, here or at the
//! source, makes nothing older and keeps nothing young.

use crate::cover::LogKind;
use crate::journal::{Journal, Shared};
use crate::manifest::Sealed;
use crate::upkeep::{Clock, Upkeep};
use std::io;
use std::time::Duration;
use types::{Monotonic, WriteSeq};

/// The manifest is saved for the age clock alone after this part of the history window.
const SAVED_PARTS: i64 = 24;

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

    fn tick(&mut self, how: &Upkeep<'_>) {
        match how.clock {
            Clock::Monotonic(at) => {
                let passed = at.since(self.read_at.unwrap_or(at));
                self.now = self.now.saturating_add(micros(passed));
                self.read_at = Some(at);
            }
            Clock::Label => self.now = self.now.max(how.now.0),
        }
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

impl Shared {
    /// How long ago `cut` was at the end of what is sealed; zero for what is not.
    pub(crate) fn age_of(&self, cut: WriteSeq) -> Duration {
        let kind = if cut <= self.manifest.applied() { LogKind::Undo } else { LogKind::Redo };
        let segments = &self.manifest.log(kind).segments;
        let ends_below = |sealed: &Sealed| sealed.point.last_seq < cut.raw();
        let at = segments.partition_point(|segment| segment.sealed.as_ref().is_some_and(ends_below));
        let sealed = segments.get(at).and_then(|segment| segment.sealed.as_ref());
        let age = sealed.and_then(|sealed| sealed.aged_from).map_or(0, |from| self.age.now - from);
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }
}

impl Journal {
    /// Lets the age clock go on; what new segments are to be stamped with.
    pub(crate) fn tick(&self, how: &Upkeep<'_>) -> Stamp {
        let mut shared = self.write_shared();
        shared.age.tick(how);
        Stamp { now: shared.age.now, by_label: matches!(how.clock, Clock::Label) }
    }

    /// Stamps segments that got their footer without, and saves the age clock where nothing else did for long.
    pub(crate) fn keep_ages(&self, stamp: Stamp) -> io::Result<()> {
        let is_due = {
            let shared = self.read_shared();
            let logs = [&shared.manifest.redo, &shared.manifest.undo];
            let mut sealed = logs.iter().flat_map(|log| &log.segments).filter_map(|s| s.sealed.as_ref());
            let unsaved = shared.age.now.saturating_sub(shared.manifest.age_clock);
            sealed.any(|sealed| sealed.aged_from.is_none())
                || unsaved > micros(shared.settings.history) / SAVED_PARTS
        };
        if !is_due {
            return Ok(());
        }
        self.change_manifest(
            |manifest| {
                for log in [&mut manifest.redo, &mut manifest.undo] {
                    log.segments.iter_mut().filter_map(|s| s.sealed.as_mut()).for_each(|s| stamp.put(s));
                }
            },
            |shared, manifest| shared.set_manifest(manifest, |_| {}),
        )
    }
}
