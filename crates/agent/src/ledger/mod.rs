//! The operations of one side of this agent: recorded in the state folder, carried out by one thread at a time, gone on
//! with after a crash, and told of (`telling.rs`). What their steps do is that side's own.
//!
//! What holds: an operation is recorded before its first step. What is undone by itself is told until somebody has heard
//! of it.

mod telling;
mod thread;

use crate::alerts::Alerts;
use crate::asking::Asker;
use crate::clock;
use crate::error::{ErrorKind, OperationError, Result};
use crate::one_at_a_time::{OneAtATime, Turn};
use crate::state::{StateDir, random};
use operations::{
    Begun, Book, Control, Failure, LedgerError, Lock, OperationId, Pass, Plan, Record, Standing, Work,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
pub(crate) use thread::in_thread;
use types::Monotonic;

/// Between two tries of an operation that stands.
pub(crate) const RETRY: Duration = Duration::from_secs(10);

/// A plan of one side, as its records and its operators know it.
pub(crate) trait OwnPlan: Plan + Serialize + DeserializeOwned {
    /// The word for what it does.
    fn kind(&self) -> &'static str;

    /// What it is done with.
    fn about(&self) -> String;

    /// What it costs that it does not get on; empty where that is nothing.
    fn meanwhile(&self) -> &'static str;
}

/// All operations of a side.
#[derive(Debug)]
pub(crate) struct Operations<P> {
    state: Arc<StateDir>,
    alerts: Arc<Alerts>,
    /// Where the records lie, in the state folder.
    folder: &'static str,
    book: Mutex<Book<P>>,
    busy: OneAtATime<OperationId>,
}

/// How an operation has ended, for whoever waits for it.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    TakenBack(OperationError),
    /// It is tried again by itself.
    Stands(OperationError),
}

impl Outcome {
    /// What is not done is an error.
    pub(crate) fn done(self) -> Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::TakenBack(error) | Self::Stands(error) => Err(error),
        }
    }
}

/// Why a step was not done.
#[derive(Debug)]
pub(crate) enum StepError {
    Failed(OperationError),
    /// What the step was told by whoever leads it.
    Told(Failure),
}

impl From<OperationError> for StepError {
    fn from(error: OperationError) -> Self {
        Self::Failed(error)
    }
}

impl From<Failure> for StepError {
    fn from(failure: Failure) -> Self {
        Self::Told(failure)
    }
}

/// A plan of one side is asked for its own steps alone.
pub(crate) fn no_such_step() -> ! {
    unreachable!("a step of another plan")
}

/// Somebody who carries an operation out.
#[derive(Debug)]
pub(crate) struct Doer {
    /// An operator who waits: what cannot be done now is not done.
    waits: Option<Asker>,
    pub(crate) started: Monotonic,
    /// Why it goes back.
    why: Mutex<Option<OperationError>>,
}

impl Doer {
    pub(crate) fn waited_for() -> Self {
        Self { waits: Some(Asker::of_this_thread()), started: clock::now(), why: Mutex::default() }
    }

    pub(crate) fn by_itself() -> Self {
        Self { waits: None, ..Self::waited_for() }
    }

    /// Whether somebody hears how it ends as the answer to what he asked.
    fn is_heard(&self) -> bool {
        self.waits.as_ref().is_some_and(Asker::is_there)
    }

    /// Where nobody waits, what cannot be done now stands; and so does what `stays`, whatever is in its way.
    pub(crate) fn failure(&self, error: StepError, stays: bool) -> Failure {
        let error = match error {
            StepError::Failed(error) => error,
            StepError::Told(failure) => return failure,
        };
        if self.waits.is_none() && (error.kind == ErrorKind::Unavailable || stays) {
            return Failure::NotNow(error.detail);
        }
        let detail = error.detail.clone();
        *self.why.lock().expect("a panic aborts the process") = Some(error);
        Failure::Refused(detail)
    }
}

impl<P: OwnPlan> operations::Ledger<P> for Operations<P> {
    fn keep(&self, record: &Record<P>) -> std::result::Result<(), LedgerError> {
        let saved = self.state.save(&self.file_name(record.id), record);
        saved.map_err(|error| LedgerError(format!("{error:#}")))?;
        let forgotten = self.book().note(record);
        for old in forgotten {
            if let Err(error) = self.state.remove(&self.file_name(old)) {
                tracing::warn!(%old, error = format!("{error:#}"), "the record of an old operation stays");
            }
            self.alerts.clear(telling::cause(old));
        }
        Ok(())
    }
}

impl<P: OwnPlan> Operations<P> {
    pub(crate) fn new(state: Arc<StateDir>, alerts: Arc<Alerts>, folder: &'static str) -> Self {
        Self { state, alerts, folder, book: Mutex::default(), busy: OneAtATime::default() }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book<P>> {
        self.book.lock().expect("a panic aborts the process")
    }

    fn file_name(&self, id: OperationId) -> String {
        format!("{}/{id}.json", self.folder)
    }

    /// The right to carry an operation out; none where another has it.
    fn take(&self, id: OperationId) -> Option<Turn<'_, OperationId>> {
        self.busy.try_take(vec![id])
    }

    /// The operation that changes this, with its plan.
    pub(crate) fn at(&self, lock: Lock) -> Option<(OperationId, P, Arc<Control>)> {
        let book = self.book();
        let id = book.holder(lock)?;
        book.get(id).map(|(record, control)| (id, record.plan.clone(), control.clone()))
    }

    /// Those that have not ended, with their plans.
    pub(crate) fn unended(&self) -> Vec<(OperationId, P)> {
        let book = self.book();
        let unended = book.all().filter(|(record, _)| !record.standing.is_end());
        unended.map(|(record, _)| (record.id, record.plan.clone())).collect()
    }

    /// Begins an operation: from here on it is done, or taken back, whatever becomes of this agent. `plan` makes the plan
    /// while nobody else begins one.
    pub(crate) fn begin(&self, plan: impl FnOnce() -> P) -> Result<OperationId> {
        let id = OperationId::from_bytes(random());
        let begun = {
            let mut book = self.book();
            book.begin(id, plan(), None, telling::unix_time())
        };
        let begun = begun.map_err(|refused| OperationError::conflict(refused.to_string()))?;
        let Begun::New(record, _) = begun else { unreachable!("a request without a key is a new one") };
        if let Err(error) = self.state.save(&self.file_name(record.id), &record) {
            // Perhaps it is there all the same: nobody is to find it who starts again.
            let _ = self.state.remove(&self.file_name(record.id));
            self.book().forget(record.id);
            return Err(error.into());
        }
        // Who asks for the same again knows how it has ended.
        let before: Vec<_> = {
            let book = self.book();
            let same = |other: &P| other.kind() == record.plan.kind() && other.locks() == record.plan.locks();
            book.all().filter(|(other, _)| same(&other.plan)).map(|(other, _)| other.clone()).collect()
        };
        before.iter().for_each(|before| self.note_heard(before));
        Ok(record.id)
    }

    /// Goes on with an operation until it has ended or stands.
    pub(crate) fn go_on(&self, id: OperationId, work: &dyn Work<P>, doer: &Doer) -> Result<Outcome> {
        let _busy = self.take(id).ok_or_else(|| {
            OperationError::conflict(format!("operation {id} goes on just now: wait for its end"))
        })?;
        let known = self.book().get(id).map(|(record, control)| (record.clone(), control.clone()));
        let (mut record, control) =
            known.ok_or_else(|| OperationError::not_found(format!("there is no operation {id}")))?;
        let pass = operations::go_on(&mut record, work, self, &control, &telling::unix_time);
        let why = doer.why.lock().expect("a panic aborts the process").take();
        self.tell_standing(&record, &pass, doer.is_heard());
        Ok(match (pass, record.standing) {
            (Pass::Ended, Standing::TakenBack { why: told }) => {
                Outcome::TakenBack(why.unwrap_or_else(|| OperationError::conflict(told)))
            }
            (Pass::Ended, _) => Outcome::Done,
            (Pass::Stands(trouble), _) => {
                let why = why.filter(|why| !trouble.0.contains(&why.detail));
                let why = why.map_or_else(String::new, |why| format!("{}; ", why.detail));
                Outcome::Stands(OperationError::unavailable(format!(
                    "{why}{trouble}; operation {id} is tried again by itself"
                )))
            }
        })
    }

    /// Has all that have not ended and that nobody carries out gone on with, each in a thread of its own.
    pub(crate) fn go_on_with_all(&self, go_on: impl FnOnce(OperationId, P) + Clone + Send + 'static)
    where
        P: Send + 'static,
    {
        for (id, plan) in self.unended().into_iter().filter(|(id, _)| self.take(*id).is_some()) {
            let go_on = go_on.clone();
            if let Err(error) = in_thread(move || go_on(id, plan)) {
                tracing::warn!(%id, %error, "no thread can be started for an operation; tried again");
            }
        }
    }

    /// Takes up every operation that is recorded: what each locks is its own again, before anybody else may begin.
    ///
    /// # Errors
    /// Where the folder of records cannot be listed.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        for (name, loaded) in self.state.load_named::<Record<P>>(self.folder)? {
            let resumed = loaded.and_then(|record| {
                self.book().resume(record.clone())?;
                Ok(record)
            });
            match resumed {
                Ok(record) if record.heard => {}
                Ok(record) => self.tell_taken_back(&record),
                Err(error) => self.tell_lost(&name, &error),
            }
        }
        Ok(())
    }
}
