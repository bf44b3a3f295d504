//! A protection's policy and the ranges it must keep to.

use crate::error::{OperationError, Result};
use api::ProtectSettings;
use serde::{Deserialize, Serialize};
use splitter::{OnTimeout, SyncPolicy};
use std::time::Duration;
use types::limits;

/// Whether a guest's write waits for the recovery side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StreamMode {
    #[default]
    Async,
    Sync,
}

/// What becomes of a write that waits too long, in synchronous mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TimeoutChoice {
    #[default]
    Degrade,
    Hold,
}

/// What becomes of the guest where the other site has taken over: what its own side's operator consents to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFenced {
    /// It goes on, and nobody protects what it writes.
    #[default]
    GoOn,
    /// It stands still until the other site gives back what it has taken.
    Pause,
    /// It ends.
    Stop,
}

impl OnFenced {
    pub(crate) fn name(self) -> &'static str {
        match self {
            OnFenced::GoOn => "go-on",
            OnFenced::Pause => "pause",
            OnFenced::Stop => "stop",
        }
    }
}

/// A policy with every value decided. What a record of before does not have takes its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    pub(crate) checkpoint_interval_seconds: u64,
    pub(crate) history_seconds: u64,
    /// 0: no limit but the disk.
    pub(crate) journal_bytes_max: u64,
    pub(crate) rpo_seconds: u64,
    pub(crate) buffer_bytes: u64,
    /// 0: no spill.
    pub(crate) spill_bytes: u64,
    pub(crate) mode: StreamMode,
    pub(crate) sync_timeout_seconds: u64,
    pub(crate) on_timeout: TimeoutChoice,
    pub(crate) priority: u64,
    /// Of the whole group; 0 for no limit.
    pub(crate) bytes_per_second_max: u64,
    /// Whether the protection stops when its RPO or its history is not kept to.
    pub(crate) fail_when_exceeded: bool,
    /// Whether writes are left out that others overwrite before the next checkpoint, while the stream lags.
    pub(crate) coalesce: bool,
    pub(crate) on_fenced: OnFenced,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            checkpoint_interval_seconds: limits::CHECKPOINT_INTERVAL_DEFAULT.as_secs(),
            history_seconds: limits::HISTORY_DEFAULT.as_secs(),
            journal_bytes_max: 0,
            rpo_seconds: limits::RPO_SECONDS_DEFAULT,
            buffer_bytes: limits::BUFFER_BYTES_DEFAULT,
            spill_bytes: limits::SPILL_BYTES_DEFAULT,
            mode: StreamMode::Async,
            sync_timeout_seconds: limits::SYNC_TIMEOUT_SECONDS_DEFAULT,
            on_timeout: TimeoutChoice::Degrade,
            priority: limits::PRIORITY_DEFAULT,
            bytes_per_second_max: 0,
            fail_when_exceeded: false,
            coalesce: false,
            on_fenced: OnFenced::GoOn,
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
            spill_bytes: asked.spill_bytes.unwrap_or(defaults.spill_bytes),
            mode: match asked.mode.as_deref() {
                None => defaults.mode,
                Some("async") => StreamMode::Async,
                Some("sync") => StreamMode::Sync,
                Some(other) => {
                    return Err(OperationError::invalid(format!("mode {other:?}: use async or sync")));
                }
            },
            sync_timeout_seconds: asked.sync_timeout_seconds.unwrap_or(defaults.sync_timeout_seconds),
            on_timeout: match asked.on_timeout.as_deref() {
                None => defaults.on_timeout,
                Some("degrade") => TimeoutChoice::Degrade,
                Some("hold") => TimeoutChoice::Hold,
                Some(other) => {
                    return Err(OperationError::invalid(format!(
                        "on_timeout {other:?}: use degrade or hold"
                    )));
                }
            },
            priority: asked.priority.unwrap_or(defaults.priority),
            bytes_per_second_max: asked.bytes_per_second_max.unwrap_or(defaults.bytes_per_second_max),
            fail_when_exceeded: asked.fail_when_exceeded.unwrap_or(defaults.fail_when_exceeded),
            coalesce: asked.coalesce.unwrap_or(defaults.coalesce),
            on_fenced: match asked.on_fenced.as_deref() {
                None => defaults.on_fenced,
                Some("go-on") => OnFenced::GoOn,
                Some("pause") => OnFenced::Pause,
                Some("stop") => OnFenced::Stop,
                Some(other) => {
                    return Err(OperationError::invalid(format!(
                        "on_fenced {other:?}: use go-on, pause or stop"
                    )));
                }
            },
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
        within("buffer_bytes", self.buffer_bytes, limits::BUFFER_BYTES_RANGE)?;
        within("spill_bytes", self.spill_bytes, (0, limits::SPILL_BYTES_MAX))?;
        within("sync_timeout_seconds", self.sync_timeout_seconds, limits::SYNC_TIMEOUT_SECONDS_RANGE)?;
        within("priority", self.priority, limits::PRIORITY_RANGE)
    }

    /// Whether writes may be left out. In synchronous mode each is waited for.
    pub(crate) fn leaves_out(&self) -> bool {
        self.coalesce && self.mode == StreamMode::Async
    }

    /// What the splitter is to do with guest writes.
    pub(crate) fn sync(&self) -> Option<SyncPolicy> {
        (self.mode == StreamMode::Sync).then_some(SyncPolicy {
            timeout: Duration::from_secs(self.sync_timeout_seconds),
            on_timeout: match self.on_timeout {
                TimeoutChoice::Degrade => OnTimeout::Degrade,
                TimeoutChoice::Hold => OnTimeout::Hold,
            },
        })
    }
}

/// Checks that a value is in its range.
pub(crate) fn within(name: &str, value: u64, (low, high): (u64, u64)) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(OperationError::invalid(format!("{name} = {value} is out of range: use {low} to {high}")))
}
