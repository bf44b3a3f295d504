//! What this side's operator has set for one journal, apart from the protected side's policy.

use super::lock::RetentionLock;
use crate::config::{JournalConfig, JournalMode};
use joint::admission::Terms;
use journal::{Settings, Thinning};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use types::WriteSeq;

/// Settings of one journal, as `state/journals/ID.json` has them; what is left out is the agent's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct JournalPolicy {
    pub(crate) mode: Option<JournalMode>,
    pub(crate) bytes_soft: Option<u64>,
    pub(crate) keep_all_seconds: Option<u64>,
    pub(crate) keep_minutely_seconds: Option<u64>,
    pub(crate) keep_tagged_seconds: Option<u64>,
    /// A newest whole cut up to here that holds the history no more.
    #[serde(default)]
    pub(crate) let_go: Option<u64>,
    /// Where the journal was moved to.
    pub(crate) folder: Option<PathBuf>,
    /// Where its replicas lie, if not with the agent's others.
    pub(crate) replica_folder: Option<PathBuf>,
    /// Until when nothing of its history goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lock: Option<RetentionLock>,
}

impl JournalPolicy {
    /// What a journal is to keep to, with its terms and what the agent has for all.
    pub(super) fn settings(&self, terms: Terms, config: &JournalConfig) -> Settings {
        let seconds = |own: Option<u64>, all| Duration::from_secs(own.unwrap_or(all));
        let hard = terms.bytes_max;
        Settings {
            history: Duration::from_secs(terms.history_seconds),
            bytes_soft: self.bytes_soft.unwrap_or(hard / 10 * 9),
            bytes_hard: hard,
            segment_bytes: config.segment_bytes,
            mode: self.mode.unwrap_or(config.mode).into(),
            thinning: Thinning {
                all: seconds(self.keep_all_seconds, config.keep_all_seconds),
                minutely: seconds(self.keep_minutely_seconds, config.keep_minutely_seconds),
            },
            tagged_history: seconds(self.keep_tagged_seconds, config.keep_tagged_seconds),
            let_go: self.let_go.map(WriteSeq::from_raw),
            is_locked: self.lock.is_some(),
        }
    }
}

pub(crate) fn file_name(vm: &str) -> String {
    format!("journals/{vm}.json")
}
