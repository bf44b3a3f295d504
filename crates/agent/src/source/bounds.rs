//! The bounds a protection has to keep to: its RPO, its history, and synchronous mode where it was chosen.
//!
//! The age of the newest checkpoint is measured on this host's monotonic clock alone; no two clocks have to
//! agree. What is exceeded is an alert with its cause until it is kept to again, and where the operator wants
//! it, stops the protection.

use crate::alerts::Alerts;
use crate::policy::Policy;
use replication::State;
use replication::wire::Ack;
use splitter::SyncState;
use std::time::Duration;
use types::Monotonic;

#[derive(Debug, Default)]
pub(super) struct Bounds {
    rpo_exceeded: bool,
    history_exceeded: bool,
    sync_degraded: bool,
    /// What the operator has let go on counts anew from here.
    forgiven_at: Option<Monotonic>,
}

/// What there is to judge by.
pub(super) struct Seen {
    pub(super) state: State,
    /// None where there was no complete checkpoint yet.
    pub(super) rpo_now: Option<Duration>,
    pub(super) last_ack: Option<Ack>,
    pub(super) sync: SyncState,
    /// What was last wrong with the stream.
    pub(super) cause: Option<String>,
}

impl Bounds {
    pub(super) fn rpo_exceeded(&self) -> bool {
        self.rpo_exceeded
    }

    pub(super) fn history_exceeded(&self) -> bool {
        self.history_exceeded
    }

    /// The operator lets the protection go on: bounds count from now.
    pub(super) fn forgive(&mut self, now: Monotonic) {
        self.forgiven_at = Some(now);
    }

    /// Looks at the bounds, raises and clears alerts; true where the protection is to stop.
    pub(super) fn watch(
        &mut self,
        now: Monotonic,
        policy: &Policy,
        seen: &Seen,
        vm: &str,
        alerts: &Alerts,
    ) -> bool {
        let paused = seen.state == State::Paused;
        let bound = Duration::from_secs(policy.rpo_seconds);
        self.rpo_exceeded = !paused && seen.rpo_now.is_some_and(|age| age > bound);
        let objective = policy.history_seconds;
        let history = seen.last_ack.and_then(|ack| ack.projected_history_seconds);
        self.history_exceeded = history.is_some_and(|projected| projected < objective);
        self.sync_degraded = seen.sync == SyncState::Degraded && seen.rpo_now.is_some();

        let cause = seen.cause.clone().unwrap_or_else(|| {
            let (state, reason) = (seen.state.name(), seen.state.reason());
            if reason.is_empty() { format!("state {state}") } else { format!("state {state}: {reason}") }
        });
        let bound = bound.as_secs();
        set(alerts, format!("rpo of {vm}"), self.rpo_exceeded, || {
            format!(
                "VM {vm}: the newest checkpoint at the recovery side is older than its RPO of {bound} s: {cause}"
            )
        });
        set(alerts, format!("history of {vm}"), self.history_exceeded, || {
            let projected = history.unwrap_or(0);
            format!(
                "VM {vm}: its journal will hold {projected} s of history, {objective} s are wanted: its limits or the disk at the recovery side are too small"
            )
        });
        set(alerts, format!("sync of {vm}"), self.sync_degraded && !paused, || {
            format!("VM {vm}: synchronous mode is degraded, guest writes do not wait: {cause}")
        });

        let counts =
            self.forgiven_at.is_none_or(|at| now.since(at) > Duration::from_secs(policy.rpo_seconds));
        policy.fail_when_exceeded && counts && (self.rpo_exceeded || self.history_exceeded)
    }
}

fn set(alerts: &Alerts, cause: String, stands: bool, text: impl FnOnce() -> String) {
    if stands { alerts.raise(cause, text()) } else { alerts.clear(&cause) }
}
