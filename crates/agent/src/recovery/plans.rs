//! What the operations of this side are of, and which of them there are.

use super::failover::plan::{FailoverPlan, FailoverStep};
use super::life::moving::plan::{MovePlan, MoveStep};
use crate::one_at_a_time::{OneAtATime, Turn};
use operations::{Book, Control, Lock, OperationId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

/// What was asked for and chosen, as `state/operations/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Plan {
    Failover(FailoverPlan),
    Move(MovePlan),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Failover(FailoverStep),
    Move(MoveStep),
}

impl Plan {
    /// The word for what it does.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Failover(_) => "failover",
            Self::Move(_) => "move",
        }
    }

    /// What it is done with.
    pub(super) fn about(&self) -> String {
        match self {
            Self::Failover(plan) => format!("group {}", plan.label),
            Self::Move(plan) => {
                format!("the journal of VM {} to {}", plan.label, plan.target.display())
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failover(step) => step.fmt(f),
            Self::Move(step) => step.fmt(f),
        }
    }
}

impl operations::Plan for Plan {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        match self {
            Self::Failover(plan) => plan.steps().into_iter().map(Step::Failover).collect(),
            Self::Move(plan) => plan.steps().into_iter().map(Step::Move).collect(),
        }
    }

    fn is_final(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Failover(plan), Step::Failover(step)) => plan.is_final(step),
            (Self::Move(plan), Step::Move(step)) => plan.is_final(step),
            (Self::Failover(_), Step::Move(_)) | (Self::Move(_), Step::Failover(_)) => no_such_step(),
        }
    }

    fn may_be_left(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Failover(plan), Step::Failover(step)) => plan.may_be_left(step),
            (Self::Move(plan), Step::Move(step)) => plan.may_be_left(step),
            (Self::Failover(_), Step::Move(_)) | (Self::Move(_), Step::Failover(_)) => no_such_step(),
        }
    }

    fn locks(&self) -> BTreeSet<Lock> {
        match self {
            Self::Failover(plan) => plan.locks(),
            Self::Move(plan) => plan.locks(),
        }
    }
}

/// A plan is asked for its own steps alone.
pub(super) fn no_such_step() -> ! {
    unreachable!("a step of another plan")
}

/// The operations of this side, and whom somebody carries out just now.
#[derive(Debug, Default)]
pub(super) struct Operations {
    book: Mutex<Book<Plan>>,
    busy: OneAtATime<OperationId>,
}

impl Operations {
    pub(super) fn book(&self) -> MutexGuard<'_, Book<Plan>> {
        self.book.lock().expect("a panic aborts the process")
    }

    /// The right to carry an operation out; none where another has it.
    pub(super) fn take(&self, id: OperationId) -> Option<Turn<'_, OperationId>> {
        self.busy.try_take(vec![id])
    }

    /// The operation that changes this.
    pub(super) fn at(&self, lock: Lock) -> Option<(OperationId, Arc<Control>)> {
        let book = self.book();
        let id = book.holder(lock)?;
        book.get(id).map(|(_, control)| (id, control.clone()))
    }

    /// Those that have not ended, with their plans.
    pub(super) fn unended(&self) -> Vec<(OperationId, Plan)> {
        let book = self.book();
        let unended = book.all().filter(|(record, _)| !record.standing.is_end());
        unended.map(|(record, _)| (record.id, record.plan.clone())).collect()
    }
}
