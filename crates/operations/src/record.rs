//! What is written down of an operation.

use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use types::ParseIdError;

/// One operation, for ever. Drawn at random by who begins it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct OperationId([u8; 16]);

impl OperationId {
    /// An id from sixteen random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({self})")
    }
}

impl FromStr for OperationId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Ok(Self(text.parse::<types::VmId>()?.to_bytes()))
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for OperationId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

/// How far an operation is. Steps are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Standing {
    /// All steps before `next` are done; it may have been begun.
    Forward { next: usize },
    /// The first `left` steps are still to be undone, the last of them first.
    Back { left: usize, why: String },
    /// All steps are done.
    Done,
    /// All that was done is undone.
    TakenBack { why: String },
}

impl Standing {
    /// Whether nothing more is to be done.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        matches!(self, Self::Done | Self::TakenBack { .. })
    }
}

/// A client's name for a request, with the request as it was made: the plan of the same one may be another by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKey {
    pub key: String,
    pub request: String,
}

/// A record that no operation of this version has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("it stands at step {at} of {steps}: another version of the agent has begun it")]
    NoSuchStep { at: usize, steps: usize },
    #[error("it goes back over a step from which there is no way back")]
    NoWayBack,
}

/// One operation as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<P> {
    pub id: OperationId,
    pub plan: P,
    #[serde(flatten)]
    pub standing: Standing,
    /// What the client called its request, so that asking twice begins it once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RequestKey>,
    /// What could not be done or undone, and was left at an operator's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_undone: Vec<String>,
    /// Unix time in seconds, a label.
    pub began_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// Somebody has heard how it has ended. Records of before do not say so, and count as heard.
    #[serde(default = "was_heard")]
    pub heard: bool,
}

const fn was_heard() -> bool {
    true
}

impl<P: Plan> Record<P> {
    /// Checks what has come from a file.
    ///
    /// # Errors
    /// If it cannot be gone on with.
    pub fn check(&self) -> Result<(), BadRecord> {
        let steps = self.plan.steps();
        let at = match self.standing {
            Standing::Forward { next } => next,
            Standing::Back { left, .. } => left,
            Standing::Done | Standing::TakenBack { .. } => 0,
        };
        let Some(begun) = steps.get(..at) else {
            return Err(BadRecord::NoSuchStep { at, steps: steps.len() });
        };
        let goes_back = matches!(self.standing, Standing::Back { .. });
        if goes_back && begun.iter().any(|step| self.plan.is_final(*step)) {
            return Err(BadRecord::NoWayBack);
        }
        Ok(())
    }

    /// Whether it goes forward, and may still be taken back.
    #[must_use]
    pub fn has_way_back(&self) -> bool {
        let Standing::Forward { next } = self.standing else { return false };
        let steps = self.plan.steps();
        next < steps.len() && !steps[..=next].iter().any(|step| self.plan.is_final(*step))
    }

    /// The step that is being done or undone, and its number.
    #[must_use]
    pub fn step(&self) -> Option<(usize, P::Step)> {
        let at = match self.standing {
            Standing::Forward { next } => next,
            Standing::Back { left, .. } => left.checked_sub(1)?,
            Standing::Done | Standing::TakenBack { .. } => return None,
        };
        Some((at, *self.plan.steps().get(at)?))
    }
}
