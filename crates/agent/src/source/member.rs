//! The connection to the agent that coordinates a group which has VMs here.

use super::Source;
use super::group::{Group, Here};
use crate::clock;
use crate::link::{self, Connected};
use crate::state::StateDir;
use crate::wire_io::{Outgoing, ReadError, read_ahead, read_message, write_message, write_messages};
use anyhow::{Context, Result, bail};
use joint::cut::Follower;
use replication::wire::{CutMessage, CutRefusal, FrameReader, Join, Message};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio::time::timeout;
use types::limits::{CONNECT_TIMEOUT, HEARTBEAT_INTERVAL, PEER_SILENCE_MAX};
use types::{GroupId, Monotonic, VmId, WriteSeq};

const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Asks the coordinator for the group's id; the group has `vms` here.
pub(super) async fn ask_to_join(
    source: &Source,
    coordinator: &str,
    group: &str,
    vms: u16,
) -> Result<GroupId> {
    let joining = async { join(source, coordinator, group, vms).await.map(|(_, _, id)| id) };
    timeout(CONNECT_TIMEOUT, joining).await.context("the coordinator does not answer")?
}

async fn join(
    source: &Source,
    coordinator: &str,
    group: &str,
    vms: u16,
) -> Result<(Connected, FrameReader, GroupId)> {
    let mut connected = link::connect(&source.pki, coordinator, source.dscp).await?;
    let mut frames = FrameReader::default();
    let hello = Message::Join(Join { group_name: group.to_owned(), vms });
    write_message(&mut connected.writer, &mut connected.first, &hello).await.context("say who joins")?;
    tokio::io::AsyncWriteExt::flush(&mut connected.writer).await.context("say who joins")?;
    match read_message(&mut connected.reader, &mut frames).await.context("hear the coordinator")? {
        Message::Cut(CutMessage::Joined { group }) => Ok((connected, frames, group)),
        Message::Refuse(refuse) => bail!("the coordinator refuses: {}", refuse.detail),
        _ => bail!("the coordinator says something that has no place here"),
    }
}

/// Follows the coordinator for as long as the group lives.
pub(super) async fn follow(source: Arc<Source>, group: Weak<Group>, coordinator: String) {
    let mut last_error = None;
    // Whether the coordinator may think that the group has VMs here that it is to wait for.
    let mut joined = true;
    let mut follower = Follower::default();
    loop {
        let Some(alive) = group.upgrade() else { return };
        let name = alive.name().to_owned();
        let told = alive.checkpointed_ids();
        let vms = alive.count(told.clone());
        if vms == 0 && joined && !alive.members().is_empty() {
            // Those that are here are in their first sync: checkpoints are taken without them.
            joined = ask_to_join(&source, &coordinator, &name, 0).await.is_err();
        }
        if vms > 0 {
            joined = true;
            let why = match timeout(CONNECT_TIMEOUT, join(&source, &coordinator, &name, vms)).await {
                Ok(Ok((connected, frames, _))) => {
                    tracing::info!(group = name, coordinator, "follows the group's coordinator");
                    last_error = None;
                    serve(&source.state, &alive, &told, &mut follower, connected, frames).await
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "the coordinator does not answer".to_owned(),
            };
            if last_error.as_ref() != Some(&why) {
                tracing::warn!(group = name, coordinator, why, "no checkpoint of the group is taken");
            }
            last_error = Some(why);
        }
        drop(alive);
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// What this host does for one connection to the coordinator.
struct Part<'a> {
    state: &'a StateDir,
    group: &'a Group,
    follower: &'a mut Follower,
    queue: mpsc::UnboundedSender<Outgoing>,
}

/// Does what the coordinator says until the connection is lost, or the group's VMs here are others.
///
/// `told`: the VMs that the coordinator counts on. A checkpoint with another number of them would count as whole though
/// one is missing.
async fn serve(
    state: &StateDir,
    group: &Group,
    told: &BTreeSet<VmId>,
    follower: &mut Follower,
    connected: Connected,
    frames: FrameReader,
) -> String {
    let Connected { reader, writer, first, .. } = connected;
    let (queue, outgoing) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write_messages(writer, first, outgoing));
    let (inbox, mut messages) = mpsc::channel(4);
    let reading = tokio::spawn(read_ahead(reader, frames, inbox));
    follower.connected();
    let mut part = Part { state, group, follower, queue };
    let mut heard_at = clock::now();
    let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL / 4);
    let why = loop {
        let hold_ends = part.follower.due();
        tokio::select! {
            biased;
            message = messages.recv() => {
                heard_at = clock::now();
                if let Some(why) = part.on_message(message) {
                    break why;
                }
            }
            () = until(hold_ends) => part.follower.tick(clock::now(), &mut Here(group)),
            _ = ticks.tick() => {
                if clock::now().since(heard_at) > PEER_SILENCE_MAX {
                    break "the coordinator has gone silent".to_owned();
                }
                if group.checkpointed_ids() != *told {
                    break "the group has other VMs here now".to_owned();
                }
                part.tell();
            }
        }
    };
    let hold_ends = part.follower.due();
    drop(part);
    reading.abort();
    let _ = timeout(RETRY_INTERVAL, writing).await;
    until(hold_ends.or(Some(Monotonic::default()))).await;
    follower.tick(clock::now(), &mut Here(group));
    why
}

/// Waits until then, or for ever.
async fn until(then: Option<Monotonic>) {
    match then {
        Some(then) => tokio::time::sleep(then.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

impl Part<'_> {
    /// Does what it says; the reason where the connection ends with it.
    fn on_message(&mut self, message: Option<Result<Message, ReadError>>) -> Option<String> {
        match message {
            Some(Ok(Message::Cut(message))) => {
                match self.follower.heard(clock::now(), message, &mut Here(self.group)) {
                    Ok(answer) => return answer.and_then(|answer| self.answer(answer)),
                    Err(why) => return Some(why.to_string()),
                }
            }
            Some(Ok(Message::Heartbeat)) => {}
            Some(Ok(_)) => return Some("something that has no place here".to_owned()),
            Some(Err(error)) => return Some(error.to_string()),
            None => return Some("the connection was closed".to_owned()),
        }
        None
    }

    /// Answers, once the run is recorded that it tells of; the reason where that cannot be.
    fn answer(&self, answer: CutMessage) -> Option<String> {
        let told = match &answer {
            CutMessage::Prepared { refused: Some(CutRefusal::Passed(last)), .. } => *last,
            CutMessage::Prepared { cut, refused: None } => *cut,
            _ => WriteSeq::ZERO,
        };
        if let Err(error) = block_in_place(|| self.state.reach_run(told.run())) {
            return Some(format!("the run of {told} cannot be recorded, mend the state folder: {error:#}"));
        }
        self.say(Message::Cut(answer));
        None
    }

    /// Says that the host is there, and what is durable.
    fn tell(&mut self) {
        if let Some(durable) = self.follower.durable(self.group.newest_durable_cut()) {
            self.say(Message::Cut(durable));
        }
        self.say(Message::Heartbeat);
    }

    fn say(&self, message: Message) {
        // A closed queue means that the connection is gone, which the reader tells.
        let _ = self.queue.send(message.into());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::super::tests::{record, source, take_up};
    use super::*;
    use joint::membership::FirstSync;
    use types::RunNumber;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_is_recorded_before_a_coordinator_hears_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let web = take_up(&source, record(folder.path(), "web", FirstSync::Done));
        let group = web.group();
        let (queue, mut said) = mpsc::unbounded_channel();
        let mut follower = Follower::default();
        let mut part = Part { state: &source.state, group, follower: &mut follower, queue };
        // As where its journal was heard to be of a later run.
        group.counter().raise(WriteSeq::before_run(RunNumber(9)).next());
        let cut = WriteSeq::before_run(RunNumber(5));
        assert!(part.on_message(Some(Ok(Message::Cut(CutMessage::Prepare { cut })))).is_none());
        let Message::Cut(CutMessage::Prepared { refused: Some(CutRefusal::Passed(last)), .. }) =
            said.try_recv().unwrap().message
        else {
            panic!("a number that was passed is drawn");
        };
        assert!(last.run() >= RunNumber(8) && source.state.next_run().unwrap() > last.run());

        std::fs::create_dir(source.state.path("run.partial")).unwrap();
        group.counter().raise(WriteSeq::before_run(RunNumber(50)).next());
        assert!(part.on_message(Some(Ok(Message::Cut(CutMessage::Prepare { cut })))).is_some());
        assert!(said.try_recv().is_err(), "it is told of a run that is not recorded");
    }
}
