//! Whose journal is read through next: each once a day, those of one disk one after the other. A disk that hangs holds up
//! its own journals and no others.

use crate::recovery::turns::DiskId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use types::{Monotonic, VmId};

/// A journal is read again after this time.
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// One that was not read through whole for so long is late.
const LATE: Duration = Duration::from_secs(2 * 24 * 3600);
/// One whose disk does not answer is not read from its beginning again before this.
const RETRY: Duration = Duration::from_secs(3600);
/// One of which something was damaged, or that was closed, is read again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// How a round over a journal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// All of it was read and is as it was written.
    Whole,
    /// Something was damaged, or the journal was closed.
    Again,
    /// Its disk did not let it come to the end.
    CutShort,
}

/// What is known of one journal.
#[derive(Debug)]
struct Known {
    /// How long ago it had been read whole at `at`. By what passes from there: a clock that jumps makes nobody read
    /// everything at once, nor never again.
    age: Duration,
    at: Monotonic,
    /// It is not begun for so long after that moment.
    rests: Option<(Monotonic, Duration)>,
}

impl Known {
    fn age(&self, now: Monotonic) -> Duration {
        self.age.saturating_add(now.since(self.at))
    }

    fn is_due(&self, now: Monotonic) -> bool {
        let rests = self.rests.is_some_and(|(since, pause)| now.since(since) < pause);
        self.age(now) >= EVERY && !rests
    }
}

/// Who was read when, and whose rounds are under way.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    known: BTreeMap<VmId, Known>,
    running: BTreeMap<DiskId, VmId>,
}

impl Rounds {
    pub(super) fn knows(&self, vm: VmId) -> bool {
        self.known.contains_key(&vm)
    }

    /// A journal was last read whole so long ago. Where nobody knows, it is due, and not late yet.
    pub(super) fn learn(&mut self, vm: VmId, age: Option<Duration>, now: Monotonic) {
        let age = age.unwrap_or(EVERY);
        self.known.entry(vm).or_insert(Known { age, at: now, rests: None });
    }

    /// The others are gone.
    pub(super) fn keep(&mut self, vms: &BTreeSet<VmId>) {
        self.known.retain(|vm, _| vms.contains(vm));
    }

    /// Begins a round over this journal, if it is due and nothing else of its disk is read.
    pub(super) fn begin(&mut self, vm: VmId, disk: DiskId, now: Monotonic) -> bool {
        let begins =
            !self.running.contains_key(&disk) && self.known.get(&vm).is_some_and(|known| known.is_due(now));
        if begins {
            self.running.insert(disk, vm);
        }
        begins
    }

    pub(super) fn end(&mut self, vm: VmId, round: Round, now: Monotonic) {
        self.running.retain(|_, running| *running != vm);
        let Some(known) = self.known.get_mut(&vm) else { return };
        known.rests = match round {
            Round::Whole => {
                (known.age, known.at) = (Duration::ZERO, now);
                None
            }
            Round::Again => Some((now, AGAIN)),
            Round::CutShort => Some((now, RETRY)),
        };
    }

    /// Whether a journal was not read whole for too long.
    pub(super) fn is_late(&self, vm: VmId, now: Monotonic) -> bool {
        self.known.get(&vm).is_some_and(|known| known.age(now) >= LATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;

    fn vm(number: u8) -> VmId {
        VmId::from_bytes([number; 16])
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    #[test]
    fn what_was_read_before_a_restart_is_not_read_again_before_its_day_is_over() {
        let mut rounds = Rounds::default();
        rounds.learn(vm(1), Some(Duration::from_secs(20 * HOUR)), at(5));
        assert!(!rounds.begin(vm(1), 7, at(3 * HOUR)));
        assert!(rounds.begin(vm(1), 7, at(5 * HOUR)));
        rounds.end(vm(1), Round::Whole, at(6 * HOUR));
        assert!(!rounds.begin(vm(1), 7, at(29 * HOUR)));
        assert!(rounds.begin(vm(1), 7, at(30 * HOUR)));
    }

    #[test]
    fn one_of_which_nobody_knows_when_it_was_read_is_read_at_once() {
        let mut rounds = Rounds::default();
        rounds.learn(vm(1), None, at(5));
        assert!(!rounds.is_late(vm(1), at(5)));
        assert!(rounds.begin(vm(1), 7, at(5)));
        assert!(rounds.is_late(vm(1), at(5 + DAY)));
    }

    #[test]
    fn one_that_stays_unread_is_late_until_it_was_read_whole() {
        let mut rounds = Rounds::default();
        rounds.learn(vm(1), Some(Duration::from_secs(DAY)), at(0));
        for (hour, round) in [(1, Round::CutShort), (12, Round::Again), (23, Round::CutShort)] {
            assert!(rounds.begin(vm(1), 7, at(hour * HOUR)));
            assert!(!rounds.is_late(vm(1), at(hour * HOUR)));
            rounds.end(vm(1), round, at(hour * HOUR));
            assert!(!rounds.begin(vm(1), 7, at(hour * HOUR + 59)));
        }
        assert!(rounds.is_late(vm(1), at(DAY)));
        assert!(rounds.begin(vm(1), 7, at(DAY)));
        rounds.end(vm(1), Round::Whole, at(DAY));
        assert!(!rounds.is_late(vm(1), at(2 * DAY)));
    }

    #[test]
    fn a_disk_that_hangs_holds_up_its_own_journals_only() {
        let mut rounds = Rounds::default();
        (1..=3).for_each(|number| rounds.learn(vm(number), None, at(0)));
        assert!(rounds.begin(vm(1), 7, at(0)));
        assert!(!rounds.begin(vm(2), 7, at(DAY)));
        assert!(rounds.begin(vm(3), 8, at(DAY)));
        rounds.end(vm(1), Round::CutShort, at(DAY));
        assert!(rounds.begin(vm(2), 7, at(DAY)));
    }
}
