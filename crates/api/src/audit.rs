//! What the API says of the changes that were asked of an agent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A page of the audit record, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    pub entries: Vec<AuditEntry>,
    /// The cursor of the next page, where there are older ones.
    pub next: Option<String>,
}

/// A change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub id: String,
    pub at: String,
    /// `socket` or `tcp`.
    pub door: String,
    /// The name in the certificate, or `uid` and the number of the user.
    pub who: String,
    /// The certificate's fingerprint: SHA-256 of all of it.
    pub fingerprint: Option<String>,
    /// The address, or the process.
    pub from: String,
    pub role: Option<String>,
    pub method: String,
    pub path: String,
    pub outcome: AuditOutcome,
    /// Of the answer.
    pub status: Option<u16>,
    /// The operation that it goes on as.
    pub operation: Option<String>,
    pub ended_at: Option<String>,
}

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditOutcome {
    /// It was done, or goes on as an operation.
    Done,
    /// Nothing was changed, by what the request says or by the state things are in.
    Refused,
    /// It was not done, or not wholly.
    Failed,
    /// Whoever asked has left before the answer; it may have been done.
    Left,
    /// It goes on, or the agent ended before the answer was written down.
    Unknown,
}
