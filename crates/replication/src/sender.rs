//! The sending side of one VM's stream: what to say next, what may be freed, when to sync.
//!
//! The sender owns the state of the protection and of the link. It does not own the writes: those lie
//! in the splitter's buffer, and the sender sees of them only a [`CaptureView`]. It ships the buffer in
//! order; blocks copied by a sync enter that same buffer with sequences of their own, so there is one
//! order and one retention for everything.
//!
//! Event sources: the link (`LinkUp`, `LinkLost`, `Received`), the driver that carries out effects
//! (`BatchSent`, `NothingToSend`, `CopyDone`, `SyncClosed`), the operator (`Pause`, `Resume`), and time
//! (`Tick`). After each event the same upkeep runs. What holds after every event:
//!
//! - everything above the peer's acknowledgement is in the buffer or marked in the bitmap;
//! - at most one batch is being built and one copy is under way, and bytes in flight keep to the window;
//! - `Release` is only ever said for sequences the peer has acknowledged as durable.
//!
//! The price of this design: a sync competes with live writes for the buffer, so it yields at half full.

use crate::state::{Link, State, SyncReason, TrackingReason, Transition};
use crate::wire::{Ack, ArtifactHash, Message, Refusal, Refuse, Welcome};
use std::collections::VecDeque;
use types::limits::{
    HEARTBEAT_INTERVAL, PEER_SILENCE_MAX, RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN, REFUSED_RETRY_DELAY,
    WINDOW_BYTES,
};
use types::{Epoch, Incarnation, Monotonic, VmId, WriteSeq};

/// A stream of before that what is marked can be continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptStream {
    pub incarnation: Incarnation,
    /// The journal must know at least as much.
    pub acked: WriteSeq,
}

/// What may differ from the journal when a stream begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// What is marked, and nothing else.
    Marked,
    /// What is allocated: the replica is known to be zero.
    Allocated,
    Everything,
}

/// Whose stream this is.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    pub vm: VmId,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    /// Whether the operator had paused the protection when the agent last stopped.
    pub paused: bool,
    /// Streams that the marks the agent has kept over its restart belong to.
    pub kept: Vec<KeptStream>,
}

/// What the sender may know of the splitter's capture, read just before each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureView {
    /// Writes only mark the bitmap.
    pub tracking: bool,
    /// Writes are missing since a `SyncBegin`.
    pub gap_open: bool,
    pub dirty_blocks: u64,
    pub buffered_bytes: u64,
    pub buffer_bytes_max: u64,
    /// The last sequence freed from the buffer.
    pub released: WriteSeq,
    /// The last sequence in the buffer; `released` where it is empty.
    pub last: WriteSeq,
    /// Every write of the VM at or below it is in the buffer, freed, or missing.
    pub watermark: WriteSeq,
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum SenderEvent {
    LinkUp,
    LinkLost,
    Received(Message),
    /// A batch was built from the buffer and handed to the link.
    BatchSent {
        last: WriteSeq,
        watermark: WriteSeq,
        bytes: usize,
    },
    /// The buffer had nothing above what was sent.
    NothingToSend,
    /// The copy asked for is in the buffer, or could not be made and its blocks are marked again.
    CopyDone,
    /// `SyncEnd` is in the buffer, or could not be put there because blocks are marked again.
    SyncClosed {
        closed: bool,
    },
    Pause,
    Resume,
    Tick,
}

/// Something to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderEffect {
    Connect,
    /// Drop the connection, if there is one.
    Disconnect,
    /// Say hello; the driver fills in what the sender does not know.
    SayHello {
        epoch: Epoch,
        incarnation: Incarnation,
        acked: WriteSeq,
        last: WriteSeq,
    },
    Send(Message),
    /// Send all of a file the peer misses, in parts.
    SendArtifact(ArtifactHash),
    /// Build a batch from what the buffer holds above `after` and send it.
    SendBatch {
        after: WriteSeq,
    },
    /// The buffer may forget everything at or below.
    Release {
        up_to: WriteSeq,
    },
    /// Forget the buffer, mark what may differ, begin above `floor`.
    Restart {
        floor: WriteSeq,
        differs: Differs,
    },
    /// Stop buffering: mark the bitmap only.
    StartTracking,
    /// Buffer writes again.
    LeaveTracking,
    /// Copy some marked blocks into the buffer.
    CopyBlocks,
    /// Nothing is marked any more: put `SyncEnd` into the buffer.
    CloseSync,
    /// Keep this epoch from now on, durably.
    AdoptEpoch(Epoch),
    /// The state has changed.
    Changed(Transition),
    /// The peer refuses, in its own words.
    Refused(Refuse),
}

/// The sending side of one VM's stream.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    state: State,
    link: Link,
    retry_at: Monotonic,
    heard_at: Monotonic,
    said_at: Monotonic,
    /// Acknowledged as durable by the peer.
    acked: WriteSeq,
    last_ack: Option<Ack>,
    /// Handed to the link on this connection.
    sent: WriteSeq,
    sent_watermark: WriteSeq,
    in_flight: VecDeque<(WriteSeq, usize)>,
    in_flight_bytes: usize,
    building: bool,
    copying: bool,
    closing: bool,
    /// Whether this run has been welcomed with its own incarnation.
    begun: bool,
}

impl Sender {
    pub fn new(config: SenderConfig, now: Monotonic) -> Self {
        let state = if config.paused {
            State::Paused
        } else {
            State::Tracking { why: TrackingReason::NotYetConnected }
        };
        Self {
            config,
            state,
            link: Link::Down { tries: 0 },
            retry_at: now,
            heard_at: now,
            said_at: now,
            acked: WriteSeq::ZERO,
            last_ack: None,
            sent: WriteSeq::ZERO,
            sent_watermark: WriteSeq::ZERO,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            building: false,
            copying: false,
            closing: false,
            begun: false,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn link(&self) -> Link {
        self.link
    }

    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    pub fn incarnation(&self) -> Incarnation {
        self.config.incarnation
    }

    /// The last sequence the peer has acknowledged as durable.
    pub fn acked(&self) -> WriteSeq {
        self.acked
    }

    /// The last acknowledgement, if there was one in this run.
    pub fn last_ack(&self) -> Option<Ack> {
        self.last_ack
    }

    /// Takes one event and says what to do.
    pub fn step(
        &mut self,
        now: Monotonic,
        event: SenderEvent,
        view: &CaptureView,
        effects: &mut Vec<SenderEffect>,
    ) {
        match event {
            SenderEvent::LinkUp => self.on_link_up(now, view, effects),
            SenderEvent::LinkLost => self.on_link_lost(now),
            SenderEvent::Received(message) => self.on_message(now, message, view, effects),
            SenderEvent::BatchSent { last, watermark, bytes } => {
                self.building = false;
                if self.link == Link::Up {
                    self.said_at = now;
                    self.sent = last;
                    self.sent_watermark = watermark;
                    self.in_flight.push_back((last, bytes));
                    self.in_flight_bytes += bytes;
                }
            }
            SenderEvent::NothingToSend => self.building = false,
            SenderEvent::CopyDone => self.copying = false,
            SenderEvent::SyncClosed { closed } => {
                self.closing = false;
                if closed && self.state.is_syncing() {
                    self.become_state(State::Journaling, effects);
                }
            }
            SenderEvent::Pause => self.on_pause(effects),
            SenderEvent::Resume => self.on_resume(now, effects),
            SenderEvent::Tick => {}
        }
        self.upkeep(now, view, effects);
    }

    fn on_link_up(&mut self, now: Monotonic, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        if !self.wants_link() {
            effects.push(SenderEffect::Disconnect);
            return;
        }
        self.link = Link::Greeting { tries: self.link.tries() };
        self.heard_at = now;
        self.said_at = now;
        effects.push(SenderEffect::SayHello {
            epoch: self.config.epoch,
            incarnation: self.config.incarnation,
            acked: if self.begun { self.acked } else { WriteSeq::ZERO },
            last: view.last,
        });
    }

    fn on_link_lost(&mut self, now: Monotonic) {
        let tries = self.link.tries() + 1;
        let delay = RECONNECT_DELAY_MIN.saturating_mul(1 << tries.min(8)).min(RECONNECT_DELAY_MAX);
        let refused = matches!(self.state, State::Failed { .. } | State::Fenced { .. });
        self.retry_at = now.plus(if refused { REFUSED_RETRY_DELAY } else { delay });
        self.drop_link(tries);
    }

    fn drop_link(&mut self, tries: u32) {
        self.link = Link::Down { tries };
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    fn on_message(
        &mut self,
        now: Monotonic,
        message: Message,
        view: &CaptureView,
        effects: &mut Vec<SenderEffect>,
    ) {
        self.heard_at = now;
        match (message, self.link) {
            (Message::Welcome(welcome), Link::Greeting { .. }) => self.on_welcome(welcome, view, effects),
            (Message::Ack(ack), Link::Up) => self.on_ack(ack, effects),
            (Message::Refuse(refuse), Link::Greeting { .. } | Link::Up) => {
                self.on_refuse(now, refuse, effects)
            }
            (Message::Heartbeat, _) => {}
            (
                Message::Hello(_)
                | Message::Welcome(_)
                | Message::Refuse(_)
                | Message::Batch(_)
                | Message::Ack(_)
                | Message::ArtifactPart(_),
                _,
            ) => self.hang_up(now, effects),
        }
    }

    fn on_welcome(&mut self, welcome: Welcome, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        self.link = Link::Up;
        if matches!(self.state, State::Fenced { .. }) {
            self.become_state(State::Tracking { why: TrackingReason::RefusalLifted }, effects);
        }
        if welcome.epoch > self.config.epoch {
            self.config.epoch = welcome.epoch;
            effects.push(SenderEffect::AdoptEpoch(welcome.epoch));
        }
        effects.extend(welcome.missing.iter().copied().map(SenderEffect::SendArtifact));
        let known = welcome.incarnation == Some(self.config.incarnation) && self.begun;
        let resumes = known && view.released <= welcome.durable && welcome.durable <= view.last;
        if resumes {
            self.acked = welcome.durable;
            effects.push(SenderEffect::Release { up_to: welcome.durable });
            self.settle(view, effects);
        } else {
            let continues = |kept: &KeptStream| {
                Some(kept.incarnation) == welcome.incarnation && kept.acked <= welcome.durable
            };
            let (differs, next) = match welcome.incarnation {
                None => (Differs::Allocated, State::InitialSync { why: SyncReason::FirstProtection }),
                Some(_) if known => {
                    (Differs::Everything, State::InitialSync { why: SyncReason::PeerLostWrites })
                }
                Some(_) if !self.begun && self.config.kept.iter().any(continues) => {
                    (Differs::Marked, State::BitmapSync)
                }
                Some(_) => (Differs::Everything, State::InitialSync { why: SyncReason::AgentRestarted }),
            };
            effects.push(SenderEffect::Restart { floor: welcome.durable, differs });
            self.acked = welcome.durable;
            self.begun = true;
            self.become_state(next, effects);
        }
        self.sent = welcome.durable;
        self.sent_watermark = welcome.durable;
    }

    /// Takes up the state that what the capture holds calls for.
    fn settle(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let next = match self.state {
            State::Tracking { .. } | State::Failed { .. } if view.tracking => {
                State::Tracking { why: TrackingReason::BufferFull }
            }
            State::Tracking { .. } | State::Failed { .. } if view.gap_open => State::BitmapSync,
            State::Tracking { .. } | State::Failed { .. } => State::Journaling,
            State::InitialSync { .. }
            | State::Journaling
            | State::BitmapSync
            | State::Paused
            | State::Fenced { .. } => return,
        };
        self.become_state(next, effects);
    }

    fn on_ack(&mut self, ack: Ack, effects: &mut Vec<SenderEffect>) {
        if ack.durable > self.sent {
            effects.push(SenderEffect::Disconnect);
            return;
        }
        self.last_ack = Some(ack);
        while let Some(&(last, bytes)) = self.in_flight.front()
            && last <= ack.durable
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
        if ack.durable > self.acked {
            self.acked = ack.durable;
            effects.push(SenderEffect::Release { up_to: ack.durable });
        }
    }

    fn on_refuse(&mut self, now: Monotonic, refuse: Refuse, effects: &mut Vec<SenderEffect>) {
        match refuse.why {
            Refusal::Fenced { epoch, released: true } => {
                if epoch > self.config.epoch {
                    self.config.epoch = epoch;
                    effects.push(SenderEffect::AdoptEpoch(epoch));
                }
                if matches!(self.state, State::Fenced { .. }) {
                    let why = TrackingReason::RefusalLifted;
                    self.become_state(State::Tracking { why }, effects);
                }
                self.retry_at = now;
                self.drop_link(0);
                effects.push(SenderEffect::Disconnect);
                return;
            }
            Refusal::Fenced { epoch, released: false } => {
                self.become_state(State::Fenced { epoch }, effects);
            }
            Refusal::JournalFull
            | Refusal::JournalFailed
            | Refusal::DisksDiffer
            | Refusal::Busy
            | Refusal::Protocol
            | Refusal::Version
            | Refusal::NotAccepted => {
                if !matches!(self.state, State::Paused) {
                    self.become_state(State::Failed { why: refuse.why }, effects);
                }
            }
        }
        effects.push(SenderEffect::Refused(refuse));
        self.hang_up(now, effects);
    }

    fn hang_up(&mut self, now: Monotonic, effects: &mut Vec<SenderEffect>) {
        self.on_link_lost(now);
        effects.push(SenderEffect::Disconnect);
    }

    fn on_pause(&mut self, effects: &mut Vec<SenderEffect>) {
        if matches!(self.state, State::Paused) {
            return;
        }
        self.become_state(State::Paused, effects);
        self.drop_link(0);
        effects.push(SenderEffect::StartTracking);
        effects.push(SenderEffect::Disconnect);
    }

    fn on_resume(&mut self, now: Monotonic, effects: &mut Vec<SenderEffect>) {
        if !matches!(self.state, State::Paused) {
            return;
        }
        self.become_state(State::Tracking { why: TrackingReason::Resumed }, effects);
        self.retry_at = now;
    }

    fn upkeep(&mut self, now: Monotonic, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        self.follow_capture(view, effects);
        if let Link::Down { tries } = self.link
            && self.wants_link()
            && now >= self.retry_at
        {
            self.link = Link::Connecting { tries };
            effects.push(SenderEffect::Connect);
        }
        let greeted = matches!(self.link, Link::Greeting { .. } | Link::Up);
        if greeted && now.since(self.heard_at) > PEER_SILENCE_MAX {
            self.hang_up(now, effects);
        }
        if self.link != Link::Up {
            return;
        }
        if now.since(self.said_at) >= HEARTBEAT_INTERVAL {
            self.said_at = now;
            effects.push(SenderEffect::Send(Message::Heartbeat));
        }
        self.send_more(view, effects);
        self.sync_more(view, effects);
    }

    /// Follows what the capture did by itself: a full buffer, a failed local write.
    fn follow_capture(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        if effects.iter().any(|effect| matches!(effect, SenderEffect::Restart { .. })) {
            return; // The view was read before the restart that this very step asks for.
        }
        let buffers = self.state.is_syncing() || matches!(self.state, State::Journaling);
        if view.tracking && buffers {
            self.become_state(State::Tracking { why: TrackingReason::BufferFull }, effects);
        } else if view.gap_open && matches!(self.state, State::Journaling) {
            self.become_state(State::BitmapSync, effects);
        }
        let drained = view.buffered_bytes * 4 <= view.buffer_bytes_max;
        if matches!(self.state, State::Tracking { .. }) && self.link == Link::Up && drained {
            effects.push(SenderEffect::LeaveTracking);
            self.become_state(State::BitmapSync, effects);
        }
    }

    fn send_more(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let news = view.last > self.sent || view.watermark > self.sent_watermark;
        let room = self.in_flight_bytes < WINDOW_BYTES;
        if news && room && !self.building && self.begun {
            self.building = true;
            effects.push(SenderEffect::SendBatch { after: self.sent });
        }
    }

    fn sync_more(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let restarting = effects.iter().any(|effect| matches!(effect, SenderEffect::Restart { .. }));
        if !self.state.is_syncing() || self.copying || self.closing || restarting || view.tracking {
            return;
        }
        if view.dirty_blocks > 0 {
            if view.buffered_bytes * 2 < view.buffer_bytes_max {
                self.copying = true;
                effects.push(SenderEffect::CopyBlocks);
            }
        } else {
            self.closing = true;
            effects.push(SenderEffect::CloseSync);
        }
    }

    fn wants_link(&self) -> bool {
        !matches!(self.state, State::Paused)
    }

    fn become_state(&mut self, to: State, effects: &mut Vec<SenderEffect>) {
        let from = self.state;
        if from == to {
            return;
        }
        assert!(from.may_become(&to), "no edge from {from:?} to {to:?}");
        self.state = to;
        effects.push(SenderEffect::Changed(Transition { from, to }));
    }
}

#[cfg(test)]
mod tests;
