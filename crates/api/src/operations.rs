//! What the API says of operations: what changes more than one thing, in steps that go on after a crash.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An operation. Ended ones are told of for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    pub id: String,
    /// `failover` or `move`.
    pub kind: String,
    /// What it is done with: `group SITE/NAME`, or a VM's journal.
    pub about: String,
    /// `going`, `going-back`, `done` or `taken-back`.
    pub state: String,
    /// The step that is being done or undone.
    pub step: Option<String>,
    /// Steps that are done, and not undone again.
    pub steps_done: usize,
    pub steps: usize,
    /// How far the step is, in bytes; a total of 0 is one that is not known.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Why it goes back, or was taken back.
    pub why: Option<String>,
    /// Why it does not get on just now; it is tried again by itself.
    pub trouble: Option<String>,
    /// Whether it can still be cancelled: taken back as if it had never been asked for.
    pub can_be_cancelled: bool,
    pub began_at: String,
    pub ended_at: Option<String>,
}
