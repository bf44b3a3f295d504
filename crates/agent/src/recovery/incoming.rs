//! Streams of protected sides: each drives a [`Receiver`].

use super::Recovery;
use super::compare::compare;
use super::life::Lease;
use super::vm::{StreamHold, StreamWord};
use super::writer::{StreamWriter, Written};
use crate::clock;
use crate::error::with_sources;
use crate::link::PeerIdentity;
use crate::pki::Pki;
use crate::wire_io::{Outgoing, ReadError};
use replication::wire::{ClockAnswer, Compare, Compared, Hello, Message, Refusal, Refuse};
use replication::{Opened, Receiver, ReceiverEffect, ReceiverEvent};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use types::Epoch;

const TICK: Duration = Duration::from_millis(500);
/// How often trust in a connected peer is looked at again.
const TRUST_INTERVAL: Duration = Duration::from_secs(5);
/// How long a greeting waits for what was written before, where a segment is to be ended for it.
const SEAL_PATIENCE: Duration = Duration::from_secs(5);

struct Connection {
    recovery: Arc<Recovery>,
    pki: Pki,
    peer: PeerIdentity,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    written: (mpsc::UnboundedSender<Written>, mpsc::UnboundedReceiver<Written>),
    /// Answers to comparisons; as many are asked as the receiver lets through.
    compared: (mpsc::UnboundedSender<Compared>, mpsc::UnboundedReceiver<Compared>),
    open: Option<OpenStream>,
    events: VecDeque<ReceiverEvent>,
}

/// A stream that was welcomed.
struct OpenStream {
    hold: StreamHold,
    writer: StreamWriter,
    journal: Arc<Lease>,
    /// The source can be asked for blocks.
    hears_of_blocks: bool,
    /// Where comparisons wait for the one thread that makes them, once there was one to make.
    compares: Option<std::sync::mpsc::Sender<Compare>>,
}

/// Serves the stream whose first message was read; why it ended.
pub(crate) async fn serve_stream(
    recovery: Arc<Recovery>,
    pki: Pki,
    peer: PeerIdentity,
    first: Result<Message, ReadError>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    inbox: &mut mpsc::Receiver<Result<Message, ReadError>>,
) -> String {
    let mut connection = Connection {
        recovery,
        pki,
        peer,
        compared: mpsc::unbounded_channel(),
        outgoing,
        written: mpsc::unbounded_channel(),
        open: None,
        events: VecDeque::new(),
    };
    let why = match connection.on_inbox(Some(first)) {
        Some(why) => why,
        None => connection.drive(inbox).await,
    };
    if let Some(open) = connection.open.take() {
        let OpenStream { hold, writer, journal, compares, .. } = open;
        drop((journal, compares));
        // Whatever was taken is still written before the next connection may come.
        writer.end().await;
        drop(hold);
    }
    why
}

impl Connection {
    /// Takes what was read; the reason where that ends the connection.
    fn on_inbox(&mut self, message: Option<Result<Message, ReadError>>) -> Option<String> {
        match message {
            Some(Ok(message)) => self.events.push_back(ReceiverEvent::Received(message)),
            Some(Err(ReadError::Wire(error))) => self.events.push_back(ReceiverEvent::Garbage(error)),
            Some(Err(error)) => return Some(error.to_string()),
            None => return Some("the connection was closed".into()),
        }
        None
    }

    async fn drive(&mut self, inbox: &mut mpsc::Receiver<Result<Message, ReadError>>) -> String {
        let mut receiver = Receiver::new(clock::now());
        let mut ticks = tokio::time::interval(TICK);
        let mut trust = tokio::time::interval(TRUST_INTERVAL);
        loop {
            // Before anything else is waited for: the first word was read already.
            let mut effects = Vec::new();
            while let Some(event) = self.events.pop_front() {
                receiver.step(clock::now(), event, &mut effects);
                for effect in effects.drain(..) {
                    if let Some(why) = self.perform(effect).await {
                        return why;
                    }
                }
            }
            tokio::select! {
                _ = trust.tick() => {
                    if let Err(error) = block_in_place(|| self.peer.check(&self.pki)) {
                        return format!("the peer is not trusted any more: {error:#}");
                    }
                }
                compared = self.compared.1.recv() => {
                    self.events.extend(compared.map(ReceiverEvent::Compared));
                }
                message = inbox.recv() => {
                    if let Some(why) = self.on_inbox(message) {
                        return why;
                    }
                }
                written = self.written.1.recv() => match written.expect("this holds a sender") {
                    Written::Durable(ack) => self.events.push_back(ReceiverEvent::Durable(ack)),
                    Written::Stopped(refuse) => self.events.push_back(ReceiverEvent::Stopped(refuse)),
                },
                word = next_word(&mut self.open) => self.events.extend(self.on_word(word)),
                _ = ticks.tick() => self.events.push_back(ReceiverEvent::Tick),
            }
        }
    }

    fn on_word(&self, word: StreamWord) -> Option<ReceiverEvent> {
        match word {
            StreamWord::Stop(refuse) => Some(ReceiverEvent::Stopped(refuse)),
            StreamWord::AskAgain => {
                let open = self.open.as_ref()?;
                if open.hears_of_blocks {
                    return Some(ReceiverEvent::Lost(open.journal.to_send_again()));
                }
                let detail = "what was written before is damaged here: greet again".to_owned();
                let refuse = Refuse { why: Refusal::Busy, detail };
                let must_stop = block_in_place(|| compare_for_what_is_lost(&open.journal));
                must_stop.map_or_else(Some, |must| must.then_some(refuse)).map(ReceiverEvent::Stopped)
            }
        }
    }

    /// Performs one effect; the reason where it ends the connection.
    async fn perform(&mut self, effect: ReceiverEffect) -> Option<String> {
        match effect {
            ReceiverEffect::Open(hello) => {
                let opened = self.open(&hello).await;
                self.events.push_back(ReceiverEvent::Opened(opened));
            }
            ReceiverEffect::Send(message) => {
                let _ = self.outgoing.send(message.into());
            }
            ReceiverEffect::Append(batch) => {
                // Waiting here is the back-pressure: the socket is not read meanwhile.
                if let Some(open) = &self.open {
                    open.writer.append(batch).await;
                }
            }
            ReceiverEffect::Keep(part) => {
                let kept = block_in_place(|| self.recovery.artifacts.keep_part(&part));
                match kept {
                    Ok(true) => tracing::info!(file = %part.hash, bytes = part.size_bytes, "file arrived"),
                    Ok(false) => {}
                    Err(error) => {
                        let refuse = Refuse { why: Refusal::JournalFailed, detail: format!("{error:#}") };
                        self.events.push_back(ReceiverEvent::Stopped(refuse));
                    }
                }
            }
            ReceiverEffect::Compare(compare) => {
                if let Some(open) = &mut self.open {
                    open.compare(compare, &self.compared.0);
                }
            }
            ReceiverEffect::AnswerClock { asked_at } => {
                let answer = ClockAnswer { asked_at, says: clock::wall() };
                let _ = self.outgoing.send(Message::ClockAnswer(answer).into());
            }
            ReceiverEffect::Close { why } => return Some(why),
        }
        None
    }

    async fn open(&mut self, hello: &Hello) -> Result<Opened, Refuse> {
        let (recovery, peer) = (self.recovery.clone(), self.peer.name.clone());
        let vm = block_in_place(|| recovery.let_in(hello, &peer))?;
        let farewell =
            Refuse { why: Refusal::Busy, detail: "another connection has taken the stream over".into() };
        let busy = || Refuse { why: Refusal::Busy, detail: "the connection before does not let go".into() };
        let hold = vm.hold_stream(farewell).await.ok_or_else(busy)?;
        let (_, journal) = block_in_place(|| recovery.admit(hello, &peer))?;
        block_in_place(|| take_epoch(&journal, hello.epoch))?;
        if !hello.hears_of_blocks() {
            block_in_place(|| compare_for_what_is_lost(&journal))?;
        }
        let status = journal.begin_stream();
        let missing =
            hello.artifacts.iter().map(|file| file.hash).filter(|hash| !recovery.artifacts.has(*hash));
        let opened = Opened {
            epoch: hello.epoch,
            durable: status.last_seq,
            incarnation: status.incarnation,
            must_compare: status.must_resync.is_some(),
            seeded: vm.record().seeded,
            missing: missing.collect(),
            lost: journal.to_send_again(),
        };
        tracing::info!(vm = hello.vm_name, peer, durable = %status.last_seq, "stream begins");
        vm.clear_error();
        let shards = recovery.shards.clone();
        let (written, floor) = (self.written.0.clone(), recovery.free_bytes_min);
        let journal = Arc::new(journal);
        let writer = StreamWriter::new(vm, journal.clone(), hello.epoch, shards, floor, written);
        let hears_of_blocks = hello.hears_of_blocks();
        self.open = Some(OpenStream { hold, writer, journal, hears_of_blocks, compares: None });
        Ok(opened)
    }
}

/// Takes a higher epoch, and ends what was written of lower ones: what a write of those that failed has left behind is not
/// found any more. The stream is this connection's, so that nothing is on its way but what a disk holds up.
fn take_epoch(journal: &journal::Journal, epoch: Epoch) -> Result<(), Refuse> {
    if epoch <= journal.status().epoch {
        return Ok(());
    }
    let failed =
        |error| Refuse { why: Refusal::JournalFailed, detail: format!("raise the journal's epoch: {error}") };
    // Before it is raised: who comes again with the same epoch would not seal it.
    let is_at_rest = journal.wait_for_appends_within(SEAL_PATIENCE);
    match is_at_rest && journal.fence(epoch, SEAL_PATIENCE).map_err(failed)? {
        true => Ok(()),
        false => Err(Refuse { why: Refusal::Busy, detail: "the journal's disk does not answer".into() }),
    }
}

impl OpenStream {
    /// Has some blocks compared. Where no thread can be had for it, all of them count as differing.
    fn compare(&mut self, asked: Compare, answers: &mpsc::UnboundedSender<Compared>) {
        if self.compares.is_none() {
            self.compares = answer_compares(self.journal.clone(), answers.clone()).ok();
        }
        let left = match &self.compares {
            Some(compares) => compares.send(asked).err().map(|unsent| unsent.0),
            None => Some(asked),
        };
        if let Some(Compare { disk, first, .. }) = left {
            let _ = answers.send(Compared { disk, first, differs: u64::MAX });
        }
    }
}

/// A thread that compares what is sent to it, one after the other, until the sender is gone.
fn answer_compares(
    journal: Arc<Lease>,
    answers: mpsc::UnboundedSender<Compared>,
) -> std::io::Result<std::sync::mpsc::Sender<Compare>> {
    let (compares, queue) = std::sync::mpsc::channel();
    let answering = move || {
        while let Ok(asked) = queue.recv() {
            if answers.send(compare(&journal, &asked)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("compare".into()).spawn(answering)?;
    Ok(compares)
}

/// Everything is compared with a source that cannot be asked for blocks; whether it must greet again for that.
fn compare_for_what_is_lost(journal: &journal::Journal) -> Result<bool, Refuse> {
    if !journal.wait_for_appends_within(SEAL_PATIENCE) {
        return Err(Refuse { why: Refusal::Busy, detail: "the journal's disk does not answer".into() });
    }
    journal.compare_for_what_is_lost().map_err(|error| {
        let detail = format!("ask for what is damaged: {}", with_sources(&error));
        Refuse { why: Refusal::JournalFailed, detail }
    })
}

async fn next_word(open: &mut Option<OpenStream>) -> StreamWord {
    match open {
        // Whoever holds the other end is gone only where a later connection has the stream.
        Some(open) => open.hold.words.recv().await.unwrap_or_else(|| {
            let detail = "another connection has taken the stream over".into();
            StreamWord::Stop(Refuse { why: Refusal::Busy, detail })
        }),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
