//! What is told of a stream: written by its driver after each step, read by whoever asks.

use super::record::ProtectionRecord;
use replication::{Link, State, TrackingReason};
use std::time::Duration;
use types::WriteSeq;

/// The stream for the operator.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamStatus {
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) link: String,
    pub(crate) last_error: Option<String>,
    pub(crate) durable: WriteSeq,
    pub(crate) journal_bytes: u64,
    pub(crate) history_seconds: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) sent_bytes_per_second: f64,
    pub(crate) write_bytes_per_second: f64,
    pub(crate) sync_total_bytes: u64,
    /// Age of the newest complete checkpoint; none where none ever was.
    pub(crate) rpo_now: Option<Duration>,
    pub(crate) rpo_exceeded: bool,
    pub(crate) history_exceeded: bool,
    pub(crate) clock_skew_seconds: Option<f64>,
    pub(crate) spill_bytes: u64,
    pub(crate) spill_bytes_max: u64,
    pub(crate) verify: Option<api::Verify>,
}

impl StreamStatus {
    /// Before the driver has had its first say.
    pub(super) fn before_begin(record: &ProtectionRecord) -> Self {
        let state = if record.paused {
            State::Paused
        } else {
            State::Tracking { why: TrackingReason::NotYetConnected }
        };
        Self {
            state: if record.fenced.is_some() { "fenced".into() } else { state.name().to_owned() },
            reason: state.reason(),
            link: Link::Down { tries: 0 }.name().to_owned(),
            rpo_exceeded: true,
            spill_bytes_max: record.policy.spill_bytes,
            ..Self::default()
        }
    }
}
