//! Drives one VM's [`SourceCore`]: turns sockets, captures and time into its events, and does what it leaves to do. One task
//! per VM; what takes long (connecting, copying, hashing, spilling, sending files) runs beside it and reports back as an
//! event.

mod connection;
mod greeting;
mod noting;
mod standing;
mod upkeep;
mod work;

use super::Source;
use super::bounds::Bounds;
use super::freshness::Freshness;
use super::peers::Place;
use super::rates::Rates;
use super::unreadable::Retry;
use super::verify::Verification;
use super::vm::ProtectedVm;
use crate::clock;
use crate::config::Compression;
use crate::link::{self, TurnedAway};
use crate::state::random;
use crate::wire_io::Outgoing;
use batch::Codec;
use joint::promise::Standing;
use joint::source::{CoreConfig, SourceCore, Task};
use replication::wire::{Compare, Message};
use replication::{CodecChooser, SenderConfig, SenderEvent};
use splitter::verify_everything;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
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
    /// An operator has changed what the protection is kept to; whether a greeting says something else by that.
    Follow {
        greets_anew: bool,
    },
    /// Say how far the VM is: a promise to another of its group waits for that.
    TellWatermark,
}

/// A command, and who waits until the VM's row shows what it has begun.
#[derive(Debug)]
pub(crate) struct Commanded {
    pub(crate) command: Command,
    pub(crate) shown: Option<oneshot::Sender<()>>,
}

enum Input {
    Connected { link: u64, result: anyhow::Result<link::Connected> },
    Message { link: u64, message: Message },
    Lost { link: u64, why: String, turned_away: Option<TurnedAway> },
    CopyDone { taken: bool },
    Hashed(Option<Compare>),
    Spilled,
    Tidied,
}

struct Driver {
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    core: SourceCore,
    chooser: CodecChooser,
    place: Place,
    wake: Arc<Notify>,
    link: Link,
    inputs: mpsc::Sender<Input>,
    upkeep_at: Monotonic,
    rates: Rates,
    last_error: Option<String>,
    /// How the last connection failed, where it was by a certificate.
    turned_away: Option<TurnedAway>,
    sync_total_bytes: u64,
    /// How the stream stood after the last event.
    standing: Standing,
    bounds: Bounds,
    fresh: Freshness,
    clock_skew_seconds: Option<f64>,
    verification: Option<Verification>,
    retry: Retry,
}

/// A connection: its number, where to queue what is to be said, and who is at the other end.
#[derive(Default)]
struct Link {
    number: u64,
    queue: Option<mpsc::UnboundedSender<Outgoing>>,
    peer: Option<link::PeerIdentity>,
}

/// Drives the stream of `vm` until it is stopped.
pub(super) async fn drive(
    vm: Arc<ProtectedVm>,
    source: Arc<Source>,
    wake: Arc<Notify>,
    mut commands: mpsc::UnboundedReceiver<Commanded>,
) {
    let (inputs, mut inbox) = mpsc::channel(INPUTS_AHEAD);
    let mut driver = Driver::new(vm, source, wake.clone(), inputs);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    driver.publish();
    // Set while writes are gathered; what is told meanwhile costs nobody anything.
    let mut gathered_at = None;
    loop {
        let mut asker = None;
        tokio::select! {
            commanded = commands.recv() => match commanded {
                Some(Commanded { command: Command::Stop, .. }) | None => {
                    block_in_place(|| driver.core.outbox().end());
                    return;
                }
                Some(Commanded { command, shown }) => {
                    driver.on_command(command);
                    asker = shown;
                }
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
        if let Some(asker) = asker {
            let _ = asker.send(()); // He may have left.
        }
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
        let sender = SenderConfig {
            vm: vm.id(),
            epoch: Epoch(record.epoch),
            incarnation: Incarnation::from_bytes(random()),
            paused: record.paused,
            kept: vm.kept_streams().to_vec(),
            suspects_because: vm.suspects_because(),
            disk_sizes: vm.disks().iter().map(|disk| splitter::BlockDevice::size_bytes(&**disk)).collect(),
        };
        let config = CoreConfig { watermark_interval: WATERMARK_INTERVAL, caught_up_bytes: CAUGHT_UP_BYTES };
        let core = SourceCore::new(sender, config, vm.capture().clone(), vm.disks().to_vec(), clock::now());
        let fresh = Freshness::load(&source.state, &record, source.boot_id);
        let driver = Self {
            core,
            chooser: CodecChooser::new(compression(source.compression)),
            place: source.peers.join(&record.peer, &record.group, wake.clone()),
            wake,
            vm,
            source,
            link: Link::default(),
            inputs,
            upkeep_at: clock::now(),
            rates: Rates::default(),
            last_error: None,
            turned_away: None,
            sync_total_bytes: 0,
            standing: Standing::UNKNOWN,
            bounds: Bounds::default(),
            fresh,
            clock_skew_seconds: None,
            verification: None,
            retry: Retry::new(clock::now()),
        };
        driver.open_spill();
        driver
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Pause => self.on_pause(true),
            Command::Resume => {
                self.on_pause(false);
                self.core.push(SenderEvent::Bounds { exceeded: false });
                self.bounds.forgive(clock::now());
            }
            Command::Resync => self.core.push(SenderEvent::Resync),
            Command::Verify => {
                let total =
                    self.vm.disks().iter().map(|disk| splitter::BlockDevice::size_bytes(&**disk)).sum();
                let uncompared = self.vm.capture().status().uncompared_blocks;
                self.verification = Some(Verification::begin(total, uncompared));
                verify_everything(self.vm.capture(), self.vm.disks());
                tracing::info!(vm = self.vm.name(), "verification begins");
                self.core.push(SenderEvent::Tick);
            }
            Command::GreetAgain => self.greet_again(),
            Command::Follow { greets_anew } => {
                self.follow_record();
                if greets_anew {
                    self.greet_again();
                }
            }
            Command::TellWatermark => {
                self.vm.watermark_is_told();
                self.core.want_watermark(self.vm.group().counter().last());
            }
            Command::Stop => unreachable!("the driver ends with it"),
        }
    }

    fn greet_again(&mut self) {
        self.drop_link();
        self.core.push(SenderEvent::LinkLost);
    }

    fn on_wake(&mut self) {
        self.send_what_is_granted();
        self.core.push(SenderEvent::Tick);
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
                self.core.push(SenderEvent::Received(message));
            }
            Input::Lost { link, why, turned_away } if link == self.link.number => {
                self.drop_link();
                self.note_lost(turned_away, why, "link lost");
            }
            Input::CopyDone { taken } => self.core.push(SenderEvent::CopyDone { taken }),
            Input::Hashed(compare) => self.core.push(SenderEvent::Hashed(compare)),
            Input::Spilled => self.core.push(SenderEvent::Spilled),
            Input::Tidied => self.core.tidied(),
            Input::Connected { .. } | Input::Message { .. } | Input::Lost { .. } => {}
        }
    }

    fn run_events(&mut self) {
        self.core.in_group_of_several(self.vm.group().has_several());
        while let Some(task) = self.core.next(clock::now()) {
            self.perform(task);
        }
        let acknowledged = self.core.take_acknowledged();
        if acknowledged > 0 {
            self.rates.acknowledged_bytes += acknowledged;
            self.place.acknowledged(acknowledged);
        }
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Connect => self.connect(),
            Task::Disconnect => self.drop_link(),
            Task::Greet { epoch, incarnation, acked, last } => self.greet(epoch, incarnation, acked, last),
            Task::Say(message) => self.say(message),
            Task::SendArtifact(hash) => self.send_artifact(hash),
            Task::WantBatch => self.want_to_send(),
            Task::Released(up_to) => self.vm.group().on_durable(self.vm.id(), up_to),
            Task::Restart { floor, differs } => self.restart(floor, differs),
            Task::Copy => self.copy_blocks(),
            Task::Hash => self.hash_blocks(),
            Task::Settle(compared) => self.settle(&compared),
            Task::SendAgain(runs) => self.send_again(&runs),
            Task::CloseSync => self.close_sync(),
            Task::Spill => self.spill(),
            Task::Tidy => self.tidy(),
            Task::AskClock => self.say(Message::AskClock(clock::wall())),
            Task::ClockTold(answer) => self.note_clock(&answer),
            Task::AdoptEpoch(epoch) => self.adopt_epoch(epoch),
            Task::Changed(change) => self.on_change(change.from, change.to),
            Task::Refused(refuse) => {
                self.note_refused(format!("{}: {}", refuse.why, refuse.detail), "refused by the peer");
            }
            Task::Disbelieved(why) => {
                let peer = self.link.peer.as_ref().map_or("the peer", |peer| &peer.name);
                let why =
                    format!("{peer} is not believed: {why}; look at its agent and its journal of this VM");
                self.note_refused(why, "the peer is not believed");
            }
        }
    }

    fn greet(&mut self, epoch: Epoch, incarnation: Incarnation, acked: WriteSeq, last: WriteSeq) {
        if !self.note_greeting() {
            self.drop_link();
            return self.core.push(SenderEvent::LinkLost);
        }
        // What the map was kept for may be of a run that a state folder from before does not know.
        if let Err(error) = self.reach_run(acked.max(last).run()) {
            return self.hang_up(error);
        }
        let hello = self.hello(epoch, incarnation, acked, last);
        self.say(Message::Hello(Box::new(hello)));
    }
}

#[cfg(test)]
mod tests;

/// The configured compression.
fn compression(wanted: Compression) -> replication::Compression {
    match wanted {
        Compression::Auto => replication::Compression::Adaptive,
        Compression::None => replication::Compression::Always(Codec::Raw),
        Compression::Lz4 => replication::Compression::Always(Codec::Lz4),
        Compression::Zstd => replication::Compression::Always(Codec::Zstd),
    }
}
