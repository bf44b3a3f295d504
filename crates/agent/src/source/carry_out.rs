//! Carrying out the operations of this side: whoever asks for one carries it out himself and hears how it has ended;
//! what stands, or was cut short with the agent's end, goes on by itself. Its VM's turn is held meanwhile.

use super::plans::{Plan, Step};
use super::{Changed, Source};
use crate::error::{ErrorKind, Result};
use crate::ledger::{Asker, Doer, Held, Outcome, RETRY, StepError, no_such_step};
use operations::{At, Failure, Lock, OperationId, Trouble, Work};
use std::sync::Arc;
use types::VmId;

/// Somebody who carries an operation out.
pub(super) struct Doing<'a> {
    source: &'a Arc<Source>,
    doer: Doer,
}

impl<'a> Doing<'a> {
    pub(super) fn asked_by(source: &'a Arc<Source>, asker: &Asker) -> Self {
        Self { source, doer: Doer::asked_by(asker) }
    }

    fn by_itself(source: &'a Arc<Source>) -> Self {
        Self { source, doer: Doer::by_itself() }
    }
}

impl Work<Plan> for Doing<'_> {
    fn is_done(&self, plan: &Plan, step: Step) -> std::result::Result<bool, Trouble> {
        Ok(match (plan, step) {
            (Plan::Protect(plan), Step::Protect(step)) => self.source.is_protect_step_done(plan, step),
            (Plan::Unprotect(plan), Step::Unprotect(step)) => self.source.is_unprotect_step_done(plan, step),
            (Plan::Change(plan), Step::Change(step)) => {
                return self.source.is_changed(plan, step.0).map_err(|error| Trouble(error.detail));
            }
            _ => no_such_step(),
        })
    }

    fn run(&self, plan: &mut Plan, step: Step, _: &mut At<'_, Plan>) -> std::result::Result<(), Failure> {
        let done = match (plan, step) {
            (Plan::Protect(plan), Step::Protect(step)) => self.source.run_protect_step(plan, step),
            (Plan::Unprotect(plan), Step::Unprotect(step)) => self.source.run_unprotect_step(plan, step),
            (Plan::Change(plan), Step::Change(step)) => self.source.run_change(plan, step.0),
            _ => no_such_step(),
        };
        done.map_err(|error| {
            // Whoever has its disks may be an agent that is just ending.
            let may_come_free = error.kind == ErrorKind::InUse;
            self.doer.failure(StepError::from(error), may_come_free)
        })
    }

    fn undo(&self, plan: &Plan, step: Step) -> std::result::Result<(), Trouble> {
        let undone = match (plan, step) {
            (Plan::Protect(plan), Step::Protect(step)) => self.source.undo_protect_step(plan, step),
            (Plan::Unprotect(plan), Step::Unprotect(step)) => self.source.undo_unprotect_step(plan, step),
            (Plan::Change(plan), Step::Change(step)) => self.source.undo_change(plan, step.0),
            _ => no_such_step(),
        };
        undone.map_err(|error| Trouble(error.detail))
    }
}

impl Source {
    /// Goes on with an operation until it has ended or stands. Its VM's turn is held.
    pub(super) fn go_on(self: &Arc<Self>, held: Held<'_>, doing: &Doing<'_>) -> Result<Outcome> {
        self.operations.go_on(held, doing, &doing.doer)
    }

    /// Goes on with what has not ended and nobody waits for, again and again.
    pub(crate) async fn go_on_with_operations(self: Arc<Self>) {
        loop {
            let source = self.clone();
            self.operations.go_on_with_all(move |id, plan| source.go_on_by_itself(id, &plan));
            tokio::time::sleep(RETRY).await;
        }
    }

    pub(super) fn go_on_by_itself(self: &Arc<Self>, id: OperationId, plan: &Plan) {
        // Whoever does something with its VM comes first.
        let names = plan.names().into_iter().map(|name| Changed::Vm(name.to_owned()));
        let Some(_turn) = self.changing.try_take(names.collect()) else { return };
        // Where another carries it out meanwhile, that is as good.
        if let Some(held) = self.operations.hold(id) {
            let _ = self.go_on(held, &Doing::by_itself(self));
        }
    }

    /// The operation that ends a VM's protection, by the VM's id as it is recorded.
    pub(super) fn unprotection_of(&self, vm: VmId) -> Option<OperationId> {
        let (id, plan, _) = self.operations.at(Lock::Protected(vm))?;
        matches!(plan, Plan::Unprotect(_)).then_some(id)
    }

    pub(super) fn is_being_unprotected(&self, vm: &str) -> bool {
        vm.parse().is_ok_and(|vm| self.unprotection_of(vm).is_some())
    }
}
