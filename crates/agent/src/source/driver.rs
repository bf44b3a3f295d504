//! Drives one VM's [`Sender`]: turns sockets, captures and time into its events, and performs its
//! effects. One task per VM; what takes long (connecting, copying, hashing, spilling, sending files) runs
//! beside it and reports back as an event.

mod standing;
mod upkeep;

use super::bounds::Bounds;
use super::files::send_file;
use super::freshness::Freshness;
use super::greeting::hello;
use super::outbox::{Outbox, compression};
use super::peers::Place;
use super::rates::Rates;
use super::record::FirstSync;
use super::unreadable::Retry;
use super::verify::Verification;
use super::vm::ProtectedVm;
use super::{Source, save_record};
use crate::clock;
use crate::error::with_sources;
use crate::link::{self, TurnedAway};
use crate::state::random;
use crate::wire_io::{Outgoing, ReadError, read_message, write_messages};
use joint::progress::Progress;
use joint::promise::Standing;
use joint::view::view;
use replication::wire::{ArtifactHash, ClockAnswer, Compare, Compared, FrameReader, Message};
use replication::{
    CaptureView, CodecChooser, Differs, Failure, Link as LinkState, Sender, SenderConfig, SenderEffect,
    SenderEvent, State,
};
use splitter::{SyncState, copy_some_blocks, hash_some_blocks, mark_allocated, verify_everything};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::block_in_place;
use types::{Epoch, Incarnation, Monotonic, WriteSeq};

const TICK: Duration = Duration::from_millis(100);
/// In asynchronous mode, so long is waited for further writes before the first is sent: waking a thread for each
/// of 40,000 writes a second costs a third of all processor time.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// How often a stream without writes of its own tells how far its group has come.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(1);
/// How often regions that are equal on both sides are cleared from the region log, and trust in the peer is
/// looked at again.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Inputs waiting for the driver; who brings more waits.
const INPUTS_AHEAD: usize = 64;
/// After a local read failed during a sync.
const COPY_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A stream with no more than this to send has caught up, in synchronous mode.
const CAUGHT_UP_BYTES: u64 = 1 << 20;

/// What the operator wants of a stream.
#[derive(Debug)]
pub(crate) enum Command {
    Pause,
    Resume,
    Stop,
    /// Compare everything, and count nothing as consistent until it was.
    Resync,
    /// Compare everything that should be equal, and repair what is not.
    Verify,
    /// What a greeting says has changed: connect anew.
    GreetAgain,
    /// Say how far the VM is: a promise to another of its group waits for that.
    TellWatermark,
}

enum Input {
    Connected { link: u64, result: anyhow::Result<link::Connected> },
    Message { link: u64, message: Message },
    Lost { link: u64, why: String, turned_away: Option<TurnedAway> },
    CopyDone { taken: bool },
    Hashed(Option<Compare>),
    Spilled,
}

/// A connection: its number, where to queue what is to be said, and who is at the other end.
struct Link {
    number: u64,
    queue: Option<mpsc::UnboundedSender<Outgoing>>,
    peer: Option<link::PeerIdentity>,
}

struct Driver {
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    sender: Sender,
    outbox: Arc<Outbox>,
    chooser: CodecChooser,
    place: Place,
    /// A batch that follows this is to be sent as soon as the link is ours.
    to_send: Option<WriteSeq>,
    link: Link,
    inputs: mpsc::Sender<Input>,
    events: VecDeque<SenderEvent>,
    watermark_at: Monotonic,
    /// The watermark that another VM's promise waits for.
    watermark_wanted: WriteSeq,
    upkeep_at: Monotonic,
    rates: Rates,
    last_error: Option<String>,
    /// How the last connection failed, where it was by a certificate.
    turned_away: Option<TurnedAway>,
    sync_total_bytes: u64,
    progress: Progress,
    /// How the stream stood after the last event.
    standing: Standing,
    bounds: Bounds,
    fresh: Freshness,
    clock_skew_seconds: Option<f64>,
    verification: Option<Verification>,
    retry: Retry,
}

/// Drives the stream of `vm` until it is stopped.
pub(super) async fn drive(
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    wake: Arc<Notify>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let (inputs, mut inbox) = mpsc::channel(INPUTS_AHEAD);
    let mut driver = Driver::new(vm, source, wake.clone(), inputs);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    driver.publish();
    // Set while writes are gathered; what is told meanwhile costs nobody anything.
    let mut gathered_at = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Stop) | None => {
                    driver.outbox.clear();
                    return;
                }
                Some(command) => driver.on_command(command),
            },
            input = inbox.recv() => driver.on_input(input.expect("the driver holds a sender")),
            () = wake.notified(), if gathered_at.is_none() => {
                if driver.vm.policy().sync().is_none() {
                    gathered_at = Some(tokio::time::Instant::now() + GATHER_TIME);
                    continue;
                }
                driver.on_wake();
            }
            () = until(gathered_at) => {
                gathered_at = None;
                driver.on_wake();
            }
            _ = ticks.tick() => driver.on_tick(),
        }
        driver.run_events();
        driver.follow_sync();
        driver.publish();
    }
}

/// Ends at that moment; never, where there is none.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    fn new(
        vm: Arc<ProtectedVm>,
        source: Arc<Source>,
        wake: Arc<Notify>,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        let record = vm.record();
        let incarnation = Incarnation::from_bytes(random());
        let config = SenderConfig {
            vm: vm.id(),
            epoch: Epoch(record.epoch),
            incarnation,
            paused: record.paused,
            kept: vm.kept_streams().to_vec(),
            suspects_because: vm.suspects_because(),
        };
        let folder = source.spill_dir.join(&record.vm);
        let spill_bytes = record.policy.spill_bytes;
        let fresh = Freshness::load(&source.state, &record, source.boot_id);
        let outbox = Outbox::new(vm.capture().clone(), incarnation, vm.id(), &folder, spill_bytes);
        Self {
            sender: Sender::new(config, clock::now()),
            outbox: Arc::new(outbox),
            chooser: CodecChooser::new(compression(source.compression)),
            place: source.peers.join(&record.peer, &record.group, wake),
            to_send: None,
            vm,
            source,
            link: Link { number: 0, queue: None, peer: None },
            inputs,
            events: VecDeque::new(),
            watermark_at: clock::now(),
            watermark_wanted: WriteSeq::ZERO,
            upkeep_at: clock::now(),
            rates: Rates::default(),
            last_error: None,
            turned_away: None,
            sync_total_bytes: 0,
            progress: Progress::new(CAUGHT_UP_BYTES),
            standing: Standing { up_to: WriteSeq::ZERO, missing: true, caught_up: false },
            bounds: Bounds::default(),
            fresh,
            clock_skew_seconds: None,
            verification: None,
            retry: Retry::new(clock::now()),
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Pause => self.on_pause(true),
            Command::Resume => {
                self.on_pause(false);
                self.events.push_back(SenderEvent::Bounds { exceeded: false });
                self.bounds.forgive(clock::now());
            }
            Command::Resync => self.events.push_back(SenderEvent::Resync),
            Command::Verify => {
                let total =
                    self.vm.disks().iter().map(|disk| splitter::BlockDevice::size_bytes(&**disk)).sum();
                let uncompared = self.vm.capture().status().uncompared_blocks;
                self.verification = Some(Verification::begin(total, uncompared));
                verify_everything(self.vm.capture(), self.vm.disks());
                tracing::info!(vm = self.vm.name(), "verification begins");
                self.events.push_back(SenderEvent::Tick);
            }
            Command::GreetAgain => {
                self.drop_link();
                self.events.push_back(SenderEvent::LinkLost);
            }
            Command::TellWatermark => {
                self.vm.watermark_is_told();
                self.watermark_wanted = self.vm.group().counter().last();
                self.events.push_back(SenderEvent::Tick);
            }
            Command::Stop => unreachable!("the driver ends with it"),
        }
    }

    fn on_wake(&mut self) {
        self.send_what_is_granted();
        self.events.push_back(SenderEvent::Tick);
    }

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
                Ok(connected) => self.begin_link(connected),
                Err(error) => {
                    self.note_lost(TurnedAway::of(&error), format!("{error:#}"), "peer not reached");
                }
            },
            Input::Message { link, message } if link == self.link.number => {
                self.events.push_back(SenderEvent::Received(message));
            }
            Input::Lost { link, why, turned_away } if link == self.link.number => {
                self.drop_link();
                self.note_lost(turned_away, why, "link lost");
            }
            Input::CopyDone { taken } => self.events.push_back(SenderEvent::CopyDone { taken }),
            Input::Hashed(compare) => self.events.push_back(SenderEvent::Hashed(compare)),
            Input::Spilled => self.events.push_back(SenderEvent::Spilled),
            Input::Connected { .. } | Input::Message { .. } | Input::Lost { .. } => {}
        }
    }

    /// The same again is not worth a line.
    fn note_lost(&mut self, turned_away: Option<TurnedAway>, why: String, what: &str) {
        let why = turned_away.map_or(why.clone(), |turned_away| format!("{}: {why}", turned_away.meaning()));
        if self.last_error.as_ref() != Some(&why) {
            tracing::warn!(vm = self.vm.name(), error = why, "{what}");
        }
        self.last_error = Some(why);
        self.turned_away = turned_away;
        self.events.push_back(SenderEvent::LinkLost);
    }

    fn begin_link(&mut self, connected: link::Connected) {
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
        self.events.push_back(SenderEvent::LinkUp);
    }

    /// Whatever still comes from this connection is not listened to any more.
    fn drop_link(&mut self) {
        self.link.queue = None;
        self.link.peer = None;
        self.link.number += 1;
        self.place.leave();
        if self.to_send.take().is_some() {
            self.events.push_back(SenderEvent::NothingToSend);
        }
    }

    fn run_events(&mut self) {
        let mut effects = Vec::new();
        while let Some(event) = self.events.pop_front() {
            let now = clock::now();
            let view = self.view(now);
            let before = self.sender.in_flight_bytes();
            let sent = if let SenderEvent::BatchSent { bytes, .. } = event { bytes } else { 0 };
            self.sender.step(now, event, &view, &mut effects);
            let acknowledged = (before + sent).saturating_sub(self.sender.in_flight_bytes()) as u64;
            if acknowledged > 0 {
                self.rates.acknowledged_bytes += acknowledged;
                self.place.acknowledged(acknowledged);
            }
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
    }

    fn view(&mut self, now: Monotonic) -> CaptureView {
        let status = self.vm.capture().status();
        let is_time = now.since(self.watermark_at) >= WATERMARK_INTERVAL && self.vm.group().has_several();
        let tell = is_time || self.watermark_wanted > self.sender.told_watermark();
        if is_time {
            self.watermark_at = now;
        }
        view(&status, self.outbox.view().room(), tell)
    }

    fn perform(&mut self, effect: SenderEffect) {
        match effect {
            SenderEffect::Connect => self.connect(),
            SenderEffect::Disconnect => self.drop_link(),
            SenderEffect::SayHello { epoch, incarnation, acked, last } => {
                if !self.note_greeting() {
                    self.drop_link();
                    return self.events.push_back(SenderEvent::LinkLost);
                }
                let hello = hello(&self.vm, epoch, incarnation, acked, last);
                self.say(Message::Hello(Box::new(hello)));
            }
            SenderEffect::Send(message) => self.say(message),
            SenderEffect::SendArtifact(hash) => self.send_artifact(hash),
            SenderEffect::SendBatch { after } => self.want_to_send(after),
            SenderEffect::Release { up_to } => {
                self.outbox.release(up_to);
                self.vm.group().on_durable(self.vm.id(), up_to);
            }
            SenderEffect::Restart { floor, differs } => self.restart(floor, differs),
            SenderEffect::StartTracking => self.vm.capture().start_tracking(),
            SenderEffect::LeaveTracking => self.vm.capture().leave_tracking(),
            SenderEffect::CopyBlocks => self.copy_blocks(),
            SenderEffect::HashBlocks => self.hash_blocks(),
            SenderEffect::Settle(compared) => self.settle(&compared),
            SenderEffect::ForgetCompares => self.vm.capture().forget_compares(),
            SenderEffect::SuspectEverything => self.vm.capture().suspect_everything(),
            SenderEffect::Spill => self.spill(),
            SenderEffect::AskClock => self.say(Message::AskClock(clock::wall())),
            SenderEffect::ClockTold(answer) => self.note_clock(&answer),
            SenderEffect::CloseSync => {
                let closed = self.vm.capture().close_sync();
                if closed {
                    self.progress.sync_closed(self.vm.capture().status().last, self.sender.state().name());
                }
                self.events.push_back(SenderEvent::SyncClosed { closed });
            }
            SenderEffect::AdoptEpoch(epoch) => self.adopt_epoch(epoch),
            SenderEffect::Changed(change) => self.on_change(change.from, change.to),
            SenderEffect::Refused(refuse) => {
                let why = format!("{}: {}", refuse.why, refuse.detail);
                if self.last_error.as_ref() != Some(&why) {
                    tracing::warn!(vm = self.vm.name(), why, "refused by the peer");
                }
                self.last_error = Some(why);
            }
            SenderEffect::Disbelieved(why) => {
                let peer = self.link.peer.as_ref().map_or("the peer", |peer| &peer.name);
                let why =
                    format!("{peer} is not believed: {why}; look at its agent and its journal of this VM");
                if self.last_error.as_ref() != Some(&why) {
                    tracing::warn!(vm = self.vm.name(), why, "the peer is not believed");
                }
                self.last_error = Some(why);
            }
        }
    }

    fn on_change(&mut self, from: State, to: State) {
        tracing::info!(vm = self.vm.name(), from = from.name(), to = to.name(), why = to.reason(), "state");
        if to.is_syncing() {
            self.sync_total_bytes = self.to_sync_bytes();
            if matches!(self.vm.first_sync(), FirstSync::NotBegun | FirstSync::Greeted) {
                self.note_first_sync(FirstSync::Running);
            }
        }
        self.note_fenced(from, to);
        if to == State::Journaling {
            self.last_error = None;
        }
        if to == (State::Failed { why: Failure::BoundExceeded }) {
            let why =
                "the protection was stopped because a bound is exceeded; `holdfast vm resume` lets it go on";
            self.last_error = Some(why.into());
        }
    }

    /// Another side's authority is known until that side says that it has given it back.
    fn note_fenced(&self, from: State, to: State) {
        let fenced = match (from, to) {
            (_, State::Fenced { epoch }) => Some(epoch.0),
            (State::Fenced { .. }, State::Tracking { .. }) => None,
            (_, _) if self.sender.link() == LinkState::Up => None,
            (_, _) => return,
        };
        let record = {
            let mut record = self.vm.lock_record();
            if record.fenced == fenced {
                return;
            }
            record.fenced = fenced;
            record.clone()
        };
        if let Err(error) = save_record(&self.source.state, &record) {
            tracing::error!(
                vm = record.name,
                error = format!("{error:#}"),
                "that it is fenced is not recorded"
            );
        }
    }

    fn connect(&mut self) {
        self.drop_link();
        let link = self.link.number;
        let (inputs, pki) = (self.inputs.clone(), self.source.pki.clone());
        let (peer, dscp) = (self.vm.record().peer, self.source.dscp);
        tokio::spawn(async move {
            let result = link::connect(&pki, &peer, dscp).await;
            let _ = inputs.send(Input::Connected { link, result }).await;
        });
    }

    fn say(&mut self, message: Message) {
        if let Some(queue) = &self.link.queue {
            // A closed queue means the writer has failed, which it reports itself.
            let _ = queue.send(message.into());
        }
    }

    /// Asks for the link; the batch is built once it is ours, of what there is then.
    fn want_to_send(&mut self, after: WriteSeq) {
        self.to_send = Some(after);
        let policy = self.vm.policy();
        let status = self.vm.capture().status();
        let syncs_only = self.sender.state().is_syncing();
        let bytes = status.buffered_bytes.clamp(1, self.place.batch_bytes() as u64);
        self.place.want(policy.priority as u8, syncs_only, policy.bytes_per_second_max, bytes);
        self.send_what_is_granted();
    }

    fn send_what_is_granted(&mut self) {
        let Some(granted) = self.place.granted() else { return };
        let Some(after) = self.to_send.take() else { return self.place.sent(granted, 0) };
        let status = self.vm.capture().status();
        let lags = status.buffered_bytes * 4 > status.buffer_bytes_max || status.spilled > after;
        let tells_watermark = self.vm.group().has_several();
        let bytes_max = self.place.batch_bytes();
        let next = self.outbox.next(after, bytes_max, &mut self.chooser, lags, tells_watermark);
        let Some(next) = next else {
            self.place.sent(granted, 0);
            self.events.push_back(SenderEvent::NothingToSend);
            return;
        };
        // A journal that has what this agent no longer knows to be its own would refuse the next run: nothing is sent.
        if let Err(error) = block_in_place(|| self.source.state.reach_run(next.newest_run())) {
            self.place.sent(granted, 0);
            self.drop_link();
            let why =
                format!("the run that sequences are of cannot be recorded, mend the state folder: {error:#}");
            return self.note_lost(None, why, "nothing is sent");
        }
        let bytes = next.batch.len();
        self.place.sent(granted, bytes as u64);
        self.rates.sent_bytes += bytes as u64;
        self.say(Message::Batch(next.batch));
        if status.sync == SyncState::Synchronous && tells_watermark && next.last > after {
            self.vm.group().ask_others(self.vm.id());
        }
        self.events.push_back(SenderEvent::BatchSent { last: next.last, watermark: next.watermark, bytes });
    }

    fn spill(&mut self) {
        let (outbox, inputs) = (self.outbox.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let spilled = tokio::task::spawn_blocking(move || outbox.spill()).await;
            spilled.expect("a panic aborts the process");
            let _ = inputs.send(Input::Spilled).await;
        });
    }

    fn send_artifact(&self, hash: ArtifactHash) {
        if let Some(queue) = self.link.queue.clone() {
            tokio::spawn(send_file(queue, self.source.artifacts.path(hash), hash, self.vm.name()));
        }
    }

    fn restart(&mut self, floor: WriteSeq, differs: Differs) {
        self.vm.group().on_restart();
        self.progress.restarted();
        let capture = self.vm.capture();
        block_in_place(|| self.outbox.restart(floor));
        match differs {
            Differs::Marked => {}
            Differs::Suspect => capture.suspect_everything(),
            Differs::Allocated => {
                if let Err(error) = block_in_place(|| mark_allocated(capture, self.vm.disks())) {
                    let error = with_sources(&error);
                    tracing::error!(vm = self.vm.name(), error, "all of the disk is copied instead");
                }
            }
        }
        block_in_place(|| capture.begin_stream(self.sender.incarnation(), floor));
        self.sync_total_bytes = self.to_sync_bytes();
    }

    fn copy_blocks(&mut self) {
        let (vm, inputs) = (self.vm.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let copied = block_in_place(|| copy_some_blocks(vm.capture(), vm.disks()));
            if let Err(error) = &copied
                && !vm.is_ending()
            {
                tracing::error!(vm = vm.name(), error = with_sources(error), "sync waits for the local disk");
                tokio::time::sleep(COPY_RETRY_DELAY).await;
            }
            let _ = inputs.send(Input::CopyDone { taken: copied.unwrap_or(false) }).await;
        });
    }

    fn hash_blocks(&mut self) {
        let (vm, inputs) = (self.vm.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let hashed = block_in_place(|| hash_some_blocks(vm.capture(), vm.disks()));
            let compare = match hashed {
                Ok(run) => run.map(|run| Compare {
                    disk: run.disk,
                    first: run.first,
                    at: run.at,
                    hashes: run.hashes,
                }),
                Err(_) if vm.is_ending() => None,
                Err(error) => {
                    let error = with_sources(&error);
                    tracing::error!(vm = vm.name(), error, "comparison waits for the local disk");
                    tokio::time::sleep(COPY_RETRY_DELAY).await;
                    None
                }
            };
            let _ = inputs.send(Input::Hashed(compare)).await;
        });
    }

    fn settle(&mut self, compared: &Compared) {
        let (disk, first, differs) = (compared.disk, compared.first, compared.differs);
        let capture = self.vm.capture();
        let mut verification = self.verification.as_mut().and_then(Verification::while_it_runs);
        let differs = match &verification {
            // A sync copies what differs, for whatever reason; here it would be damage.
            Some(_) if self.vm.is_tapped() => capture.believed(disk, first, differs),
            _ => differs,
        };
        let differing = block_in_place(|| capture.end_compare(disk, first, differs));
        if differing > 0
            && let Some(verification) = &mut verification
        {
            let record = self.vm.record();
            let name = record.disks.get(usize::from(disk.0)).map_or("", |disk| disk.name.as_str());
            verification.differs(name, first, differs);
            tracing::error!(vm = record.name, disk = name, block = first.0, differing, "the replica differs");
        }
    }

    /// The peer's clock is read half way between asking and hearing, as well as one can know.
    fn note_clock(&mut self, answer: &ClockAnswer) {
        let heard_at = clock::wall();
        let middle = (answer.asked_at.0 + heard_at.0) / 2;
        self.clock_skew_seconds = Some((answer.says.0 - middle) as f64 / 1e6);
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
}
