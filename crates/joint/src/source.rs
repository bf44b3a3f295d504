//! The protected side of one VM's stream: a [`Sender`] with the capture, the disks and the outbox that its effects are on.
//!
//! [`SourceCore`] takes events and performs what can be done at once. The rest comes out as [`Task`]s, one after the other
//! and in the sender's order, for whoever has sockets, threads and a clock; what those come to is pushed as an event. Tasks
//! that wait for a disk are given back to a method of the core, from wherever that may be waited for.
//!
//! What holds: there is at most one copy, one hashing, one spilling and one tidying under way, and at most one batch wanted,
//! whose end is told to the sender whatever becomes of it and of its link.

use crate::outbox::{Outbox, Outgoing, Wanted};
use crate::progress::Progress;
use crate::promise::Standing;
use crate::spill::Cause;
use crate::view::view;
use batch::Codec;
use replication::wire::{ArtifactHash, ClockAnswer, Compare, Compared, Message, Refuse};
use replication::{CaptureView, Differs, Sender, SenderConfig, SenderEffect, SenderEvent, Transition};
use splitter::{
    BlockDevice, Capture, CaptureStatus, CopyError, ProtectedDisk, SyncState, hash_some_blocks,
    mark_allocated,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use types::{BlockRun, ByteRange, DiskIndex, Epoch, Incarnation, Monotonic, WallTime, WriteSeq};

/// What is left to do.
#[derive(Debug)]
pub enum Task {
    /// Connect; then push `LinkUp` or `LinkLost`.
    Connect,
    /// Drop the connection, and call [`SourceCore::link_dropped`].
    Disconnect,
    /// Say hello. Where that may not be said yet: drop the connection, and push `LinkLost`.
    Greet {
        epoch: Epoch,
        incarnation: Incarnation,
        acked: WriteSeq,
        last: WriteSeq,
    },
    Say(Message),
    SendArtifact(ArtifactHash),
    /// A batch is wanted: as soon as the link is there for it, call [`SourceCore::batch`].
    WantBatch,
    /// Call [`SourceCore::restart`]: it waits for disks.
    Restart {
        floor: WriteSeq,
        differs: Differs,
    },
    /// Call [`SourceCore::settle`]: it may wait for a disk.
    Settle(Compared),
    /// Call [`SourceCore::send_again`]: it waits for a disk.
    SendAgain(Vec<BlockRun>),
    /// Call [`SourceCore::close_sync`], or push `SyncClosed` where that may not be. Whatever is heard from then on, the
    /// recovery side may have a state of the VM that can be opened: before a first sync is closed that is written down,
    /// and promises to others of the group rest on this VM too.
    CloseSync,
    /// Copy some blocks, and push `CopyDone`.
    Copy,
    /// Have [`hash`] done, and push `Hashed`.
    Hash,
    /// Take the steps of spilling, and push `Spilled`.
    Spill,
    /// Call [`Outbox::tidy`], and then [`SourceCore::tidied`].
    Tidy,
    AskClock,
    ClockTold(ClockAnswer),
    /// Keep this epoch from now on, durably, before anything more is said.
    AdoptEpoch(Epoch),
    Changed(Transition),
    Refused(Refuse),
    Disbelieved(String),
    /// Everything up to here is at the recovery side, and forgotten.
    Released(WriteSeq),
}

/// One VM's stream on its way out.
#[derive(Debug)]
pub struct SourceCore {
    sender: Sender,
    capture: Arc<Capture>,
    disks: Vec<Arc<ProtectedDisk>>,
    outbox: Arc<Outbox>,
    progress: Progress,
    events: VecDeque<SenderEvent>,
    effects: VecDeque<SenderEffect>,
    /// A batch that follows this is wanted.
    to_send: Option<WriteSeq>,
    tidying: bool,
    watermarks: Watermarks,
    acknowledged_bytes: u64,
}

/// When a VM that has nothing to send says how far it is.
#[derive(Debug)]
struct Watermarks {
    interval: Duration,
    told_at: Monotonic,
    /// The one that another VM's promise waits for.
    wanted: WriteSeq,
    /// Whether anybody wants to know: the group has several VMs.
    has_several: bool,
}

/// What a stream is told once.
#[derive(Debug, Clone, Copy)]
pub struct CoreConfig {
    /// How often a stream without writes of its own tells how far its group has come.
    pub watermark_interval: Duration,
    /// A stream with no more than this in its buffer has caught up.
    pub caught_up_bytes: u64,
}

impl SourceCore {
    pub fn new(
        sender: SenderConfig,
        config: CoreConfig,
        capture: Arc<Capture>,
        disks: Vec<Arc<ProtectedDisk>>,
        now: Monotonic,
    ) -> Self {
        let outbox = Outbox::new(capture.clone(), sender.incarnation);
        Self {
            sender: Sender::new(sender, now),
            capture,
            disks,
            outbox: Arc::new(outbox),
            progress: Progress::new(config.caught_up_bytes),
            events: VecDeque::new(),
            effects: VecDeque::new(),
            to_send: None,
            tidying: false,
            watermarks: Watermarks {
                interval: config.watermark_interval,
                told_at: now,
                wanted: WriteSeq::ZERO,
                has_several: false,
            },
            acknowledged_bytes: 0,
        }
    }

    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    pub fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    pub fn disks(&self) -> &[Arc<ProtectedDisk>] {
        &self.disks
    }

    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Something has happened; [`SourceCore::next`] says what is to be done about it.
    pub fn push(&mut self, event: SenderEvent) {
        self.events.push_back(event);
    }

    /// Whether the VM's group has others, which want to know how far it is.
    pub fn in_group_of_several(&mut self, has_several: bool) {
        self.watermarks.has_several = has_several;
    }

    /// Another VM's promise waits for this one to say that it is as far.
    pub fn want_watermark(&mut self, up_to: WriteSeq) {
        self.watermarks.wanted = self.watermarks.wanted.max(up_to);
        self.push(SenderEvent::Tick);
    }

    /// The next thing to do; none where nothing is to be done at this moment.
    pub fn next(&mut self, now: Monotonic) -> Option<Task> {
        loop {
            while let Some(effect) = self.effects.pop_front() {
                if let Some(task) = self.perform(effect) {
                    return Some(task);
                }
            }
            if !self.tidying && self.outbox.wants_tidying() {
                self.tidying = true;
                return Some(Task::Tidy);
            }
            let event = self.events.pop_front()?;
            self.step(now, event);
        }
    }

    fn step(&mut self, now: Monotonic, event: SenderEvent) {
        let view = self.view(now);
        let before = self.sender.in_flight_bytes();
        let sent = if let SenderEvent::BatchSent { bytes, .. } = event { bytes } else { 0 };
        let mut effects = Vec::new();
        self.sender.step(now, event, &view, &mut effects);
        self.effects.extend(effects);
        self.acknowledged_bytes += (before + sent).saturating_sub(self.sender.in_flight_bytes()) as u64;
    }

    fn view(&mut self, now: Monotonic) -> CaptureView {
        let watermarks = &mut self.watermarks;
        let is_time = watermarks.has_several && now.since(watermarks.told_at) >= watermarks.interval;
        if is_time {
            watermarks.told_at = now;
        }
        let tells = is_time || watermarks.wanted > self.sender.told_watermark();
        view(&self.capture.status(), self.outbox.view().room(), tells)
    }

    fn perform(&mut self, effect: SenderEffect) -> Option<Task> {
        match effect {
            SenderEffect::StartTracking => self.capture.start_tracking(),
            SenderEffect::LeaveTracking => self.capture.leave_tracking(),
            SenderEffect::ForgetCompares => self.capture.forget_compares(),
            SenderEffect::SuspectEverything => self.capture.suspect_everything(),
            SenderEffect::Release { up_to } => {
                self.outbox.release(up_to);
                return Some(Task::Released(up_to));
            }
            SenderEffect::SendBatch { after } => {
                self.to_send = Some(after);
                return Some(Task::WantBatch);
            }
            SenderEffect::SayHello { epoch, incarnation, acked, last } => {
                return Some(Task::Greet { epoch, incarnation, acked, last });
            }
            SenderEffect::Connect => return Some(Task::Connect),
            SenderEffect::Disconnect => return Some(Task::Disconnect),
            SenderEffect::Send(message) => return Some(Task::Say(message)),
            SenderEffect::SendArtifact(hash) => return Some(Task::SendArtifact(hash)),
            SenderEffect::Restart { floor, differs } => return Some(Task::Restart { floor, differs }),
            SenderEffect::CopyBlocks => return Some(Task::Copy),
            SenderEffect::HashBlocks => return Some(Task::Hash),
            SenderEffect::Settle(compared) => return Some(Task::Settle(compared)),
            SenderEffect::SendAgain(runs) => return Some(Task::SendAgain(runs)),
            SenderEffect::CloseSync => return Some(Task::CloseSync),
            SenderEffect::Spill => return Some(Task::Spill),
            SenderEffect::AskClock => return Some(Task::AskClock),
            SenderEffect::ClockTold(answer) => return Some(Task::ClockTold(answer)),
            SenderEffect::AdoptEpoch(epoch) => return Some(Task::AdoptEpoch(epoch)),
            SenderEffect::Changed(transition) => return Some(Task::Changed(transition)),
            SenderEffect::Refused(refuse) => return Some(Task::Refused(refuse)),
            SenderEffect::Disbelieved(why) => return Some(Task::Disbelieved(why)),
        }
        None
    }

    /// Puts the end of the sync into the buffer, unless blocks were marked meanwhile.
    pub fn close_sync(&mut self) {
        let closed = self.capture.close_sync();
        if closed {
            self.progress.sync_closed(self.capture.status().last, self.sender.state().name());
        }
        self.push(SenderEvent::SyncClosed { closed });
    }

    /// The stream begins anew above `floor`.
    ///
    /// # Errors
    /// Where a disk cannot say what of it is allocated: all of it is copied instead.
    pub fn restart(&mut self, floor: WriteSeq, differs: Differs) -> Result<(), CopyError> {
        self.progress.restarted();
        self.outbox.restart(floor);
        let marked = match differs {
            Differs::Marked => Ok(()),
            Differs::Suspect => {
                self.capture.suspect_everything();
                Ok(())
            }
            Differs::Allocated => mark_allocated(&self.capture, &self.disks),
        };
        self.capture.begin_stream(self.sender.incarnation(), floor);
        marked
    }

    /// Takes the answer to a comparison: which blocks differ, and how many are copied for it. `doubts`: a difference is
    /// only believed where it is found twice, since writes come here after they were made.
    pub fn settle(&self, compared: &Compared, doubts: bool) -> (u64, u64) {
        let (disk, first) = (compared.disk, compared.first);
        let differs = match doubts {
            true => self.capture.believed(disk, first, compared.differs),
            false => compared.differs,
        };
        (differs, self.capture.end_compare(disk, first, differs))
    }

    /// Has blocks copied that the recovery side has lost; how many bytes of the disks that is.
    pub fn send_again(&mut self, runs: &[BlockRun]) -> u64 {
        // What it does not have after the end of a disk is nobody's.
        let ranges: Vec<(DiskIndex, ByteRange)> = runs
            .iter()
            .filter_map(|run| {
                Some((run.disk, run.range(self.disks.get(usize::from(run.disk.0))?.size_bytes())))
            })
            .filter(|(_, range)| !range.is_empty())
            .collect();
        self.capture.copy_again(&ranges);
        self.push(SenderEvent::Tick);
        ranges.iter().map(|(_, range)| range.len).sum()
    }

    /// The room that was not needed any more is given back.
    pub fn tidied(&mut self) {
        self.tidying = false;
    }

    /// There is no connection any more: the batch that was wanted goes nowhere.
    pub fn link_dropped(&mut self) {
        if self.to_send.take().is_some() {
            self.not_sent();
        }
    }

    /// Whether the batch that is wanted lies in the spill, so that a disk is waited for.
    pub fn reads_spill(&self) -> bool {
        self.to_send.is_some_and(|after| after < self.capture.status().spilled)
    }

    /// The batch that is wanted, of what there is by now; none where there is nothing. Whoever gets one says what became
    /// of it: [`SourceCore::sent`] or [`SourceCore::not_sent`].
    ///
    /// # Errors
    /// Where it lies in the spill, and that cannot be read: it is lost, and the stream will begin anew.
    pub fn batch(
        &mut self,
        bytes_max: usize,
        taken_at: WallTime,
        choose: impl FnOnce(bool) -> Codec,
    ) -> Result<Option<Outgoing>, Cause> {
        let Some(after) = self.to_send.take() else { return Ok(None) };
        let status = self.capture.status();
        let lags = status.buffered_bytes * 4 > status.buffer_bytes_max || status.spilled > after;
        let tells_watermark = self.watermarks.has_several;
        let codec = choose(lags);
        let next = self.outbox.next(&Wanted { after, bytes_max, lags, tells_watermark, codec, taken_at });
        if !matches!(next, Ok(Some(_))) {
            self.not_sent();
        }
        next
    }

    /// The batch was handed to the link; whether others of the group are to say how far they are, since the guest waits
    /// for all of them.
    pub fn sent(&mut self, outgoing: &Outgoing) -> bool {
        let Outgoing { last, watermark, .. } = *outgoing;
        self.push(SenderEvent::BatchSent { last, watermark, bytes: outgoing.batch.len() });
        let is_sync = self.capture.status().sync == SyncState::Synchronous;
        is_sync && self.watermarks.has_several && outgoing.has_records
    }

    /// The batch was not handed to the link.
    pub fn not_sent(&mut self) {
        self.push(SenderEvent::NothingToSend);
    }

    /// How the stream stands.
    pub fn follow(&mut self) -> Standing {
        self.progress.follow(&self.sender, &self.capture.status())
    }

    /// Bytes that were acknowledged since this was last asked.
    pub fn take_acknowledged(&mut self) -> u64 {
        std::mem::take(&mut self.acknowledged_bytes)
    }

    pub fn status(&self) -> CaptureStatus {
        self.capture.status()
    }
}

/// Hashes some suspect blocks, for a comparison.
///
/// # Errors
/// As [`hash_some_blocks`].
pub fn hash(capture: &Capture, disks: &[Arc<ProtectedDisk>]) -> Result<Option<Compare>, CopyError> {
    let run = hash_some_blocks(capture, disks)?;
    Ok(run.map(|run| Compare { disk: run.disk, first: run.first, at: run.at, hashes: run.hashes }))
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod played;
#[cfg(test)]
mod tests;
