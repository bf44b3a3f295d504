//! Whose upkeep is next. Journals take turns; those of one disk share a few threads, and one that does not get on is
//! passed over: it costs itself, and the others of its disk a thread.
//!
//! ```text
//! waiting ── next ──▶ running ── ended, done ──▶ (asked again in the next round)
//!    ▲                   └────── ended, more ──▶ waiting, behind all others
//!    └── ask
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use types::{Monotonic, VmId};

/// Turns of journals on one disk that get on at once.
const PER_DISK: usize = 2;
/// With those that do not, there are never more threads than this for a disk.
const PER_DISK_MAX: usize = 8;
/// A turn that has not moved a byte for so long does not get on.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Which file system a journal lies on.
pub(super) type DiskId = u64;

/// When a turn last got on.
#[derive(Debug)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    fn at(now: Monotonic) -> Arc<Self> {
        let progress = Self(AtomicU64::new(0));
        progress.note(now);
        Arc::new(progress)
    }

    pub(super) fn note(&self, now: Monotonic) {
        self.0.store(u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn since(&self, now: Monotonic) -> Duration {
        now.since(Monotonic(Duration::from_micros(self.0.load(Ordering::Relaxed))))
    }
}

#[derive(Debug)]
struct Turn {
    disk: DiskId,
    progress: Arc<Progress>,
}

/// Who waits and whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: VecDeque<(VmId, DiskId)>,
    running: BTreeMap<VmId, Turn>,
}

impl Turns {
    /// A journal wants a turn, if it does not wait for one or has one already.
    pub(super) fn ask(&mut self, vm: VmId, disk: DiskId) {
        if !self.running.contains_key(&vm) && !self.waiting.iter().any(|(other, _)| *other == vm) {
            self.waiting.push_back((vm, disk));
        }
    }

    /// The next turn to begin, if there is room for one.
    pub(super) fn next(&mut self, now: Monotonic) -> Option<(VmId, Arc<Progress>)> {
        let at = self.waiting.iter().position(|(_, disk)| self.has_room(*disk, now))?;
        let (vm, disk) = self.waiting.remove(at)?;
        let progress = Progress::at(now);
        self.running.insert(vm, Turn { disk, progress: progress.clone() });
        Some((vm, progress))
    }

    fn has_room(&self, disk: DiskId, now: Monotonic) -> bool {
        let (mut all, mut getting_on) = (0, 0);
        for turn in self.running.values().filter(|turn| turn.disk == disk) {
            all += 1;
            getting_on += usize::from(turn.progress.since(now) < STUCK_AFTER);
        }
        getting_on < PER_DISK && all < PER_DISK_MAX
    }

    /// A turn has ended; with `more` the journal wants another, behind those that wait.
    pub(super) fn end(&mut self, vm: VmId, more: bool) {
        if let Some(turn) = self.running.remove(&vm)
            && more
        {
            self.waiting.push_back((vm, turn.disk));
        }
    }

    /// Those whose turn does not get on, and for how long.
    pub(super) fn stuck(&self, now: Monotonic) -> BTreeMap<VmId, Duration> {
        let since = self.running.iter().map(|(vm, turn)| (*vm, turn.progress.since(now)));
        since.filter(|(_, since)| *since >= STUCK_AFTER).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn vm(number: u8) -> VmId {
        VmId::from_bytes([number; 16])
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    /// Begins all turns there is room for.
    fn begin(turns: &mut Turns, now: Monotonic) -> Vec<VmId> {
        std::iter::from_fn(|| turns.next(now).map(|(vm, _)| vm)).collect()
    }

    #[test]
    fn one_that_always_wants_more_does_not_keep_others_from_their_turns() {
        let mut turns = Turns::default();
        let mut counts = BTreeMap::new();
        for round in 0..100 {
            (1..=5).for_each(|number| turns.ask(vm(number), 7));
            for one in begin(&mut turns, at(round)) {
                *counts.entry(one).or_insert(0) += 1;
                turns.end(one, one == vm(1));
            }
        }
        assert!((2..=5).all(|number| counts[&vm(number)] >= 30), "{counts:?}");
    }

    #[test]
    fn a_turn_that_stands_still_is_passed_over_and_not_begun_again() {
        let mut turns = Turns::default();
        (1..=4).for_each(|number| turns.ask(vm(number), 7));
        turns.ask(vm(9), 8);
        assert_eq!(begin(&mut turns, at(0)), [vm(1), vm(2), vm(9)], "another disk's journals do not wait");
        turns.end(vm(9), false);
        turns.ask(vm(1), 7);
        assert_eq!(begin(&mut turns, at(59)), []);
        // The first two hang. The others have their turns all the same, again and again.
        assert_eq!(begin(&mut turns, at(60)), [vm(3), vm(4)]);
        assert_eq!(turns.stuck(at(61)).into_keys().collect::<Vec<_>>(), [vm(1), vm(2)]);
        turns.end(vm(3), false);
        turns.end(vm(4), false);
        (1..=4).for_each(|number| turns.ask(vm(number), 7));
        assert_eq!(begin(&mut turns, at(61)), [vm(3), vm(4)]);
    }

    #[test]
    fn a_disk_that_hangs_takes_a_bounded_number_of_threads() {
        let mut turns = Turns::default();
        (1..=100).for_each(|number| turns.ask(vm(number), 7));
        let begun: usize = (0..100).map(|minute| begin(&mut turns, at(minute * 60)).len()).sum();
        assert_eq!(begun, PER_DISK_MAX);
        turns.ask(vm(200), 8);
        assert_eq!(begin(&mut turns, at(10_000)), [vm(200)]);
    }

    #[test]
    fn one_that_is_slow_and_gets_on_is_not_stuck() {
        let mut turns = Turns::default();
        turns.ask(vm(1), 7);
        let (_, progress) = turns.next(at(0)).unwrap();
        progress.note(at(100));
        assert!(turns.stuck(at(150)).is_empty());
        assert_eq!(turns.stuck(at(161)).len(), 1);
    }
}
