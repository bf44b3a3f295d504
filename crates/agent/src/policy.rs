//! A protection's policy and the ranges it must keep to.

use crate::error::{OperationError, Result};
use api::ProtectSettings;
use serde::{Deserialize, Serialize};
use types::limits;

/// A policy with every value decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) checkpoint_interval_seconds: u64,
    pub(crate) history_seconds: u64,
    /// 0: no limit but the disk.
    pub(crate) journal_bytes_max: u64,
    pub(crate) rpo_seconds: u64,
    pub(crate) buffer_bytes: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            checkpoint_interval_seconds: limits::CHECKPOINT_INTERVAL_DEFAULT.as_secs(),
            history_seconds: limits::HISTORY_DEFAULT.as_secs(),
            journal_bytes_max: 0,
            rpo_seconds: limits::RPO_SECONDS_DEFAULT,
            buffer_bytes: limits::BUFFER_BYTES_DEFAULT,
        }
    }
}

impl Policy {
    /// The defaults with what was asked for, each value in its range.
    pub(crate) fn from_request(defaults: &Policy, asked: &ProtectSettings) -> Result<Self> {
        let policy = Self {
            checkpoint_interval_seconds: asked
                .checkpoint_interval_seconds
                .unwrap_or(defaults.checkpoint_interval_seconds),
            history_seconds: asked.history_seconds.unwrap_or(defaults.history_seconds),
            journal_bytes_max: asked.journal_bytes_max.unwrap_or(defaults.journal_bytes_max),
            rpo_seconds: asked.rpo_seconds.unwrap_or(defaults.rpo_seconds),
            buffer_bytes: asked.buffer_bytes.unwrap_or(defaults.buffer_bytes),
        };
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<()> {
        within(
            "checkpoint_interval_seconds",
            self.checkpoint_interval_seconds,
            limits::CHECKPOINT_INTERVAL_SECONDS_RANGE,
        )?;
        within("history_seconds", self.history_seconds, limits::HISTORY_SECONDS_RANGE)?;
        if self.journal_bytes_max != 0 {
            within("journal_bytes_max", self.journal_bytes_max, limits::JOURNAL_BYTES_RANGE)?;
        }
        within("rpo_seconds", self.rpo_seconds, limits::RPO_SECONDS_RANGE)?;
        within("buffer_bytes", self.buffer_bytes, limits::BUFFER_BYTES_RANGE)
    }
}

/// Checks that a value is in its range.
pub(crate) fn within(name: &str, value: u64, (low, high): (u64, u64)) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(OperationError::invalid(format!("{name} = {value} is out of range: use {low} to {high}")))
}
