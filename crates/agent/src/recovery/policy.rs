//! What this side's operator has set for one journal, apart from the protected side's policy.

use crate::config::JournalMode;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of one journal, as `state/journals/ID.json` has them; what is left out is the agent's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JournalPolicy {
    pub(crate) mode: Option<JournalMode>,
    pub(crate) bytes_soft: Option<u64>,
    pub(crate) keep_all_seconds: Option<u64>,
    pub(crate) keep_minutely_seconds: Option<u64>,
    pub(crate) keep_tagged_seconds: Option<u64>,
    /// Where the journal was moved to.
    pub(crate) folder: Option<PathBuf>,
    /// Where its replicas lie, if not with the agent's others.
    pub(crate) replica_folder: Option<PathBuf>,
}

pub(crate) fn file_name(vm: &str) -> String {
    format!("journals/{vm}.json")
}
