//! The protected side of one VM: guest, local disk, and the agent's own core of a stream, with a link, and threads whose
//! steps come when chance has it.

use crate::link::Connection;
use crate::local_disk::{SimDisk, SimMap};
use crate::rng::Rng;
use crate::spill::SimSpill;
use crate::store::SimStore;
use crate::threads::Threads;
use batch::Codec;
use bytes::Bytes;
use joint::membership::{FirstSync, Found};
use joint::outbox::SpillView;
use joint::promise::Standing;
use joint::source::{CoreConfig, SourceCore, Task};
use replication::wire::{Hello, Message, VERSION, VERSION_MIN};
use replication::{KeptStream, Sender, SenderConfig, SenderEvent, SyncReason};
use splitter::{
    BlockDevice, Boot, BufferPool, Capture, CaptureConfig, Change, DirtyMap, DiskIdentity, OnTimeout, Others,
    ProtectedDisk, RegionLog, SyncPolicy, SyncState,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use types::limits::BATCH_BYTES_TARGET;
use types::{
    BlockRun, ByteRange, DiskIndex, DiskSpec, Epoch, GroupCounter, GroupId, Incarnation, Monotonic, VmId,
    WallTime, WriteSeq,
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
    /// The version of the wire that it speaks: some cannot be asked for blocks.
    speaks: u16,
    /// Some leave out what is overwritten before the next checkpoint, as if the link were always too slow.
    leaves_out: bool,
    sync: Option<SyncPolicy>,
    /// Written down: how far its first sync is.
    pub(crate) first_sync: FirstSync,
    /// What the other side knows it by.
    pub(crate) name: String,
    /// The group it is greeted for.
    pub(crate) group: (GroupId, String),
    /// The history that is asked for.
    pub(crate) history_seconds: u64,
    /// The last write the guest was told of because the other side has it.
    pub(crate) promised: WriteSeq,
    pub(crate) agent: Option<Agent>,
    /// For so many steps more its disk stands still, and whoever waits for it.
    pub(crate) stands_still: u64,
}

/// What lives and dies with the agent's process.
pub(crate) struct Agent {
    core: SourceCore,
    threads: Threads,
    counter: Arc<GroupCounter>,
    /// Writes the guest waits for, oldest first, and whether each has its place in the stream.
    pub(crate) unanswered: VecDeque<(WriteSeq, bool)>,
    /// Runs found to differ.
    pub(crate) differing: u64,
    /// Marks sent that stand for writes.
    writes_left_out: u64,
    /// A promise waits for the others of the group to say how far they are.
    pub(crate) asks_others: bool,
}

/// So many writes a guest has in flight at most.
const GUEST_DEPTH: usize = 4;
/// Synchronous mode is kept again with no more than this on its way.
const CAUGHT_UP_BYTES: u64 = 64 << 10;
const WATERMARK_INTERVAL: Duration = Duration::from_millis(250);
/// Two blocks: so small that a disk has several.
const REGION_BYTES: u64 = 128 << 10;
/// Some VMs have no spill, some a small one, some one that takes everything.
const SPILL_BYTES: [u64; 3] = [0, 512 << 10, 1 << 30];

impl SourceVm {
    pub(crate) fn new(number: u8, size_bytes: u64, sync: Option<SyncPolicy>, rng: &mut Rng) -> Self {
        let disk = SimDisk::new(size_bytes, rng);
        Self::on_disk(VmId::from_bytes([number; 16]), disk, sync, rng)
    }

    /// The VM whose disk this is, of which the other side knows nothing yet.
    pub(crate) fn on_disk(vm: VmId, disk: SimDisk, sync: Option<SyncPolicy>, rng: &mut Rng) -> Self {
        let (number, size_bytes) = (vm.to_bytes()[0], splitter::LocalDisk::size_bytes(&disk));
        Self {
            vm,
            name: vm.to_string(),
            group: (GroupId::from_bytes([9; 16]), "group".into()),
            history_seconds: 86_400,
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
            speaks: if Rng::new(size_bytes + u64::from(number)).one_in(4) { VERSION_MIN } else { VERSION },
            leaves_out: sync.is_none() && Rng::new(size_bytes ^ u64::from(number)).one_in(2),
            sync,
            first_sync: FirstSync::NotBegun,
            promised: WriteSeq::ZERO,
            agent: None,
            stands_still: 0,
        }
    }

    pub(crate) fn start_agent(&mut self, counter: &Arc<GroupCounter>, now: Monotonic, rng: &mut Rng) {
        let (core, spill) = self.start_core(counter, now, rng);
        self.agent = Some(Agent {
            core,
            threads: Threads::new(spill),
            counter: counter.clone(),
            unanswered: VecDeque::new(),
            differing: 0,
            writes_left_out: 0,
            asks_others: false,
        });
    }

    /// What of an agent drives the stream, with the spill it has.
    pub(crate) fn start_core(
        &mut self,
        counter: &Arc<GroupCounter>,
        now: Monotonic,
        rng: &mut Rng,
    ) -> (SourceCore, Option<SimSpill>) {
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
            disk_sizes: vec![size],
        };
        let how = CoreConfig { watermark_interval: WATERMARK_INTERVAL, caught_up_bytes: CAUGHT_UP_BYTES };
        let mut core = SourceCore::new(config, how, capture, vec![Arc::new(disk)], now);
        core.in_group_of_several(true);
        let spill = (self.spill_bytes > 0)
            .then(|| SimSpill::create(self.spill_store.clone(), self.vm, self.spill_bytes, rng));
        if let Some(spill) = &spill {
            core.outbox().give_spill(Box::new(spill.clone()));
        }
        (core, spill)
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
        let Some(agent) = self.agent.as_ref().filter(|_| self.stands_still == 0) else { return };
        if for_the_log {
            agent.capture().cool_regions(|| agent.disk().sync()).expect("a disk that works");
        } else {
            agent.disk().flush().expect("a disk that works");
        }
    }

    /// The guest changes its disk. False where it does not: it waits while the agent is away, and while it has
    /// been told of too few of its writes.
    pub(crate) fn guest_write(&mut self, rng: &mut Rng) -> bool {
        let Some(agent) = self.agent.as_mut().filter(|_| self.stands_still == 0) else { return false };
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
        let disk = agent.disk();
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
        let status = agent.capture().status();
        agent.unanswered.extend(seq.map(|seq| (seq, !status.gap_open && !status.tracking)));
        self.history.push(GuestChange { before, last: agent.counter.last(), range, bytes });
        true
    }

    pub(crate) fn leaves_out(&self) -> bool {
        self.leaves_out
    }

    /// How the VM stands for the others of its group: not at all before its first sync may be there. An agent that is
    /// away promises nothing, and neither do the others, which are of the same process.
    pub(crate) fn standing(&mut self) -> Option<Standing> {
        let agent = self.agent.as_mut()?;
        let standing = agent.core.follow();
        if !standing.missing {
            self.first_sync = FirstSync::Done;
        }
        self.first_sync.may_be_there().then_some(standing)
    }

    /// The VM, as a cut finds it; none while its agent is away.
    pub(crate) fn found(&self) -> Option<Found> {
        let misses_writes = self.agent.as_ref()?.capture().status().gap_open;
        Some(Found { vm: self.vm, first_sync: self.first_sync, misses_writes })
    }

    pub(crate) fn follow_others(&self, others: Others) {
        if let Some(agent) = &self.agent {
            agent.capture().follow_others(others);
        }
    }

    /// Tells the guest of its writes as far as it may be told now. In synchronous mode the other side has them
    /// then; a stream that has caught up keeps that promise again.
    pub(crate) fn answer_guest(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let status = agent.capture().status();
        let is_kept = status.sync == SyncState::Synchronous && !status.gap_open && !status.tracking;
        while let Some(&(seq, in_stream)) = agent.unanswered.front()
            && agent.capture().may_acknowledge(seq)
        {
            agent.unanswered.pop_front();
            if is_kept && in_stream {
                self.promised = seq;
            }
        }
        let caught_up = agent.core.follow().caught_up;
        if status.sync == SyncState::Degraded && caught_up {
            agent.capture().return_to_sync();
        }
    }

    /// The guest has waited for too long, if it waits.
    pub(crate) fn time_out(&mut self) {
        let policy = self.sync.map(|sync| sync.on_timeout);
        if let (Some(OnTimeout::Degrade), Some(agent)) = (policy, &self.agent) {
            agent.unanswered.back().into_iter().for_each(|(seq, _)| agent.capture().hold(*seq));
        }
    }

    /// The guest's disk from its beginning on, to be played up to one cut after the other.
    pub(crate) fn playback<'a>(&'a self, initial: &[u8]) -> Playback<'a> {
        Playback { history: &self.history, next: 0, content: initial.to_vec() }
    }

    /// Runs the stream until it has nothing to do at this moment.
    pub(crate) fn run(
        &mut self,
        now: Monotonic,
        event: SenderEvent,
        link: &mut Option<Connection>,
        wants_link: &mut bool,
        on_release: &mut impl FnMut(WriteSeq),
    ) {
        let Some(agent) = &mut self.agent else { return };
        agent.core.push(event);
        while let Some(task) = agent.core.next(now) {
            match task {
                Task::AdoptEpoch(epoch) => self.epoch = epoch,
                Task::Released(up_to) => on_release(up_to),
                Task::CloseSync => {
                    self.first_sync = self.first_sync.max(FirstSync::Closing);
                    agent.core.close_sync();
                }
                Task::Greet { epoch, incarnation, acked, last } => {
                    self.first_sync = self.first_sync.max(FirstSync::Greeted);
                    let size = agent.disk().size_bytes();
                    let mut hello = hello(self.vm, epoch, incarnation, acked, last, size);
                    hello.speaks = self.speaks;
                    (hello.vm_name, hello.history_seconds) = (self.name.clone(), self.history_seconds);
                    (hello.group, hello.group_name) = self.group.clone();
                    say(link, &Message::Hello(Box::new(hello)));
                }
                task => agent.perform(task, link, wants_link),
            }
        }
    }

    /// One of the agent's threads takes a step; what it says when it is done is to be run.
    pub(crate) fn step_of_a_thread(&mut self, rng: &mut Rng) -> Option<SenderEvent> {
        let agent = self.agent.as_mut().filter(|_| self.stands_still == 0)?;
        agent.threads.step(&mut agent.core, rng)
    }

    /// Another VM's promise waits for this one to say that it is as far.
    pub(crate) fn want_watermark(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.core.want_watermark(agent.counter.last());
        }
    }
}

impl Agent {
    pub(crate) fn sender(&self) -> &Sender {
        self.core.sender()
    }

    pub(crate) fn capture(&self) -> &Arc<Capture> {
        self.core.capture()
    }

    pub(crate) fn disks(&self) -> &[Arc<ProtectedDisk>] {
        self.core.disks()
    }

    fn disk(&self) -> &Arc<ProtectedDisk> {
        &self.core.disks()[0]
    }

    pub(crate) fn spill(&self) -> SpillView {
        self.core.outbox().view()
    }

    pub(crate) fn spilled_batches(&self) -> u64 {
        self.threads.spilled_batches
    }

    pub(crate) fn writes_left_out(&self) -> u64 {
        self.writes_left_out + self.threads.writes_left_out
    }

    /// Whether nothing is done beside the stream.
    pub(crate) fn is_idle(&self) -> bool {
        self.threads.are_idle()
    }

    fn perform(&mut self, task: Task, link: &mut Option<Connection>, wants_link: &mut bool) {
        match task {
            Task::Connect => *wants_link = true,
            Task::Disconnect => {
                *link = None;
                self.core.link_dropped();
            }
            Task::Say(message) => say(link, &message),
            Task::WantBatch => self.send_batch(link),
            Task::Restart { floor, differs } => {
                self.core.restart(floor, differs).expect("a disk that works");
            }
            Task::Settle(compared) => self.differing += self.core.settle(&compared, false).1,
            Task::SendAgain(runs) => self.send_again(&runs),
            Task::Copy => self.threads.copies = true,
            Task::Hash => self.threads.hashes = true,
            Task::Spill => self.threads.spill(),
            Task::Tidy => self.threads.tidies = true,
            Task::AskClock => say(link, &Message::AskClock(WallTime(0))),
            Task::ClockTold(_)
            | Task::SendArtifact(_)
            | Task::AdoptEpoch(_)
            | Task::CloseSync
            | Task::Greet { .. }
            | Task::Released(_)
            | Task::Disbelieved(_)
            | Task::Changed(_)
            | Task::Refused(_) => {}
        }
    }

    /// Marks what is asked for, and nothing else: nothing is compared.
    fn send_again(&mut self, runs: &[BlockRun]) {
        let before = self.capture().status();
        self.core.send_again(runs);
        let after = self.capture().status();
        let asked: u64 = runs.iter().map(|run| run.blocks).sum();
        let name = "invariant_what_is_asked_again_costs_itself";
        assert_eq!(after.unsettled_blocks, before.unsettled_blocks, "{name}: {runs:?}");
        assert!(after.dirty_blocks <= before.dirty_blocks + asked && after.gap_open, "{name}: {runs:?}");
    }

    /// The ranges of all records above `after` in spill and buffer; none where the spill cannot be read.
    pub(crate) fn on_the_way(&self, mut after: WriteSeq) -> Option<Vec<ByteRange>> {
        let mut ranges = Vec::new();
        while after < self.capture().status().spilled {
            let batch = self.threads.spilled_after(after)?;
            let above = batch.entries().iter().filter(|entry| entry.seq > after);
            ranges.extend(above.map(|entry| entry.range));
            after = batch.header().last_seq;
        }
        loop {
            let taken = self.capture().take_after(after, BATCH_BYTES_TARGET, false)?;
            let Some(last) = taken.records.last() else { return Some(ranges) };
            after = last.seq;
            ranges.extend(taken.records.iter().map(|record| record.range));
        }
    }

    fn send_batch(&mut self, link: &mut Option<Connection>) {
        let next = self.core.batch(BATCH_BYTES_TARGET, WallTime(0), |_| Codec::Lz4);
        // What cannot be read of the spill is noticed by the stream itself.
        let Ok(Some(next)) = next else { return };
        self.writes_left_out += next.left_out as u64;
        self.asks_others |= self.core.sent(&next);
        say(link, &Message::Batch(next.batch));
    }
}

fn say(link: &mut Option<Connection>, message: &Message) {
    if let Some(link) = link {
        link.to_receiver.send(message);
    }
}

pub(crate) fn hello(
    vm: VmId,
    epoch: Epoch,
    incarnation: Incarnation,
    acked: WriteSeq,
    last_seq: WriteSeq,
    size_bytes: u64,
) -> Hello {
    Hello {
        speaks: replication::wire::VERSION,
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
