//! The operations of one side of this agent: recorded in the state folder, carried out by one thread at a time, gone on
//! with after a crash, and told of (`telling.rs`). What their steps do is that side's own.
//!
//! What holds: an operation is recorded before its first step. What is undone by itself is told until somebody has heard
//! of it.

mod asker;
mod telling;
#[cfg(test)]
mod tests;
mod thread;

use crate::alerts::Alerts;
use crate::clock;
use crate::error::{ErrorKind, OperationError, Result};
use crate::one_at_a_time::{OneAtATime, Turn};
use crate::state::{StateDir, random};
pub(crate) use asker::{Asker, Presence};
use operations::{
    Begun, Book, Control, Failure, LedgerError, Lock, OperationId, Pass, Plan, Record, Refused, RequestKey,
    Standing, Work,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
pub(crate) use thread::in_thread;
use types::limits::ENDED_OPERATIONS_MAX;
use types::{GroupId, Monotonic, VmId};

/// Between two tries of an operation that stands.
pub(crate) const RETRY: Duration = Duration::from_secs(10);

/// A plan of one side, as its records and its operators know it.
pub(crate) trait OwnPlan: Plan + Serialize + DeserializeOwned {
    /// The word for what it does.
    fn kind(&self) -> &'static str;

    /// What it is done with.
    fn about(&self) -> String;

    /// The same, to be looked for.
    fn subject(&self) -> Subject;

    /// What it costs that it does not get on; empty where that is nothing.
    fn meanwhile(&self) -> &'static str;
}

/// What an operation is done with, as far as it is one of these. A name is `SITE/NAME` at the recovery side.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) vm: Option<String>,
    pub(crate) vm_id: Option<VmId>,
    pub(crate) group: Option<String>,
    pub(crate) group_id: Option<GroupId>,
    pub(crate) image: Option<String>,
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
    /// Those that are being recorded for the first time: of them nobody knows yet whether they have begun.
    recording: OneAtATime<OperationId>,
    /// Who waits for the end of which.
    listeners: Mutex<BTreeMap<OperationId, Vec<Asker>>>,
    /// What was asked for while it was under way: by which requests, the last ones. The record has only whose it is.
    joined: Mutex<VecDeque<(RequestKey, OperationId)>>,
}

/// An operation that nobody else carries out until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Held<'a> {
    pub(crate) id: OperationId,
    _turn: Turn<'a, OperationId>,
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
    /// Who has asked for it just now: what cannot be done now is not done.
    asker: Option<Asker>,
    pub(crate) started: Monotonic,
    /// Why it goes back.
    why: Mutex<Option<OperationError>>,
}

impl Doer {
    pub(crate) fn asked_by(asker: &Asker) -> Self {
        Self { asker: Some(asker.clone()), ..Self::by_itself() }
    }

    pub(crate) fn by_itself() -> Self {
        Self { asker: None, started: clock::now(), why: Mutex::default() }
    }

    /// Where nobody has just asked for it, what cannot be done now stands; and so does what `stays`, whatever is in its way.
    pub(crate) fn failure(&self, error: StepError, stays: bool) -> Failure {
        let error = match error {
            StepError::Failed(error) => error,
            StepError::Told(failure) => return failure,
        };
        if self.asker.is_none() && (error.kind == ErrorKind::Unavailable || stays) {
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
        let (book, busy, recording) = (Mutex::default(), OneAtATime::default(), OneAtATime::default());
        let (listeners, joined) = (Mutex::default(), Mutex::default());
        Self { state, alerts, folder, book, busy, recording, listeners, joined }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book<P>> {
        self.book.lock().expect("a panic aborts the process")
    }

    fn file_name(&self, id: OperationId) -> String {
        format!("{}/{id}.json", self.folder)
    }

    /// The right to carry an operation out; none where another has it.
    pub(crate) fn hold(&self, id: OperationId) -> Option<Held<'_>> {
        self.busy.try_take(vec![id]).map(|turn| Held { id, _turn: turn })
    }

    /// The right to carry out what nobody carries out just now.
    pub(crate) fn hold_idle(&self, id: OperationId) -> Result<Held<'_>> {
        self.hold(id).ok_or_else(|| goes_on(id))
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

    /// The operation that a request of before has begun, by what it is called.
    pub(crate) fn same(&self, key: &RequestKey) -> Result<Option<OperationId>> {
        let begun = self.book().same(key).map_err(refusal)?;
        if begun.is_some() {
            return Ok(begun);
        }
        let joined = self.joined.lock().expect("a panic aborts the process");
        match joined.iter().find(|(other, _)| other.key == key.key) {
            Some((other, id)) if other.request == key.request => Ok(Some(*id)),
            Some(_) => Err(refusal(Refused::KeyOfAnother(key.key.clone()))),
            None => Ok(None),
        }
    }

    /// The operation that was under way already when a request of that name asked for it.
    pub(crate) fn joined_by(&self, key: &str) -> Option<OperationId> {
        let joined = self.joined.lock().expect("a panic aborts the process");
        joined.iter().find(|(other, _)| other.key == key).map(|(_, id)| *id)
    }

    /// Begins an operation: from here on it is done, or taken back, whatever becomes of this agent. `plan` makes the plan
    /// while nobody else begins one.
    pub(crate) fn begin(&self, plan: impl FnOnce() -> P, asker: &Asker) -> Result<Held<'_>> {
        let id = OperationId::from_bytes(random());
        // Nobody carries it out before it is recorded: one that cannot be is not begun.
        let held = Held { id, _turn: self.busy.wait(vec![id]) };
        let recording = self.recording.wait(vec![id]);
        let begun = {
            let mut book = self.book();
            book.begin(id, plan(), asker.key(), telling::unix_time())
        };
        let Begun::New(record, _) = begun.map_err(refusal)? else {
            unreachable!("a request whose key is known is not planned again")
        };
        if let Err(error) = self.state.save(&self.file_name(record.id), &record) {
            // Perhaps it is there all the same: nobody is to find it who starts again.
            if let Err(stays) = self.state.remove(&self.file_name(record.id)) {
                self.tell_unrecorded(&record, &stays);
            }
            self.book().forget(record.id);
            return Err(error.into());
        }
        drop(recording);
        // Who asks for the same again knows how it has ended.
        let before: Vec<_> = {
            let book = self.book();
            let same = |other: &P| other.kind() == record.plan.kind() && other.locks() == record.plan.locks();
            book.all().filter(|(other, _)| same(&other.plan)).map(|(other, _)| other.clone()).collect()
        };
        before.iter().for_each(|before| self.note_heard(before));
        self.listen(id, asker);
        asker.has_begun(id);
        Ok(held)
    }

    /// Whoever asks for what is under way already: he hears how it ends, and carries it out where nobody does just now.
    ///
    /// # Errors
    /// Where it has not begun after all.
    pub(crate) fn join(&self, id: OperationId, asker: &Asker) -> Result<Option<Held<'_>>> {
        self.note_joined(id, asker)?;
        Ok(self.hold(id))
    }

    fn note_joined(&self, id: OperationId, asker: &Asker) -> Result<()> {
        // What is promised to him is promised once it is recorded.
        drop(self.recording.take(vec![id], &format!("operation {id}, which is being recorded,"))?);
        self.listen(id, asker).ok_or_else(|| {
            OperationError::unavailable(format!(
                "operation {id}, which somebody else has asked for, could not be recorded: ask again"
            ))
        })?;
        if let Some(key) = asker.key() {
            let mut joined = self.joined.lock().expect("a panic aborts the process");
            joined.truncate(ENDED_OPERATIONS_MAX - 1);
            joined.push_front((key, id));
        }
        asker.has_begun(id);
        Ok(())
    }

    /// The same where whoever carries it out would have what is held here.
    pub(crate) fn join_idle(&self, id: OperationId, asker: &Asker) -> Result<Held<'_>> {
        let held = self.hold_idle(id)?;
        self.note_joined(id, asker)?;
        Ok(held)
    }

    /// Goes on with an operation until it has ended or stands.
    pub(crate) fn go_on(&self, held: Held<'_>, work: &dyn Work<P>, doer: &Doer) -> Result<Outcome> {
        let id = held.id;
        if let Some(asker) = &doer.asker {
            asker.waits_again();
        }
        let known = self.book().get(id).map(|(record, control)| (record.clone(), control.clone()));
        let (mut record, control) =
            known.ok_or_else(|| OperationError::not_found(format!("there is no operation {id}")))?;
        let pass = operations::go_on(&mut record, work, self, &control, &telling::unix_time);
        let why = doer.why.lock().expect("a panic aborts the process").take();
        let is_heard = pass == Pass::Ended && self.is_heard(id, doer.asker.as_ref());
        self.tell_standing(&record, &pass, is_heard);
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
        for (id, plan) in self.unended().into_iter().filter(|(id, _)| !self.busy.is_busy(id)) {
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

fn goes_on(id: OperationId) -> OperationError {
    OperationError::conflict(format!("operation {id} goes on just now: wait for its end"))
}

/// Why an operation does not begin, for who has asked for it.
fn refusal(refused: Refused) -> OperationError {
    let detail = refused.to_string();
    match refused {
        Refused::BadKey | Refused::KeyOfAnother(_) => OperationError::invalid(detail),
        Refused::Locked { .. } | Refused::TooMany { .. } | Refused::Bad(_) => {
            OperationError::conflict(detail)
        }
    }
}
