//! VMs whose protection has ended, until their recovery side knows it.
//!
//! 1. The departure is written down.
//! 2. The protection's record goes.
//! 3. The recovery side is told, as often as it takes.
//! 4. It has written that down and says so.
//! 5. The departure's record goes.
//!
//! Where that side is gone for good, the operator ends step 3 with `holdfast vm forget`.
//!
//! An agent that dies between 1 and 2 ends the protection when it comes back, as the operator wanted; one that dies
//! later tells it again, which changes nothing.

use super::Source;
use super::record::{FirstSync, ProtectionRecord};
use crate::alerts::{AlertKind, Cause};
use crate::error::OperationError;
use crate::link;
use crate::wire_io::{read_message, write_message};
use anyhow::{Context, Result, bail};
use replication::wire::{FrameReader, Leave, Message, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::timeout;
use types::limits::CONNECT_TIMEOUT;
use types::{Epoch, GroupId, WriteSeq};

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// So long an operator's command waits for the recovery side to know; it is told later otherwise.
const PATIENCE: Duration = Duration::from_secs(2);
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
    /// The last sequence its group had drawn.
    left_at: u64,
}

/// The departures that are being told, by the VM's id. What is not here any more is neither told again nor written down.
#[derive(Debug, Default)]
pub(super) struct Departures {
    telling: Mutex<BTreeMap<String, DepartureRecord>>,
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

impl DepartureRecord {
    fn file_name(&self) -> String {
        format!("{FOLDER}/{}.json", self.vm)
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
    /// Writes down that a VM leaves, unless its recovery side has never heard of it.
    pub(super) fn record_departure(
        &self,
        record: &ProtectionRecord,
        left_at: WriteSeq,
    ) -> Result<Option<DepartureRecord>> {
        if record.first_sync == FirstSync::NotBegun {
            return Ok(None);
        }
        self.state.reach_run(left_at.run())?;
        let departure = DepartureRecord {
            vm: record.vm.clone(),
            name: record.name.clone(),
            group_id: record.group_id.clone(),
            group: record.group.clone(),
            epoch: record.epoch,
            peer: record.peer.clone(),
            left_at: left_at.raw(),
        };
        self.state.save(&departure.file_name(), &departure)?;
        Ok(Some(departure))
    }

    /// Tells the recovery side, in the background for as long as it takes; waits shortly for that.
    pub(super) fn tell_departure(self: &Arc<Self>, departure: Option<DepartureRecord>) {
        let Some(departure) = departure else { return };
        self.departures.lock().insert(departure.vm.clone(), departure.clone());
        let telling = tokio::spawn(tell(self.clone(), departure));
        let waiting = async { timeout(PATIENCE, telling).await.is_ok() };
        tokio::runtime::Handle::current().block_on(waiting);
    }

    /// Goes on with the departures of before: ends protections that an operator had ended, and tells of them.
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
            if let Err(error) = self.end_unfinished(&departure) {
                let text = format!("VM {} is unprotected in part only: {error:#}", departure.name);
                self.alerts.raise(format!("departure of {}", departure.vm), text);
            }
            self.departures.lock().insert(departure.vm.clone(), departure.clone());
            tokio::spawn(tell(self.clone(), departure));
        }
        Ok(())
    }

    /// The VM whose departure an operator means, by its id.
    pub(crate) fn departure(&self, word: &str) -> Option<String> {
        self.departures.find(word).map(|departure| departure.vm)
    }

    /// Tells of a departure no more: the operator says that the recovery side is gone for good, or need not know.
    pub(crate) fn forget_departure(&self, vm: &str) -> crate::error::Result<()> {
        let mut telling = self.departures.lock();
        let departure = telling
            .get(vm)
            .ok_or_else(|| OperationError::not_found(format!("nobody is told that VM {vm} has left")))?;
        self.state.remove(&departure.file_name())?;
        tracing::info!(
            vm = departure.name,
            peer = departure.peer,
            "the recovery side is not told that it has left"
        );
        telling.remove(vm);
        self.alerts.clear(departure_cause(vm));
        Ok(())
    }

    /// Ends a protection that an operator had ended, where the agent's end came between.
    fn end_unfinished(&self, departure: &DepartureRecord) -> Result<()> {
        let unfinished = format!("protected/{}.json", departure.vm);
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

/// Tells of a departure until it is known, or the operator says that it need not be.
async fn tell(source: Arc<Source>, mut departure: DepartureRecord) {
    let alert = departure_cause(&departure.vm);
    loop {
        let why = match timeout(CONNECT_TIMEOUT, say(&source, &departure)).await {
            Ok(Ok(Answer::Known)) => break,
            Ok(Ok(Answer::Fenced { epoch, released: true })) if epoch.0 > departure.epoch => {
                departure.epoch = epoch.0;
                let mut telling = source.departures.lock();
                let Some(told) = telling.get_mut(&departure.vm) else { return };
                told.epoch = epoch.0;
                if let Err(error) = source.state.save(&departure.file_name(), &departure) {
                    tracing::warn!(
                        vm = departure.name,
                        error = format!("{error:#}"),
                        "epoch is not recorded"
                    );
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
        {
            let telling = source.departures.lock();
            if !telling.contains_key(&departure.vm) {
                return;
            }
            source.alerts.raise(alert.clone(), text);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
        if !source.departures.lock().contains_key(&departure.vm) {
            return;
        }
    }
    let mut telling = source.departures.lock();
    if telling.remove(&departure.vm).is_none() {
        return;
    }
    source.alerts.clear(alert);
    match source.state.remove(&departure.file_name()) {
        Ok(()) => tracing::info!(vm = departure.name, "the recovery side knows that it has left"),
        Err(error) => {
            tracing::warn!(vm = departure.name, error = format!("{error:#}"), "told again next time")
        }
    }
}

async fn say(source: &Source, departure: &DepartureRecord) -> Result<Answer> {
    let mut connected = link::connect(&source.pki, &departure.peer, source.dscp).await?;
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
    use super::*;

    fn departure(group_id: GroupId) -> DepartureRecord {
        DepartureRecord {
            vm: "01".into(),
            name: "web".into(),
            group_id: group_id.to_string(),
            group: "shop".into(),
            epoch: 1,
            peer: "rome:1".into(),
            left_at: 1,
        }
    }

    #[test]
    fn a_departure_is_of_the_group_it_was_of_whatever_has_its_name_now_and_unread_of_any() {
        let (then, now) = (GroupId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
        let departures = Departures::default();
        departures.lock().insert("01".into(), departure(then));
        assert!(departures.has_of(then) && !departures.has_of(now));
        departures.note_unknown();
        assert!(departures.has_of(now));
    }
}
