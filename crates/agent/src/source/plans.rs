//! What the operations of the protected side are of, and which of them there are.

use super::protecting::plan::{ProtectPlan, ProtectStep};
use super::unprotecting::plan::{UnprotectPlan, UnprotectStep};
use crate::ledger::{OwnPlan, no_such_step};
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Protect(ProtectStep),
    Unprotect(UnprotectStep),
}

impl Plan {
    /// The name of the VM it changes.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Protect(plan) => &plan.record.name,
            Self::Unprotect(plan) => &plan.name,
        }
    }
}

impl OwnPlan for Plan {
    fn kind(&self) -> &'static str {
        match self {
            Self::Protect(_) => "protect",
            Self::Unprotect(_) => "unprotect",
        }
    }

    fn about(&self) -> String {
        format!("VM {}", self.name())
    }

    fn meanwhile(&self) -> &'static str {
        match self {
            Self::Protect(_) => "; it is not protected",
            Self::Unprotect(_) => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect(step) => step.fmt(f),
            Self::Unprotect(step) => step.fmt(f),
        }
    }
}

impl operations::Plan for Plan {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        match self {
            Self::Protect(plan) => plan.steps().into_iter().map(Step::Protect).collect(),
            Self::Unprotect(plan) => plan.steps().into_iter().map(Step::Unprotect).collect(),
        }
    }

    fn is_final(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Protect(plan), Step::Protect(step)) => plan.is_final(step),
            (Self::Unprotect(plan), Step::Unprotect(step)) => plan.is_final(step),
            _ => no_such_step(),
        }
    }

    fn may_be_left(&self, step: Step) -> bool {
        match (self, step) {
            (Self::Protect(plan), Step::Protect(step)) => plan.may_be_left(step),
            (Self::Unprotect(plan), Step::Unprotect(step)) => plan.may_be_left(step),
            _ => no_such_step(),
        }
    }

    fn locks(&self) -> BTreeSet<Lock> {
        match self {
            Self::Protect(plan) => plan.locks(),
            Self::Unprotect(plan) => plan.locks(),
        }
    }
}
