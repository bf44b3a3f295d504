//! Carrying out the operations of this side: whoever asks for one carries it out himself and hears how it has ended;
//! what stands, or was cut short with the agent's end, goes on by itself.
//!
//! What guests may have written to is not undone by itself.

use super::Recovery;
use super::failover::Asked;
use super::failover::plan::FailoverStep;
use super::life::forget::plan::ForgetPlan;
use super::life::moving::plan::MovePlan;
use super::plans::{Plan, Step};
use super::promote::plan::PromotePlan;
use crate::error::Result;
use crate::ledger::{Asker, Doer, Held, Outcome, RETRY, StepError, in_thread, no_such_step};
use operations::{At, Failure, OperationId, Trouble, Work};
use std::sync::{Arc, Mutex};

/// Somebody who carries an operation out.
pub(super) struct Doing<'a> {
    recovery: &'a Recovery,
    doer: Doer,
    asked: Mutex<Option<Asked>>,
}

impl<'a> Doing<'a> {
    pub(super) fn asked_by(recovery: &'a Recovery, asker: &Asker) -> Self {
        Self { recovery, doer: Doer::asked_by(asker), asked: Mutex::default() }
    }

    fn by_itself(recovery: &'a Recovery) -> Self {
        Self { recovery, doer: Doer::by_itself(), asked: Mutex::default() }
    }

    /// With what a group's journals have answered just now.
    pub(super) fn with_asked(self, asked: Asked) -> Self {
        Self { asked: Mutex::new(Some(asked)), ..self }
    }

    /// How far an operation is nobody knows while what is recorded of its failover or VM cannot be read: it stands, and
    /// neither counts as done nor as undone.
    fn check_was_read(&self, plan: &Plan) -> std::result::Result<(), Trouble> {
        let was_read = match plan {
            Plan::Failover(_) | Plan::Rollback(_) | Plan::Commit(_) => {
                plan.group().map_or(Ok(()), |group| self.recovery.check_failover_was_read(group))
            }
            Plan::Forget(plan) => self.recovery.check_vm_was_read(plan.vm),
            Plan::Move(_) | Plan::Promote(_) => Ok(()),
        };
        was_read.map_err(|error| Trouble(error.detail))
    }
}

impl Work<Plan> for Doing<'_> {
    fn is_done(&self, plan: &Plan, step: Step) -> std::result::Result<bool, Trouble> {
        self.check_was_read(plan)?;
        match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => {
                Ok(self.recovery.is_failover_step_done(plan, step))
            }
            (Plan::Move(plan), Step::Move(step)) => Ok(self.recovery.is_move_step_done(plan, step)),
            (Plan::Rollback(plan), Step::Rollback(step)) => {
                Ok(self.recovery.is_rollback_step_done(plan, step))
            }
            (Plan::Commit(plan), Step::Commit(step)) => Ok(self.recovery.is_commit_step_done(plan, step)),
            (Plan::Promote(plan), Step::Promote(step)) => Ok(self.recovery.is_promote_step_done(plan, step)),
            (Plan::Forget(plan), Step::Forget(step)) => Ok(self.recovery.is_forget_step_done(plan, step)),
            _ => no_such_step(),
        }
    }

    fn run(&self, plan: &mut Plan, step: Step, at: &mut At<'_, Plan>) -> std::result::Result<(), Failure> {
        let done = match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => {
                let asked = self.asked.lock().expect("a panic aborts the process").take();
                let started = self.doer.started;
                self.recovery.run_failover_step(plan, step, asked, started).map_err(StepError::from)
            }
            (Plan::Move(plan), Step::Move(step)) => at.with_kind(
                |plan: &MovePlan| Plan::Move(plan.clone()),
                |at| self.recovery.run_move_step(plan, step, at),
            ),
            (Plan::Promote(plan), Step::Promote(step)) => at.with_kind(
                |plan: &PromotePlan| Plan::Promote(plan.clone()),
                |at| self.recovery.run_promote_step(plan, step, at),
            ),
            (Plan::Forget(plan), Step::Forget(step)) => at.with_kind(
                |plan: &ForgetPlan| Plan::Forget(plan.clone()),
                |at| self.recovery.run_forget_step(plan, step, at),
            ),
            (Plan::Rollback(plan), Step::Rollback(step)) => {
                self.recovery.run_rollback_step(plan, step).map_err(StepError::from)
            }
            (Plan::Commit(plan), Step::Commit(step)) => {
                self.recovery.run_commit_step(plan, step).map_err(StepError::from)
            }
            _ => no_such_step(),
        };
        // A failover whose VMs are being started stays, whatever is in its way: one that runs may have served others for
        // hours, and to throw away what it wrote is an operator's word.
        let may_run = matches!(step, Step::Failover(FailoverStep::StartGuests));
        done.map_err(|error| self.doer.failure(error, may_run))
    }

    fn undo(&self, plan: &Plan, step: Step) -> std::result::Result<(), Trouble> {
        self.check_was_read(plan)?;
        let undone = match (plan, step) {
            (Plan::Failover(plan), Step::Failover(step)) => self.recovery.undo_failover_step(plan, step),
            (Plan::Move(plan), Step::Move(step)) => self.recovery.undo_move_step(plan, step),
            (Plan::Commit(plan), Step::Commit(step)) => self.recovery.undo_commit_step(plan, step),
            (Plan::Forget(plan), Step::Forget(step)) => self.recovery.undo_forget_step(plan, step),
            // What was copied is what the image shows anyway.
            (Plan::Promote(_), Step::Promote(_)) => Ok(()),
            _ => no_such_step(),
        };
        undone.map_err(|error| Trouble(error.detail))
    }
}

impl Recovery {
    /// Goes on with an operation until it has ended or stands.
    pub(super) fn go_on(&self, held: Held<'_>, doing: &Doing<'_>) -> Result<Outcome> {
        self.operations.go_on(held, doing, &doing.doer)
    }

    /// Goes on with what has not ended and nobody waits for, again and again.
    pub(crate) async fn go_on_with_operations(self: Arc<Self>) {
        loop {
            let recovery = self.clone();
            if let Err(error) = in_thread(move || recovery.adopt()) {
                tracing::warn!(%error, "no thread can be started for what agents of before have begun");
            }
            let recovery = self.clone();
            self.operations.go_on_with_all(move |id, plan| recovery.go_on_by_itself(id, &plan));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes up every operation that is recorded, and what agents of before have begun that is one now.
    pub(super) fn resume_operations(&self) -> anyhow::Result<()> {
        self.operations.resume()?;
        self.adopt();
        Ok(())
    }

    fn adopt(&self) {
        self.adopt_rollbacks();
        self.adopt_forgetting();
    }

    pub(super) fn go_on_with(&self, id: OperationId) {
        let plan = self.operations.book().get(id).map(|(record, _)| record.plan.clone());
        if let Some(plan) = plan {
            self.go_on_by_itself(id, &plan);
        }
    }

    pub(super) fn go_on_by_itself(&self, id: OperationId, plan: &Plan) {
        // Whoever does something with its group comes first.
        let turn = plan.group().map(|group| self.turns_of_groups.try_take(group));
        if turn.as_ref().is_some_and(Option::is_none) {
            return;
        }
        // Where another carries it out meanwhile, that is as good.
        if let Some(held) = self.operations.hold(id) {
            let _ = self.go_on(held, &Doing::by_itself(self));
        }
    }
}
