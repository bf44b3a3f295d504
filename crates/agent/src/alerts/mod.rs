//! What is wrong and wants somebody: each alert has a kind, since when it stands, and what to do about it.
//!
//! An alert stands until its cause is gone, not until it was seen. Since when is written down, so that a restart
//! makes nothing look fresh; the time is a label, the age it grows by is measured.

mod command;
mod kind;
mod told;

use crate::clock;
use crate::state::StateDir;
pub(crate) use command::AlertCommand;
pub(crate) use kind::{AlertKind, Cause, Severity};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::{Monotonic, WallTime};

/// What was raised before a restart and is not raised again by then is forgotten.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
const FILE: &str = "alerts.json";

/// An alert that stands.
#[derive(Debug, Clone)]
struct Standing {
    text: String,
    since: WallTime,
    /// How long it had stood by then.
    age: (Duration, Monotonic),
}

/// Since when each alert stands, as `state/alerts.json` has it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct AlertsRecord {
    since: BTreeMap<String, i64>,
}

#[derive(Debug, Default)]
struct Inner {
    standing: BTreeMap<Cause, Standing>,
    /// What stood when the agent last ended, and was neither raised again nor cleared since.
    remembered: BTreeMap<String, i64>,
}

/// Standing alerts, one per cause.
#[derive(Debug, Default)]
pub(crate) struct Alerts {
    inner: Mutex<Inner>,
    /// Held while they are written down.
    saving: Mutex<()>,
    state: Option<Arc<StateDir>>,
}

/// Two moments that are no further apart are the same one, told twice.
const SAME_MICROS: i64 = 1_000_000;

impl Alerts {
    /// With what stood when the agent last ended.
    pub(crate) fn remembered_in(state: Arc<StateDir>) -> Self {
        let remembered = match state.load::<AlertsRecord>(FILE) {
            Ok(record) => record.unwrap_or_default().since,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "since when alerts stand is forgotten");
                BTreeMap::new()
            }
        };
        let inner = Mutex::new(Inner { remembered, ..Inner::default() });
        Self { inner, saving: Mutex::default(), state: Some(state) }
    }

    /// Raises an alert, logged where it is new or another.
    pub(crate) fn raise(&self, cause: impl Into<Cause>, text: String) {
        self.raise_for(cause, Duration::ZERO, text);
    }

    /// Raises an alert about what has lasted for `age` already.
    pub(crate) fn raise_for(&self, cause: impl Into<Cause>, age: Duration, text: String) {
        let (cause, now) = (cause.into(), clock::now());
        let mut inner = self.lock();
        let before = inner.standing.get(&cause).map(|standing| standing.text.clone());
        if before.as_ref() == Some(&text) {
            return;
        }
        let wall = clock::wall();
        let remembered = inner.remembered.remove(&cause.key()).map(WallTime);
        match inner.standing.get_mut(&cause) {
            Some(standing) => standing.text.clone_from(&text),
            None => {
                let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
                let since = WallTime(wall.0.saturating_sub(micros));
                // What was told before stays, unless it has stood for longer: an age is not exact to the microsecond.
                let since = remembered.filter(|known| known.0 < since.0 + SAME_MICROS).unwrap_or(since);
                let stood = u64::try_from(wall.0.saturating_sub(since.0)).unwrap_or(0);
                let standing =
                    Standing { text: text.clone(), since, age: (Duration::from_micros(stood), now) };
                inner.standing.insert(cause.clone(), standing);
            }
        }
        drop(inner);
        if before.is_none() {
            self.save();
        }
        match cause.kind.severity() {
            Severity::Critical => tracing::error!(alert = cause.kind.name(), cause = cause.subject, "{text}"),
            Severity::Warning => tracing::warn!(alert = cause.kind.name(), cause = cause.subject, "{text}"),
        }
    }

    /// The cause is gone.
    pub(crate) fn clear(&self, cause: impl Into<Cause>) {
        let cause = cause.into();
        let mut inner = self.lock();
        let forgotten = inner.remembered.remove(&cause.key()).is_some();
        let stood = inner.standing.remove(&cause).is_some();
        drop(inner);
        if stood || forgotten {
            self.save();
        }
        if stood {
            tracing::info!(alert = cause.kind.name(), cause = cause.subject, "mended");
        }
    }

    /// Raises an alert where it stands, and clears it where it does not.
    pub(crate) fn set(&self, cause: Cause, stands: bool, text: impl FnOnce() -> String) {
        if stands { self.raise(cause, text()) } else { self.clear(cause) }
    }

    /// Whether it stood when the agent last ended, and nothing has been found out since.
    pub(crate) fn remembers(&self, cause: &Cause) -> bool {
        self.lock().remembered.contains_key(&cause.key())
    }

    /// Nothing is to be said of a protection any more.
    pub(crate) fn forget_protection(&self, vm: &str) {
        for kind in AlertKind::OF_A_PROTECTION {
            self.clear(Cause::new(kind, vm));
        }
    }

    /// What each says, with how long it has stood.
    pub(crate) fn list(&self) -> Vec<String> {
        let now = clock::now();
        let told = |standing: &Standing| match standing.age(now).as_secs() {
            0..60 => standing.text.clone(),
            seconds => format!("{} (for {})", standing.text, in_words(seconds)),
        };
        self.lock().standing.values().map(told).collect()
    }

    /// Every alert for the operator.
    pub(crate) fn to_api(&self) -> Vec<api::Alert> {
        let now = clock::now();
        self.lock().standing.iter().map(|(cause, standing)| standing.to_api(cause, now)).collect()
    }

    /// What stands, and of what else it is not known yet whether it still does, both by how they are written down.
    fn in_view(&self) -> (BTreeMap<String, api::Alert>, BTreeSet<String>) {
        let (now, mut inner) = (clock::now(), self.lock());
        inner.forget_in_time();
        let row = |(cause, standing): (&Cause, &Standing)| (cause.key(), standing.to_api(cause, now));
        (inner.standing.iter().map(row).collect(), inner.remembered.keys().cloned().collect())
    }

    /// Writes down what stands. Whoever reads alerts does not wait for that, on a disk that hangs neither.
    fn save(&self) {
        let Some(state) = &self.state else { return };
        // What is looked at later is written later.
        let _turn = self.saving.lock().expect("a panic aborts the process");
        let since = self.lock().since_when();
        if let Err(error) = state.save(FILE, &AlertsRecord { since }) {
            tracing::warn!(error = format!("{error:#}"), "since when alerts stand is not recorded");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

impl Inner {
    fn forget_in_time(&mut self) {
        if clock::now() > Monotonic(REMEMBERED_FOR) {
            self.remembered.clear();
        }
    }

    fn since_when(&mut self) -> BTreeMap<String, i64> {
        self.forget_in_time();
        let standing = self.standing.iter().map(|(cause, standing)| (cause.key(), standing.since.0));
        self.remembered.clone().into_iter().chain(standing).collect()
    }
}

impl Standing {
    fn age(&self, now: Monotonic) -> Duration {
        self.age.0 + now.since(self.age.1)
    }

    fn to_api(&self, cause: &Cause, now: Monotonic) -> api::Alert {
        api::Alert {
            kind: cause.kind.name().to_owned(),
            subject: cause.subject.clone(),
            severity: cause.kind.severity().name().to_owned(),
            since: clock::to_text(self.since),
            age_seconds: self.age(now).as_secs(),
            text: self.text.clone(),
            to_do: cause.kind.to_do().to_owned(),
        }
    }
}

/// A time span a person can read.
pub(crate) fn in_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_an_alert_stands_survives_a_restart_and_a_clear_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(folder.path()).unwrap());
        let (failed, silent) =
            (Cause::new(AlertKind::Failed, "web"), Cause::new(AlertKind::SourceSilent, "db"));
        let alerts = Alerts::remembered_in(state.clone());
        alerts.raise_for(failed.clone(), Duration::from_secs(3600), "refused".into());
        alerts.raise(silent.clone(), "silent".into());
        alerts.clear(silent.clone());
        let since = alerts.to_api()[0].since.clone();

        let alerts = Alerts::remembered_in(state);
        assert!(alerts.list().is_empty(), "nothing is claimed before it was looked at");
        assert!(alerts.remembers(&failed) && !alerts.remembers(&silent));
        alerts.raise(failed.clone(), "refused again".into());
        let row = alerts.to_api().remove(0);
        assert_eq!((row.kind.as_str(), row.since), ("failed", since));
        assert!(row.age_seconds >= 3600);
        assert_eq!(alerts.list(), ["refused again (for 60 min)"]);
    }

    #[test]
    fn another_text_for_the_same_cause_keeps_its_age() {
        let alerts = Alerts::default();
        alerts.raise_for("disk", Duration::from_secs(300), "one".into());
        alerts.raise("disk", "two".into());
        assert_eq!(alerts.list(), ["two (for 5 min)"]);
        alerts.clear("disk");
        assert!(alerts.list().is_empty());
    }

    #[test]
    fn who_looks_at_alerts_waits_for_no_disk() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(folder.path()).unwrap());
        let alerts = Alerts::remembered_in(state.clone());
        // Whoever opens a pipe to write waits until somebody reads it.
        let pipe = state.path("alerts.partial");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        std::thread::scope(|scope| {
            let (alerts, (tell, told)) = (&alerts, std::sync::mpsc::channel());
            scope.spawn(|| alerts.raise("disk", "it hangs".into()));
            while alerts.saving.try_lock().is_ok() {}
            scope.spawn(move || tell.send(alerts.list()));
            let seen = told.recv_timeout(Duration::from_secs(60));
            drop(std::fs::File::open(&pipe).unwrap());
            assert_eq!(seen.expect("whoever looks waits for the disk"), ["it hangs"]);
        });
    }
}
