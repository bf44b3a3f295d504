//! The protected side of one VM: guest, local disk, capture and sender, with a driver like the agent's.

use crate::link::Connection;
use crate::local_disk::{SimDisk, SimMap};
use crate::rng::Rng;
use crate::store::SimStore;
use batch::{Batch, BatchMeta, Codec, Kind, Pieces};
use bytes::Bytes;
use joint::progress::Progress;
use joint::promise::Standing;
use joint::view::{SpillRoom, view};
use journal::{Spill, SpillError};
use replication::wire::{Compare, Hello, Message};
use replication::{
    CaptureView, Differs, KeptStream, Sender, SenderConfig, SenderEffect, SenderEvent, SyncReason,
};
use splitter::{
    BlockDevice, Boot, BufferPool, Capture, CaptureConfig, Change, DirtyMap, DiskIdentity, OnTimeout, Others,
    ProtectedDisk, RegionLog, SyncPolicy, SyncState, Taken, copy_some_blocks, hash_some_blocks,
    mark_allocated,
};
use std::collections::VecDeque;
use std::sync::Arc;
use types::limits::BATCH_BYTES_TARGET;
use types::{
    ByteRange, DiskIndex, DiskSpec, Epoch, GroupCounter, GroupId, Incarnation, Monotonic, VmId, WallTime,
    WriteSeq,
};

/// A small buffer, so that it overflows often, and one that holds more than a batch.
const BUFFER_BYTES: [u64; 2] = [192 << 10, 4 << 20];

/// A change of the guest's disk: who asks for the content at a cut plays these.
#[derive(Debug, Clone)]
pub(crate) struct GuestChange {
    /// The sequence just before the change, and the last one it drew.
    pub(crate) before: WriteSeq,
    pub(crate) last: WriteSeq,
    pub(crate) range: ByteRange,
    pub(crate) bytes: Vec<u8>,
}

/// The disk as it was at cuts that ascend.
pub(crate) struct Playback<'a> {
    history: &'a [GuestChange],
    next: usize,
    pub(crate) content: Vec<u8>,
}

impl Playback<'_> {
    /// Plays on up to `cut`; which bytes a write was just changing there.
    pub(crate) fn up_to(&mut self, cut: WriteSeq) -> Vec<ByteRange> {
        while let Some(change) = self.history.get(self.next)
            && change.last <= cut
        {
            let range = change.range.start as usize..change.range.end() as usize;
            self.content[range].copy_from_slice(&change.bytes);
            self.next += 1;
        }
        let later = self.history[self.next..].iter().take_while(|change| change.before < cut);
        later.filter(|change| change.last > cut).map(|change| change.range).collect()
    }
}

/// One VM at its site. The guest and the disk outlive the agent.
pub(crate) struct SourceVm {
    pub(crate) vm: VmId,
    pub(crate) disk: SimDisk,
    map: SimMap,
    region_log: SimMap,
    spill_store: SimStore,
    /// 0: none.
    spill_bytes: u64,
    boot: u8,
    pub(crate) history: Vec<GuestChange>,
    pub(crate) epoch: Epoch,
    pub(crate) paused: bool,
    buffer_bytes: u64,
    /// Some leave out what is overwritten before the next checkpoint, as if the link were always too slow.
    leaves_out: bool,
    sync: Option<SyncPolicy>,
    /// Once all of the first sync is at the other side.
    pub(crate) is_member: bool,
    /// The last write the guest was told of because the other side has it.
    pub(crate) promised: WriteSeq,
    pub(crate) agent: Option<Agent>,
}

/// What lives and dies with the agent's process.
pub(crate) struct Agent {
    pub(crate) sender: Sender,
    pub(crate) capture: Arc<Capture>,
    pub(crate) disks: Vec<Arc<ProtectedDisk>>,
    counter: Arc<GroupCounter>,
    /// Writes the guest waits for, oldest first, and whether each has its place in the stream.
    pub(crate) unanswered: VecDeque<(WriteSeq, bool)>,
    events: VecDeque<SenderEvent>,
    tell_watermark: bool,
    progress: Progress,
    spill: Option<Spill>,
    spill_full: bool,
    pub(crate) spill_lost: bool,
    rng: Rng,
    /// Runs found to differ.
    pub(crate) differing: u64,
    pub(crate) spilled_batches: u64,
    /// Marks encoded that stand for writes.
    pub(crate) writes_left_out: u64,
}

/// So many writes a guest has in flight at most.
const GUEST_DEPTH: usize = 4;
/// Synchronous mode is kept again with no more than this on its way.
const CAUGHT_UP_BYTES: u64 = 64 << 10;
/// Two blocks: so small that a disk has several.
const REGION_BYTES: u64 = 128 << 10;
/// Some VMs have no spill, some a small one, some one that takes everything.
const SPILL_BYTES: [u64; 3] = [0, 512 << 10, 1 << 30];

impl SourceVm {
    pub(crate) fn new(number: u8, size_bytes: u64, sync: Option<SyncPolicy>, rng: &mut Rng) -> Self {
        let disk = SimDisk::new(size_bytes, rng);
        Self {
            vm: VmId::from_bytes([number; 16]),
            disk,
            map: SimMap::default(),
            region_log: SimMap::default(),
            spill_store: SimStore::new(),
            spill_bytes: SPILL_BYTES[rng.below(3) as usize],
            boot: 1,
            history: Vec::new(),
            epoch: Epoch::FIRST,
            paused: false,
            buffer_bytes: BUFFER_BYTES[rng.below(2) as usize],
            // Not out of the run's own numbers: runs from before this choice stay as they were.
            leaves_out: sync.is_none() && Rng::new(size_bytes ^ u64::from(number)).one_in(2),
            sync,
            is_member: false,
            promised: WriteSeq::ZERO,
            agent: None,
        }
    }

    pub(crate) fn start_agent(&mut self, counter: &Arc<GroupCounter>, now: Monotonic, rng: &mut Rng) {
        let size = splitter::LocalDisk::size_bytes(&self.disk);
        let disks = [(size, Some(DiskIdentity::without_times(1, 1)))];
        let boot = Boot { id: [self.boot; 16], at: WallTime(0) };
        let map =
            DirtyMap::open(Box::new(self.map.clone()), self.vm, &disks, boot.id).expect("a map that works");
        let log = RegionLog::open(Box::new(self.region_log.clone()), self.vm, &disks, REGION_BYTES, boot)
            .expect("a log that works");
        let of_map = map.kept();
        let crashed = of_map.is_empty();
        let kept = if crashed { log.kept() } else { of_map };
        let kept = kept.into_iter();
        let kept = kept.map(|kept| KeptStream { incarnation: kept.incarnation, acked: kept.acked }).collect();
        let buffer = CaptureConfig {
            buffer_bytes_max: self.buffer_bytes,
            pool: Arc::new(BufferPool::new(6 << 20)),
            sync: self.sync,
            gate: Arc::default(),
            leaves_out: self.leaves_out,
        };
        let capture = Arc::new(Capture::new(counter.clone(), &[size], map, log, buffer, Box::new(|| {})));
        let disk = ProtectedDisk::new(DiskIndex(0), Box::new(self.disk.clone()), capture.clone());
        let config = SenderConfig {
            vm: self.vm,
            epoch: self.epoch,
            incarnation: Incarnation::from_bytes(rng.sixteen()),
            paused: self.paused,
            kept,
            suspects_because: if crashed { SyncReason::HostCrashed } else { SyncReason::Interrupted },
        };
        let spill = (self.spill_bytes > 0).then(|| {
            Spill::create(Arc::new(self.spill_store.clone()), self.vm, self.spill_bytes)
                .expect("a disk that works")
        });
        self.agent = Some(Agent {
            sender: Sender::new(config, now),
            capture,
            disks: vec![Arc::new(disk)],
            counter: counter.clone(),
            unanswered: VecDeque::new(),
            events: VecDeque::new(),
            tell_watermark: false,
            progress: Progress::new(CAUGHT_UP_BYTES),
            spill,
            spill_full: false,
            spill_lost: false,
            rng: Rng::new(rng.bits()),
            differing: 0,
            spilled_batches: 0,
            writes_left_out: 0,
        });
    }

    /// The host loses power: the agent is gone, and of what was not flushed a part. What the disk holds then
    /// is what the guest goes on with, from just above `at`.
    pub(crate) fn lose_power(&mut self, at: WriteSeq, rng: &mut Rng) {
        self.agent = None;
        self.boot += 1;
        self.disk.lose_power(rng);
        self.map.lose_power(rng);
        self.region_log.lose_power(rng);
        let bytes = self.disk.content();
        let range = ByteRange::new(0, bytes.len() as u64);
        self.history.push(GuestChange { before: at, last: at, range, bytes });
    }

    /// A byte of the spill rots.
    pub(crate) fn rot_spill(&mut self, rng: &mut Rng) {
        let names = journal::Store::names(&self.spill_store).expect("a disk that works");
        if let Some(name) = names.last() {
            self.spill_store.rot(name, 8192 + rng.below(64 << 10));
        }
    }

    /// The guest flushes, or the agent does for its region log.
    pub(crate) fn flush(&mut self, for_the_log: bool) {
        let Some(agent) = &self.agent else { return };
        if for_the_log {
            agent.capture.cool_regions(|| agent.disks[0].sync()).expect("a disk that works");
        } else {
            agent.disks[0].flush().expect("a disk that works");
        }
    }

    /// The guest changes its disk. False where it does not: it waits while the agent is away, and while it has
    /// been told of too few of its writes.
    pub(crate) fn guest_write(&mut self, rng: &mut Rng) -> bool {
        let Some(agent) = &mut self.agent else { return false };
        if agent.unanswered.len() >= GUEST_DEPTH {
            return false;
        }
        let size = splitter::LocalDisk::size_bytes(&self.disk);
        let sectors = size / 512;
        let start = rng.below(sectors);
        let longest = if rng.one_in(6) { 400 } else { 40 };
        let len = 1 + rng.below(longest.min(sectors - start));
        // Where writes may be left out most go to one place, again and again.
        let start = if self.leaves_out && !start.is_multiple_of(8) { start % 24 } else { start };
        let range = ByteRange::new(start * 512, len * 512);
        let before = agent.counter.last();
        let disk = &agent.disks[0];
        let mut bytes = vec![0; range.len as usize];
        let change = |change| disk.change(&change).expect("a disk that works");
        let seq = match rng.below(12) {
            0 => change(Change::Zero { range, unmap: rng.one_in(2) }),
            1 => change(Change::Discard { range }),
            2 if rng.one_in(4) => {
                // The guest is told; what the range holds now is whatever the disk made of it.
                self.disk.fail_next_write();
                bytes.fill(0xee);
                let write = Change::Write { at: range.start, bytes: bytes.into() };
                disk.change(&write).expect_err("a disk that fails");
                bytes = self.disk.content()[range.start as usize..range.end() as usize].to_vec();
                None
            }
            _ => {
                let byte = 1 + rng.below(250) as u8;
                bytes.fill(byte);
                if rng.one_in(4) {
                    bytes.iter_mut().for_each(|byte| *byte ^= rng.bits() as u8);
                }
                change(Change::Write { at: range.start, bytes: Bytes::from(bytes.clone()) })
            }
        };
        let status = agent.capture.status();
        agent.unanswered.extend(seq.map(|seq| (seq, !status.gap_open && !status.tracking)));
        self.history.push(GuestChange { before, last: agent.counter.last(), range, bytes });
        true
    }

    /// How the VM stands for the others of its group: not at all before its first sync is there. An agent that is away
    /// promises nothing, and neither do the others, which are of the same process.
    pub(crate) fn standing(&mut self) -> Option<Standing> {
        let agent = self.agent.as_mut()?;
        let standing = agent.progress.follow(&agent.sender, &agent.capture.status());
        self.is_member |= !standing.missing;
        agent.progress.counts(self.is_member).then_some(standing)
    }

    pub(crate) fn follow_others(&self, others: Others) {
        if let Some(agent) = &self.agent {
            agent.capture.follow_others(others);
        }
    }

    /// Tells the guest of its writes as far as it may be told now. In synchronous mode the other side has them
    /// then; a stream that has caught up keeps that promise again.
    pub(crate) fn answer_guest(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let status = agent.capture.status();
        let is_kept = status.sync == SyncState::Synchronous && !status.gap_open && !status.tracking;
        while let Some(&(seq, in_stream)) = agent.unanswered.front()
            && agent.capture.may_acknowledge(seq)
        {
            agent.unanswered.pop_front();
            if is_kept && in_stream {
                self.promised = seq;
            }
        }
        let caught_up = agent.progress.follow(&agent.sender, &agent.capture.status()).caught_up;
        if status.sync == SyncState::Degraded && caught_up {
            agent.capture.return_to_sync();
        }
    }

    /// The guest has waited for too long, if it waits.
    pub(crate) fn time_out(&mut self) {
        let policy = self.sync.map(|sync| sync.on_timeout);
        if let (Some(OnTimeout::Degrade), Some(agent)) = (policy, &self.agent) {
            agent.unanswered.back().into_iter().for_each(|(seq, _)| agent.capture.hold(*seq));
        }
    }

    /// The guest's disk from its beginning on, to be played up to one cut after the other.
    pub(crate) fn playback<'a>(&'a self, initial: &[u8]) -> Playback<'a> {
        Playback { history: &self.history, next: 0, content: initial.to_vec() }
    }

    /// Runs the sender until it has nothing to do at this moment.
    pub(crate) fn run(
        &mut self,
        now: Monotonic,
        event: SenderEvent,
        link: &mut Option<Connection>,
        wants_link: &mut bool,
        on_release: &mut impl FnMut(WriteSeq),
    ) {
        let Some(agent) = &mut self.agent else { return };
        agent.events.push_back(event);
        let mut effects = Vec::new();
        while let Some(event) = agent.events.pop_front() {
            let view = agent.view();
            agent.sender.step(now, event, &view, &mut effects);
            for effect in effects.drain(..) {
                if let SenderEffect::AdoptEpoch(epoch) = effect {
                    self.epoch = epoch;
                }
                if let SenderEffect::Release { up_to } = effect {
                    on_release(up_to);
                }
                agent.perform(self.vm, effect, link, wants_link);
            }
        }
    }

    pub(crate) fn tell_watermark(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.tell_watermark = true;
        }
    }
}

impl Agent {
    fn view(&mut self) -> CaptureView {
        let status = self.capture.status();
        let tell = std::mem::take(&mut self.tell_watermark);
        let has_room = self.spill.is_some() && !self.spill_full && !self.spill_lost;
        view(&status, SpillRoom { has_room, lost: self.spill_lost }, tell)
    }

    fn perform(
        &mut self,
        vm: VmId,
        effect: SenderEffect,
        link: &mut Option<Connection>,
        wants_link: &mut bool,
    ) {
        match effect {
            SenderEffect::Connect => *wants_link = true,
            SenderEffect::Disconnect => *link = None,
            SenderEffect::SayHello { epoch, incarnation, acked, last } => {
                let size_bytes = self.disks[0].size_bytes();
                let hello = hello(vm, epoch, incarnation, acked, last, size_bytes);
                say(link, &Message::Hello(Box::new(hello)));
            }
            SenderEffect::Send(message) => say(link, &message),
            SenderEffect::SendBatch { after } => self.send_batch(after, link),
            SenderEffect::Release { up_to } => self.release(up_to),
            SenderEffect::Restart { floor, differs } => self.restart(floor, differs),
            SenderEffect::StartTracking => self.capture.start_tracking(),
            SenderEffect::LeaveTracking => self.capture.leave_tracking(),
            SenderEffect::CopyBlocks => {
                let taken = copy_some_blocks(&self.capture, &self.disks).expect("a disk that works");
                self.events.push_back(SenderEvent::CopyDone { taken });
            }
            SenderEffect::CloseSync => {
                let closed = self.capture.close_sync();
                if closed {
                    self.progress.sync_closed(self.capture.status().last, self.sender.state().name());
                }
                self.events.push_back(SenderEvent::SyncClosed { closed });
            }
            SenderEffect::HashBlocks => {
                let hashed = hash_some_blocks(&self.capture, &self.disks).expect("a disk that works");
                let compare = hashed.map(|run| Compare {
                    disk: run.disk,
                    first: run.first,
                    at: run.at,
                    hashes: run.hashes,
                });
                self.events.push_back(SenderEvent::Hashed(compare));
            }
            SenderEffect::Settle(compared) => {
                self.differing += self.capture.end_compare(compared.disk, compared.first, compared.differs);
            }
            SenderEffect::ForgetCompares => self.capture.forget_compares(),
            SenderEffect::SuspectEverything => self.capture.suspect_everything(),
            SenderEffect::Spill => self.spill_some(),
            SenderEffect::AskClock => say(link, &Message::AskClock(WallTime(0))),
            SenderEffect::ClockTold(_)
            | SenderEffect::SendArtifact(_)
            | SenderEffect::AdoptEpoch(_)
            | SenderEffect::Disbelieved(_)
            | SenderEffect::Changed(_)
            | SenderEffect::Refused(_) => {}
        }
    }

    /// The ranges of all records above `after` in spill and buffer; none where the spill cannot be read.
    pub(crate) fn on_the_way(&self, mut after: WriteSeq) -> Option<Vec<ByteRange>> {
        let mut ranges = Vec::new();
        if let Some(spill) = &self.spill {
            while let Some(batch) = spill.next_after(after).ok()? {
                let above = batch.entries().iter().filter(|entry| entry.seq > after);
                ranges.extend(above.map(|entry| entry.range));
                after = batch.header().last_seq;
            }
        }
        after = after.max(self.capture.status().spilled);
        loop {
            let taken = self.capture.take_after(after, BATCH_BYTES_TARGET, false)?;
            let Some(last) = taken.records.last() else { return Some(ranges) };
            after = last.seq;
            ranges.extend(taken.records.iter().map(|record| record.range));
        }
    }

    fn release(&mut self, up_to: WriteSeq) {
        self.capture.release(up_to);
        if let Some(spill) = &mut self.spill
            && spill.release(up_to).any
        {
            self.spill_full = false;
            self.capture.sweep();
        }
    }

    fn restart(&mut self, floor: WriteSeq, differs: Differs) {
        self.progress.restarted();
        self.capture.restart(floor);
        if let Some(spill) = &mut self.spill {
            let _ = spill.clear();
        }
        (self.spill_full, self.spill_lost) = (false, false);
        match differs {
            Differs::Marked => {}
            Differs::Allocated => mark_allocated(&self.capture, &self.disks).expect("a disk that works"),
            Differs::Suspect => self.capture.suspect_everything(),
        }
        self.capture.begin_stream(self.sender.incarnation(), floor);
    }

    fn spill_some(&mut self) {
        let after = self.capture.status().spilled;
        let taken = self.capture.take_to_spill(after, BATCH_BYTES_TARGET).expect("nobody spills meanwhile");
        if taken.records.is_empty() {
            return self.events.push_back(SenderEvent::Spilled);
        }
        let is_copy = |record: &batch::Record| matches!(record.kind, Kind::Sync | Kind::SyncZero);
        assert!(!taken.records.iter().any(is_copy), "a sync's copies do not go through the spill");
        let pieces = self.encode(after, taken).0;
        let batch = Batch::parse(pieces.joined()).expect("our own batch");
        let spill = self.spill.as_mut().expect("asked for where there is one");
        match spill.append(&batch, self.rng.sixteen(), WallTime(0)) {
            Ok(()) => {
                self.spilled_batches += 1;
                self.capture.spilled(batch.header().last_seq);
            }
            Err(SpillError::Full { .. }) => self.spill_full = true,
            Err(SpillError::Io(error)) => panic!("a disk that works: {error}"),
        }
        self.events.push_back(SenderEvent::Spilled);
    }

    fn encode_from_buffer(&mut self, after: WriteSeq) -> (Pieces, WriteSeq, WriteSeq) {
        let taken = self.capture.take_after(after, BATCH_BYTES_TARGET, true);
        self.encode(after, taken.expect("nobody spills meanwhile"))
    }

    fn encode(&mut self, after: WriteSeq, taken: Taken) -> (Pieces, WriteSeq, WriteSeq) {
        let left_out = taken.records.iter().filter(|record| record.kind == Kind::LeftOut).count();
        self.writes_left_out += left_out as u64;
        let last = taken.records.last().map_or(after, |record| record.seq);
        let watermark = taken.watermark.max(last);
        let incarnation = self.sender.incarnation();
        let meta = BatchMeta { incarnation, prev_seq: after, watermark, taken_at: WallTime(0) };
        (batch::encode_in_pieces(&meta, &taken.records, Codec::Lz4), last, watermark)
    }

    fn send_batch(&mut self, after: WriteSeq, link: &mut Option<Connection>) {
        let from_spill = after < self.capture.status().spilled;
        let (batch, last, watermark) = if from_spill {
            let spill = self.spill.as_ref().expect("what was spilled is somewhere");
            match spill.next_after(after) {
                Ok(batch) => {
                    let batch = batch.expect("what was spilled is there");
                    let pieces = batch::following(&batch, after).expect("our own batch");
                    (pieces, batch.header().last_seq, batch.header().watermark)
                }
                Err(_) => {
                    self.spill_lost = true;
                    self.events.push_back(SenderEvent::NothingToSend);
                    return;
                }
            }
        } else {
            self.encode_from_buffer(after)
        };
        let bytes = batch.len();
        say(link, &Message::Batch(batch));
        self.events.push_back(SenderEvent::BatchSent { last, watermark, bytes });
    }
}

fn say(link: &mut Option<Connection>, message: &Message) {
    if let Some(link) = link {
        link.to_receiver.send(message);
    }
}

fn hello(
    vm: VmId,
    epoch: Epoch,
    incarnation: Incarnation,
    acked: WriteSeq,
    last_seq: WriteSeq,
    size_bytes: u64,
) -> Hello {
    Hello {
        vm,
        vm_name: vm.to_string(),
        group: GroupId::from_bytes([9; 16]),
        group_name: "group".into(),
        epoch,
        incarnation,
        acked,
        last_seq,
        sent_at: WallTime(0),
        history_seconds: 86_400,
        journal_bytes_max: 0,
        rpo_seconds: 60,
        checkpoint_interval_seconds: 5,
        spans_hosts: false,
        disks: vec![DiskSpec { name: "vda".into(), size_bytes }],
        definition: String::new(),
        artifacts: Vec::new(),
    }
}
