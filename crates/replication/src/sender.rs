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
//! - everything above the peer's acknowledgement is in the buffer, in the spill, or marked in the bitmap;
//! - at most one batch is being built, one copy, one hashing and one spilling are under way, and bytes in
//!   flight keep to the window;
//! - a comparison is only asked for when everything it is about was sent before it;
//! - `Release` is only ever said for sequences the peer has acknowledged as durable.
//!
//! The price of this design: a sync competes with live writes for the buffer, so it yields at a quarter full, and
//! while anything lies in the spill.

mod again;
mod asked;
mod belief;
mod words;

use self::again::Again;
use self::asked::Asked;
pub use self::words::{SenderEffect, SenderEvent};
use crate::state::{Failure, Link, State, SyncReason, TrackingReason, Transition};
use crate::wire::{Ack, Compare, Message, Refusal, Refuse, Welcome};
use std::collections::VecDeque;
use types::limits::{
    CLOCK_INTERVAL, COMPARES_MAX, COPY_RETRY_DELAY, HEARTBEAT_INTERVAL, PEER_SILENCE_MAX,
    RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN, REFUSED_RETRY_DELAY, WINDOW_BYTES,
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
    /// What is marked or suspect, and nothing else.
    Marked,
    /// What is allocated: the replica is known to be zero.
    Allocated,
    /// Nobody knows: everything is suspect.
    Suspect,
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
    /// Why some of what was kept is suspect, if it is.
    pub suspects_because: SyncReason,
    /// Of each disk, in bytes.
    pub disk_sizes: Vec<u64>,
}

/// What the sender may know of the splitter's capture, read just before each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureView {
    /// Writes only mark the bitmap.
    pub tracking: bool,
    /// Writes are missing since a `SyncBegin`.
    pub gap_open: bool,
    /// Writes are made that nobody tells of: what is missing is known to the next capture only.
    pub deaf: bool,
    pub dirty_blocks: u64,
    /// Blocks that are still to be compared.
    pub suspect_blocks: u64,
    /// Those, and the ones that are being compared.
    pub unsettled_blocks: u64,
    /// In memory.
    pub buffered_bytes: u64,
    pub buffer_bytes_max: u64,
    /// Records in memory that are copies of a sync.
    pub copies: u64,
    /// The spill takes more.
    pub spill_has_room: bool,
    /// What was spilled cannot be read any more.
    pub spill_lost: bool,
    /// Something lies in the spill.
    pub spills: bool,
    /// The last sequence freed from buffer and spill.
    pub released: WriteSeq,
    /// The last sequence in the buffer or the spill; `released` where both are empty.
    pub last: WriteSeq,
    /// The last sequence drawn for the group.
    pub drawn: WriteSeq,
    /// Every write of the VM at or below it is in the buffer, freed, or missing.
    pub watermark: WriteSeq,
}

/// Stopped by an exceeded bound.
const STOPPED: State = State::Failed { why: Failure::BoundExceeded };

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
    /// There was no room for a copy: none is made before this, or every one of them would read the disk for nothing.
    copies_at: Monotonic,
    closing: bool,
    /// A sync could not be closed: it is not tried before this, or it would be tried without an end.
    closes_at: Monotonic,
    hashing: bool,
    /// What is suspect cannot be hashed just now; after an answer or some time it is tried again.
    hashing_waits: bool,
    /// The link was lost since the hashing began: nobody would take its answer for what it is.
    hashed_for_another_link: bool,
    /// Wait until everything up to their sequence was sent.
    to_compare: VecDeque<Compare>,
    /// Asked and not yet answered; no other answer is listened to. At most [`COMPARES_MAX`].
    asked: Vec<Asked>,
    again: Again,
    spilling: bool,
    clock_asked_at: Option<Monotonic>,
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
            copies_at: now,
            closing: false,
            closes_at: now,
            hashing: false,
            hashing_waits: false,
            hashed_for_another_link: false,
            to_compare: VecDeque::new(),
            asked: Vec::new(),
            again: Again::new(now),
            spilling: false,
            clock_asked_at: None,
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

    /// Bytes of batches that were sent and not yet acknowledged.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// The last sequence the peer has acknowledged as durable.
    pub fn acked(&self) -> WriteSeq {
        self.acked
    }

    /// The watermark that the peer was told last over this connection.
    pub fn told_watermark(&self) -> WriteSeq {
        self.sent_watermark
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
            SenderEvent::LinkLost => self.on_link_lost(now, effects),
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
            SenderEvent::CopyDone { taken } => {
                self.copying = false;
                if !taken {
                    self.copies_at = now.plus(COPY_RETRY_DELAY);
                }
            }
            SenderEvent::SyncClosed { closed } => {
                self.closing = false;
                if !closed {
                    self.closes_at = now.plus(COPY_RETRY_DELAY);
                } else if self.state.is_syncing() {
                    self.become_state(State::Journaling, effects);
                }
            }
            SenderEvent::Hashed(compare) => {
                let stale = std::mem::take(&mut self.hashed_for_another_link);
                self.hashing = false;
                if stale {
                    effects.push(SenderEffect::ForgetCompares);
                } else {
                    self.hashing_waits = compare.is_none();
                    self.to_compare.extend(compare);
                }
            }
            SenderEvent::Spilled => self.spilling = false,
            SenderEvent::Pause => self.on_pause(effects),
            SenderEvent::Resume => self.on_resume(now, effects),
            SenderEvent::Resync => self.on_resync(effects),
            SenderEvent::Bounds { exceeded } => self.on_bounds(now, exceeded, effects),
            SenderEvent::Tick => self.hashing_waits = false,
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

    fn on_link_lost(&mut self, now: Monotonic, effects: &mut Vec<SenderEffect>) {
        let tries = self.link.tries() + 1;
        let delay = RECONNECT_DELAY_MIN.saturating_mul(1 << tries.min(8)).min(RECONNECT_DELAY_MAX);
        let refused = matches!(self.state, State::Failed { .. } | State::Fenced { .. });
        self.retry_at = now.plus(if refused { REFUSED_RETRY_DELAY } else { delay });
        self.drop_link(tries, effects);
    }

    fn drop_link(&mut self, tries: u32, effects: &mut Vec<SenderEffect>) {
        self.link = Link::Down { tries };
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.to_compare.clear();
        self.asked.clear();
        self.again.link_lost();
        self.hashed_for_another_link |= self.hashing;
        self.clock_asked_at = None;
        effects.push(SenderEffect::ForgetCompares);
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
            (Message::Welcome(welcome), Link::Greeting { .. }) => {
                let believed = belief::check_seq(welcome.durable, view.drawn)
                    .and_then(|()| belief::check_epoch(welcome.epoch, self.config.epoch));
                match believed {
                    Ok(()) => self.on_welcome(welcome, view, effects),
                    Err(why) => self.on_disbelief(now, why, effects),
                }
            }
            (Message::Ack(ack), Link::Up) => self.on_ack(ack, effects),
            (Message::Refuse(refuse), Link::Greeting { .. } | Link::Up) => {
                self.on_refuse(now, refuse, effects)
            }
            (Message::Compared(compared), Link::Up) => {
                match self.asked.iter().position(|asked| asked.is_answered_by(&compared)) {
                    Some(at) => {
                        let asked = self.asked.swap_remove(at);
                        self.hashing_waits = false;
                        effects.push(SenderEffect::Settle(asked.answer(&compared)));
                    }
                    None => self.hang_up(now, effects),
                }
            }
            (Message::SendAgain(runs), Link::Up) => {
                match belief::check_runs(&runs, &self.config.disk_sizes) {
                    Ok(()) => self.again.want(runs),
                    Err(why) => self.on_disbelief(now, why, effects),
                }
            }
            (Message::ClockAnswer(answer), Link::Up) => effects.push(SenderEffect::ClockTold(answer)),
            (Message::Heartbeat, _) => {}
            (
                Message::Hello(_)
                | Message::Welcome(_)
                | Message::Refuse(_)
                | Message::Batch(_)
                | Message::Ack(_)
                | Message::ArtifactPart(_)
                | Message::Compare(_)
                | Message::Compared(_)
                | Message::AskClock(_)
                | Message::ClockAnswer(_)
                | Message::Join(_)
                | Message::Cut(_)
                | Message::Leave(_)
                | Message::Left(_)
                | Message::SendAgain(_),
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
        let resumes =
            known && !view.spill_lost && view.released <= welcome.durable && welcome.durable <= view.last;
        if resumes {
            self.note_acked(welcome.durable);
            effects.push(SenderEffect::Release { up_to: welcome.durable });
            self.settle(view, effects);
        } else {
            let (differs, next) = self.begin_anew(&welcome, known, view);
            effects.push(SenderEffect::Restart { floor: welcome.durable, differs });
            self.acked = welcome.durable;
            self.begun = true;
            // Until the first of the new stream is acknowledged, what is marked is good against the one before too.
            let before = welcome.incarnation.filter(|incarnation| *incarnation != self.config.incarnation);
            let kept = before.map(|incarnation| KeptStream { incarnation, acked: welcome.durable });
            self.config.kept = kept.into_iter().collect();
            self.become_state(next, effects);
        }
        self.sent = welcome.durable;
        self.sent_watermark = welcome.durable;
    }

    /// What may differ where the stream cannot go on as it was, and the state that brings it over.
    fn begin_anew(&self, welcome: &Welcome, known: bool, view: &CaptureView) -> (Differs, State) {
        let continues = |kept: &KeptStream| {
            Some(kept.incarnation) == welcome.incarnation && kept.acked <= welcome.durable
        };
        let suspect = |why| (Differs::Suspect, State::DeltaSync { why });
        match welcome.incarnation {
            None if welcome.must_compare => suspect(SyncReason::PeerLostWrites),
            None if welcome.seeded => suspect(SyncReason::Preseeded),
            // A journal that has something is not new, and its replica not zero: what was lost may be zeroes.
            None if welcome.durable > WriteSeq::ZERO => suspect(SyncReason::PeerLostWrites),
            None => (Differs::Allocated, State::InitialSync),
            // Everything that was not acknowledged is marked, whatever became of the spill.
            Some(_) if known && view.spill_lost && view.released <= welcome.durable => {
                (Differs::Marked, State::BitmapSync)
            }
            Some(_) if known => suspect(SyncReason::PeerLostWrites),
            Some(_) if self.config.kept.iter().any(continues) => {
                let before = if let State::DeltaSync { why } = self.state { Some(why) } else { None };
                let why = before.unwrap_or(self.config.suspects_because);
                let next = if view.suspect_blocks > 0 { State::DeltaSync { why } } else { State::BitmapSync };
                (Differs::Marked, next)
            }
            Some(_) => suspect(SyncReason::UnknownStream),
        }
    }

    /// Takes up the state that what the capture holds calls for.
    fn settle(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let next = match self.state {
            State::Tracking { .. } | State::Failed { .. } if view.tracking => {
                State::Tracking { why: TrackingReason::BufferFull }
            }
            State::Tracking { .. } | State::Failed { .. } if view.gap_open => Self::syncing(view),
            State::Tracking { .. } | State::Failed { .. } => State::Journaling,
            State::InitialSync
            | State::DeltaSync { .. }
            | State::Journaling
            | State::BitmapSync
            | State::Paused
            | State::Fenced { .. } => return,
        };
        self.become_state(next, effects);
    }

    /// The state that brings over what is missing.
    fn syncing(view: &CaptureView) -> State {
        if view.unsettled_blocks > 0 {
            State::DeltaSync { why: SyncReason::Asked }
        } else {
            State::BitmapSync
        }
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
            self.note_acked(ack.durable);
            effects.push(SenderEffect::Release { up_to: ack.durable });
        }
    }

    /// The journal has some of this stream now: marks go with its acknowledgements, and are no good against another.
    fn note_acked(&mut self, durable: WriteSeq) {
        if durable > self.acked {
            self.config.kept.clear();
        }
        self.acked = durable;
    }

    fn on_refuse(&mut self, now: Monotonic, refuse: Refuse, effects: &mut Vec<SenderEffect>) {
        match refuse.why {
            Refusal::Fenced { epoch, released: true } => {
                if let Err(why) = belief::check_epoch(epoch, self.config.epoch) {
                    return self.on_disbelief(now, why, effects);
                }
                if epoch > self.config.epoch {
                    self.config.epoch = epoch;
                    effects.push(SenderEffect::AdoptEpoch(epoch));
                }
                if matches!(self.state, State::Fenced { .. }) {
                    let why = TrackingReason::RefusalLifted;
                    self.become_state(State::Tracking { why }, effects);
                }
                self.retry_at = now;
                self.drop_link(0, effects);
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
                    self.become_state(State::Failed { why: Failure::Refused(refuse.why) }, effects);
                }
            }
        }
        effects.push(SenderEffect::Refused(refuse));
        self.hang_up(now, effects);
    }

    /// Nothing of what it has said is taken over; it is heard again later.
    fn on_disbelief(&mut self, now: Monotonic, why: String, effects: &mut Vec<SenderEffect>) {
        if !matches!(self.state, State::Paused) {
            self.become_state(State::Failed { why: Failure::Disbelieved }, effects);
        }
        effects.push(SenderEffect::Disbelieved(why));
        self.hang_up(now, effects);
    }

    fn hang_up(&mut self, now: Monotonic, effects: &mut Vec<SenderEffect>) {
        self.on_link_lost(now, effects);
        effects.push(SenderEffect::Disconnect);
    }

    fn on_pause(&mut self, effects: &mut Vec<SenderEffect>) {
        if matches!(self.state, State::Paused) {
            return;
        }
        self.become_state(State::Paused, effects);
        self.drop_link(0, effects);
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

    fn on_resync(&mut self, effects: &mut Vec<SenderEffect>) {
        effects.push(SenderEffect::SuspectEverything);
        if self.state.is_syncing() || matches!(self.state, State::Journaling) {
            self.become_state(State::DeltaSync { why: SyncReason::Asked }, effects);
        }
    }

    /// An exceeded bound stops the stream until the operator lets it go on.
    fn on_bounds(&mut self, now: Monotonic, exceeded: bool, effects: &mut Vec<SenderEffect>) {
        let stopped = self.state == STOPPED;
        if exceeded && !matches!(self.state, State::Paused | State::Fenced { .. } | State::Failed { .. }) {
            self.become_state(STOPPED, effects);
            effects.push(SenderEffect::StartTracking);
            self.hang_up(now, effects);
        } else if !exceeded && stopped {
            self.become_state(State::Tracking { why: TrackingReason::Resumed }, effects);
            self.retry_at = now;
        }
    }

    fn upkeep(&mut self, now: Monotonic, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        self.follow_capture(view, effects);
        let half_full = view.buffered_bytes * 2 >= view.buffer_bytes_max;
        if half_full && view.spill_has_room && !view.tracking && !self.spilling {
            self.spilling = true;
            effects.push(SenderEffect::Spill);
        }
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
        if view.spill_lost && !restarts(effects) {
            self.hang_up(now, effects);
            return;
        }
        if self.clock_asked_at.is_none_or(|asked| now.since(asked) >= CLOCK_INTERVAL) {
            self.clock_asked_at = Some(now);
            effects.push(SenderEffect::AskClock);
        }
        if now.since(self.said_at) >= HEARTBEAT_INTERVAL {
            self.said_at = now;
            effects.push(SenderEffect::Send(Message::Heartbeat));
        }
        effects.extend(self.again.take(now).map(SenderEffect::SendAgain));
        self.send_more(view, effects);
        self.sync_more(now, view, effects);
        self.compare_more(view, effects);
    }

    /// Follows what the capture did by itself: a full buffer, a failed local write.
    fn follow_capture(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        if restarts(effects) {
            return; // The view was read before the restart that this very step asks for.
        }
        let buffers = self.state.is_syncing() || matches!(self.state, State::Journaling);
        if view.tracking && buffers {
            self.become_state(State::Tracking { why: TrackingReason::BufferFull }, effects);
        } else if view.gap_open && matches!(self.state, State::Journaling) {
            self.become_state(Self::syncing(view), effects);
        }
        let drained = view.buffered_bytes * 4 <= view.buffer_bytes_max;
        if matches!(self.state, State::Tracking { .. }) && self.link == Link::Up && drained {
            effects.push(SenderEffect::LeaveTracking);
            self.become_state(Self::syncing(view), effects);
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

    fn sync_more(&mut self, now: Monotonic, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let busy = self.copying || self.closing || restarts(effects);
        if !self.state.is_syncing() || busy || view.tracking {
            return;
        }
        if view.dirty_blocks > 0 {
            // A copy is read as late as it can be: what waits for the link are live writes, and never copies.
            let room = view.buffered_bytes * 4 < view.buffer_bytes_max && !view.spills;
            if room && now >= self.copies_at {
                self.copying = true;
                effects.push(SenderEffect::CopyBlocks);
            }
        } else if view.unsettled_blocks == 0
            && view.copies == 0 // Until then they can still be taken out of the stream, and made again.
            && !self.hashing
            && !view.deaf
            && now >= self.closes_at
        {
            self.closing = true;
            effects.push(SenderEffect::CloseSync);
        }
    }

    /// Comparisons go on during a sync, and also while everything is well: then they verify.
    fn compare_more(&mut self, view: &CaptureView, effects: &mut Vec<SenderEffect>) {
        let compares = self.state.is_syncing() || matches!(self.state, State::Journaling);
        if !compares || restarts(effects) || view.tracking {
            return;
        }
        while let Some(next) = self.to_compare.front()
            && next.at <= self.sent
        {
            self.asked.push(Asked::of(next));
            effects.extend(
                self.to_compare.pop_front().map(|compare| SenderEffect::Send(Message::Compare(compare))),
            );
        }
        // Live writes go before: a full buffer leaves the local disk to them.
        let room = self.asked.len() + self.to_compare.len() < COMPARES_MAX
            && view.buffered_bytes * 2 < view.buffer_bytes_max;
        if view.suspect_blocks > 0 && room && !self.hashing && !self.hashing_waits {
            self.hashing = true;
            effects.push(SenderEffect::HashBlocks);
        }
    }

    fn wants_link(&self) -> bool {
        !matches!(self.state, State::Paused) && self.state != STOPPED
    }

    fn become_state(&mut self, to: State, effects: &mut Vec<SenderEffect>) {
        let from = self.state;
        if from == to {
            return;
        }
        assert!(from.may_become(&to), "no edge from {from:?} to {to:?}");
        self.state = to;
        if to == State::Journaling {
            self.again.sync_ended();
        }
        effects.push(SenderEffect::Changed(Transition { from, to }));
    }
}

/// Whether this very step begins the stream anew; what the view says is older than that.
fn restarts(effects: &[SenderEffect]) -> bool {
    effects.iter().any(|effect| matches!(effect, SenderEffect::Restart { .. }))
}

#[cfg(test)]
mod tests;
