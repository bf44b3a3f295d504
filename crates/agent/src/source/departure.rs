//! VMs whose protection has ended, until their recovery side knows it.
//!
//! 1. The departure is written down, and the protection's record goes ([`super::unprotecting`]).
//! 2. The recovery side is told, as often as it takes.
//! 3. It has written that down and says so.
//! 4. The departure's record goes.
//!
//! Where that side is gone for good, the operator ends step 2 with `holdfast vm forget`. Hearing it twice changes nothing.
//! What an agent of before has written down without an operation ends its protection, as the operator wanted.

use super::Source;
use super::record::ProtectionRecord;
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use crate::error::OperationError;
use crate::link;
use crate::one_at_a_time::OneAtATime;
use crate::state::StateDir;
use crate::wire_io::{read_message, write_message};
use anyhow::{Context, Result, bail};
use replication::wire::{FrameReader, Leave, Message, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::timeout;
use types::limits::CONNECT_TIMEOUT;
use types::{Epoch, GroupId, VmId, WriteSeq};

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// So long an operator's command waits for the recovery side to know; it is told later otherwise.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const FOLDER: &str = "departures";

/// A VM that has left, as `state/departures/VM.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DepartureRecord {
    vm: String,
    name: String,
    group_id: String,
    group: String,
    epoch: u64,
    peer: String,
    /// The agent there that it was protected to, `AGENT.SITE`; none where none had answered yet, or an older version wrote this.
    #[serde(default)]
    peer_agent: Option<String>,
    /// The last sequence its group had drawn.
    left_at: u64,
}

/// The departures that are being told, by the VM's id. What is not here any more is neither told again nor written down.
///
/// A file is written and removed in its VM's turn, and never under the lock: a disk that hangs holds up neither other
/// departures nor whoever asks for them.
#[derive(Debug, Default)]
pub(super) struct Departures {
    telling: Mutex<BTreeMap<String, DepartureRecord>>,
    /// Those of them that are told by somebody.
    told_by_somebody: Mutex<BTreeSet<String>>,
    changing: OneAtATime<String>,
    /// There are some that cannot be read, of which nobody is told: they may be of any group.
    has_unknown: AtomicBool,
}

impl Departures {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, DepartureRecord>> {
        self.telling.lock().expect("a panic aborts the process")
    }

    /// Whether a VM of the group may have left of which its recovery side does not know. A group is its id: another may
    /// have had its name before.
    pub(super) fn has_of(&self, group: GroupId) -> bool {
        let id = group.to_string();
        self.has_unknown.load(Ordering::SeqCst) || self.lock().values().any(|one| one.group_id == id)
    }

    /// One of them cannot be read.
    fn note_unknown(&self) {
        self.has_unknown.store(true, Ordering::SeqCst);
    }

    fn is_told(&self, vm: &str) -> bool {
        self.lock().contains_key(vm)
    }

    fn tellers(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.told_by_somebody.lock().expect("a panic aborts the process")
    }

    /// It is told with this epoch from now on; whether it is told at all. Waits for the disk.
    fn adopt_epoch(&self, state: &StateDir, vm: &str, epoch: Epoch) -> bool {
        let _turn = self.changing.wait(vec![vm.to_owned()]);
        let Some(mut departure) = self.lock().get(vm).cloned() else { return false };
        departure.epoch = epoch.0;
        if let Err(error) = state.save(&departure.file_name(), &departure) {
            tracing::warn!(vm = departure.name, error = format!("{error:#}"), "epoch is not recorded");
        }
        self.lock().insert(vm.to_owned(), departure);
        true
    }

    /// The recovery side knows: it is told no more; whether it still was. Waits for the disk.
    fn end(&self, state: &StateDir, vm: &str) -> bool {
        let _turn = self.changing.wait(vec![vm.to_owned()]);
        let Some(departure) = self.lock().remove(vm) else { return false };
        match state.remove(&departure.file_name()) {
            Ok(()) => tracing::info!(vm = departure.name, "the recovery side knows that it has left"),
            Err(error) => {
                tracing::warn!(vm = departure.name, error = format!("{error:#}"), "told again next time");
            }
        }
        true
    }

    /// As an operator wants it: it is told no more. Waits for the disk.
    fn forget(&self, state: &StateDir, vm: &str) -> crate::error::Result<()> {
        let _turn = self.changing.take(vec![vm.to_owned()], &format!("the departure of VM {vm}"))?;
        let departure = self.lock().get(vm).cloned();
        let departure = departure
            .ok_or_else(|| OperationError::not_found(format!("nobody is told that VM {vm} has left")))?;
        state.remove(&departure.file_name())?;
        tracing::info!(
            vm = departure.name,
            peer = departure.peer,
            "the recovery side is not told that it has left"
        );
        self.lock().remove(vm);
        Ok(())
    }

    /// That of the VM that an operator means by its id or the name it had; of several of that name none.
    fn find(&self, word: &str) -> Option<DepartureRecord> {
        let all = self.lock();
        if let Some(one) = all.get(word) {
            return Some(one.clone());
        }
        let mut named = all.values().filter(|departure| departure.name == word);
        named.next().filter(|_| named.next().is_none()).cloned()
    }
}

/// What the recovery side says to a departure.
enum Answer {
    Known,
    /// Its authority is elsewhere, or has come back with this epoch.
    Fenced {
        epoch: Epoch,
        released: bool,
    },
}

fn file_name(vm: &str) -> String {
    format!("{FOLDER}/{vm}.json")
}

impl DepartureRecord {
    fn file_name(&self) -> String {
        file_name(&self.vm)
    }

    /// Checks that whoever answers there is meant: another one keeps nothing of it, and would say that all is known.
    fn check_answers(&self, name: &str) -> Result<()> {
        match self.peer_agent.as_ref().filter(|meant| *meant != name) {
            None => Ok(()),
            Some(meant) => bail!("{} is answered by {name}, and the VM was protected to {meant}", self.peer),
        }
    }

    fn to_message(&self) -> Result<Message> {
        Ok(Message::Leave(Leave {
            vm: self.vm.parse().context("the VM's id")?,
            group: self.group_id.parse().context("the group's id")?,
            epoch: Epoch(self.epoch),
            at: WriteSeq::from_raw(self.left_at),
        }))
    }
}

impl Source {
    /// A VM leaves; nothing where its recovery side has never heard of it. From here on the others of its group promise
    /// nothing until that side knows.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub(super) fn record_departure(&self, record: &ProtectionRecord, left_at: WriteSeq) -> Result<()> {
        if !record.first_sync.was_heard_of() {
            return Ok(());
        }
        self.state.reach_run(left_at.run())?;
        let departure = DepartureRecord {
            vm: record.vm.clone(),
            name: record.name.clone(),
            group_id: record.group_id.clone(),
            group: record.group.clone(),
            epoch: record.epoch,
            peer: record.peer.clone(),
            peer_agent: record.peer_agent.clone(),
            left_at: left_at.raw(),
        };
        self.departures.lock().insert(departure.vm.clone(), departure.clone());
        self.state.save(&departure.file_name(), &departure)
    }

    /// The same where an agent before this one may have written it down: the others promise nothing from here on either way.
    pub(super) fn have_departure(&self, record: &ProtectionRecord, left_at: WriteSeq) -> Result<()> {
        match self.state.load::<DepartureRecord>(&file_name(&record.vm)) {
            Ok(None) => return self.record_departure(record, left_at),
            Ok(Some(departure)) => {
                self.departures.lock().entry(departure.vm.clone()).or_insert(departure);
            }
            // Whoever is to tell it says so.
            Err(_) => self.departures.note_unknown(),
        }
        Ok(())
    }

    /// It does not leave after all, which nobody was told yet.
    pub(super) fn take_departure_back(&self, vm: VmId) -> Result<()> {
        self.state.remove(&file_name(&vm.to_string()))?;
        self.departures.lock().remove(&vm.to_string());
        Ok(())
    }

    /// Whether that it leaves is written down.
    pub(super) fn is_departure_recorded(&self, vm: VmId) -> bool {
        self.state.path(&file_name(&vm.to_string())).exists()
    }

    /// Whether its recovery side knows, need not know, or is being told.
    pub(super) fn is_departure_told(&self, vm: VmId) -> bool {
        !self.is_departure_recorded(vm) || self.departures.tellers().contains(&vm.to_string())
    }

    /// Tells the recovery side what is written down, in the background for as long as it takes.
    pub(super) fn tell_departure(self: &Arc<Self>, vm: VmId) -> Result<()> {
        if let Some(departure) = self.state.load::<DepartureRecord>(&file_name(&vm.to_string()))? {
            self.tell(departure);
        }
        Ok(())
    }

    fn tell(self: &Arc<Self>, departure: DepartureRecord) {
        self.departures.lock().insert(departure.vm.clone(), departure.clone());
        if self.departures.tellers().insert(departure.vm.clone()) {
            tokio::spawn(tell(self.clone(), departure));
        }
    }

    /// Waits shortly for the recovery side to know.
    pub(super) fn wait_for_departure(&self, vm: VmId) {
        let until = clock::now().plus(PATIENCE);
        while self.departures.is_told(&vm.to_string()) && clock::now() < until {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Goes on with the departures of before. What an operation has yet to end is its own; what it has ended is told here,
    /// for it may have come behind its last step.
    pub(super) fn resume_departures(self: &Arc<Self>) -> Result<()> {
        for departure in self.state.load_each::<DepartureRecord>(FOLDER)? {
            let departure = match departure {
                Ok(departure) => departure,
                Err(error) => {
                    let text = format!(
                        "the recovery side is not told of a VM that has left: {error:#}; remove that file once it is \
                         known there, or mend it, and start the agent anew"
                    );
                    self.departures.note_unknown();
                    self.alerts.raise("departures", text);
                    continue;
                }
            };
            if self.is_being_unprotected(&departure.vm) && self.is_recorded(&departure.vm) {
                continue;
            }
            if let Err(error) = self.end_unfinished(&departure) {
                let text = format!("VM {} is unprotected in part only: {error:#}", departure.name);
                self.alerts.raise(format!("departure of {}", departure.vm), text);
            }
            self.tell(departure);
        }
        Ok(())
    }

    /// The VM whose departure an operator means, by its id.
    pub(crate) fn departure(&self, word: &str) -> Option<String> {
        self.departures.find(word).map(|departure| departure.vm)
    }

    /// Tells of a departure no more: the operator says that the recovery side is gone for good, or need not know.
    pub(crate) fn forget_departure(&self, vm: &str) -> crate::error::Result<()> {
        self.departures.forget(&self.state, vm)?;
        self.alerts.clear(departure_cause(vm));
        Ok(())
    }

    /// Does what waits for a disk where that holds up nobody.
    async fn at_departures<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Departures, &StateDir) -> T + Send + 'static,
    ) -> T {
        let source = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&source.departures, &source.state)).await;
        done.expect("a panic aborts the process")
    }

    /// Ends a protection that an operator had ended, where the end of an agent of before came between.
    fn end_unfinished(&self, departure: &DepartureRecord) -> Result<()> {
        let unfinished = super::record::file_name(&departure.vm);
        if let Some(record) = self.state.load::<ProtectionRecord>(&unfinished)? {
            self.remove_records(&record)?;
            tracing::info!(vm = record.name, "unprotected, as was asked for before the agent ended");
        }
        Ok(())
    }
}

fn departure_cause(vm: &str) -> Cause {
    Cause::new(AlertKind::Departure, vm)
}

async fn tell(source: Arc<Source>, departure: DepartureRecord) {
    let vm = departure.vm.clone();
    tell_until_known(&source, departure).await;
    source.departures.tellers().remove(&vm);
}

/// Tells of a departure until it is known, or the operator says that it need not be.
async fn tell_until_known(source: &Arc<Source>, mut departure: DepartureRecord) {
    let alert = departure_cause(&departure.vm);
    loop {
        let why = match timeout(CONNECT_TIMEOUT, say(source, &departure)).await {
            Ok(Ok(Answer::Known)) => break,
            Ok(Ok(Answer::Fenced { epoch, released: true })) if epoch.0 > departure.epoch => {
                departure.epoch = epoch.0;
                let vm = departure.vm.clone();
                if !source.at_departures(move |it, state| it.adopt_epoch(state, &vm, epoch)).await {
                    return;
                }
                continue;
            }
            Ok(Ok(Answer::Fenced { .. })) => "its group has failed over".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the recovery side does not answer".to_owned(),
        };
        let text = format!(
            "VM {} is protected no more, which the recovery side at {} does not know yet ({why}): the newest state of \
             group {} is held back there until it does; tried again by itself. If that side is gone for good: \
             `holdfast vm forget {}`",
            departure.name, departure.peer, departure.group, departure.vm
        );
        source.alerts.raise(alert.clone(), text);
        // What an operator has ended meanwhile is no alert, whoever of the two was later.
        if !source.departures.is_told(&departure.vm) {
            source.alerts.clear(alert);
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
        if !source.departures.is_told(&departure.vm) {
            return;
        }
    }
    let vm = departure.vm.clone();
    if source.at_departures(move |it, state| it.end(state, &vm)).await {
        source.alerts.clear(alert);
    }
}

async fn say(source: &Source, departure: &DepartureRecord) -> Result<Answer> {
    let mut connected = link::connect(&source.pki, &departure.peer, source.dscp).await?;
    departure.check_answers(&connected.peer.name)?;
    let message = departure.to_message()?;
    write_message(&mut connected.writer, &mut connected.first, &message).await.context("say who leaves")?;
    tokio::io::AsyncWriteExt::flush(&mut connected.writer).await.context("say who leaves")?;
    let mut frames = FrameReader::default();
    loop {
        match read_message(&mut connected.reader, &mut frames).await.context("hear the recovery side")? {
            Message::Left(vm) if vm.to_string() == departure.vm => return Ok(Answer::Known),
            Message::Refuse(refuse) => match refuse.why {
                Refusal::Fenced { epoch, released } => return Ok(Answer::Fenced { epoch, released }),
                _ => bail!("the recovery side refuses: {}", refuse.detail),
            },
            Message::Heartbeat => {}
            _ => bail!("the recovery side says something that has no place here"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::claimed::Claimed;
    use crate::pki::Pki;
    use replication::wire::FrameWriter;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    fn departure(vm: &str, group_id: GroupId) -> DepartureRecord {
        DepartureRecord {
            vm: vm.into(),
            name: format!("web-{vm}"),
            group_id: group_id.to_string(),
            group: "shop".into(),
            epoch: 1,
            peer: "rome:1".into(),
            peer_agent: None,
            left_at: 1,
        }
    }

    #[test]
    fn a_departure_is_of_the_group_it_was_of_whatever_has_its_name_now_and_unread_of_any() {
        let (then, now) = (GroupId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
        let departures = Departures::default();
        departures.lock().insert("01".into(), departure("01", then));
        assert!(departures.has_of(then) && !departures.has_of(now));
        departures.note_unknown();
        assert!(departures.has_of(now));
    }

    /// An agent of a trusted site that says of every VM that it knows that it has left.
    async fn agrees_with_everything(pki: Pki, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(pki.stream_server(&Claimed::default()).unwrap());
            let (mut reader, mut writer) = tokio::io::split(acceptor.accept(stream).await.unwrap());
            if let Ok(Message::Leave(leave)) = read_message(&mut reader, &mut FrameReader::default()).await {
                let left = Message::Left(leave.vm);
                write_message(&mut writer, &mut FrameWriter::default(), &left).await.unwrap();
                tokio::io::AsyncWriteExt::flush(&mut writer).await.unwrap();
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn that_a_vm_has_left_is_said_to_the_agent_it_was_protected_to_and_to_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let side = super::super::tests::source(folder.path());
        let rome = Pki::new(folder.path().join("rome"));
        side.pki.init("paris").unwrap();
        rome.init("rome").unwrap();
        side.pki.issue("agent-1", "agent", &[], 30).unwrap();
        rome.issue("b9", "agent", &["localhost".into()], 30).unwrap();
        side.pki.trust("rome", &rome.file("ca.pem")).unwrap();
        rome.trust("paris", &side.pki.file("ca.pem")).unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let peer = format!("localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(agrees_with_everything(rome, listener));
        let vm = VmId::from_bytes([1; 16]).to_string();
        let to = |agent: Option<&str>| DepartureRecord {
            peer: peer.clone(),
            peer_agent: agent.map(str::to_owned),
            ..departure(&vm, GroupId::from_bytes([1; 16]))
        };
        let refused = say(&side, &to(Some("b1.rome"))).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("b9.rome") && refused.contains("b1.rome"), "{refused}");
        for agent in [Some("b9.rome"), None] {
            assert!(matches!(say(&side, &to(agent)).await.unwrap(), Answer::Known));
        }
    }

    #[test]
    fn a_departure_whose_file_hangs_on_its_disk_holds_up_nobody_who_asks_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let (group, departures) = (GroupId::from_bytes([1; 16]), Departures::default());
        for vm in ["01", "02", "03"] {
            let one = departure(vm, group);
            state.save(&one.file_name(), &one).unwrap();
            departures.lock().insert(vm.into(), one);
        }
        // Whoever opens a pipe to write waits until somebody reads it.
        let pipe = state.path("departures/01.partial");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        std::thread::scope(|scope| {
            let (departures, state, (tell, told)) = (&departures, &state, std::sync::mpsc::channel());
            let hangs = scope.spawn(|| departures.adopt_epoch(state, "01", Epoch(7)));
            while departures.changing.try_take(vec!["01".into()]).is_some() {}
            scope.spawn(move || {
                assert!(departures.has_of(group) && departures.find("web-01").is_some());
                assert!(departures.adopt_epoch(state, "02", Epoch(8)) && departures.end(state, "02"));
                departures.forget(state, "03").unwrap();
                let _ = tell.send(());
            });
            let others = told.recv_timeout(Duration::from_secs(60));
            let reader = std::fs::File::open(&pipe).unwrap();
            assert!(hangs.join().unwrap(), "it is told on, with an epoch that is not recorded");
            drop(reader);
            others.expect("whoever asks for departures, or ends another, waits");
        });
        assert_eq!(departures.find("01").unwrap().epoch, 7);
        assert!(departures.find("02").is_none() && departures.find("03").is_none());
        assert!(!state.path("departures/02.json").exists() && !state.path("departures/03.json").exists());
        assert!(!departures.adopt_epoch(&state, "02", Epoch(9)) && !departures.end(&state, "03"));
        assert!(departures.forget(&state, "02").is_err(), "nobody is told of it any more");
    }
}
