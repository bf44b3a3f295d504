//! What the API says of operations: what changes more than one thing, in steps that go on after a crash.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An operation of either side of an agent. Ended ones are told of for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    pub id: String,
    /// `failover`, `commit`, `rollback`, `move`, `forget`, `promote`, `protect` or `unprotect`.
    pub kind: String,
    /// What it is done with, in words.
    pub about: String,
    /// The VM that it is done with, where it is one; at the recovery side as `SITE/NAME`.
    pub vm: Option<String>,
    pub vm_id: Option<String>,
    pub group: Option<String>,
    pub group_id: Option<String>,
    pub image: Option<String>,
    /// What the client has called the request that began it.
    pub idempotency_key: Option<String>,
    /// `going`, `going-back`, `done` or `taken-back`.
    pub state: String,
    /// The step that is being done or undone.
    pub step: Option<String>,
    /// Steps that are done, and not undone again.
    pub steps_done: usize,
    /// All of its steps, in their order.
    pub steps: Vec<String>,
    /// How far the step is, in bytes; a total of 0 is one that is not known.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Why it goes back, or was taken back.
    pub why: Option<String>,
    /// Why it does not get on just now; it is tried again by itself.
    pub trouble: Option<String>,
    /// What could not be done or undone, and was left at an operator's word.
    pub left_undone: Vec<String>,
    /// What may be asked of it now: `cancel`, that it is taken back as if it had never been asked for; `leave`, that what is
    /// in its way is left as it is.
    pub allowed_actions: Vec<String>,
    pub began_at: String,
    pub ended_at: Option<String>,
}

impl Operation {
    /// Whether `action` may be asked of it now.
    #[must_use]
    pub fn allows(&self, action: &str) -> bool {
        self.allowed_actions.iter().any(|allowed| allowed == action)
    }
}

/// A page of operations, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationPage {
    pub operations: Vec<Operation>,
    /// Give this as `cursor` for the next page; none where this is the last.
    pub next: Option<String>,
}
