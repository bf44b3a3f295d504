//! What the service manager is told: that the agent is ready, that it lives, that it stops. Without one, nothing
//! happens.

use sd_notify::NotifyState;
use std::time::Duration;

/// The agent serves its guests.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent stops.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says for ever that the agent lives, three times in each interval the service manager allows, if it wants to
/// know. It is the agent's own tasks that say so: when they hang, nobody does.
pub(crate) async fn say_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let interval = (limit / 3).max(Duration::from_millis(100));
    tracing::info!(seconds = limit.as_secs_f64(), "the service manager watches");
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(interval).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
