//! Locking what is kept, asked for by an operator of this side, and what a lock that is in force refuses.
//!
//! What holds: a lock that was answered for is on the disk, and in force over restarts. It is part of what is set for the
//! journal, so that where that cannot be read the journal is not opened, and nothing of it goes either (`unreadable.rs`).

use super::Recovery;
use super::at::journal_of;
use super::lock::{Now, RetentionLock, asked_until};
use super::policy::{JournalPolicy, file_name};
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use crate::error::{OperationError, Result};
use std::sync::Arc;
use types::WallTime;
use types::limits::BATCH_BYTES_MAX;

impl Recovery {
    /// Locks a VM's history until a date, or makes that later.
    pub(crate) fn lock_journal(
        &self,
        word: &str,
        asked: &api::LockRequest,
        by: &str,
    ) -> Result<api::Journal> {
        let vm = self.vm(word)?;
        self.lock(&vm, asked_until(asked, clock::wall())?, by)?;
        self.journal_to_api(&vm)
    }

    /// The same for all VMs whose journals are kept of a group, also those that have left it. Where it is not done for one it may
    /// be done for others: it is asked for once more.
    pub(crate) fn lock_group(
        &self,
        word: &str,
        asked: &api::LockRequest,
        by: &str,
    ) -> Result<Vec<api::Journal>> {
        let group = self.group(word)?;
        let until = asked_until(asked, clock::wall())?;
        let mut failed = Vec::new();
        for vm in group.all() {
            if let Err(error) = self.lock(vm, until, by) {
                failed.push(error);
            }
        }
        let count = failed.len();
        match failed.into_iter().next() {
            None => group.all().map(|vm| self.journal_to_api(vm)).collect(),
            Some(first) => Err(OperationError {
                detail: format!(
                    "{count} of {} VMs of group {} are not locked, the others are: {}",
                    group.all().count(),
                    group.label(),
                    first.detail
                ),
                ..first
            }),
        }
    }

    fn lock(&self, vm: &Arc<RecoveredVm>, until: WallTime, by: &str) -> Result<()> {
        let of_vm = |error: OperationError| OperationError {
            detail: format!("the history of VM {}: {}", vm.label(), error.detail),
            ..error
        };
        // Whoever moves or deletes the journal waits until this is given back.
        let journal = journal_of(vm)?;
        let _one = vm.lock_settings();
        vm.check_is_kept()?;
        let before = vm.policy();
        let lock = RetentionLock::until(before.lock.as_ref(), until, by, Now::of(&journal)).map_err(of_vm)?;
        tracing::info!(vm = vm.label(), until = lock.until_text(), by, "history locked");
        self.save_locked(vm, &journal, JournalPolicy { lock: Some(lock), ..before })
    }

    /// On the disk first: what is answered for holds.
    pub(super) fn save_locked(
        &self,
        vm: &RecoveredVm,
        journal: &journal::Journal,
        policy: JournalPolicy,
    ) -> Result<()> {
        self.state.save(&file_name(&vm.id().to_string()), &policy)?;
        vm.set_policy(policy);
        journal.set(vm.settings(&self.journal_config));
        Ok(())
    }

    /// Ends a lock that is over. Where that cannot be written down it stands on, and this is tried again.
    pub(super) fn end_lock_that_is_over(&self, vm: &RecoveredVm, journal: &journal::Journal) {
        let is_over = || vm.policy().lock.is_some_and(|lock| lock.is_over(Now::of(journal)));
        if !is_over() {
            return;
        }
        let _one = vm.lock_settings();
        // It may have been made longer meanwhile.
        if !is_over() {
            return;
        }
        match self.save_locked(vm, journal, JournalPolicy { lock: None, ..vm.policy() }) {
            Ok(()) => tracing::info!(vm = vm.label(), "the lock of its history is over"),
            Err(error) => {
                tracing::warn!(vm = vm.label(), error = error.detail, "a lock that is over stands on")
            }
        }
    }

    /// Says as long as it is so that a locked journal has no room: nothing more of its VM is taken.
    pub(super) fn tell_locked_full(&self, vm: &RecoveredVm, journal: &journal::Journal) {
        let cause = locked_full_alert(vm);
        let Some(lock) = vm.policy().lock else { return self.alerts.clear(cause) };
        let (status, free) = (journal.status(), vm.free_bytes());
        let (bytes, hard) = (status.journal_bytes, status.settings.bytes_hard);
        let why = if hard > 0 && bytes >= hard {
            format!(
                "it has {bytes} bytes, and its hard limit is {hard}: protect its VM with a larger `--journal-max`"
            )
        } else if free < self.free_bytes_min.saturating_add(BATCH_BYTES_MAX as u64) {
            format!("{free} bytes are free on its disk: make room there, or `holdfast journal move` it")
        } else {
            return self.alerts.clear(cause);
        };
        let text = format!(
            "VM {}: its journal is full and its history is locked until {}, so that nothing of it makes room and nothing more is \
             taken: {why}",
            vm.label(),
            lock.until_text()
        );
        self.alerts.raise(cause, text);
    }
}

/// What a locked journal without room is an alert of.
pub(super) fn locked_full_alert(vm: &RecoveredVm) -> Cause {
    Cause::new(AlertKind::LockedFull, vm.id().to_string())
}

impl RecoveredVm {
    /// Whether nothing hinders that history of it is taken away by `what`.
    pub(super) fn check_not_locked(&self, what: &str) -> Result<()> {
        let Some(lock) = self.policy().lock else { return Ok(()) };
        Err(OperationError::conflict(format!(
            "the history of VM {} is locked until {}: {what} is not possible before. `holdfast journal lock {} \
             --until` makes that longer, and two persons together lift it (`journal lift`)",
            self.label(),
            lock.until_text(),
            self.id()
        )))
    }

    /// What is to be said beside that its journal has no room: nothing where it is not locked.
    pub(super) fn locked_words(&self) -> String {
        let locked = |lock: RetentionLock| {
            format!(
                "; the journal is full and locked: its history is kept until {}, and none of it makes room",
                lock.until_text()
            )
        };
        self.policy().lock.map(locked).unwrap_or_default()
    }

    /// Its lock, for the operator.
    pub(super) fn lock_to_api(&self, journal: &journal::Journal) -> Option<api::HistoryLock> {
        let (lock, now) = (self.policy().lock?, Now::of(journal));
        Some(api::HistoryLock {
            until: lock.until_text(),
            seconds_left_min: lock.left(now).as_secs(),
            set_at: clock::to_text(WallTime(lock.set_at)),
            lift: lock.lift_to_api(now),
            set_by: lock.set_by,
        })
    }
}

#[cfg(test)]
mod tests;
