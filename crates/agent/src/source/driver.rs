//! Drives one VM's [`Sender`]: turns sockets, captures and time into its events, and performs its
//! effects. One task per VM; what takes long (connecting, copying, sending files) runs beside it and
//! reports back as an event.

use super::record::parse_hash;
use super::vm::{ProtectedVm, with_sources};
use super::{Source, save_record};
use crate::clock;
use crate::config::Compression;
use crate::link;
use crate::state::random;
use crate::wire_io::{Outgoing, read_message, write_messages};
use batch::{BatchMeta, Codec};
use bytes::Bytes;
use replication::wire::{ArtifactHash, ArtifactOffer, ArtifactPart, FrameReader, Hello, Message};
use replication::{CaptureView, Differs, Sender, SenderConfig, SenderEffect, SenderEvent, State};
use splitter::{BlockDevice, copy_some_blocks, mark_what_may_differ};
use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::block_in_place;
use tokio_rustls::client::TlsStream;
use types::limits::{ARTIFACT_PART_BYTES, BLOCK_BYTES};
use types::{Epoch, GroupId, Incarnation, Monotonic, VmId, WriteSeq};

const TICK: Duration = Duration::from_millis(100);
/// How often a stream without writes of its own tells how far its group has come.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the dirty map is told that the agent is there.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Inputs waiting for the driver; who brings more waits.
const INPUTS_AHEAD: usize = 64;
/// After a local read failed during a sync.
const COPY_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What the operator wants of a stream.
#[derive(Debug)]
pub(crate) enum Command {
    Pause,
    Resume,
    Stop,
}

/// The stream for the operator.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamStatus {
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) link: String,
    pub(crate) last_error: Option<String>,
    pub(crate) durable: WriteSeq,
    pub(crate) journal_bytes: u64,
    pub(crate) history_seconds: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) sent_bytes_per_second: f64,
    pub(crate) write_bytes_per_second: f64,
    pub(crate) sync_total_bytes: u64,
    pub(crate) rpo_exceeded: bool,
}

enum Input {
    Connected { link: u64, result: anyhow::Result<(Box<TlsStream<TcpStream>>, String)> },
    Message { link: u64, message: Message },
    Lost { link: u64, why: String },
    CopyDone,
}

/// A connection: its number, and where to queue what is to be said.
struct Link {
    number: u64,
    queue: Option<mpsc::UnboundedSender<Outgoing>>,
}

struct Driver {
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    sender: Sender,
    link: Link,
    inputs: mpsc::Sender<Input>,
    events: VecDeque<SenderEvent>,
    watermark_at: Monotonic,
    alive_at: Monotonic,
    rates: Rates,
    last_error: Option<String>,
    sync_total_bytes: u64,
    rpo_exceeded: bool,
}

#[derive(Default)]
struct Rates {
    at: Monotonic,
    sent_bytes: u64,
    sent_before: u64,
    written_before: u64,
    sent_per_second: f64,
    written_per_second: f64,
}

/// Drives the stream of `vm` until it is stopped.
pub(super) async fn drive(
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    wake: Arc<Notify>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let record = vm.record();
    let (inputs, mut inbox) = mpsc::channel(INPUTS_AHEAD);
    let config = SenderConfig {
        vm: vm.id(),
        epoch: Epoch(record.epoch),
        incarnation: Incarnation::from_bytes(random()),
        paused: record.paused,
        kept: vm.kept_streams().to_vec(),
    };
    let mut driver = Driver {
        sender: Sender::new(config, clock::now()),
        vm,
        source,
        link: Link { number: 0, queue: None },
        inputs,
        events: VecDeque::new(),
        watermark_at: clock::now(),
        alive_at: Monotonic::default(),
        rates: Rates::default(),
        last_error: None,
        sync_total_bytes: 0,
        rpo_exceeded: false,
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    driver.publish();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Pause) => driver.on_pause(true),
                Some(Command::Resume) => driver.on_pause(false),
                Some(Command::Stop) | None => return,
            },
            input = inbox.recv() => driver.on_input(input.expect("the driver holds a sender")),
            () = wake.notified() => driver.events.push_back(SenderEvent::Tick),
            _ = ticks.tick() => {
                driver.watch_rpo();
                driver.note_alive();
                driver.events.push_back(SenderEvent::Tick);
            }
        }
        driver.run_events();
        driver.publish();
    }
}

impl Driver {
    fn on_pause(&mut self, paused: bool) {
        let record = {
            let mut record = self.vm.lock_record();
            record.paused = paused;
            record.clone()
        };
        if let Err(error) = save_record(&self.source.state, &record) {
            tracing::error!(vm = record.name, error = format!("{error:#}"), "pause is not recorded");
        }
        self.events.push_back(if paused { SenderEvent::Pause } else { SenderEvent::Resume });
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Connected { link, result } if link == self.link.number => match result {
                Ok((stream, peer)) => self.begin_link(*stream, &peer),
                Err(error) => {
                    let why = format!("{error:#}");
                    if self.last_error.as_ref() != Some(&why) {
                        tracing::warn!(vm = self.vm.name(), error = why, "peer not reached");
                    }
                    self.last_error = Some(why);
                    self.events.push_back(SenderEvent::LinkLost);
                }
            },
            Input::Message { link, message } if link == self.link.number => {
                self.events.push_back(SenderEvent::Received(message));
            }
            Input::Lost { link, why } if link == self.link.number => {
                tracing::warn!(vm = self.vm.name(), why, "link lost");
                self.last_error = Some(why);
                self.drop_link();
                self.events.push_back(SenderEvent::LinkLost);
            }
            Input::CopyDone => self.events.push_back(SenderEvent::CopyDone),
            Input::Connected { .. } | Input::Message { .. } | Input::Lost { .. } => {}
        }
    }

    fn begin_link(&mut self, stream: TlsStream<TcpStream>, peer: &str) {
        tracing::info!(vm = self.vm.name(), peer, "link up");
        let (mut reader, writer) = tokio::io::split(stream);
        let (queue, outgoing) = mpsc::unbounded_channel();
        self.link.queue = Some(queue);
        let number = self.link.number;
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let mut frames = FrameReader::default();
            let why = loop {
                match read_message(&mut reader, &mut frames).await {
                    Ok(message) => {
                        if inputs.send(Input::Message { link: number, message }).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => break error.to_string(),
                }
            };
            let _ = inputs.send(Input::Lost { link: number, why }).await;
        });
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            if let Err(error) = write_messages(writer, outgoing).await {
                let _ = inputs.send(Input::Lost { link: number, why: error.to_string() }).await;
            }
        });
        self.events.push_back(SenderEvent::LinkUp);
    }

    /// Whatever still comes from this connection is not listened to any more.
    fn drop_link(&mut self) {
        self.link.queue = None;
        self.link.number += 1;
    }

    fn run_events(&mut self) {
        let mut effects = Vec::new();
        while let Some(event) = self.events.pop_front() {
            let now = clock::now();
            let view = self.view(now);
            self.sender.step(now, event, &view, &mut effects);
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
    }

    fn view(&mut self, now: Monotonic) -> CaptureView {
        let status = self.vm.capture().status();
        let tell = now.since(self.watermark_at) >= WATERMARK_INTERVAL && self.vm.group().has_several();
        if tell {
            self.watermark_at = now;
        }
        CaptureView {
            tracking: status.tracking,
            gap_open: status.gap_open,
            dirty_blocks: status.dirty_blocks,
            buffered_bytes: status.buffered_bytes,
            buffer_bytes_max: status.buffer_bytes_max,
            released: status.released,
            last: status.last,
            watermark: if tell { status.watermark } else { status.last },
        }
    }

    fn perform(&mut self, effect: SenderEffect) {
        match effect {
            SenderEffect::Connect => self.connect(),
            SenderEffect::Disconnect => self.drop_link(),
            SenderEffect::SayHello { epoch, incarnation, acked, last } => {
                let hello = self.hello(epoch, incarnation, acked, last);
                self.say(Message::Hello(Box::new(hello)));
            }
            SenderEffect::Send(message) => self.say(message),
            SenderEffect::SendArtifact(hash) => self.send_artifact(hash),
            SenderEffect::SendBatch { after } => self.send_batch(after),
            SenderEffect::Release { up_to } => {
                self.vm.capture().release(up_to);
                self.vm.group().on_durable(self.vm.id(), up_to);
            }
            SenderEffect::Restart { floor, differs } => self.restart(floor, differs),
            SenderEffect::StartTracking => self.vm.capture().start_tracking(),
            SenderEffect::LeaveTracking => self.vm.capture().leave_tracking(),
            SenderEffect::CopyBlocks => self.copy_blocks(),
            SenderEffect::CloseSync => {
                let closed = self.vm.capture().close_sync();
                self.events.push_back(SenderEvent::SyncClosed { closed });
            }
            SenderEffect::AdoptEpoch(epoch) => self.adopt_epoch(epoch),
            SenderEffect::Changed(change) => {
                let (from, to) = (change.from.name(), change.to.name());
                tracing::info!(vm = self.vm.name(), from, to, why = change.to.reason(), "state");
                if change.to.is_syncing() {
                    self.sync_total_bytes = self.vm.capture().status().dirty_blocks * BLOCK_BYTES;
                }
                if change.to == State::Journaling {
                    self.last_error = None;
                }
            }
            SenderEffect::Refused(refuse) => {
                let why = format!("{}: {}", refuse.why, refuse.detail);
                if self.last_error.as_ref() != Some(&why) {
                    tracing::warn!(vm = self.vm.name(), why, "refused by the peer");
                }
                self.last_error = Some(why);
            }
        }
    }

    fn connect(&mut self) {
        self.drop_link();
        let link = self.link.number;
        let (inputs, pki) = (self.inputs.clone(), self.source.pki.clone());
        let peer = self.vm.record().peer;
        tokio::spawn(async move {
            let result = link::connect(&pki, &peer).await.map(|(stream, name)| (Box::new(stream), name));
            let _ = inputs.send(Input::Connected { link, result }).await;
        });
    }

    fn say(&mut self, message: Message) {
        if let Some(queue) = &self.link.queue {
            // A closed queue means the writer has failed, which it reports itself.
            let _ = queue.send(message.into());
        }
    }

    fn hello(&self, epoch: Epoch, incarnation: Incarnation, acked: WriteSeq, last_seq: WriteSeq) -> Hello {
        let record = self.vm.record();
        let group = record.group_id.parse().unwrap_or(GroupId::from_bytes([0; 16]));
        let vm: VmId = self.vm.id();
        let disks = record.disks.iter().zip(self.vm.disks());
        let files = record.files.iter().filter_map(|file| {
            let hash = parse_hash(&file.hash)?;
            Some(ArtifactOffer { name: file.name.clone(), hash, size_bytes: file.size_bytes })
        });
        Hello {
            vm,
            vm_name: record.name.clone(),
            group,
            group_name: record.group.clone(),
            epoch,
            incarnation,
            acked,
            last_seq,
            sent_at: clock::wall(),
            history_seconds: record.policy.history_seconds,
            journal_bytes_max: record.policy.journal_bytes_max,
            rpo_seconds: record.policy.rpo_seconds as u32,
            checkpoint_interval_seconds: record.policy.checkpoint_interval_seconds as u32,
            disks: disks
                .map(|(disk, open)| types::DiskSpec {
                    name: disk.name.clone(),
                    size_bytes: open.size_bytes(),
                })
                .collect(),
            definition: record.definition.clone(),
            artifacts: files.collect(),
        }
    }

    fn send_batch(&mut self, after: WriteSeq) {
        let taken = self.vm.capture().take_after(after);
        if taken.records.is_empty() && !self.vm.group().has_several() {
            self.events.push_back(SenderEvent::NothingToSend);
            return;
        }
        let last = taken.records.last().map_or(after, |record| record.seq);
        let incarnation = self.sender.incarnation();
        let watermark = taken.watermark.max(last);
        let meta = BatchMeta { incarnation, prev_seq: after, watermark, taken_at: clock::wall() };
        let codec = match self.source.compression {
            Compression::None => Codec::Raw,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd => Codec::Zstd,
        };
        let batch = batch::encode(&meta, &taken.records, codec);
        let bytes = batch.len();
        self.rates.sent_bytes += bytes as u64;
        self.say(Message::Batch(batch));
        self.events.push_back(SenderEvent::BatchSent { last, watermark, bytes });
    }

    /// Sends a file in parts from a task of its own, one part in the queue at a time.
    fn send_artifact(&mut self, hash: ArtifactHash) {
        let Some(queue) = self.link.queue.clone() else { return };
        let path = self.source.artifacts.path(hash);
        let vm = self.vm.name();
        tokio::spawn(async move {
            let sent: anyhow::Result<()> = async {
                let file = std::fs::File::open(&path)?;
                let size_bytes = file.metadata()?.len();
                let mut offset = 0;
                loop {
                    let len = (size_bytes - offset).min(ARTIFACT_PART_BYTES as u64);
                    let mut part = vec![0; len as usize];
                    block_in_place(|| file.read_exact_at(&mut part, offset))?;
                    let (done, written) = oneshot::channel();
                    let message = Message::ArtifactPart(ArtifactPart {
                        hash,
                        offset,
                        size_bytes,
                        bytes: Bytes::from(part),
                    });
                    if queue.send(Outgoing { message, written: Some(done) }).is_err()
                        || written.await.is_err()
                    {
                        return Ok(()); // The link is lost; what is missing is asked for again.
                    }
                    offset += len;
                    if offset >= size_bytes {
                        return Ok(());
                    }
                }
            }
            .await;
            if let Err(error) = sent {
                tracing::error!(vm, file = %path.display(), %error, "a file of the definition cannot be sent");
            }
        });
    }

    fn restart(&mut self, floor: WriteSeq, differs: Differs) {
        self.vm.group().on_restart();
        self.vm.capture().restart(floor);
        if differs != Differs::Marked {
            let allocated_only = differs == Differs::Allocated;
            let mark =
                |allocated_only| mark_what_may_differ(self.vm.capture(), self.vm.disks(), allocated_only);
            if let Err(error) = block_in_place(|| mark(allocated_only)) {
                tracing::error!(
                    vm = self.vm.name(),
                    error = with_sources(&error),
                    "everything is copied instead"
                );
                // Marking everything asks no disk what it has allocated, so there is nothing left to fail.
                let _ = mark(false);
            }
        }
        self.vm.capture().begin_stream(self.sender.incarnation(), floor);
        self.sync_total_bytes = self.vm.capture().status().dirty_blocks * BLOCK_BYTES;
    }

    fn copy_blocks(&mut self) {
        let (vm, inputs) = (self.vm.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let copied = block_in_place(|| copy_some_blocks(vm.capture(), vm.disks()));
            if let Err(error) = copied {
                tracing::error!(
                    vm = vm.name(),
                    error = with_sources(&error),
                    "sync waits for the local disk"
                );
                tokio::time::sleep(COPY_RETRY_DELAY).await;
            }
            let _ = inputs.send(Input::CopyDone).await;
        });
    }

    fn adopt_epoch(&mut self, epoch: Epoch) {
        let record = {
            let mut record = self.vm.lock_record();
            record.epoch = epoch.0;
            record.clone()
        };
        match save_record(&self.source.state, &record) {
            Ok(()) => tracing::info!(vm = record.name, %epoch, "epoch"),
            Err(error) => {
                tracing::error!(vm = record.name, error = format!("{error:#}"), "epoch is not recorded");
            }
        }
    }

    fn note_alive(&mut self) {
        let now = clock::now();
        if now.since(self.alive_at) >= ALIVE_INTERVAL {
            self.alive_at = now;
            self.vm.capture().note_alive(clock::wall());
        }
    }

    fn watch_rpo(&mut self) {
        let bound = Duration::from_secs(self.vm.record().policy.rpo_seconds);
        let paused = self.sender.state() == State::Paused;
        let exceeded = !paused && self.vm.group().rpo_now(clock::now()).is_some_and(|age| age > bound);
        if exceeded != self.rpo_exceeded {
            self.rpo_exceeded = exceeded;
            let (vm, bound) = (self.vm.name(), bound.as_secs());
            if exceeded {
                let cause = self.last_error.clone().unwrap_or_else(|| self.sender.state().name().to_owned());
                tracing::warn!(vm, bound, cause, "RPO exceeded");
            } else {
                tracing::info!(vm, bound, "RPO kept again");
            }
        }
    }

    fn publish(&mut self) {
        let written = self.vm.capture().status().write_bytes;
        self.rates.follow(clock::now(), written);
        let ack = self.sender.last_ack();
        let state = self.sender.state();
        *self.vm.lock_status() = StreamStatus {
            state: state.name().to_owned(),
            reason: state.reason(),
            link: self.sender.link().name().to_owned(),
            last_error: self.last_error.clone(),
            durable: self.sender.acked(),
            journal_bytes: ack.map_or(0, |ack| ack.journal_bytes),
            history_seconds: ack.map_or(0, |ack| ack.history_seconds),
            sent_bytes: self.rates.sent_bytes,
            sent_bytes_per_second: self.rates.sent_per_second,
            write_bytes_per_second: self.rates.written_per_second,
            sync_total_bytes: self.sync_total_bytes,
            rpo_exceeded: self.rpo_exceeded,
        };
    }
}

impl Rates {
    /// Takes the rates anew each second.
    fn follow(&mut self, now: Monotonic, written: u64) {
        let elapsed = now.since(self.at).as_secs_f64();
        if elapsed >= 1.0 {
            self.sent_per_second = (self.sent_bytes - self.sent_before) as f64 / elapsed;
            self.written_per_second = (written - self.written_before) as f64 / elapsed;
            (self.at, self.sent_before, self.written_before) = (now, self.sent_bytes, written);
        }
    }
}
