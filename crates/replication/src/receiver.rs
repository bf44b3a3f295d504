//! The receiving side of one VM's stream: who may speak, what follows what, when to acknowledge.
//!
//! ```text
//!   AwaitHello ──Hello──▶ Opening ──Opened──▶ Streaming ──▶ Closed
//!        └───────────────────┴───────refused──────────────────▲
//! ```
//!
//! What holds after every event: an `Ack` is only ever sent for what the driver has reported durable;
//! a batch is only handed on when it follows the one before it in the same stream, of the epoch and
//! incarnation that were welcomed; and blocks are only looked at for a comparison once everything is
//! durable that the source had for them.

use crate::wire::{
    Ack, ArtifactHash, ArtifactPart, Compare, Compared, Hello, Message, Refusal, Refuse, Welcome, WireError,
};
use batch::Batch;
use std::collections::VecDeque;
use types::limits::{
    ARTIFACT_BYTES_MAX, BLOCK_BYTES, COMPARES_MAX, DISK_BYTES_MAX, DISKS_MAX, HEARTBEAT_INTERVAL,
    HISTORY_SECONDS_RANGE, JOURNAL_BYTES_RANGE, PEER_SILENCE_MAX, SECTOR_BYTES, SEND_AGAIN_INTERVAL,
};
use types::{BlockRun, Epoch, Incarnation, Monotonic, WallTime, WriteSeq, is_plain_name};

/// What the driver found when it opened the journal of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub epoch: Epoch,
    pub durable: WriteSeq,
    pub incarnation: Option<Incarnation>,
    /// Writes that were acknowledged are lost: everything is to be compared.
    pub must_compare: bool,
    /// The replica was brought here by other means and is to be compared.
    pub seeded: bool,
    pub missing: Vec<ArtifactHash>,
    /// What is lost of the newest state and not to be compared: ascending runs that have no block in common, at most
    /// [`types::limits::SEND_AGAIN_RUNS_MAX`], and none where the sender cannot be asked for them
    /// ([`Hello::hears_of_blocks`]).
    pub lost: Vec<BlockRun>,
}

/// Something happened.
#[derive(Debug)]
pub enum ReceiverEvent {
    Received(Message),
    /// Bytes came that are no message.
    Garbage(WireError),
    /// The answer to [`ReceiverEffect::Open`].
    Opened(Result<Opened, Refuse>),
    /// The journal is durable so far.
    Durable(Ack),
    /// The answer to [`ReceiverEffect::Compare`].
    Compared(Compared),
    /// This is what the journal has lost of the newest state, some of it just now; as in [`Opened`].
    Lost(Vec<BlockRun>),
    /// The journal can take no more, or the group has failed over.
    Stopped(Refuse),
    Tick,
}

/// Something to do, in the order given.
#[derive(Debug)]
pub enum ReceiverEffect {
    /// Open the journal of this VM, or make it.
    Open(Box<Hello>),
    Send(Message),
    /// Append to the journal, in order.
    Append(Batch),
    /// Keep a part of a file.
    Keep(ArtifactPart),
    /// Look at some blocks as of `at`, and say which differ. Not more than [`COMPARES_MAX`] at a time.
    Compare(Compare),
    /// Say what time it is.
    AnswerClock {
        asked_at: WallTime,
    },
    /// Drop the connection once everything has been sent.
    Close {
        why: String,
    },
}

#[derive(Debug)]
enum Phase {
    AwaitHello,
    Opening { hello: Box<Hello> },
    Streaming(Streaming),
    Closed,
}

#[derive(Debug)]
struct Streaming {
    hello: Box<Hello>,
    /// The last sequence handed on to the journal.
    accepted: WriteSeq,
    durable: WriteSeq,
    /// Wait for what they are to be compared with.
    compares: VecDeque<Compare>,
    /// Are being looked at.
    comparing: usize,
    clock_told_at: Option<Monotonic>,
    /// What is lost, and the sender is yet to be told.
    lost: Vec<BlockRun>,
    lost_told_at: Option<Monotonic>,
}

/// The receiving side of one connection.
#[derive(Debug)]
pub struct Receiver {
    phase: Phase,
    heard_at: Monotonic,
    said_at: Monotonic,
}

impl Receiver {
    pub fn new(now: Monotonic) -> Self {
        Self { phase: Phase::AwaitHello, heard_at: now, said_at: now }
    }

    /// Takes one event and says what to do.
    pub fn step(&mut self, now: Monotonic, event: ReceiverEvent, effects: &mut Vec<ReceiverEffect>) {
        let before = effects.len();
        match event {
            ReceiverEvent::Received(message) => {
                self.heard_at = now;
                self.on_message(now, message, effects);
            }
            ReceiverEvent::Garbage(error) => {
                let why = match error {
                    WireError::Version { .. } => Refusal::Version,
                    _ => Refusal::Protocol,
                };
                self.refuse(Refuse { why, detail: error.to_string() }, effects);
            }
            ReceiverEvent::Opened(opened) => self.on_opened(now, opened, effects),
            ReceiverEvent::Durable(ack) => {
                if let Phase::Streaming(streaming) = &mut self.phase {
                    streaming.durable = ack.durable;
                    effects.push(ReceiverEffect::Send(Message::Ack(ack)));
                    streaming.begin_compares(effects);
                }
            }
            ReceiverEvent::Compared(compared) => {
                if let Phase::Streaming(streaming) = &mut self.phase {
                    streaming.comparing -= 1;
                    effects.push(ReceiverEffect::Send(Message::Compared(compared)));
                }
            }
            ReceiverEvent::Lost(lost) => {
                if let Phase::Streaming(streaming) = &mut self.phase {
                    streaming.lost = lost;
                    streaming.tell_lost(now, effects);
                }
            }
            ReceiverEvent::Stopped(refuse) => self.refuse(refuse, effects),
            ReceiverEvent::Tick => self.on_tick(now, effects),
        }
        if effects[before..].iter().any(|effect| matches!(effect, ReceiverEffect::Send(_))) {
            self.said_at = now;
        }
    }

    fn on_tick(&mut self, now: Monotonic, effects: &mut Vec<ReceiverEffect>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        if let Phase::Streaming(streaming) = &mut self.phase {
            streaming.tell_lost(now, effects);
        }
        if now.since(self.heard_at) > PEER_SILENCE_MAX {
            self.phase = Phase::Closed;
            effects.push(ReceiverEffect::Close { why: "the peer has gone silent".into() });
        } else if matches!(self.phase, Phase::Streaming(_) | Phase::Opening { .. })
            && now.since(self.said_at) >= HEARTBEAT_INTERVAL
        {
            effects.push(ReceiverEffect::Send(Message::Heartbeat));
        }
    }

    fn on_message(&mut self, now: Monotonic, message: Message, effects: &mut Vec<ReceiverEffect>) {
        match (message, &mut self.phase) {
            (_, Phase::Closed) | (Message::Heartbeat, _) => {}
            (Message::Hello(hello), Phase::AwaitHello) => match check_hello(&hello) {
                Ok(()) => {
                    self.phase = Phase::Opening { hello: hello.clone() };
                    effects.push(ReceiverEffect::Open(hello));
                }
                Err(detail) => self.refuse(Refuse { why: Refusal::Protocol, detail }, effects),
            },
            (Message::Batch(batch), Phase::Streaming(streaming)) => {
                match check_batch(batch.joined(), &streaming.hello, streaming.accepted) {
                    Ok(batch) => {
                        streaming.accepted = batch.header().last_seq;
                        effects.push(ReceiverEffect::Append(batch));
                    }
                    Err(detail) => self.refuse(Refuse { why: Refusal::Protocol, detail }, effects),
                }
            }
            (Message::ArtifactPart(part), Phase::Streaming(streaming)) => {
                match check_part(&part, &streaming.hello) {
                    Ok(()) => effects.push(ReceiverEffect::Keep(part)),
                    Err(detail) => self.refuse(Refuse { why: Refusal::Protocol, detail }, effects),
                }
            }
            (Message::Compare(compare), Phase::Streaming(streaming)) => {
                match check_compare(&compare, streaming) {
                    Ok(()) => {
                        streaming.compares.push_back(compare);
                        streaming.begin_compares(effects);
                    }
                    Err(detail) => self.refuse(Refuse { why: Refusal::Protocol, detail }, effects),
                }
            }
            (Message::AskClock(asked_at), Phase::Streaming(streaming)) => {
                // Whoever asks without end is not answered without end.
                let due = streaming.clock_told_at.is_none_or(|told| now.since(told) >= HEARTBEAT_INTERVAL);
                if due {
                    streaming.clock_told_at = Some(now);
                    effects.push(ReceiverEffect::AnswerClock { asked_at });
                }
            }
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
            ) => {
                let detail = "a message that has no place here".to_owned();
                self.refuse(Refuse { why: Refusal::Protocol, detail }, effects);
            }
        }
    }

    fn on_opened(
        &mut self,
        now: Monotonic,
        opened: Result<Opened, Refuse>,
        effects: &mut Vec<ReceiverEffect>,
    ) {
        let Phase::Opening { hello } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        match opened {
            Ok(opened) => {
                effects.push(ReceiverEffect::Send(Message::Welcome(Welcome {
                    epoch: opened.epoch,
                    durable: opened.durable,
                    incarnation: opened.incarnation.filter(|_| !opened.must_compare),
                    must_compare: opened.must_compare,
                    seeded: opened.seeded,
                    missing: opened.missing,
                })));
                let mut streaming = Streaming::of(hello, opened.durable);
                streaming.lost = opened.lost;
                streaming.tell_lost(now, effects);
                self.phase = Phase::Streaming(streaming);
            }
            Err(refuse) => {
                self.phase = Phase::Opening { hello };
                self.refuse(refuse, effects);
            }
        }
    }

    fn refuse(&mut self, refuse: Refuse, effects: &mut Vec<ReceiverEffect>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.phase = Phase::Closed;
        let why = format!("{}: {}", refuse.why, refuse.detail);
        effects.push(ReceiverEffect::Send(Message::Refuse(refuse)));
        effects.push(ReceiverEffect::Close { why });
    }
}

impl Streaming {
    fn of(hello: Box<Hello>, durable: WriteSeq) -> Self {
        Self {
            hello,
            accepted: durable,
            durable,
            compares: VecDeque::new(),
            comparing: 0,
            clock_told_at: None,
            lost: Vec::new(),
            lost_told_at: None,
        }
    }

    /// Says what is lost, all of it, and not too often.
    fn tell_lost(&mut self, now: Monotonic, effects: &mut Vec<ReceiverEffect>) {
        let is_time = self.lost_told_at.is_none_or(|told| now.since(told) >= SEND_AGAIN_INTERVAL);
        if is_time && !self.lost.is_empty() && self.hello.hears_of_blocks() {
            self.lost_told_at = Some(now);
            effects.push(ReceiverEffect::Send(Message::SendAgain(std::mem::take(&mut self.lost))));
        }
    }

    /// Hands on the comparisons for which everything is durable now.
    fn begin_compares(&mut self, effects: &mut Vec<ReceiverEffect>) {
        while let Some(next) = self.compares.front()
            && next.at <= self.durable
        {
            self.comparing += 1;
            effects.extend(self.compares.pop_front().map(ReceiverEffect::Compare));
        }
    }
}

fn check_hello(hello: &Hello) -> Result<(), String> {
    let names = [&hello.vm_name, &hello.group_name].into_iter();
    let names = names.chain(hello.disks.iter().map(|disk| &disk.name));
    for name in names.chain(hello.artifacts.iter().map(|artifact| &artifact.name)) {
        if !is_plain_name(name) {
            return Err(format!("the name {name:?}; 1 to 64 letters, digits, '-', '_' and '.' are possible"));
        }
    }
    let mut disks: Vec<&str> = hello.disks.iter().map(|disk| disk.name.as_str()).collect();
    disks.sort_unstable();
    if disks.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("two disks of the same name".into());
    }
    if hello.disks.is_empty() || hello.disks.len() > DISKS_MAX {
        return Err(format!("a VM of {} disks; 1 to {DISKS_MAX} are possible", hello.disks.len()));
    }
    for disk in &hello.disks {
        let size = disk.size_bytes;
        if size == 0 || size > DISK_BYTES_MAX || !size.is_multiple_of(SECTOR_BYTES) {
            return Err(format!(
                "disk {} of {size} bytes; whole sectors up to 64 TiB are possible",
                disk.name
            ));
        }
    }
    check_wishes(hello)?;
    if let Some(artifact) = hello.artifacts.iter().find(|artifact| artifact.size_bytes > ARTIFACT_BYTES_MAX) {
        return Err(format!("file {} of {} bytes is over 1 GiB", artifact.name, artifact.size_bytes));
    }
    Ok(())
}

/// What is wished for the journal: nothing an operator could not have chosen, for it decides what history is kept.
fn check_wishes(hello: &Hello) -> Result<(), String> {
    if hello.epoch > Epoch::GREETING_MAX {
        return Err(format!("an epoch of {}, which no group comes to", hello.epoch));
    }
    let (least, most) = HISTORY_SECONDS_RANGE;
    if !(least..=most).contains(&hello.history_seconds) {
        return Err(format!("a history of {} s; {least} to {most} s are possible", hello.history_seconds));
    }
    let (least, most) = JOURNAL_BYTES_RANGE;
    let bytes = hello.journal_bytes_max;
    if bytes != 0 && !(least..=most).contains(&bytes) {
        return Err(format!("a journal of {bytes} bytes; {least} to {most} are possible, or 0 for no limit"));
    }
    Ok(())
}

fn check_batch(bytes: bytes::Bytes, hello: &Hello, accepted: WriteSeq) -> Result<Batch, String> {
    let batch = Batch::parse(bytes).map_err(|error| error.to_string())?;
    let header = batch.header();
    if header.prev_seq != accepted {
        return Err(format!("a batch that follows {} where {accepted} was last", header.prev_seq));
    }
    if header.last_seq.max(header.watermark) > WriteSeq::FOREIGN_MAX {
        return Err("a batch with a sequence that no agent comes to".into());
    }
    if header.incarnation != hello.incarnation {
        return Err("a batch of another incarnation".into());
    }
    for entry in batch.entries().iter().filter(|entry| entry.kind.changes_disk()) {
        let disk = hello.disks.get(usize::from(entry.disk.0)).ok_or("a write to a disk the VM has not")?;
        if !entry.range.fits(disk.size_bytes) {
            return Err(format!("a write at {:?} past the end of disk {}", entry.range, disk.name));
        }
    }
    Ok(batch)
}

fn check_compare(compare: &Compare, streaming: &Streaming) -> Result<(), String> {
    let disk = streaming.hello.disks.get(usize::from(compare.disk.0));
    let disk = disk.ok_or("blocks of a disk the VM has not")?;
    let end = compare.first.0.checked_add(compare.hashes.len() as u64);
    if end.is_none_or(|end| end > disk.size_bytes.div_ceil(BLOCK_BYTES)) {
        return Err(format!("blocks past the end of disk {}", disk.name));
    }
    if compare.at > streaming.accepted {
        return Err(format!("a comparison at {} where {} was last", compare.at, streaming.accepted));
    }
    if streaming.compares.len() + streaming.comparing >= COMPARES_MAX {
        return Err(format!("more than {COMPARES_MAX} comparisons at once"));
    }
    Ok(())
}

fn check_part(part: &ArtifactPart, hello: &Hello) -> Result<(), String> {
    let offered = hello.artifacts.iter().find(|artifact| artifact.hash == part.hash);
    let offered = offered.ok_or("a part of a file that was not offered")?;
    let end = part.offset.checked_add(part.bytes.len() as u64);
    if part.size_bytes != offered.size_bytes || end.is_none_or(|end| end > offered.size_bytes) {
        return Err(format!("a part past the end of file {}", offered.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
