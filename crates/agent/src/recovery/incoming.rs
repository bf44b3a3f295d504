//! Connections of protected sides: one task each drives a [`Receiver`].

use super::Recovery;
use super::compare::compare;
use super::life::Lease;
use super::vm::StreamHold;
use super::writer::{StreamWriter, Written};
use crate::alerts::Alerts;
use crate::claimed::Claimed;
use crate::clock;
use crate::link::{PeerIdentity, prepare};
use crate::pki::{PeerRole, Pki};
use crate::refusals::Refusals;
use crate::source::{Source, serve_host};
use crate::waiting_room::WaitingRoom;
use crate::wire_io::{Outgoing, ReadError, read_ahead, write_messages};
use anyhow::{Context, Result};
use replication::wire::{
    ClockAnswer, Compare, Compared, FrameReader, FrameWriter, Hello, Message, Refusal, Refuse,
};
use replication::{Opened, Receiver, ReceiverEffect, ReceiverEvent};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::block_in_place;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use types::limits::{ACCEPT_RETRY_DELAY, CONNECT_TIMEOUT, STREAMS_MAX};

const TICK: Duration = Duration::from_millis(500);
/// How often trust in a connected peer is looked at again.
const TRUST_INTERVAL: Duration = Duration::from_secs(5);
const LISTEN_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Messages read ahead of the machine that takes them.
const MESSAGES_AHEAD: usize = 4;

/// Accepts streams on `address`, as soon as it can be listened on: what hinders it is an alert, and the VMs
/// protected here do not wait for it. Certificates and trust that have changed are read anew.
pub(crate) async fn listen(
    recovery: Arc<Recovery>,
    source: Arc<Source>,
    pki: Pki,
    address: SocketAddr,
    alerts: Arc<Alerts>,
) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                alerts.clear("stream listener");
                tracing::info!(%address, "listening for streams");
                tokio::spawn(watch_tls(pki.clone(), alerts));
                return accept(recovery, source, pki, listener).await;
            }
            Err(error) => {
                let text = format!(
                    "no streams are accepted: cannot listen on {address}: {error}; tried again by itself"
                );
                alerts.raise("stream listener", text);
            }
        }
        tokio::time::sleep(LISTEN_RETRY_INTERVAL).await;
    }
}

/// Says as long as it is so that no peer can be let in, and why.
async fn watch_tls(pki: Pki, alerts: Arc<Alerts>) {
    loop {
        match pki.stream_server(&Claimed::default()) {
            Ok(_) => match pki.unreadable_trust() {
                None => alerts.clear("stream TLS"),
                Some(why) => alerts.raise("stream TLS", format!("peers of some sites are refused: {why}")),
            },
            Err(error) => alerts.raise("stream TLS", format!("no streams are accepted: {error:#}")),
        }
        tokio::time::sleep(LISTEN_RETRY_INTERVAL).await;
    }
}

async fn accept(recovery: Arc<Recovery>, source: Arc<Source>, pki: Pki, listener: TcpListener) {
    let refusals = Arc::new(Refusals::default());
    let room = Arc::new(WaitingRoom::default());
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a stream failed");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let (recovery, source, pki, places) = (recovery.clone(), source.clone(), pki.clone(), places.clone());
        let (place, refusals) = (room.enter(from.ip()), refusals.clone());
        tokio::spawn(async move {
            let served = async {
                let (stream, peer) = place.within(shake_hands(&pki, stream, recovery.dscp)).await?;
                let _place = places.try_acquire().context("there are too many streams already")?;
                serve(recovery, source, &pki, stream, peer).await
            };
            match served.await {
                Ok(()) => refusals.forget(from.ip()),
                Err(error) => refusals.log("connection", from, &format!("{error:#}")),
            }
        });
    }
}

async fn shake_hands(pki: &Pki, stream: TcpStream, dscp: u8) -> Result<(TlsStream<TcpStream>, PeerIdentity)> {
    prepare(&stream, dscp)?;
    let claimed = Claimed::default();
    let acceptor = TlsAcceptor::from(pki.stream_server(&claimed)?);
    let stream = acceptor.accept(stream).await.with_context(|| match claimed.name() {
        Some(name) => format!("TLS handshake with a peer that calls itself {name}"),
        None => "TLS handshake".to_owned(),
    })?;
    let peer = PeerIdentity::of(pki, stream.get_ref().1.peer_certificates(), PeerRole::Connects)?;
    Ok((stream, peer))
}

async fn serve(
    recovery: Arc<Recovery>,
    source: Arc<Source>,
    pki: &Pki,
    stream: TlsStream<TcpStream>,
    peer: PeerIdentity,
) -> Result<()> {
    let name = peer.name.clone();
    let (reader, writer) = tokio::io::split(stream);
    let (outgoing, queue) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write_messages(writer, FrameWriter::default(), queue));
    let (messages, mut inbox) = mpsc::channel(MESSAGES_AHEAD);
    let reading = tokio::spawn(read_ahead(reader, FrameReader::default(), messages));
    // Whoever connects says with the first word what for.
    let first =
        timeout(CONNECT_TIMEOUT, inbox.recv()).await.context("the peer does not say what it wants")?;
    let why = match first {
        Some(Ok(Message::Join(join))) => serve_host(&source, &name, &join, outgoing, &mut inbox).await,
        Some(Ok(Message::Leave(leave))) => {
            let _ = outgoing.send(block_in_place(|| recovery.on_leave(&leave, &name)).into());
            drop(outgoing);
            "it has said who leaves".to_owned()
        }
        Some(first) => Connection::run(recovery, pki.clone(), peer, first, outgoing, &mut inbox).await,
        None => "the connection was closed".to_owned(),
    };
    reading.abort();
    let _ = timeout(CONNECT_TIMEOUT, writing).await;
    tracing::info!(peer = name, why, "connection ended");
    Ok(())
}

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
    /// Where comparisons wait for the one thread that makes them, once there was one to make.
    compares: Option<std::sync::mpsc::Sender<Compare>>,
}

impl Connection {
    async fn run(
        recovery: Arc<Recovery>,
        pki: Pki,
        peer: PeerIdentity,
        first: Result<Message, ReadError>,
        outgoing: mpsc::UnboundedSender<Outgoing>,
        inbox: &mut mpsc::Receiver<Result<Message, ReadError>>,
    ) -> String {
        let mut connection = Self {
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
            let OpenStream { hold, writer, journal, compares } = open;
            drop((journal, compares));
            // Whatever was taken is still written before the next connection may come.
            writer.end().await;
            drop(hold);
        }
        why
    }

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
                refuse = next_stop(&mut self.open) => self.events.push_back(ReceiverEvent::Stopped(refuse)),
                _ = ticks.tick() => self.events.push_back(ReceiverEvent::Tick),
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
        // Only to know that it may come, and whose stream it wants: the journal may be closed by who has that now.
        let (vm, _) = block_in_place(|| recovery.admit(hello, &peer))?;
        let farewell =
            Refuse { why: Refusal::Busy, detail: "another connection has taken the stream over".into() };
        let busy = || Refuse { why: Refusal::Busy, detail: "the connection before does not let go".into() };
        let hold = vm.hold_stream(farewell).await.ok_or_else(busy)?;
        let (_, journal) = block_in_place(|| recovery.admit(hello, &peer))?;
        block_in_place(|| journal.raise_epoch(hello.epoch))
            .map_err(|error| Refuse { why: Refusal::JournalFailed, detail: error.to_string() })?;
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
        };
        tracing::info!(vm = hello.vm_name, peer, durable = %status.last_seq, "stream begins");
        vm.clear_error();
        let shards = recovery.shards.clone();
        let (written, floor) = (self.written.0.clone(), recovery.free_bytes_min);
        let journal = Arc::new(journal);
        let writer = StreamWriter::new(vm, journal.clone(), hello.epoch, shards, floor, written);
        self.open = Some(OpenStream { hold, writer, journal, compares: None });
        Ok(opened)
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

async fn next_stop(open: &mut Option<OpenStream>) -> Refuse {
    match open {
        // Whoever holds the other end is gone only where a later connection has the stream.
        Some(open) => open.hold.stops.recv().await.unwrap_or_else(|| Refuse {
            why: Refusal::Busy,
            detail: "another connection has taken the stream over".into(),
        }),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
