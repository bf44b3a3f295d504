//! Upkeep of all journals, in turn and in the background: footers, merges, folding, retention, scrubbing.

use super::Recovery;
use super::life::journal_alert;
use super::scrub::tell_found;
use super::turns::{Progress, Turns};
use super::vm::RecoveredVm;
use crate::alerts::Cause;
use crate::clock;
use crate::error::with_sources;
use crate::pace::Pace;
use crate::state::random;
use joint::life::Use;
use journal::{Clock, FoldError, Journal, Kept, Upkeep};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use types::{VmId, WriteSeq};

const INTERVAL: Duration = Duration::from_secs(1);
/// Guides and files not used for so many rounds are let go of.
const REST_EVERY: u64 = 60;
/// Threads that bring a journal's data to its replica.
const FOLD_THREADS: usize = 16;

impl Recovery {
    /// Keeps up every journal, again and again, in turns: see `turns.rs`.
    pub(crate) async fn keep_up_regularly(self: Arc<Self>) {
        let fold_pace = Arc::new(Pace::new(self.journal_config.fold_bytes_per_second));
        let (mut turns, mut stuck) = (Turns::default(), BTreeSet::new());
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0u64;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    round += 1;
                    for vm in self.list() {
                        self.tell_damage(&vm);
                        turns.ask(vm.id(), vm.disk(&self.journal_dir));
                    }
                    self.tell_stuck(&turns, &mut stuck);
                }
                Some((vm, more)) = ends.recv() => turns.end(vm, more),
            }
            while let Some((id, progress)) = turns.next(clock::now()) {
                let Some(vm) = self.vms().get(&id).cloned() else {
                    turns.end(id, false);
                    continue;
                };
                let (pace, ended, rests) =
                    (fold_pace.clone(), ended.clone(), round.is_multiple_of(REST_EVERY));
                let recovery = self.clone();
                tokio::task::spawn_blocking(move || {
                    // A disk that hangs holds up its own journals only, as in their other turns.
                    recovery.reopen(&vm);
                    let more = recovery.take_turn(&vm, &pace, &progress, rests);
                    let _ = ended.send((id, more)); // Nobody is there when the agent ends.
                });
            }
        }
    }

    /// Says which journals do not get on, and takes it back.
    fn tell_stuck(&self, turns: &Turns, known: &mut BTreeSet<VmId>) {
        let now = turns.stuck(clock::now());
        let cause = |vm: &VmId| format!("upkeep of {vm}");
        known.extract_if(.., |vm| !now.contains_key(vm)).for_each(|vm| self.alerts.clear(cause(&vm)));
        for vm in now.keys().filter(|vm| !known.contains(*vm)) {
            let name = self.vms().get(vm).map(|vm| vm.name()).unwrap_or_default();
            self.alerts.raise(
                cause(vm),
                format!(
                    "the disk of the journal of VM {name} does not answer: nothing is folded there and its history \
                     grows; see to that disk"
                ),
            );
        }
        known.extend(now.into_keys());
    }
}

impl Recovery {
    /// Acknowledged writes that are lost are an alert until the source has begun anew.
    pub(super) fn tell_damage(&self, vm: &RecoveredVm) {
        let Some(journal) = vm.journal() else { return };
        let cause = journal_alert(vm);
        let status = journal.status();
        match status.must_resync {
            None if status.damaged_bytes > 0 => self.alerts.raise(
                cause,
                format!(
                    "VM {}: its journal is damaged, {} bytes of its newest state cannot be read: checkpoints are damaged until its \
                     source, which is asked for them, has sent them again. What that cannot read itself (it has an alert then, too) \
                     comes only with what the guest writes over it. {}",
                    vm.label(),
                    status.damaged_bytes,
                    of_newest_whole(vm, journal.newest_consistent(WriteSeq::MAX), status.settings.let_go)
                ),
            ),
            Some(from) => self.alerts.raise(
                cause,
                format!(
                    "VM {}: its journal is damaged, what was written from {from} on cannot be read, or not all of it: no new checkpoint until its source has come and compared everything",
                    vm.label()
                ),
            ),
            None => self.alerts.clear(cause),
        }
    }
}

/// What becomes of the newest whole checkpoint while a newer state is damaged.
fn of_newest_whole(vm: &RecoveredVm, whole: Option<WriteSeq>, let_go: Option<WriteSeq>) -> String {
    match whole {
        None => "No checkpoint that is kept is whole".to_owned(),
        Some(whole) if let_go.is_some_and(|gone| whole <= gone) => {
            "The newest whole checkpoint, which an operator has let go of, goes with the history that is set"
                .to_owned()
        }
        Some(_) => format!(
            "The newest whole checkpoint is held until then, whatever history is set: `holdfast journal set {} --let-go` lets \
             go of it",
            vm.id()
        ),
    }
}

/// What a journal that cannot be kept up is an alert of.
pub(super) fn upkeep_alert(vm: &RecoveredVm) -> Cause {
    Cause::from(format!("failing upkeep of {}", vm.id()))
}

impl Recovery {
    /// One journal's turn; whether it wants another at once. One that cannot be kept up is an alert until it is.
    pub(super) fn take_turn(&self, vm: &RecoveredVm, pace: &Pace, progress: &Progress, rests: bool) -> bool {
        let Ok(journal) = vm.lease(Use::Upkeep) else { return false };
        self.end_lock_that_is_over(vm, &journal);
        self.tell_locked_full(vm, &journal);
        self.tell_lift_asked(vm, &journal);
        match keep_up(&journal, pace, progress, rests) {
            Ok(kept) => {
                tell(vm, &journal, &kept);
                self.alerts.clear(upkeep_alert(vm));
                kept.more
            }
            // Whoever opens it anew keeps it up.
            Err(_) if journal.gives_way() => false,
            Err(error) => {
                let error = with_sources(&error);
                let text = format!(
                    "VM {}: its journal cannot be kept up, so that its history does not shrink and takes ever more room: \
                     {error}; tried again by itself. See to its disk, or, where an open image needs what cannot be read, \
                     close that image",
                    vm.name()
                );
                self.alerts.raise(upkeep_alert(vm), text);
                vm.set_error(error);
                false
            }
        }
    }
}

fn keep_up(
    journal: &Journal,
    pace: &Pace,
    progress: &Progress,
    rests: bool,
) -> std::result::Result<Kept, FoldError> {
    if rests {
        journal.rest();
    }
    let how = Upkeep {
        now: clock::wall(),
        clock: Clock::Monotonic(clock::now()),
        entropy: random(),
        threads: FOLD_THREADS,
        pace: &|bytes| {
            pace.spend(bytes);
            progress.note(clock::now());
        },
    };
    journal.keep_up(&how)
}

fn tell(vm: &RecoveredVm, journal: &Journal, kept: &Kept) {
    tell_found(vm, journal, &kept.damage, kept.rebuilt);
    if kept.segments > 0 {
        let (segments, bytes) = (kept.segments, kept.folded_bytes);
        tracing::info!(vm = vm.name(), segments, bytes, applied = %kept.applied, "folded");
    }
    if kept.merges > 0 {
        tracing::debug!(vm = vm.name(), runs = journal.status().runs, "index runs merged");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::super::tests::{
        PEER, append_empty_sync, append_sync, append_writes, end, hello, recovery, rot_writes,
    };
    use super::*;
    use journal::{Mode, Settings};
    use std::os::unix::fs::FileExt;

    /// Its source has been asked, and cannot read them itself.
    #[test]
    fn damage_that_a_sync_could_not_bring_back_is_told_on_and_holds_history_until_an_operator_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
        append_sync(&journal);
        append_writes(&journal);
        let set = |let_go| {
            recovery.set_journal("vm-1", &api::JournalSettings { let_go, ..api::JournalSettings::default() })
        };
        assert!(set(true).unwrap_err().detail.contains("is damaged"));
        rot_writes(&recovery, &vm);
        append_empty_sync(&journal);
        recovery.tell_damage(&vm);
        let told = recovery.alerts.list();
        assert!(
            told.len() == 1 && told[0].contains("cannot read itself") && told[0].contains("--let-go"),
            "{told:?}"
        );
        let whole = journal.newest_consistent(types::WriteSeq::MAX).unwrap();
        set(true).unwrap();
        assert_eq!(journal.status().settings.let_go, Some(whole));
        recovery.tell_damage(&vm);
        let told = recovery.alerts.list();
        assert!(told.len() == 1 && !told[0].contains("is held") && !told[0].contains("--let-go"), "{told:?}");
        drop((journal, vm));
        end(recovery);
        let recovery = super::super::tests::recovery(folder.path());
        recovery.resume_all().unwrap();
        let vm = recovery.vm("vm-1").unwrap();
        assert_eq!(vm.journal().unwrap().status().settings.let_go, Some(whole), "also after a restart");
        recovery.tell_damage(&vm);
        assert_eq!(recovery.alerts.list().len(), 1, "it stands on");
    }

    /// No scrub has come by.
    #[test]
    fn what_upkeep_comes_upon_is_told_as_what_a_scrub_finds() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
        append_sync(&journal);
        let segment = vm.folder(&recovery.journal_dir).join("segment-00000001");
        let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
        file.write_all_at(&[0; 512], 8192 + 2048).unwrap();
        journal.set(Settings { mode: Mode::Rollback, ..journal.status().settings });
        let mut turns = Turns::default();
        turns.ask(vm.id(), vm.disk(&recovery.journal_dir));
        let (_, progress) = turns.next(clock::now()).unwrap();
        let turn = || recovery.take_turn(&vm, &Pace::new(0), &progress, false);
        assert!(turn(), "it goes on at once");
        while turn() {}
        let told = vm.last_error().unwrap();
        assert!(told.starts_with("segment-00000001 at byte 8192: ") && told.contains("4096 bytes"), "{told}");
        assert_eq!(journal.status().applied, journal.status().last_seq);
        recovery.tell_damage(&vm);
        let alerts = recovery.alerts.list();
        assert!(alerts.len() == 1 && alerts[0].contains("its journal is damaged"), "{alerts:?}");
    }
}
