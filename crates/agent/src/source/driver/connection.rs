//! The connection of a stream: its tasks, what is said over it, and the share of the link that batches wait for.
//!
//! What holds: whatever still comes from a connection that was dropped is not listened to, by its number.

use super::{Driver, Input};
use crate::clock;
use crate::link::{self, TurnedAway};
use crate::source::files::send_file;
use crate::wire_io::{ReadError, read_message, write_messages};
use replication::SenderEvent;
use replication::wire::{ArtifactHash, FrameReader, Message};
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use types::RunNumber;

impl Driver {
    pub(super) fn connect(&mut self) {
        self.drop_link();
        let link = self.link.number;
        let (inputs, pki) = (self.inputs.clone(), self.source.pki.clone());
        let (peer, dscp) = (self.vm.record().peer, self.source.dscp);
        tokio::spawn(async move {
            let result = link::connect(&pki, &peer, dscp).await;
            let _ = inputs.send(Input::Connected { link, result }).await;
        });
    }

    pub(super) fn begin_link(&mut self, connected: link::Connected) {
        if let Some(why) = self.is_another_agent(&connected.peer.name) {
            return self.note_lost(Some(TurnedAway::Here), why, "another agent answers");
        }
        tracing::info!(vm = self.vm.name(), peer = connected.peer.name, "link up");
        self.link.peer = Some(connected.peer);
        let (mut reader, writer, first) = (connected.reader, connected.writer, connected.first);
        let (queue, outgoing) = mpsc::unbounded_channel();
        self.link.queue = Some(queue);
        let number = self.link.number;
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let mut frames = FrameReader::default();
            let error = loop {
                match read_message(&mut reader, &mut frames).await {
                    Ok(message) => {
                        if inputs.send(Input::Message { link: number, message }).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => break error,
                }
            };
            let turned_away = if let ReadError::Io(error) = &error { TurnedAway::of_io(error) } else { None };
            let _ = inputs.send(Input::Lost { link: number, why: error.to_string(), turned_away }).await;
        });
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            if let Err(error) = write_messages(writer, first, outgoing).await {
                // Where a peer says why, whoever reads is told.
                let lost = Input::Lost { link: number, why: error.to_string(), turned_away: None };
                let _ = inputs.send(lost).await;
            }
        });
        self.core.push(SenderEvent::LinkUp);
    }

    /// What to say where it is not the agent that has answered for this VM so far. Any of a trusted site could come in its place
    /// otherwise, by a name that leads elsewhere now: it would be sent everything, and what is there already be left behind.
    fn is_another_agent(&self, name: &str) -> Option<String> {
        let record = self.vm.record();
        let pinned = record.peer_agent.as_ref().filter(|pinned| *pinned != name)?;
        Some(format!(
            "{} is answered by {name}, and the VM is protected to {pinned}: if {name} is to have it from now on, `holdfast vm set \
             {} --peer-agent {name}`",
            record.peer, record.name
        ))
    }

    /// Records the run of a sequence that is about to be told. A journal that has what this agent no longer knows to be its
    /// own would refuse the next run: where it cannot be recorded nothing is said.
    pub(super) fn reach_run(&self, run: RunNumber) -> anyhow::Result<()> {
        block_in_place(|| self.source.state.reach_run(run))
    }

    /// Ends the connection, since the run of what was to be said could not be recorded.
    pub(super) fn hang_up(&mut self, error: anyhow::Error) {
        self.drop_link();
        let why =
            format!("the run that sequences are of cannot be recorded, mend the state folder: {error:#}");
        self.note_lost(None, why, "nothing is sent");
    }

    pub(super) fn drop_link(&mut self) {
        self.link.queue = None;
        self.link.peer = None;
        self.link.number += 1;
        self.place.leave();
        self.core.link_dropped();
    }

    /// The same again is not worth a line.
    pub(super) fn note_lost(&mut self, turned_away: Option<TurnedAway>, why: String, what: &str) {
        let why = turned_away.map_or(why.clone(), |turned_away| format!("{}: {why}", turned_away.meaning()));
        self.note_refused(why, what);
        self.turned_away = turned_away;
        self.core.push(SenderEvent::LinkLost);
    }

    pub(super) fn note_refused(&mut self, why: String, what: &str) {
        if self.last_error.as_ref() != Some(&why) {
            tracing::warn!(vm = self.vm.name(), error = why, "{what}");
        }
        self.last_error = Some(why);
    }

    pub(super) fn say(&mut self, message: Message) {
        if let Some(queue) = &self.link.queue {
            // A closed queue means the writer has failed, which it reports itself.
            let _ = queue.send(message.into());
        }
    }

    pub(super) fn send_artifact(&self, hash: ArtifactHash) {
        if let Some(queue) = self.link.queue.clone() {
            tokio::spawn(send_file(queue, self.source.artifacts.path(hash), hash, self.vm.name()));
        }
    }

    /// Asks for the link; the batch is built once it is ours, of what there is then.
    pub(super) fn want_to_send(&mut self) {
        let policy = self.vm.policy();
        let syncs_only = self.core.sender().state().is_syncing();
        let bytes = self.core.status().buffered_bytes.clamp(1, self.place.batch_bytes() as u64);
        self.place.want(policy.priority as u8, syncs_only, policy.bytes_per_second_max, bytes);
        self.send_what_is_granted();
    }

    pub(super) fn send_what_is_granted(&mut self) {
        let Some(granted) = self.place.granted() else { return };
        let reads_spill = self.core.reads_spill();
        let (core, chooser, bytes_max) = (&mut self.core, &mut self.chooser, self.place.batch_bytes());
        let begun = clock::now();
        let mut build = || core.batch(bytes_max, clock::wall(), |lags| chooser.choose(lags));
        let next = if reads_spill { block_in_place(build) } else { build() };
        let next = match next {
            Ok(Some(next)) => next,
            Ok(None) => return self.place.sent(granted, 0),
            Err(error) => {
                tracing::error!(
                    vm = self.vm.name(),
                    %error,
                    "the spill is lost: history gets a gap, and what it held is sent as blocks"
                );
                return self.place.sent(granted, 0);
            }
        };
        let bytes = next.batch.len();
        if let Some((codec, plain)) = next.encoded {
            self.chooser.note_encoded(codec, plain, bytes, clock::now().since(begun));
        }
        if let Err(error) = self.reach_run(next.newest_run()) {
            self.place.sent(granted, 0);
            self.core.not_sent();
            return self.hang_up(error);
        }
        self.place.sent(granted, bytes as u64);
        self.rates.sent_bytes += bytes as u64;
        if self.core.sent(&next) {
            self.vm.group().ask_others(self.vm.id());
        }
        self.say(Message::Batch(next.batch));
    }
}
