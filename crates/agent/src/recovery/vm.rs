//! One kept VM: its record, its journal while it is open, and who streams into it.

use super::groups::{answers_to, site_of};
use super::life::open::Reopening;
use super::life::{JournalLife, Lease};
use super::lock::RetentionLock;
use super::policy::JournalPolicy;
use super::record::{Asked, RecoveryRecord};
use super::turns::DiskId;
use crate::clock;
use crate::config::JournalConfig;
use crate::state::StateDir;
use anyhow::{Context, Result};
use joint::admission::Accept;
use joint::life::{Refused, State, Use};
use journal::{CheckpointFacts, CheckpointQuery, Damage, FsStore, Settings, Store};
use replication::wire::{Hello, Refuse};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use types::{Checkpoint, GroupId, Monotonic, VmId, WriteSeq};

/// How long a new connection waits for the one it replaces to let go.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM whose journal is kept here.
#[derive(Debug)]
pub(crate) struct RecoveredVm {
    id: VmId,
    group: GroupId,
    /// Its journal, and who uses that.
    life: Arc<JournalLife>,
    inner: Mutex<Inner>,
    /// Held while what is set for its journal is changed; taken before `changing`.
    setting: Mutex<()>,
    /// Held while its record is written down; taken before `inner`.
    changing: Mutex<()>,
    /// Held while the folder is taken, which a disk may hold up.
    taking_folder: Mutex<()>,
    /// Held while a stream is handed over: connections get it one after the other.
    handing_over: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Inner {
    record: RecoveryRecord,
    policy: JournalPolicy,
    /// Holds the folder's lock as long as the VM is known.
    store: Option<Arc<FsStore>>,
    /// The file system the folder lies on, once it was taken.
    disk: Option<u64>,
    last_error: Option<String>,
    stream: Option<Stream>,
    /// When its site last greeted for it in vain, because its group had failed over to this side.
    fenced_greeting_at: Option<Monotonic>,
    /// That it is forgotten is being written down.
    takes_no_stream: bool,
    /// While the journal is closed.
    reopening: Reopening,
}

/// The connection that holds a VM's stream.
#[derive(Debug)]
struct Stream {
    words: mpsc::UnboundedSender<StreamWord>,
    ended: watch::Receiver<bool>,
}

/// What the connection that holds a stream is told.
#[derive(Debug)]
pub(crate) enum StreamWord {
    Stop(Refuse),
    /// Some of the newest state was found to be lost.
    AskAgain,
}

/// Held by a connection while it may append. Dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct StreamHold {
    pub(crate) words: mpsc::UnboundedReceiver<StreamWord>,
    _ended: watch::Sender<bool>,
}

impl Inner {
    fn check_is_kept(&self) -> Result<()> {
        anyhow::ensure!(!self.record.forgotten, "VM {} is being forgotten", self.record.name);
        Ok(())
    }

    fn check_is_not_sent(&self) -> crate::error::Result<()> {
        if self.stream.as_ref().is_none_or(|stream| stream.ended.has_changed().is_err()) {
            return Ok(());
        }
        Err(crate::error::OperationError::conflict(format!(
            "VM {} is still being sent; unprotect it on the other side first",
            self.record.name
        )))
    }

    /// The state where no failover says another.
    fn own_state(&self, life: State, has_tail: bool, has_any: bool) -> &'static str {
        match life {
            State::Opening | State::Binding => "opening",
            State::Closed | State::Closing(_) | State::Taken(_) | State::Gone => "failed",
            State::Open if self.record.left.is_some() => "left",
            State::Open if !has_tail && has_any => "damaged",
            State::Open if !has_tail => "initial-sync",
            State::Open => "following",
        }
    }
}

impl RecoveredVm {
    pub(crate) fn new(record: RecoveryRecord, policy: JournalPolicy) -> Result<Arc<Self>> {
        let id = record.vm.parse().with_context(|| format!("VM id of {}", record.name))?;
        let group = record.group_id.parse().with_context(|| format!("group id of {}", record.name))?;
        let inner = Inner {
            record,
            policy,
            store: None,
            disk: None,
            last_error: None,
            stream: None,
            fenced_greeting_at: None,
            takes_no_stream: false,
            reopening: Reopening::default(),
        };
        Ok(Arc::new(Self {
            id,
            group,
            life: Arc::default(),
            inner: Mutex::new(inner),
            setting: Mutex::default(),
            changing: Mutex::default(),
            taking_folder: Mutex::default(),
            handing_over: tokio::sync::Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }

    pub(crate) fn id(&self) -> VmId {
        self.id
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    pub(crate) fn name(&self) -> String {
        self.lock().record.name.clone()
    }

    /// The site it is protected at.
    pub(crate) fn site(&self) -> String {
        site_of(&self.lock().record.peer).to_owned()
    }

    /// Its name as it is unique here.
    pub(crate) fn label(&self) -> String {
        let inner = self.lock();
        format!("{}/{}", site_of(&inner.record.peer), inner.record.name)
    }

    /// Whether an operator's word may mean it: its id, `site/name` or name.
    pub(crate) fn answers_to(&self, word: &str) -> bool {
        let inner = self.lock();
        let record = &inner.record;
        answers_to(word, &record.vm, site_of(&record.peer), &record.name)
    }

    pub(crate) fn record(&self) -> RecoveryRecord {
        self.lock().record.clone()
    }

    /// The replica was brought here by other means.
    pub(crate) fn set_seeded(&self) {
        let _one = self.changing.lock().expect("a panic aborts the process");
        self.lock().record.seeded = true;
    }

    pub(super) fn life(&self) -> &Arc<JournalLife> {
        &self.life
    }

    /// Its journal, as long as it is open, for a use of it.
    pub(super) fn lease(&self, what: Use) -> Result<Lease, Refused> {
        self.life.lease(what)
    }

    /// The same for who only looks, sets something or pins something there.
    pub(crate) fn journal(&self) -> Option<Lease> {
        self.lease(Use::Look).ok()
    }

    pub(super) fn with_reopening<T>(&self, change: impl FnOnce(&mut Reopening) -> T) -> T {
        change(&mut self.lock().reopening)
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    pub(crate) fn set_error(&self, error: String) {
        self.lock().last_error = Some(error);
    }

    /// Says what was damaged, cost nothing, and was made again.
    pub(crate) fn tell_mended(&self, mended: &[String]) {
        for what in mended {
            tracing::warn!(vm = self.name(), damage = what, "a damaged part of the journal was made again");
        }
    }

    /// Says what was found damaged and contained, in the log and to the operator; the words.
    pub(crate) fn report_damage(&self, damage: &Damage) -> String {
        let cost = match damage.lost_bytes() {
            None => format!(
                "checkpoints before {} are good, later ones come back once everything was sent again",
                damage.from
            ),
            Some(0) => "no bytes of any disk are lost by it".to_owned(),
            Some(bytes) => format!(
                "{bytes} bytes cannot be read as of some checkpoints from {} on, which say so in their list; everything \
                 else can",
                damage.from
            ),
        };
        let text = format!("{}; {cost}", damage.what);
        tracing::error!(vm = self.name(), damage = text, "journal damaged");
        self.set_error(text.clone());
        text
    }

    pub(crate) fn clear_error(&self) {
        self.lock().last_error = None;
    }

    /// Where the journal lies: under `journal_dir`, unless it was moved.
    pub(crate) fn folder(&self, journal_dir: &Path) -> PathBuf {
        let moved = self.lock().policy.folder.clone();
        moved.unwrap_or_else(|| journal_dir.join(self.id.to_string()))
    }

    /// Where its replicas lie, if not in the journal's folder.
    pub(super) fn replica_folder(&self, config: &JournalConfig) -> Option<PathBuf> {
        let own = self.lock().policy.replica_folder.clone();
        own.or_else(|| Some(config.replica_folder.as_ref()?.join(self.id.to_string())))
    }

    /// Where its replicas lie.
    pub(super) fn replicas(&self, config: &JournalConfig) -> PathBuf {
        self.replica_folder(config).unwrap_or_else(|| self.folder(&config.folder).join("replica"))
    }

    /// All that is kept of it on disks, but for its record.
    pub(super) fn folders(&self, config: &JournalConfig) -> Vec<PathBuf> {
        [Some(self.folder(&config.folder)), self.replica_folder(config)].into_iter().flatten().collect()
    }

    pub(crate) fn policy(&self) -> JournalPolicy {
        self.lock().policy.clone()
    }

    /// Held by whoever changes what is set for its journal: of two neither takes back what the other has set.
    pub(super) fn lock_settings(&self) -> MutexGuard<'_, ()> {
        self.setting.lock().expect("a panic aborts the process")
    }

    /// Takes up what the operator has set for this journal.
    pub(crate) fn set_policy(&self, policy: JournalPolicy) {
        self.lock().policy = policy;
    }

    /// The journal's folder, taken for this process the first time.
    pub(crate) fn take_folder(&self, config: &JournalConfig) -> Result<Arc<FsStore>> {
        let folder = self.folder(&config.folder);
        let replicas = self.replica_folder(config);
        let _one = self.taking_folder.lock().expect("a panic aborts the process");
        let known = self.lock().store.clone();
        if let Some(store) = known {
            return Ok(store);
        }
        let store = Arc::new(FsStore::open(folder)?.with_replicas_in(replicas));
        let disk = std::fs::metadata(store.root()).context("look at the journal's folder")?.dev();
        let mut inner = self.lock();
        (inner.disk, inner.store) = (Some(disk), Some(store.clone()));
        Ok(store)
    }

    /// The file system its journal lies on. Of one that was not looked at yet, which may hang, what it lies in says that.
    pub(super) fn disk(&self, journal_dir: &Path) -> DiskId {
        let known = self.lock().disk;
        known.unwrap_or_else(|| unseen_disk(self.folder(journal_dir).parent()))
    }

    /// Gives the folder's lock back: the journal lies elsewhere from now on.
    pub(crate) fn let_go_of_folder(&self) {
        let mut inner = self.lock();
        (inner.store, inner.disk) = (None, None);
    }

    /// Bytes left where the journal lies.
    pub(crate) fn free_bytes(&self) -> u64 {
        let store = self.lock().store.clone();
        store.and_then(|store| store.free_bytes().ok()).unwrap_or(u64::MAX)
    }

    /// What the journal is to keep to: the protected side's policy and this side's own settings.
    pub(crate) fn settings(&self, config: &JournalConfig) -> Settings {
        let inner = self.lock();
        inner.policy.settings(inner.record.terms(), config)
    }

    /// Takes up what the protected side says of the VM now, as it was decided on what was `seen` of it. Not where an operator
    /// has changed that since: whether it was taken up.
    pub(crate) fn follow(
        &self,
        state: &StateDir,
        (hello, peer): (&Hello, &str),
        accept: Accept,
        seen: &RecoveryRecord,
    ) -> Result<bool> {
        let asked = accept.asks_less.map(Asked::from);
        let mut is_as_seen = false;
        self.change_record(state, "save what is known of the VM", |before| {
            is_as_seen = before == seen;
            if !is_as_seen {
                return before.clone();
            }
            let said = RecoveryRecord::from_hello(hello, peer, accept.terms);
            RecoveryRecord { left: before.left, seeded: before.seeded, asked, ..said }
        })?;
        Ok(is_as_seen)
    }

    /// Another agent sends it from now on.
    pub(super) fn hand_over(&self, state: &StateDir, peer: &str) -> Result<()> {
        self.change_record(state, "save which agent sends the VM", |before| RecoveryRecord {
            peer: peer.to_owned(),
            ..before.clone()
        })
    }

    /// Keeps the journal to what its site asks for from now on, if that is still so.
    pub(super) fn take_asked(&self, state: &StateDir, asked: Asked) -> Result<()> {
        self.change_record(state, "save the history that is kept", |before| {
            match before.asked == Some(asked) {
                false => before.clone(),
                true => RecoveryRecord {
                    history_seconds: asked.history_seconds,
                    journal_bytes_max: asked.bytes_max,
                    asked: None,
                    ..before.clone()
                },
            }
        })
    }

    /// Changes its record, on disk first. Whoever looks at it meanwhile sees it as it was, and waits for no disk.
    fn change_record(
        &self,
        state: &StateDir,
        what: &'static str,
        change: impl FnOnce(&RecoveryRecord) -> RecoveryRecord,
    ) -> Result<()> {
        let _one = self.changing.lock().expect("a panic aborts the process");
        self.check_is_kept()?;
        self.save_changed(state, what, change)
    }

    /// `changing` is held.
    fn save_changed(
        &self,
        state: &StateDir,
        what: &'static str,
        change: impl FnOnce(&RecoveryRecord) -> RecoveryRecord,
    ) -> Result<()> {
        let before = self.record();
        let record = change(&before);
        if before != record {
            state.save(&record.file_name(), &record).context(what)?;
            self.lock().record = record;
        }
        Ok(())
    }

    /// The VM has left its group, which had drawn `at` by then. Once this returns, that is known for good.
    pub(crate) fn leave(&self, state: &StateDir, at: WriteSeq) -> Result<()> {
        let _one = self.changing.lock().expect("a panic aborts the process");
        if self.is_forgotten() {
            return Ok(());
        }
        self.save_changed(state, "save that the VM has left its group", |before| RecoveryRecord {
            left: before.left.or(Some(at.raw())),
            ..before.clone()
        })
    }

    #[cfg(test)]
    pub(super) fn is_being_changed(&self) -> bool {
        self.changing.try_lock().is_err()
    }

    #[cfg(test)]
    pub(super) fn is_about_to_be_forgotten(&self) -> bool {
        self.lock().takes_no_stream
    }

    /// Whether it is being forgotten, and must not be used any more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.lock().record.forgotten
    }

    pub(super) fn check_is_kept(&self) -> Result<()> {
        self.lock().check_is_kept()
    }

    /// Whether nobody sends it just now.
    pub(super) fn check_is_not_sent(&self) -> crate::error::Result<()> {
        self.lock().check_is_not_sent()
    }

    /// Writes down that it is forgotten: from here on no stream begins. Not while there is one. Whether this call did.
    pub(super) fn begin_forgetting(&self, state: &StateDir) -> crate::error::Result<bool> {
        // Nobody locks its history meanwhile.
        let _set = self.lock_settings();
        self.check_not_locked("forgetting it")?;
        let _one = self.changing.lock().expect("a panic aborts the process");
        {
            let mut inner = self.lock();
            if inner.record.forgotten {
                return Ok(false);
            }
            inner.check_is_not_sent()?;
            inner.takes_no_stream = true;
        }
        let saved = self.save_changed(state, "save that the VM is forgotten", |before| RecoveryRecord {
            forgotten: true,
            ..before.clone()
        });
        self.lock().takes_no_stream = false;
        Ok(saved.map(|()| true)?)
    }

    /// Takes back that it is forgotten; its journal is as it was.
    pub(super) fn keep_after_all(&self, state: &StateDir) -> Result<()> {
        let _one = self.changing.lock().expect("a panic aborts the process");
        // Also where it is so here: what could not be made durable may be on the disk all the same.
        let record = RecoveryRecord { forgotten: false, ..self.record() };
        state.save(&record.file_name(), &record).context("save that the VM is kept")?;
        self.lock().record = record;
        Ok(())
    }

    /// Gives the stream to a new connection; the one before is told to go and waited for.
    pub(crate) async fn hold_stream(&self, farewell: Refuse) -> Option<StreamHold> {
        let _turn = self.handing_over.lock().await;
        // It stays in its place until it has ended: whoever stops or forgets meanwhile is to see it.
        let before = self.lock().stream.as_ref().map(|before| (before.words.clone(), before.ended.clone()));
        if let Some((words, mut ended)) = before {
            let _ = words.send(StreamWord::Stop(farewell));
            // The sender of `ended` is dropped with the hold, which is what is waited for.
            let gone = async { while ended.changed().await.is_ok() {} };
            if tokio::time::timeout(HAND_OVER_TIMEOUT, gone).await.is_err() {
                return None;
            }
        }
        let (told, words) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(false);
        let mut inner = self.lock();
        if inner.record.forgotten || inner.takes_no_stream {
            return None;
        }
        inner.stream = Some(Stream { words: told, ended });
        Some(StreamHold { words, _ended: end })
    }

    /// Has the source asked for what is lost of the newest state, if there is a stream: the next one asks by itself.
    pub(crate) fn ask_again(&self) {
        if let Some(stream) = &self.lock().stream {
            let _ = stream.words.send(StreamWord::AskAgain);
        }
    }

    /// Ends the stream, if there is one, and waits until nothing more is appended; whether it has ended. One that has
    /// not stays known as the VM's stream. A connection that is just being let in has none yet.
    #[must_use]
    pub(crate) fn stop_stream(&self, refuse: Refuse) -> bool {
        let Some((words, ended)) =
            self.lock().stream.as_ref().map(|one| (one.words.clone(), one.ended.clone()))
        else {
            return true;
        };
        let _ = words.send(StreamWord::Stop(refuse));
        for _ in 0..100 {
            if ended.has_changed().is_err() {
                return true;
            }
            std::thread::sleep(HAND_OVER_TIMEOUT / 100);
        }
        false
    }

    pub(super) fn note_fenced_greeting(&self, now: Monotonic) {
        self.lock().fenced_greeting_at = Some(now);
    }

    pub(super) fn fenced_greeting_at(&self) -> Option<Monotonic> {
        self.lock().fenced_greeting_at
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.lock().stream.as_ref().is_some_and(|stream| stream.ended.has_changed().is_ok())
    }

    /// The VM for the operator; `state` is what is done with it, where something is.
    pub(crate) fn to_api(
        &self,
        config: &JournalConfig,
        state: Option<&str>,
        epoch: u64,
        moving: Option<api::Moving>,
    ) -> api::RecoveredVm {
        let connected = self.is_streaming();
        let replicas = self.replicas(config);
        let journal = self.journal();
        let life = if journal.is_some() { State::Open } else { self.life.state() };
        let journal = journal.as_ref();
        let status = journal.map(|journal| journal.status());
        let status = status.as_ref();
        let newest_checkpoint = journal.and_then(|journal| journal.newest_checkpoint().ok()?);
        let tail = journal.and_then(|journal| journal.newest_consistent(WriteSeq::MAX));
        // Without one that is whole there may be others, which can be opened all the same.
        let any = CheckpointQuery { limit: 1, ..CheckpointQuery::default() };
        let has_any =
            tail.is_none() && journal.is_some_and(|journal| !journal.checkpoints(&any).rows.is_empty());
        let disks = journal.map(|journal| journal.disks()).unwrap_or_default();
        let inner = self.lock();
        let record = &inner.record;
        api::RecoveredVm {
            id: self.id.to_string(),
            name: record.name.clone(),
            site: site_of(&record.peer).to_owned(),
            group: record.group.clone(),
            group_id: record.group_id.clone(),
            epoch: epoch.max(status.map_or(0, |status| status.epoch.0)),
            state: state.unwrap_or_else(|| inner.own_state(life, tail.is_some(), has_any)).to_owned(),
            moving,
            last_error: inner.last_error.clone(),
            connected,
            peer: Some(record.peer.clone()),
            disks: disks
                .into_iter()
                .map(|disk| api::Disk {
                    path: replicas.join(format!("{}.raw", disk.name)).display().to_string(),
                    name: disk.name,
                    size_bytes: disk.size_bytes,
                    vhost_user_socket: None,
                    ublk_device: None,
                })
                .collect(),
            durable_seq: status.map_or(WriteSeq::ZERO, |status| status.last_seq).to_string(),
            syncing: status.is_none_or(|status| status.gap_open),
            writes: status.map_or(0, |status| status.guest_writes),
            journal_bytes: status.map_or(0, |status| status.journal_bytes),
            journal_bytes_max: record.journal_bytes_max,
            history_seconds: status.map_or(0, |status| status.history.as_secs()),
            history_seconds_max: record.history_seconds,
            projected_history_seconds: status
                .and_then(|status| status.projected_history)
                .map(|projected| projected.as_secs()),
            checkpoints: status.map_or(0, |status| status.checkpoints),
            damaged_bytes: status.map_or(0, |status| status.damaged_bytes),
            newest_checkpoint: newest_checkpoint.as_ref().map(checkpoint_to_api),
            tail: tail.map(|tail| tail.to_string()),
            left_at: record.left.map(|at| WriteSeq::from_raw(at).to_string()),
            locked_until: inner.policy.lock.as_ref().map(RetentionLock::until_text),
        }
    }
}

/// What stands for the file system of a journal that was not looked at: no file system has such a number.
fn unseen_disk(around: Option<&Path>) -> DiskId {
    let mut hasher = DefaultHasher::new();
    around.hash(&mut hasher);
    hasher.finish() | (1 << 63)
}

pub(crate) fn checkpoint_to_api(facts: &CheckpointFacts) -> api::Checkpoint {
    api::Checkpoint {
        writes: facts.writes,
        write_bytes: facts.bytes,
        entropy_bits: facts.entropy_bits(),
        damaged_bytes: facts.damaged_bytes,
        ..mark_to_api(&facts.checkpoint)
    }
}

/// A checkpoint of which nothing more is known here.
pub(crate) fn mark_to_api(checkpoint: &Checkpoint) -> api::Checkpoint {
    api::Checkpoint {
        writes: 0,
        write_bytes: 0,
        entropy_bits: None,
        damaged_bytes: 0,
        id: checkpoint.id.to_string(),
        cut: checkpoint.cut.to_string(),
        kind: match checkpoint.kind {
            types::CheckpointKind::Automatic => "automatic".into(),
            types::CheckpointKind::Tagged => "tagged".into(),
        },
        tag: checkpoint.tag.clone(),
        taken_at: clock::to_text(checkpoint.taken_at),
    }
}
