//! Lifting a lock before its date: one person asks for it, and another confirms that within a day.
//!
//! What holds: it takes two that the agent tells apart, two names in certificates or two users of the host; root and the agent's
//! own user are one. What is confirmed is the request that was shown: one that was taken back, or was made before the lock was
//! made longer, is confirmed by nobody. A day is one during which the agent ran, as it is for the lock itself.

use super::Recovery;
use super::at::journal_of;
use super::lock::{LiftAsked, Now, RetentionLock};
use super::policy::JournalPolicy;
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use crate::error::{OperationError, Result};
use crate::rights::Person;

impl Recovery {
    /// Asks that a lock be lifted: another person is to confirm it.
    pub(crate) fn ask_to_lift(&self, word: &str, by: &Person) -> Result<api::Journal> {
        let asked = |lock: RetentionLock, now| match lock.lift(now) {
            Some(lift) => Err(format!("{} has asked for that already: request {}", lift.by.who, lift.id)),
            None => Ok(Some(RetentionLock { lift: Some(LiftAsked::new(by.clone(), now)), ..lock })),
        };
        self.change_lock(word, asked, by, "it was asked that a lock be lifted")
    }

    /// Lifts a lock, as another person has asked.
    pub(crate) fn confirm_lift(&self, word: &str, id: &str, by: &Person) -> Result<api::Journal> {
        let confirmed = |lock: RetentionLock, now| match &lock.lift {
            Some(lift) => lift.check(id, by, now).map(|()| None),
            None => Err("nobody has asked that it be lifted, or the lock was made longer since".to_owned()),
        };
        self.change_lock(word, confirmed, by, "the lock of its history is lifted by two persons")
    }

    /// Takes a request to lift a lock back, by whoever likes.
    pub(crate) fn withdraw_lift(&self, word: &str, id: &str, by: &Person) -> Result<api::Journal> {
        let withdrawn = |lock: RetentionLock, _| match &lock.lift {
            Some(lift) if lift.id == id => Ok(Some(RetentionLock { lift: None, ..lock })),
            _ => Err(format!("request {id} to lift it does not stand")),
        };
        self.change_lock(word, withdrawn, by, "a request to lift a lock is taken back")
    }

    fn change_lock(
        &self,
        word: &str,
        change: impl FnOnce(RetentionLock, Now) -> std::result::Result<Option<RetentionLock>, String>,
        by: &Person,
        told: &str,
    ) -> Result<api::Journal> {
        let vm = self.vm(word)?;
        {
            let journal = journal_of(&vm)?;
            let _one = vm.lock_settings();
            vm.check_is_kept()?;
            let refused =
                |why: String| OperationError::conflict(format!("the history of VM {}: {why}", vm.label()));
            let before = vm.policy();
            let lock = before.lock.clone().ok_or_else(|| refused("it is not locked".to_owned()))?;
            let lock = change(lock, Now::of(&journal)).map_err(refused)?;
            self.save_locked(&vm, &journal, JournalPolicy { lock, ..before })?;
            tracing::warn!(vm = vm.label(), by = by.who, "{told}");
            self.tell_lift_asked(&vm, &journal);
        }
        self.journal_to_api(&vm)
    }

    /// Says as long as it is so that somebody has asked to lift a lock.
    pub(super) fn tell_lift_asked(&self, vm: &RecoveredVm, journal: &journal::Journal) {
        let cause = lift_asked_alert(vm);
        let lock = vm.policy().lock;
        let Some(lift) = lock.as_ref().and_then(|lock| lock.lift(Now::of(journal))) else {
            return self.alerts.clear(cause);
        };
        let (name, vm_id, by, id) = (vm.label(), vm.id(), &lift.by.who, &lift.id);
        let text = format!(
            "VM {name}: {by} has asked that the lock of its history be lifted (request {id}); another person's `holdfast journal \
             lift {vm_id} --confirm {id}` does that within a day, `--withdraw {id}` takes it back"
        );
        self.alerts.raise(cause, text);
    }
}

/// What a request to lift a lock is an alert of.
pub(super) fn lift_asked_alert(vm: &RecoveredVm) -> Cause {
    Cause::new(AlertKind::LiftAsked, vm.id().to_string())
}
