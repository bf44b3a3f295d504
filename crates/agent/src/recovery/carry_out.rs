//! Carrying out the operations of this side: whoever asks for one carries it out himself and hears how it has ended;
//! what stands, or was cut short with the agent's end, goes on by itself.
//!
//! What holds: an operation is recorded before its first step, and one thread at a time carries it out. What is undone by
//! itself is told until somebody has heard of it; what guests may have written to is not undone by itself.

use super::Recovery;
use super::failover::Asked;
use super::failover::plan::FailoverStep;
use super::life::moving::plan::MovePlan;
use super::plans::{Plan, Step, no_such_step};
use crate::clock;
use crate::error::{ErrorKind, OperationError, Result};
use crate::state::random;
use operations::{
    At, Begun, Failure, Ledger, LedgerError, OperationId, Pass, Plan as _, Record, Standing, Trouble, Work,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::Monotonic;

/// Between two tries of an operation that stands.
const RETRY: Duration = Duration::from_secs(10);
/// Where the records lie.
const FOLDER: &str = "operations";

/// How an operation has ended, for whoever waits for it.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    TakenBack(OperationError),
    /// It is tried again by itself.
    Stands(OperationError),
}

/// Why a step was not done.
#[derive(Debug)]
pub(super) enum StepError {
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

/// Somebody who carries an operation out.
pub(super) struct Doing<'a> {
    recovery: &'a Recovery,
    /// An operator waits: what cannot be done now is not done.
    is_waited_for: bool,
    started: Monotonic,
    asked: Mutex<Option<Asked>>,
    /// Why it goes back.
    why: Mutex<Option<OperationError>>,
}

impl<'a> Doing<'a> {
    pub(super) fn waited_for(recovery: &'a Recovery) -> Self {
        let started = clock::now();
        Self { recovery, is_waited_for: true, started, asked: Mutex::default(), why: Mutex::default() }
    }

    fn by_itself(recovery: &'a Recovery) -> Self {
        Self { is_waited_for: false, ..Self::waited_for(recovery) }
    }

    /// With what a group's journals have answered just now.
    pub(super) fn with_asked(self, asked: Asked) -> Self {
        Self { asked: Mutex::new(Some(asked)), ..self }
    }

    /// Where nobody waits, what cannot be done now stands; and so does a failover once its VMs are being started, whatever is in
    /// its way: one that runs may have served others for hours, and to throw away what it wrote is an operator's word.
    fn failure(&self, step: Step, error: StepError) -> Failure {
        let error = match error {
            StepError::Failed(error) => error,
            StepError::Told(failure) => return failure,
        };
        let may_run = matches!(step, Step::Failover(FailoverStep::StartGuests));
        if !self.is_waited_for && (error.kind == ErrorKind::Unavailable || may_run) {
            return Failure::NotNow(error.detail);
        }
        let detail = error.detail.clone();
        *self.why.lock().expect("a panic aborts the process") = Some(error);
        Failure::Refused(detail)
    }
}

impl Work<Plan> for Doing<'_> {
    fn is_done(&self, plan: &Plan, step: Step) -> std::result::Result<bool, Trouble> {
        match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => {
                Ok(self.recovery.is_failover_step_done(plan, step))
            }
            (Plan::Move(plan), Step::Move(step)) => Ok(self.recovery.is_move_step_done(plan, step)),
            (Plan::Failover(_), Step::Move(_)) | (Plan::Move(_), Step::Failover(_)) => no_such_step(),
        }
    }

    fn run(&self, plan: &mut Plan, step: Step, at: &mut At<'_, Plan>) -> std::result::Result<(), Failure> {
        let done = match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => {
                let asked = self.asked.lock().expect("a panic aborts the process").take();
                self.recovery.run_failover_step(plan, step, asked, self.started).map_err(StepError::from)
            }
            (Plan::Move(plan), Step::Move(step)) => at.with_kind(
                |plan: &MovePlan| Plan::Move(plan.clone()),
                |at| self.recovery.run_move_step(plan, step, at),
            ),
            (Plan::Failover(_), Step::Move(_)) | (Plan::Move(_), Step::Failover(_)) => no_such_step(),
        };
        done.map_err(|error| self.failure(step, error))
    }

    fn undo(&self, plan: &Plan, step: Step) -> std::result::Result<(), Trouble> {
        let undone = match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => self.recovery.undo_failover_step(plan, step),
            (Plan::Move(plan), Step::Move(step)) => self.recovery.undo_move_step(plan, step),
            (Plan::Failover(_), Step::Move(_)) | (Plan::Move(_), Step::Failover(_)) => no_such_step(),
        };
        undone.map_err(|error| Trouble(error.detail))
    }
}

impl Ledger<Plan> for Recovery {
    fn keep(&self, record: &Record<Plan>) -> std::result::Result<(), LedgerError> {
        self.state.save(&file_name(record.id), record).map_err(|error| LedgerError(format!("{error:#}")))?;
        let forgotten = self.operations.book().note(record);
        for old in forgotten {
            if let Err(error) = self.state.remove(&file_name(old)) {
                tracing::warn!(%old, error = format!("{error:#}"), "the record of an old operation stays");
            }
            self.alerts.clear(cause(old));
        }
        Ok(())
    }
}

impl Recovery {
    /// Begins an operation: from here on it is done, or taken back, whatever becomes of this agent. `plan` makes the plan
    /// while nobody else begins one.
    pub(super) fn begin(&self, plan: impl FnOnce() -> Plan) -> Result<OperationId> {
        let id = OperationId::from_bytes(random());
        let begun = {
            let mut book = self.operations.book();
            book.begin(id, plan(), None, unix_time())
        };
        let begun = begun.map_err(|refused| OperationError::conflict(refused.to_string()))?;
        let Begun::New(record, _) = begun else { unreachable!("a request without a key is a new one") };
        if let Err(error) = self.state.save(&file_name(record.id), &record) {
            // Perhaps it is there all the same: nobody is to find it who starts again.
            let _ = self.state.remove(&file_name(record.id));
            self.operations.book().forget(record.id);
            return Err(error.into());
        }
        // Who asks for the same again knows how it has ended.
        let before: Vec<_> = {
            let book = self.operations.book();
            let same =
                |other: &Plan| other.kind() == record.plan.kind() && other.locks() == record.plan.locks();
            book.all().filter(|(other, _)| same(&other.plan)).map(|(other, _)| other.clone()).collect()
        };
        before.iter().for_each(|before| self.note_heard(before));
        Ok(record.id)
    }

    /// Goes on with an operation until it has ended or stands.
    pub(super) fn go_on(&self, id: OperationId, doing: &Doing<'_>) -> Result<Outcome> {
        let _busy = self.operations.take(id).ok_or_else(|| {
            OperationError::conflict(format!("operation {id} goes on just now: wait for its end"))
        })?;
        let known = self.operations.book().get(id).map(|(record, control)| (record.clone(), control.clone()));
        let (mut record, control) =
            known.ok_or_else(|| OperationError::not_found(format!("there is no operation {id}")))?;
        let pass = operations::go_on(&mut record, doing, self, &control, &unix_time);
        let why = doing.why.lock().expect("a panic aborts the process").take();
        self.tell_standing(&record, &pass, doing.is_waited_for);
        Ok(match (pass, record.standing) {
            (Pass::Ended, Standing::TakenBack { why: told }) => {
                Outcome::TakenBack(why.unwrap_or_else(|| OperationError::conflict(told)))
            }
            (Pass::Ended, _) => Outcome::Done,
            (Pass::Stands(trouble), _) => {
                let why = why.map_or_else(String::new, |why| format!("{}; ", why.detail));
                Outcome::Stands(OperationError::unavailable(format!(
                    "{why}{trouble}; operation {id} is tried again by itself"
                )))
            }
        })
    }

    fn tell_standing(&self, record: &Record<Plan>, pass: &Pass, is_waited_for: bool) {
        let (kind, about, id) = (record.plan.kind(), record.plan.about(), record.id);
        match (pass, &record.standing) {
            (Pass::Stands(trouble), _) => self.alerts.raise(
                cause(id),
                format!("{kind} of {about}: {trouble}; operation {id} is tried again by itself"),
            ),
            (Pass::Ended, Standing::TakenBack { why }) if is_waited_for => {
                tracing::error!(%id, kind, about, why, "an operation was taken back");
                self.note_heard(record);
            }
            (Pass::Ended, Standing::TakenBack { .. }) => self.tell_taken_back(record),
            (Pass::Ended, _) => self.alerts.clear(cause(id)),
        }
    }

    fn tell_taken_back(&self, record: &Record<Plan>) {
        let Standing::TakenBack { why } = &record.standing else { return };
        let (kind, about, id) = (record.plan.kind(), record.plan.about(), record.id);
        self.alerts.raise(
            cause(id),
            format!(
                "{kind} of {about} was taken back, and nothing of it is left: {why}; ask for it again where it is still wanted \
                 (once `holdfast operation show {id}` has told of it, this alert ends)"
            ),
        );
    }

    /// Somebody has heard how an operation was taken back.
    pub(super) fn note_heard(&self, record: &Record<Plan>) {
        if !matches!(record.standing, Standing::TakenBack { .. }) {
            return;
        }
        // Where that cannot be written down it is told once more, by the next agent.
        if !record.heard
            && let Err(error) = self.keep(&Record { heard: true, ..record.clone() })
        {
            tracing::warn!(id = %record.id, %error, "that its end was heard is not written down");
        }
        self.alerts.clear(cause(record.id));
    }

    /// Takes up every operation that is recorded: what each locks is its own again, before anybody else may begin.
    pub(super) fn resume_operations(&self) -> anyhow::Result<()> {
        for (name, loaded) in self.state.load_named::<Record<Plan>>(FOLDER)? {
            let resumed = loaded.and_then(|record| {
                self.operations.book().resume(record.clone())?;
                Ok(record)
            });
            if let Ok(record) = resumed.as_ref()
                && !record.heard
            {
                self.tell_taken_back(record);
            }
            if let Err(error) = resumed {
                let text = format!(
                    "what is recorded of operation {name} cannot be gone on with: {error:#}; see with `holdfast failover \
                     list` and `holdfast status` what it was about and roll that back, or restore the file from a backup; \
                     then restart the agent"
                );
                self.alerts.raise(format!("operation {name}"), text);
            }
        }
        Ok(())
    }

    /// Goes on with what has not ended and nobody waits for, again and again: operations, and rollbacks.
    pub(crate) async fn go_on_with_operations(self: Arc<Self>) {
        loop {
            for (id, plan) in self.operations.unended() {
                let recovery = self.clone();
                tokio::task::spawn_blocking(move || recovery.go_on_by_itself(id, &plan));
            }
            for group in self.rolling_back() {
                let recovery = self.clone();
                tokio::task::spawn_blocking(move || recovery.go_on_with_rollback(group));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    pub(super) fn go_on_by_itself(&self, id: OperationId, plan: &Plan) {
        // Whoever does something with its group comes first.
        let _turn = match plan {
            Plan::Failover(plan) => match self.turns_of_groups.try_take(plan.group) {
                None => return,
                turn => turn,
            },
            Plan::Move(_) => None,
        };
        // Where another carries it out meanwhile, that is as good.
        let _ = self.go_on(id, &Doing::by_itself(self));
    }
}

fn file_name(id: OperationId) -> String {
    format!("{FOLDER}/{id}.json")
}

fn cause(id: OperationId) -> String {
    format!("operation {id}")
}

/// Unix time in seconds, a label.
fn unix_time() -> i64 {
    clock::wall().0 / 1_000_000
}
