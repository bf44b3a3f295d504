//! What is wrong and wants somebody: each alert has a kind, since when it stands, and what to do about it.
//!
//! An alert stands until its cause is gone, not until it was seen. Since when is written down, so that a restart
//! makes nothing look fresh; the time is a label, the age it grows by is measured.

use crate::clock;
use crate::state::StateDir;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::{Monotonic, WallTime};

/// What was raised before a restart and is not raised again by then is forgotten.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
const FILE: &str = "alerts.json";

/// How much an alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Something is not protected, or runs twice.
    Critical,
    /// Something will be, unless somebody looks.
    Warning,
}

/// Everything that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AlertKind {
    /// The newest complete checkpoint of a VM is older than its bound.
    Rpo,
    /// No checkpoint of a VM was ever complete at the recovery side.
    NeverCopied,
    /// The recovery side keeps, or will keep, less history than was asked for.
    History,
    /// Guest writes should wait for the recovery side, and do not.
    SyncDegraded,
    /// The recovery side has not been reached for longer than the bound.
    LinkDown,
    /// The recovery side refuses a stream, or a bound has stopped it.
    Failed,
    /// The group's authority has passed to the recovery side.
    Fenced,
    /// A protection is recorded and cannot be taken up.
    Protection,
    /// A VM has disks that are not protected, or not any more.
    Disks,
    /// A disk does not give all of itself, or a VM under the tap cannot be read for a sync.
    Reading,
    /// A disk image that is open is not what is protected.
    Image,
    /// Somebody else than the VM has written to a disk image.
    WrittenBeside,
    /// A second client wanted to write to a disk that another writes to.
    SecondWriter,
    /// The recovery side does not know yet that a VM has left.
    Departure,
    /// At the recovery side: a VM's site has sent nothing for longer than the bound.
    SourceSilent,
    /// At the recovery side: a VM's site asks for less history than is kept.
    AskedLess,
    /// At the recovery side: an image that is recorded is not served, or only in part.
    ImageUnserved,
    /// Something happened to a VM that runs here.
    Guest,
    /// A VM that was started here does not run any more.
    GuestEnded,
    /// What waits for the link of a VM has no room but memory, though room on a disk was asked for.
    NoSpill,
    /// The agent itself: a listener, a certificate, a file.
    Agent,
}

impl AlertKind {
    /// What is said of a VM that is protected here.
    const OF_A_PROTECTION: [Self; 14] = [
        Self::Rpo,
        Self::NeverCopied,
        Self::History,
        Self::SyncDegraded,
        Self::LinkDown,
        Self::Failed,
        Self::Fenced,
        Self::Protection,
        Self::Disks,
        Self::Reading,
        Self::Image,
        Self::WrittenBeside,
        Self::SecondWriter,
        Self::NoSpill,
    ];

    /// The word for it in log, API and screens.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rpo => "rpo",
            Self::NeverCopied => "never-copied",
            Self::History => "history",
            Self::SyncDegraded => "sync-degraded",
            Self::LinkDown => "link-down",
            Self::Failed => "failed",
            Self::Fenced => "fenced",
            Self::Protection => "protection",
            Self::Disks => "disks",
            Self::Reading => "reading",
            Self::Image => "image",
            Self::WrittenBeside => "written-beside",
            Self::SecondWriter => "second-writer",
            Self::Departure => "departure",
            Self::SourceSilent => "source-silent",
            Self::AskedLess => "asked-less",
            Self::ImageUnserved => "image-unserved",
            Self::Guest => "guest",
            Self::GuestEnded => "guest-ended",
            Self::NoSpill => "no-spill",
            Self::Agent => "agent",
        }
    }

    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::History
            | Self::LinkDown
            | Self::Departure
            | Self::SyncDegraded
            | Self::AskedLess
            | Self::NoSpill => Severity::Warning,
            Self::Rpo
            | Self::NeverCopied
            | Self::Failed
            | Self::Fenced
            | Self::Protection
            | Self::Disks
            | Self::Reading
            | Self::Image
            | Self::WrittenBeside
            | Self::SecondWriter
            | Self::SourceSilent
            | Self::ImageUnserved
            | Self::Guest
            | Self::GuestEnded
            | Self::Agent => Severity::Critical,
        }
    }

    /// What an operator does about it.
    pub(crate) fn to_do(self) -> &'static str {
        match self {
            Self::Rpo => {
                "look at the VM's link, buffer and trouble with `holdfast vm show`; nothing newer can be recovered"
            }
            Self::NeverCopied => {
                "look at its first sync with `holdfast vm show`; nothing of it can be recovered yet"
            }
            Self::History => "give the journal more room, or ask for less history",
            Self::SyncDegraded => "mend the link; the VM goes back to synchronous mode by itself",
            Self::LinkDown => "look whether the recovery side's agent runs and can be reached",
            Self::Failed => "do what the trouble in `holdfast vm show` says; it is tried again by itself",
            Self::Fenced => {
                "the VM may run at both sites: stop it here, or roll the failover back at the recovery side"
            }
            Self::Protection => "do what the alert says; it is tried again by itself",
            Self::Disks => "do what the alert says, or plug the disk in again",
            Self::Reading => "do what the alert says; it is tried again by itself",
            Self::Image => "do what the alert says; it is tried again by itself",
            Self::SecondWriter => "end whichever of the two is not meant",
            Self::WrittenBeside => "find out who writes to the image beside the VM, and end that",
            Self::Departure => {
                "see that the recovery side can be reached, which is told again by itself; if it is gone for good, `holdfast vm forget`"
            }
            Self::AskedLess => "take it over if it is meant, or see who has changed it at the protected side",
            Self::SourceSilent => {
                "look at the VM's site: its host, its agent and the link; if it is gone for good, fail over or `holdfast vm forget`"
            }
            Self::ImageUnserved => "do what the alert says; it is tried again by itself",
            Self::Guest => "look at the VM with `holdfast failover list`",
            Self::GuestEnded => {
                "see in `holdfast failover list` what it last did; its image stays as it is until it is closed or rolled back"
            }
            Self::NoSpill => {
                "see to the folder of the spill; until then a link that is down for longer costs a comparison"
            }
            Self::Agent => "do what the alert says",
        }
    }
}

/// What an alert is about: one stands for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    pub(crate) kind: AlertKind,
    /// The VM, or the part of the agent.
    pub(crate) subject: String,
}

impl Cause {
    pub(crate) fn new(kind: AlertKind, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into() }
    }

    /// How it is written down.
    fn key(&self) -> String {
        format!("{} {}", self.kind.name(), self.subject)
    }
}

impl From<&str> for Cause {
    fn from(subject: &str) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

impl From<String> for Cause {
    fn from(subject: String) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

impl From<&String> for Cause {
    fn from(subject: &String) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

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
        let row = |(cause, standing): (&Cause, &Standing)| api::Alert {
            kind: cause.kind.name().to_owned(),
            subject: cause.subject.clone(),
            severity: match cause.kind.severity() {
                Severity::Critical => "critical".into(),
                Severity::Warning => "warning".into(),
            },
            since: clock::to_text(standing.since),
            age_seconds: standing.age(now).as_secs(),
            text: standing.text.clone(),
            to_do: cause.kind.to_do().to_owned(),
        };
        self.lock().standing.iter().map(row).collect()
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
    fn since_when(&mut self) -> BTreeMap<String, i64> {
        if clock::now() > Monotonic(REMEMBERED_FOR) {
            self.remembered.clear();
        }
        let standing = self.standing.iter().map(|(cause, standing)| (cause.key(), standing.since.0));
        self.remembered.clone().into_iter().chain(standing).collect()
    }
}

impl Standing {
    fn age(&self, now: Monotonic) -> Duration {
        self.age.0 + now.since(self.age.1)
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
