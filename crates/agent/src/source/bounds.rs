//! The bounds a protection has to keep to: its RPO, its history, its link, and synchronous mode where it was chosen.
//!
//! No two clocks have to agree: ages are measured on this host, and go on over restarts. What is exceeded is an alert
//! with its cause until it is kept to again, and where the operator wants it, stops the protection. A copy that is
//! not proven to be fresh is not.

use super::freshness::Freshness;
use crate::alerts::{AlertKind, Alerts, Cause};
use crate::link::TurnedAway;
use crate::policy::{OnFenced, Policy};
use replication::wire::{Ack, Refusal};
use replication::{Failure, State, SyncReason};
use splitter::SyncState;
use std::time::Duration;
use types::Monotonic;

/// So long after a connection that failed by a certificate a link that is merely down is still taken for that: each try
/// ends in its own way where a peer hangs up.
const TURNED_AWAY_HOLDS: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Bounds {
    rpo_exceeded: bool,
    history_exceeded: bool,
    sync_degraded: bool,
    /// What the operator has let go on counts anew from here.
    forgiven_at: Option<Monotonic>,
    /// When the link was last up, or the protection was taken up.
    linked_at: Option<Monotonic>,
    /// When a connection last failed by a certificate, while an alert stands for that.
    turned_away_at: Option<Monotonic>,
}

/// What there is to judge by.
pub(super) struct Seen {
    pub(super) state: State,
    pub(super) fresh: Freshness,
    pub(super) link_up: bool,
    /// The epoch that has taken over, as far as is known.
    pub(super) fenced: Option<u64>,
    /// What becomes of the guest then.
    pub(super) on_fenced: OnFenced,
    pub(super) last_ack: Option<Ack>,
    pub(super) sync: SyncState,
    /// How the last connection failed, where it was by a certificate.
    pub(super) turned_away: Option<TurnedAway>,
    /// What was last wrong with the stream.
    pub(super) cause: Option<String>,
}

impl Seen {
    /// Why things are as they are.
    fn why(&self) -> String {
        self.cause.clone().unwrap_or_else(|| {
            let (state, reason) = (self.state.name(), self.state.reason());
            if reason.is_empty() { format!("state {state}") } else { format!("state {state}: {reason}") }
        })
    }
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
        let age = seen.fresh.age(now);
        self.rpo_exceeded = age.is_none_or(|age| age > bound);
        let late = age.is_some_and(|age| age > bound);
        self.watch_age(now, bound, seen, vm, alerts);
        self.watch_stream(now, bound, seen, vm, alerts);

        let objective = policy.history_seconds;
        let history = seen.last_ack.and_then(|ack| ack.projected_history_seconds);
        self.history_exceeded = history.is_some_and(|projected| projected < objective);
        alerts.set(Cause::new(AlertKind::History, vm), self.history_exceeded, || {
            let projected = history.unwrap_or(0);
            format!(
                "VM {vm}: its journal will hold {projected} s of history, {objective} s are wanted: its limits or the disk at the recovery side are too small"
            )
        });
        self.sync_degraded = seen.sync == SyncState::Degraded && age.is_some();
        alerts.set(Cause::new(AlertKind::SyncDegraded, vm), self.sync_degraded && !paused, || {
            format!("VM {vm}: synchronous mode is degraded, guest writes do not wait: {}", seen.why())
        });

        let lost = seen.state == (State::DeltaSync { why: SyncReason::PeerLostWrites });
        alerts.set(Cause::new(AlertKind::Agent, format!("journal of {vm}")), lost, || {
            format!(
                "VM {vm}: its journal at the recovery side has lost writes it had acknowledged, by damage or a disk that was set back: everything is compared, and there is no new checkpoint until that is done"
            )
        });

        let counts = self.forgiven_at.is_none_or(|at| now.since(at) > bound);
        policy.fail_when_exceeded && counts && !paused && (late || self.history_exceeded)
    }

    /// Whether a fresh copy is proven. What an operator has paused needs no alert.
    fn watch_age(&self, now: Monotonic, bound: Duration, seen: &Seen, vm: &str, alerts: &Alerts) {
        let paused = seen.state == State::Paused;
        let unproven = seen.fresh.unproven(now);
        let stands = unproven > bound && !paused;
        let (late, never) = (seen.fresh.age(now).is_some(), seen.fresh.age(now).is_none());
        let (bound_seconds, over) = (bound.as_secs(), unproven.saturating_sub(bound));
        for (kind, stands, what) in [
            (
                AlertKind::Rpo,
                stands && late,
                "the newest checkpoint at the recovery side is older than its RPO",
            ),
            (
                AlertKind::NeverCopied,
                stands && never,
                "nothing of it was ever complete at the recovery side, for longer than its RPO",
            ),
        ] {
            let cause = Cause::new(kind, vm);
            match stands {
                true => {
                    let text = format!("VM {vm}: {what} of {bound_seconds} s: {}", seen.why());
                    alerts.raise_for(cause, over, text);
                }
                false => alerts.clear(cause),
            }
        }
    }

    /// Whether the stream goes on. What stood before a restart stands until the recovery side was heard.
    fn watch_stream(&mut self, now: Monotonic, bound: Duration, seen: &Seen, vm: &str, alerts: &Alerts) {
        let linked_at = self.linked_at.get_or_insert(now);
        if seen.link_up {
            *linked_at = now;
        }
        let down_for = now.since(*linked_at);
        let paused = seen.state == State::Paused;
        let fenced = match seen.state {
            State::Fenced { epoch } => Some(epoch.0),
            _ => seen.fenced,
        };
        alerts.set(Cause::new(AlertKind::Fenced, vm), fenced.is_some(), || {
            let epoch = fenced.unwrap_or(0);
            let guest = match seen.on_fenced {
                OnFenced::GoOn => "its guest is not stopped here, and what it writes is not replicated",
                OnFenced::Pause => "its guest stands still here until that is rolled back",
                OnFenced::Stop => "its guest is stopped here",
            };
            format!("VM {vm}: fenced: epoch {epoch} has taken over, its group has failed over; {guest}")
        });
        // Somebody who refuses has been reached.
        let turned_away = seen.turned_away.is_some() && !seen.link_up && !paused && fenced.is_none();
        if turned_away {
            self.turned_away_at = Some(now);
        }
        let was_turned_away = self.turned_away_at.is_some_and(|at| now.since(at) > TURNED_AWAY_HOLDS);
        let is_held = self.turned_away_at.is_some() && !was_turned_away;
        let failed = matches!(seen.state, State::Failed { .. }) || turned_away || is_held;
        let down = Cause::new(AlertKind::LinkDown, vm);
        let stands = !seen.link_up && !paused && fenced.is_none() && !failed;
        if stands && (down_for > bound || alerts.remembers(&down)) {
            alerts.raise_for(
                down,
                down_for,
                format!("VM {vm}: the recovery side is not reached: {}", seen.why()),
            );
        } else if !stands {
            alerts.clear(down);
        }
        let cause = Cause::new(AlertKind::Failed, vm);
        match seen.state {
            // It goes on by itself, as after the move of a journal, unless it lasts.
            State::Failed { why: Failure::Refused(Refusal::Busy) } if down_for <= bound => {
                alerts.clear(cause)
            }
            State::Failed { why } => alerts.raise(cause, failure(vm, why, seen)),
            _ if turned_away => alerts.raise(cause, format!("VM {vm}: {}", seen.why())),
            // Where it is merely down by now, that has an alert of its own.
            _ if seen.link_up || paused || was_turned_away => {
                self.turned_away_at = None;
                alerts.clear(cause);
            }
            _ => {}
        }
    }
}

fn failure(vm: &str, why: Failure, seen: &Seen) -> String {
    match why {
        Failure::Refused(_) => format!("VM {vm}: the recovery side refuses its stream: {}", seen.why()),
        Failure::Disbelieved => format!("VM {vm}: its stream is not taken up: {}", seen.why()),
        Failure::BoundExceeded => format!("VM {vm}: its protection has stopped: {}", seen.why()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::clock;
    use replication::TrackingReason;

    fn seen(now: Monotonic, turned_away: Option<TurnedAway>, cause: &str) -> Seen {
        Seen {
            state: State::Tracking { why: TrackingReason::NotYetConnected },
            fresh: Freshness::unknown(now),
            link_up: false,
            fenced: None,
            on_fenced: OnFenced::GoOn,
            last_ack: None,
            sync: SyncState::Asynchronous,
            turned_away,
            cause: Some(cause.into()),
        }
    }

    fn kinds(alerts: &Alerts) -> Vec<(String, String)> {
        alerts.to_api().into_iter().map(|alert| (alert.kind, alert.text)).collect()
    }

    #[test]
    fn a_peer_that_refused_a_certificate_and_then_cannot_be_reached_is_no_refusal_any_more() {
        let (alerts, policy, mut bounds) = (Alerts::default(), Policy::default(), Bounds::default());
        let begun = clock::now();
        let mut at = |after: u64, turned_away, cause: &str| {
            let now = Monotonic(begun.0 + Duration::from_secs(after));
            bounds.watch(now, &policy, &seen(now, turned_away, cause), "web", &alerts);
            kinds(&alerts)
        };
        let refused = at(0, Some(TurnedAway::There), "its certificate is not trusted");
        assert_eq!(refused, [("failed".into(), "VM web: its certificate is not trusted".into())]);
        assert_eq!(
            at(30, None, "connection reset"),
            refused,
            "a try that ends in another way is no news yet"
        );
        let down = at(61, None, "connection refused");
        assert_eq!(down.len(), 1, "{down:?}");
        assert_eq!(down[0].0, "link-down");
        // And again.
        let refused = at(70, Some(TurnedAway::Here), "theirs has expired");
        assert_eq!(refused, [("failed".into(), "VM web: theirs has expired".into())]);
        // Nor is it one meanwhile that it has not been reached for longer than its bound.
        assert_eq!(
            at(100, None, "connection reset"),
            refused,
            "the alert of a link that is down comes and goes"
        );
    }

    #[test]
    fn a_recovery_side_that_is_busy_with_the_journal_is_an_alert_only_where_that_lasts() {
        let (alerts, policy, mut bounds) = (Alerts::default(), Policy::default(), Bounds::default());
        let begun = clock::now();
        let mut at = |after: u64, why| {
            let now = Monotonic(begun.0 + Duration::from_secs(after));
            let state = State::Failed { why: Failure::Refused(why) };
            bounds.watch(
                now,
                &policy,
                &Seen { state, ..seen(now, None, "the journal is being moved") },
                "web",
                &alerts,
            );
            kinds(&alerts).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
        };
        assert_eq!(at(0, Refusal::Busy), Vec::<String>::new());
        assert_eq!(at(30, Refusal::JournalFull), ["failed"]);
        assert_eq!(at(31, Refusal::Busy), Vec::<String>::new());
        assert_eq!(at(61, Refusal::Busy), ["failed"]);
    }
}
