//! What the operations of this side are of, and which of them there are.

use super::failover::ending::{CommitPlan, CommitStep, RollbackPlan, RollbackStep};
use super::failover::plan::{FailoverPlan, FailoverStep};
use super::life::forget::plan::{ForgetPlan, ForgetStep};
use super::life::moving::plan::{MovePlan, MoveStep};
use super::promote::plan::{PromotePlan, PromoteStep};
use crate::ledger::{OwnPlan, Subject, no_such_step};
use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use types::GroupId;

/// What was asked for and chosen, as `state/operations/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Plan {
    Failover(FailoverPlan),
    Move(MovePlan),
    Rollback(RollbackPlan),
    Commit(CommitPlan),
    Forget(ForgetPlan),
    Promote(PromotePlan),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Failover(FailoverStep),
    Move(MoveStep),
    Rollback(RollbackStep),
    Commit(CommitStep),
    Forget(ForgetStep),
    Promote(PromoteStep),
}

impl OwnPlan for Plan {
    fn kind(&self) -> &'static str {
        match self {
            Self::Failover(_) => "failover",
            Self::Move(_) => "move",
            Self::Rollback(_) => "rollback",
            Self::Commit(_) => "commit",
            Self::Forget(_) => "forget",
            Self::Promote(_) => "promote",
        }
    }

    fn about(&self) -> String {
        match self {
            Self::Failover(plan) => format!("group {}", plan.label),
            Self::Move(plan) => {
                format!("the journal of VM {} to {}", plan.label, plan.target.display())
            }
            Self::Rollback(plan) => format!("group {}", plan.label),
            Self::Commit(plan) => format!("group {}", plan.label),
            Self::Promote(plan) => format!("image {} of VM {}", plan.image, plan.label),
            Self::Forget(plan) => format!("VM {} ({})", plan.label, plan.vm),
        }
    }

    fn subject(&self) -> Subject {
        let of_group = |label: &str, id| Subject {
            group: Some(label.to_owned()),
            group_id: Some(id),
            ..Subject::default()
        };
        let of_vm = |label: &str, vm_id| Subject { vm: Some(label.to_owned()), vm_id, ..Subject::default() };
        match self {
            Self::Failover(plan) => of_group(&plan.label, plan.group),
            Self::Rollback(plan) => of_group(&plan.label, plan.group),
            Self::Commit(plan) => of_group(&plan.label, plan.group),
            Self::Move(plan) => of_vm(&plan.label, Some(plan.vm)),
            Self::Forget(plan) => of_vm(&plan.label, Some(plan.vm)),
            Self::Promote(plan) => Subject { image: Some(plan.image.clone()), ..of_vm(&plan.label, None) },
        }
    }

    fn meanwhile(&self) -> &'static str {
        match self {
            Self::Rollback(_) => "; its site stays fenced until nothing of the failover is left",
            Self::Forget(plan) if plan.is_begun() => "; it is forgotten in part only",
            Self::Failover(_) | Self::Move(_) | Self::Commit(_) | Self::Forget(_) | Self::Promote(_) => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failover(step) => step.fmt(f),
            Self::Move(step) => step.fmt(f),
            Self::Rollback(step) => step.fmt(f),
            Self::Commit(step) => step.fmt(f),
            Self::Forget(step) => step.fmt(f),
            Self::Promote(step) => step.fmt(f),
        }
    }
}

impl operations::Plan for Plan {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        match self {
            Self::Failover(plan) => plan.steps().into_iter().map(Step::Failover).collect(),
            Self::Move(plan) => plan.steps().into_iter().map(Step::Move).collect(),
            Self::Rollback(plan) => plan.steps().into_iter().map(Step::Rollback).collect(),
            Self::Commit(plan) => plan.steps().into_iter().map(Step::Commit).collect(),
            Self::Forget(plan) => plan.steps().into_iter().map(Step::Forget).collect(),
            Self::Promote(plan) => plan.steps().into_iter().map(Step::Promote).collect(),
        }
    }

    fn is_final(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Failover(plan), Step::Failover(step)) => plan.is_final(step),
            (Self::Move(plan), Step::Move(step)) => plan.is_final(step),
            (Self::Rollback(plan), Step::Rollback(step)) => plan.is_final(step),
            (Self::Commit(plan), Step::Commit(step)) => plan.is_final(step),
            (Self::Forget(plan), Step::Forget(step)) => plan.is_final(step),
            (Self::Promote(plan), Step::Promote(step)) => plan.is_final(step),
            _ => no_such_step(),
        }
    }

    fn may_be_left(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Failover(plan), Step::Failover(step)) => plan.may_be_left(step),
            (Self::Move(plan), Step::Move(step)) => plan.may_be_left(step),
            (Self::Rollback(plan), Step::Rollback(step)) => plan.may_be_left(step),
            (Self::Commit(plan), Step::Commit(step)) => plan.may_be_left(step),
            (Self::Forget(plan), Step::Forget(step)) => plan.may_be_left(step),
            (Self::Promote(plan), Step::Promote(step)) => plan.may_be_left(step),
            _ => no_such_step(),
        }
    }

    fn locks(&self) -> BTreeSet<Lock> {
        match self {
            Self::Failover(plan) => plan.locks(),
            Self::Move(plan) => plan.locks(),
            Self::Rollback(plan) => plan.locks(),
            Self::Commit(plan) => plan.locks(),
            Self::Forget(plan) => plan.locks(),
            Self::Promote(plan) => plan.locks(),
        }
    }

    fn counts_as(&self) -> Option<&'static str> {
        match self {
            Self::Failover(plan) => plan.counts_as(),
            Self::Move(plan) => plan.counts_as(),
            Self::Rollback(plan) => plan.counts_as(),
            Self::Commit(plan) => plan.counts_as(),
            Self::Forget(plan) => plan.counts_as(),
            Self::Promote(plan) => plan.counts_as(),
        }
    }
}

impl Plan {
    /// The group whose turn is to be had while it is carried out.
    pub(super) fn group(&self) -> Option<GroupId> {
        match self {
            Self::Failover(plan) => Some(plan.group),
            Self::Rollback(plan) => Some(plan.group),
            Self::Commit(plan) => Some(plan.group),
            Self::Move(_) | Self::Forget(_) | Self::Promote(_) => None,
        }
    }
}
