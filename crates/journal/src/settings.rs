//! What an operator may set of a journal, and which of it makes sense.

use crate::checkpoints::Thinning;
use std::time::Duration;
use types::WriteSeq;
use types::limits::{
    HISTORY_SECONDS_RANGE, JOURNAL_BYTES_RANGE, JOURNAL_SOFT_BYTES_MIN, SEGMENT_BYTES_DEFAULT,
};

/// Where the replica stands in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// At its old end: everything newer is in the journal.
    #[default]
    RollForward,
    /// At its new end: before-images of everything older are in the journal.
    Rollback,
}

/// What an operator may set, and change while the journal is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The history window.
    pub history: Duration,
    /// Fold early above this many bytes; zero for no limit.
    pub bytes_soft: u64,
    /// Take nothing more above this many bytes; zero for no limit but the disk.
    pub bytes_hard: u64,
    /// A segment is closed at this size at the latest; a slow stream has smaller ones.
    pub segment_bytes: u64,
    pub mode: Mode,
    pub thinning: Thinning,
    /// Tagged checkpoints younger than this hold retention back, unless the hard limit is near.
    pub tagged_history: Duration,
    /// A newest whole cut up to here holds retention back no more, though the state after it is damaged.
    pub let_go: Option<WriteSeq>,
    /// No history goes while this is so, whatever else is set and however full it is.
    pub is_locked: bool,
}

/// Settings that make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("history of {seconds} s is out of range: use {} to {}", HISTORY_SECONDS_RANGE.0, HISTORY_SECONDS_RANGE.1)]
    History { seconds: u64 },
    #[error("{name} of {bytes} bytes is out of range: use {least} to {}, or 0 for none", JOURNAL_BYTES_RANGE.1)]
    Bytes { name: &'static str, bytes: u64, least: u64 },
    #[error("the soft limit of {soft} bytes is above the hard limit of {hard}: make it smaller")]
    SoftAboveHard { soft: u64, hard: u64 },
    #[error(
        "thinning keeps all up to {all:?} and then one a minute up to {minutely:?}: the second must be longer"
    )]
    Thinning { all: Duration, minutely: Duration },
}

impl Settings {
    /// Settings with which nothing is folded and nothing refused: for whoever only looks or repairs.
    pub fn for_repair() -> Self {
        Self {
            history: Duration::from_secs(HISTORY_SECONDS_RANGE.1),
            bytes_soft: 0,
            bytes_hard: 0,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            mode: Mode::RollForward,
            thinning: Thinning::default(),
            tagged_history: Duration::ZERO,
            let_go: None,
            is_locked: false,
        }
    }

    /// Checks what an operator has set.
    ///
    /// # Errors
    /// [`SettingsError`] naming the allowed range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let seconds = self.history.as_secs();
        if !(HISTORY_SECONDS_RANGE.0..=HISTORY_SECONDS_RANGE.1).contains(&seconds) {
            return Err(SettingsError::History { seconds });
        }
        let (least, most) = JOURNAL_BYTES_RANGE;
        let limits =
            [("bytes_soft", self.bytes_soft, JOURNAL_SOFT_BYTES_MIN), ("bytes_hard", self.bytes_hard, least)];
        for (name, bytes, least) in limits {
            if bytes != 0 && !(least..=most).contains(&bytes) {
                return Err(SettingsError::Bytes { name, bytes, least });
            }
        }
        if self.bytes_hard != 0 && self.bytes_soft > self.bytes_hard {
            return Err(SettingsError::SoftAboveHard { soft: self.bytes_soft, hard: self.bytes_hard });
        }
        let (all, minutely) = (self.thinning.all, self.thinning.minutely);
        if all > minutely {
            return Err(SettingsError::Thinning { all, minutely });
        }
        Ok(())
    }
}
