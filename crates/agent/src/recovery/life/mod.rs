//! One kept VM's journal as long as it is known: what [`joint::life`] decides, done. Here alone a journal of this agent
//! is opened (`open.rs`), closed, moved (`moving.rs`) and deleted (`forget.rs`).
//!
//! What it keeps: whoever holds a [`Lease`] has a journal that nobody closes under him, and whoever has taken the folder
//! has it for himself. The mutex here is the last one taken, and nothing is waited for under it but the end of leases.

pub(super) mod emptying;
pub(super) mod forget;
pub(super) mod moving;
pub(super) mod open;

use super::vm::RecoveredVm;
use crate::alerts::Cause;
use crate::error::OperationError;
use joint::life::{LeaseId, Life, Reason, Refused, State, Task, Use};
use journal::Journal;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long somebody waits for a journal that another is opening.
const OPENING_PATIENCE: Duration = Duration::from_secs(5);

/// A journal's life, shared by all who use it. Images are named by their ids.
#[derive(Debug, Default)]
pub(super) struct JournalLife {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    life: Life<String>,
    /// While there is a life.
    journal: Option<Arc<Journal>>,
}

/// The use of an open journal. It is not closed before this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    of: Arc<JournalLife>,
    id: LeaseId,
    journal: Arc<Journal>,
}

/// The right to open a journal. Dropped, it was not opened.
#[derive(Debug)]
pub(super) struct Opening(Arc<JournalLife>);

/// The right to a closed journal's folder. Dropped, the journal may be opened again.
#[derive(Debug)]
pub(super) struct Folder(Arc<JournalLife>);

/// Why a journal is not closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotClosed {
    Refused(Refused),
    /// They have not ended in time; it is open as before.
    StillUsed(Vec<Use>),
}

impl Deref for Lease {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.of.lock().life.give_back(self.id) {
            self.of.changed.notify_all();
        }
    }
}

impl Lease {
    /// For what holds the journal itself: a stream's place at the shards, and an image, which says that it stays.
    pub(super) fn shared(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// An image that was opened from this journal is served from now on.
    pub(super) fn stay(&self, image: &str) -> Result<(), Refused> {
        self.of.lock().life.stay(self.id, image.to_owned())
    }
}

impl JournalLife {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }

    pub(super) fn state(&self) -> State {
        self.lock().life.state()
    }

    pub(super) fn has_images(&self) -> bool {
        self.lock().life.images().next().is_some()
    }

    pub(super) fn lease(self: &Arc<Self>, what: Use) -> Result<Lease, Refused> {
        let mut inner = self.lock();
        let id = inner.life.lease(what)?;
        let journal = inner.journal.clone().expect("an open journal is there");
        Ok(Lease { of: self.clone(), id, journal })
    }

    /// An image is not served any more.
    pub(super) fn leave(&self, image: &str) {
        self.lock().life.leave(&image.to_owned());
        self.changed.notify_all();
    }

    /// The right to open the journal, once nobody else is about that, and the life before has ended.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Opening, Refused> {
        let is_busy = |inner: &mut Inner| match inner.life.state() {
            State::Opening | State::Binding | State::Closing(Reason::Failed) => true,
            State::Closed
            | State::Open
            | State::Closing(Reason::Taken(_))
            | State::Taken(_)
            | State::Gone => false,
        };
        let waited = self.changed.wait_timeout_while(self.lock(), OPENING_PATIENCE, is_busy);
        waited.expect("a panic aborts the process").0.life.begin()?;
        Ok(Opening(self.clone()))
    }

    /// Ends this life: waits until nobody uses the journal any more, which whoever calls has asked of those he can ask.
    fn end(&self, reason: Reason, within: Option<Duration>) -> Result<(), NotClosed> {
        let mut inner = self.lock();
        inner.life.close(reason).map_err(NotClosed::Refused)?;
        // Upkeep and scrubs are the long ones.
        let journal = inner.journal.clone();
        let give_way = |yes| journal.iter().for_each(|journal| journal.give_way(yes));
        give_way(true);
        let is_used = |inner: &mut Inner| !inner.life.uses().is_empty();
        let poisoned = "a panic aborts the process";
        inner = match within {
            None => self.changed.wait_while(inner, is_used).expect(poisoned),
            Some(within) => self.changed.wait_timeout_while(inner, within, is_used).expect(poisoned).0,
        };
        let uses = inner.life.uses();
        if !uses.is_empty() {
            inner.life.give_up_closing();
            give_way(false);
            return Err(NotClosed::StillUsed(uses.into_iter().collect()));
        }
        if let Some(journal) = inner.journal.take() {
            drop(inner);
            journal.close();
            inner = self.lock();
            inner.life.closed();
        }
        drop(inner);
        self.changed.notify_all();
        Ok(())
    }

    /// Ends the life of a journal that has failed: the next one begins from what its disk has. Nothing is done where that
    /// journal's life has ended already.
    pub(super) fn close_failed(&self, failed: &Arc<Journal>) {
        let is_this = self.lock().journal.as_ref().is_some_and(|now| Arc::ptr_eq(now, failed));
        if is_this {
            // Where somebody else closes it, that is as good.
            let _ = self.end(Reason::Failed, None);
        }
    }

    /// Closes the journal, and has its folder for oneself.
    pub(super) fn take_folder(self: &Arc<Self>, task: Task, within: Duration) -> Result<Folder, NotClosed> {
        self.end(Reason::Taken(task), Some(within))?;
        Ok(Folder(self.clone()))
    }
}

impl Opening {
    /// It is open. `bind` has one of its images read from it, or not any more; then it is in use.
    pub(super) fn opened(self, journal: Arc<Journal>, mut bind: impl FnMut(&str) -> bool) {
        let images = {
            let mut inner = self.0.lock();
            inner.journal = Some(journal);
            inner.life.opened()
        };
        for image in images {
            match bind(&image) {
                true => self.0.lock().life.bound(&image),
                false => self.0.lock().life.leave(&image),
            }
        }
        self.0.changed.notify_all();
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        if inner.life.state() == State::Opening {
            inner.life.not_opened();
        }
        drop(inner);
        self.0.changed.notify_all();
    }
}

impl Folder {
    /// The folder is gone, for good.
    pub(super) fn deleted(self) {
        self.0.lock().life.deleted();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        if inner.life.state() != State::Gone {
            inner.life.give_folder_back();
        }
        drop(inner);
        self.0.changed.notify_all();
    }
}

/// What a journal is in this state.
pub(super) fn explain(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Closed => "not open; `holdfast status` says why",
        State::Opening | State::Binding => "being opened: try again in a moment",
        State::Closing(Reason::Failed) => "being closed, for it has failed: it is opened again by itself",
        State::Closing(Reason::Taken(Task::Move)) | State::Taken(Task::Move) => {
            "being moved: wait until it is there"
        }
        State::Closing(Reason::Taken(Task::Delete)) | State::Taken(Task::Delete) | State::Gone => {
            "being deleted"
        }
    }
}

/// Why the journal of a VM cannot be used just now, to an operator.
pub(super) fn not_usable(vm_name: &str, state: State) -> String {
    format!("the journal of VM {vm_name} is {}", explain(state))
}

fn images_are_open(vm: &RecoveredVm) -> OperationError {
    OperationError::conflict(format!("images of VM {} are open; close them first", vm.name()))
}

/// What a journal that is damaged, or not open, is an alert of.
pub(super) fn journal_alert(vm: &RecoveredVm) -> Cause {
    Cause::from(format!("journal of {}", vm.id()))
}

/// Who uses a journal, to an operator who waits for that.
fn list(uses: &[Use]) -> String {
    uses.iter().map(|what| what.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
