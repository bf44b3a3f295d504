//! What the operations of the protected side are of, and which of them there are.

use super::change::plan::{ChangePlan, ChangeStep};
use super::protecting::plan::{ProtectPlan, ProtectStep};
use super::unprotecting::plan::{UnprotectPlan, UnprotectStep};
use crate::ledger::{OwnPlan, Subject, no_such_step};
use operations::Lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What was asked for and chosen, as `state/protected-operations/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Plan {
    Protect(Box<ProtectPlan>),
    Unprotect(UnprotectPlan),
    Change(ChangePlan),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Protect(ProtectStep),
    Unprotect(UnprotectStep),
    Change(ChangeStep),
}

impl Plan {
    /// The names of the VMs it changes.
    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::Protect(plan) => vec![&plan.record.name],
            Self::Unprotect(plan) => vec![&plan.name],
            Self::Change(plan) => plan.changes.iter().map(|change| change.name.as_str()).collect(),
        }
    }
}

impl OwnPlan for Plan {
    fn kind(&self) -> &'static str {
        match self {
            Self::Protect(_) => "protect",
            Self::Unprotect(_) => "unprotect",
            Self::Change(_) => "change",
        }
    }

    fn about(&self) -> String {
        match self.names().as_slice() {
            [name] => format!("VM {name}"),
            names => format!("VMs {}", names.join(", ")),
        }
    }

    fn subject(&self) -> Subject {
        let (vm_id, group) = match self {
            Self::Protect(plan) => (Some(plan.vm), Some(plan.record.group.clone())),
            Self::Unprotect(plan) => (Some(plan.vm), None),
            Self::Change(plan) => (plan.only().map(|only| only.vm), Some(plan.group.clone())),
        };
        let vm = vm_id.map(|_| self.names()[0].to_owned());
        Subject { vm, vm_id, group, ..Subject::default() }
    }

    fn meanwhile(&self) -> &'static str {
        match self {
            Self::Protect(_) => "; it is not protected",
            Self::Unprotect(_) => "",
            Self::Change(_) => "; some of it may be as it was and some as it is to be",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect(step) => step.fmt(f),
            Self::Unprotect(step) => step.fmt(f),
            Self::Change(step) => step.fmt(f),
        }
    }
}

impl operations::Plan for Plan {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        match self {
            Self::Protect(plan) => plan.steps().into_iter().map(Step::Protect).collect(),
            Self::Unprotect(plan) => plan.steps().into_iter().map(Step::Unprotect).collect(),
            Self::Change(plan) => plan.steps().into_iter().map(Step::Change).collect(),
        }
    }

    fn is_final(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Protect(plan), Step::Protect(step)) => plan.is_final(step),
            (Self::Unprotect(plan), Step::Unprotect(step)) => plan.is_final(step),
            (Self::Change(plan), Step::Change(step)) => plan.is_final(step),
            _ => no_such_step(),
        }
    }

    fn may_be_left(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Protect(plan), Step::Protect(step)) => plan.may_be_left(step),
            (Self::Unprotect(plan), Step::Unprotect(step)) => plan.may_be_left(step),
            (Self::Change(plan), Step::Change(step)) => plan.may_be_left(step),
            _ => no_such_step(),
        }
    }

    fn locks(&self) -> BTreeSet<Lock> {
        match self {
            Self::Protect(plan) => plan.locks(),
            Self::Unprotect(plan) => plan.locks(),
            Self::Change(plan) => plan.locks(),
        }
    }

    fn counts_as(&self) -> Option<&'static str> {
        match self {
            Self::Protect(plan) => plan.counts_as(),
            Self::Unprotect(plan) => plan.counts_as(),
            Self::Change(plan) => plan.counts_as(),
        }
    }
}
