//! Scrubbing of all journals, each once a day, at a rate for all together. When one was last read whole stands in its
//! manifest; a round that is late is an alert.

mod rounds;

use super::Recovery;
use super::vm::RecoveredVm;
use crate::alerts::Cause;
use crate::clock;
use crate::error::with_sources;
use crate::pace::Pace;
use crate::state::random;
use joint::life::Use;
use journal::{Clock, Damage, Journal, Scrubbed, Timeline, Upkeep};
use replication::wire::{Refusal, Refuse};
use rounds::{Round, Rounds};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use types::WallTime;

/// Who is due is looked for so often.
const INTERVAL: Duration = Duration::from_secs(60);

impl Recovery {
    /// Reads what is kept again and again, so that rot is found while the other side has what was lost.
    pub(crate) async fn scrub_regularly(self: Arc<Self>) {
        let rate = self.journal_config.scrub_bytes_per_second;
        if rate == 0 {
            return;
        }
        let pace = Arc::new(Pace::new(rate));
        let mut rounds = Rounds::default();
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await; // The first is at once.
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tell_late(&mut rounds),
                Some((vm, round)) = ends.recv() => rounds.end(vm, round, clock::now()),
            }
            for vm in self.list() {
                if !rounds.begin(vm.id(), vm.disk(&self.journal_dir), clock::now()) {
                    continue;
                }
                let (recovery, pace, ended) = (self.clone(), pace.clone(), ended.clone());
                tokio::task::spawn_blocking(move || {
                    let round = scrub(&vm, &pace);
                    recovery.scrub_images(&vm);
                    let _ = ended.send((vm.id(), round)); // Nobody is there when the agent ends.
                });
            }
        }
    }

    /// A journal that was not read whole for too long is an alert until it was.
    fn tell_late(&self, rounds: &mut Rounds) {
        let (vms, now) = (self.list(), clock::now());
        rounds.keep(&vms.iter().map(|vm| vm.id()).collect());
        for vm in vms {
            let Some(journal) = vm.journal() else { continue };
            let at = journal.status().scrubbed_at;
            if !rounds.knows(vm.id()) {
                rounds.learn(vm.id(), at.and_then(|at| age_of(at, clock::wall())), now);
            }
            self.alerts.set(scrub_alert(&vm), rounds.is_late(vm.id(), now), || {
                let last = at.map_or("never".to_owned(), |at| format!("on {}", clock::to_text(at)));
                format!(
                    "the journal of VM {} was last read through whole {last}, and once a day is meant: what rots there is not \
                     found; see whether its disk answers, and whether scrub_bytes_per_second is enough for all journals",
                    vm.name()
                )
            });
        }
    }
}

/// What a journal that is not scrubbed is an alert of.
pub(super) fn scrub_alert(vm: &RecoveredVm) -> Cause {
    Cause::from(format!("scrub of {}", vm.id()))
}

/// How long ago that was, by the clock as it stands now; none where it says that this is still to come.
fn age_of(at: WallTime, now: WallTime) -> Option<Duration> {
    (at <= now).then(|| now.since(at))
}

fn scrub(vm: &Arc<RecoveredVm>, pace: &Pace) -> Round {
    let mut place = None;
    let mut whole = true;
    loop {
        let Ok(journal) = vm.lease(Use::Scrub) else { return Round::Again };
        let how = Upkeep {
            clock: Clock::Monotonic(clock::now()),
            pace: &|bytes| pace.spend(bytes),
            ..Upkeep::plain(clock::wall(), random())
        };
        match journal.scrub(place, &how) {
            Ok(step) => {
                whole &= step.damage.is_empty();
                tell(vm, &journal, &step);
                place = step.place;
                if place.is_none() {
                    break;
                }
            }
            Err(_) if journal.gives_way() => return Round::Again,
            Err(error) => {
                let error = format!("the journal cannot be scrubbed: {}", with_sources(&error));
                tracing::warn!(vm = vm.name(), error);
                vm.set_error(error);
                return Round::CutShort;
            }
        }
    }
    if !whole {
        return Round::Again;
    }
    note_whole(vm)
}

/// A whole round, at once.
#[cfg(test)]
pub(super) fn scrub_now(vm: &Arc<RecoveredVm>) {
    scrub(vm, &Pace::new(0));
}

/// Writes down that all of a journal was read and is whole. Where that cannot be, it was read all the same.
fn note_whole(vm: &RecoveredVm) -> Round {
    let Ok(journal) = vm.lease(Use::Scrub) else { return Round::Again };
    if let Err(error) = journal.note_scrubbed(clock::wall()) {
        if journal.is_closed() {
            return Round::Again;
        }
        let error = with_sources(&error);
        tracing::warn!(vm = vm.name(), error, "that the journal was scrubbed cannot be written down");
    }
    Round::Whole
}

fn tell(vm: &RecoveredVm, journal: &Journal, step: &Scrubbed) {
    vm.tell_mended(&step.mended);
    for lost in &step.lost {
        tracing::error!(vm = vm.name(), lost = lost.to_string(), "checkpoints cannot be listed any more");
    }
    tell_found(vm, journal, &step.damage, step.rebuilt);
}

/// What was found damaged, by a scrub or by upkeep, is told. The source is asked for what of the newest state is lost; where
/// it has to compare everything for it the stream ends.
pub(super) fn tell_found(vm: &RecoveredVm, journal: &Journal, damage: &[Damage], rebuilt: usize) {
    if rebuilt > 0 {
        tracing::warn!(vm = vm.name(), runs = rebuilt, "damaged index runs were made again");
    }
    let Some(detail) = damage.iter().map(|damage| vm.report_damage(damage)).last() else { return };
    if journal.with_timeline(Timeline::must_resync).is_none() {
        if damage.iter().any(Damage::is_of_newest_state) {
            vm.ask_again();
        }
        return;
    }
    // The source greets again, learns that it cannot resume, and sends everything.
    if !vm.stop_stream(Refuse { why: Refusal::Busy, detail }) {
        tracing::warn!(vm = vm.name(), "its stream does not let go; the journal refuses what it sends");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::super::tests::{PEER, hello, recovery};
    use super::*;
    use crate::ledger::Asker;

    fn late(recovery: &Recovery) -> usize {
        recovery.tell_late(&mut Rounds::default());
        recovery.alerts.to_api().iter().filter(|alert| alert.subject.starts_with("scrub of ")).count()
    }

    #[test]
    fn when_a_journal_was_scrubbed_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let scrubbed_at = {
            let recovery = recovery(folder.path());
            let vm = recovery.admit(&hello(1), PEER).unwrap().0;
            assert_eq!(recovery.show_journal("vm-1").unwrap().scrubbed_at, None);
            assert_eq!(scrub(&vm, &Pace::new(0)), Round::Whole);
            recovery.show_journal("vm-1").unwrap().scrubbed_at
        };
        assert!(scrubbed_at.is_some());
        let recovery = recovery(folder.path());
        recovery.resume_all().unwrap();
        assert_eq!(recovery.show_journal("vm-1").unwrap().scrubbed_at, scrubbed_at);
        let vm = recovery.list()[0].clone();
        let mut rounds = Rounds::default();
        recovery.tell_late(&mut rounds);
        assert!(!rounds.begin(vm.id(), vm.disk(&recovery.journal_dir), clock::now()), "it was read just now");
    }

    #[test]
    fn a_journal_that_was_not_scrubbed_for_days_is_an_alert_until_it_was_or_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let vm = recovery.admit(&hello(1), PEER).unwrap().0;
        assert_eq!(late(&recovery), 0, "nobody knows, and it is read at once");
        let long_ago = || vm.journal().unwrap().note_scrubbed(WallTime(0)).unwrap();
        long_ago();
        assert_eq!(late(&recovery), 1);
        assert_eq!(scrub(&vm, &Pace::new(0)), Round::Whole);
        assert_eq!(late(&recovery), 0);
        long_ago();
        assert_eq!(late(&recovery), 1);
        recovery.forget("vm-1", &Asker::default()).unwrap();
        assert_eq!(late(&recovery), 0);
    }

    #[test]
    fn a_time_that_is_still_to_come_says_nothing() {
        assert_eq!(age_of(WallTime(5), WallTime(4)), None);
        assert_eq!(age_of(WallTime(1_000_000), WallTime(3_000_000)), Some(Duration::from_secs(2)));
    }
}
