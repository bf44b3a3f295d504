//! Both sides of one VM's stream without sockets, tasks or time of their own: the protected side as the agent runs it, and a
//! recovery side that tells the truth.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::spill::in_memory::InMemory;
use batch::{Batch, Kind};
use bytes::Bytes;
use replication::wire::{Ack, Compared, Message, Refusal, Refuse, Welcome};
use replication::{SenderConfig, SenderEvent, State, SyncReason};
use splitter::{
    BlockDevice, Boot, BufferPool, CaptureConfig, DirtyMap, Extent, ExtentKind, LocalDisk, MapFile,
    RegionLog, copy_some_blocks,
};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use types::limits::{BLOCK_BYTES, COMPARES_MAX, REGION_LOG_BYTES, WINDOW_BYTES};
use types::{ByteRange, DiskIndex, GroupCounter, RunNumber, VmId};

pub(super) const BLOCKS: u64 = 12;
const SIZE: u64 = BLOCKS * BLOCK_BYTES;
const BUFFER: u64 = 4 * BLOCK_BYTES;
const SPILL_BYTES: u64 = 1 << 30;
const ONE: Incarnation = Incarnation::from_bytes([1; 16]);
/// So many steps of its own the source may take to bring an honest side everything.
const STEPS_MAX: usize = 20_000;

/// A disk in memory.
#[derive(Debug)]
struct Plate(Mutex<Vec<u8>>);

impl LocalDisk for Plate {
    fn size_bytes(&self) -> u64 {
        SIZE
    }
    fn label(&self) -> String {
        "vda".into()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.0.lock().unwrap()[at as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn zero(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.0.lock().unwrap()[range.start as usize..range.end() as usize].fill(0);
        Ok(())
    }
    fn zeroes_fast(&self) -> bool {
        true
    }
    fn prefetch(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { range, kind: ExtentKind::Data }])
    }
}

/// The source of one VM.
pub(super) struct Paris {
    pub(super) core: SourceCore,
    counter: Arc<GroupCounter>,
    disk: Arc<ProtectedDisk>,
    spill: InMemory,
    pub(super) now: Monotonic,
    pub(super) epoch: Epoch,
    /// The last that went out over this link.
    pub(super) sent: WriteSeq,
    comparing: usize,
    /// What went out, for whoever listens.
    said: VecDeque<Task>,
    batches: Vec<Batch>,
    writes: u64,
}

impl Paris {
    pub(super) fn new(folder: &Path) -> Self {
        let vm = VmId::from_bytes([5; 16]);
        let file = |name: &str| Box::new(MapFile::open(&folder.join(name)).unwrap());
        let boot = Boot { id: [1; 16], at: WallTime(0) };
        let map = DirtyMap::open(file("map"), vm, &[(SIZE, None)], boot.id).unwrap();
        let regions = RegionLog::open(file("regions"), vm, &[(SIZE, None)], REGION_LOG_BYTES, boot).unwrap();
        let config = CaptureConfig {
            buffer_bytes_max: BUFFER,
            pool: Arc::new(BufferPool::new(1 << 30)),
            sync: None,
            gate: Arc::default(),
            leaves_out: false,
        };
        let counter = Arc::new(GroupCounter::new(WriteSeq::before_run(RunNumber(3))));
        let capture = Arc::new(Capture::new(counter.clone(), &[SIZE], map, regions, config, Box::new(|| {})));
        let plate = Plate(Mutex::new((0..SIZE).map(|at| (at / 512 % 251) as u8).collect()));
        let disk = Arc::new(ProtectedDisk::new(DiskIndex(0), Box::new(plate), capture.clone()));
        let config = SenderConfig {
            vm,
            epoch: Epoch::FIRST,
            incarnation: ONE,
            paused: false,
            kept: Vec::new(),
            suspects_because: SyncReason::Interrupted,
            disk_sizes: vec![SIZE],
        };
        let now = Monotonic(Duration::from_secs(1));
        let how = CoreConfig { watermark_interval: Duration::from_secs(1), caught_up_bytes: 0 };
        let core = SourceCore::new(config, how, capture, vec![disk.clone()], now);
        let spill = InMemory::of(SPILL_BYTES);
        core.outbox().give_spill(Box::new(spill.clone()));
        Self {
            core,
            counter,
            disk,
            spill,
            now,
            epoch: Epoch::FIRST,
            sent: WriteSeq::ZERO,
            comparing: 0,
            said: VecDeque::new(),
            batches: Vec::new(),
            writes: 0,
        }
    }

    /// Takes an event, and all that come of it.
    pub(super) fn step(&mut self, event: SenderEvent) {
        self.core.push(event);
        loop {
            self.now = Monotonic(self.now.0 + Duration::from_millis(1));
            let Some(task) = self.core.next(self.now) else { break };
            self.perform(task);
            self.check();
        }
    }

    fn perform(&mut self, task: Task) {
        let (capture, disks) = (self.core.capture().clone(), self.core.disks().to_vec());
        match task {
            Task::WantBatch => self.send(),
            Task::Released(up_to) => assert!(up_to <= self.counter.last(), "{up_to} was never drawn"),
            Task::Restart { floor, differs } => self.core.restart(floor, differs).unwrap(),
            Task::Copy => {
                let taken = copy_some_blocks(&capture, &disks).unwrap();
                self.core.push(SenderEvent::CopyDone { taken });
            }
            Task::Hash => self.core.push(SenderEvent::Hashed(hash(&capture, &disks).unwrap())),
            Task::Settle(answer) => {
                self.comparing = self.comparing.saturating_sub(1);
                self.core.settle(&answer, false);
            }
            Task::SendAgain(runs) => {
                self.core.send_again(&runs);
            }
            Task::CloseSync => {
                assert!(self.core.status().gap_open, "its end goes out before that is written down");
                self.core.close_sync();
            }
            Task::Spill => {
                while let Some(spilling) = self.core.outbox().begin_spill(WallTime(0)) {
                    let written = self.core.outbox().write_spill(spilling);
                    self.core.outbox().end_spill(&written);
                }
                self.core.push(SenderEvent::Spilled);
            }
            Task::Tidy => {
                self.core.outbox().tidy();
                self.core.tidied();
            }
            Task::AdoptEpoch(epoch) => self.epoch = epoch,
            Task::Say(Message::Compare(compare)) => {
                self.comparing += 1;
                self.said.push_back(Task::Say(Message::Compare(compare)));
            }
            said @ (Task::Connect | Task::Say(_)) => self.said.push_back(said),
            said @ Task::Greet { .. } => {
                // What was asked over another link is not answered any more.
                self.comparing = 0;
                self.said.push_back(said);
            }
            Task::Disconnect => self.core.link_dropped(),
            Task::SendArtifact(_)
            | Task::AskClock
            | Task::ClockTold(_)
            | Task::Changed(_)
            | Task::Refused(_)
            | Task::Disbelieved(_) => {}
        }
    }

    fn send(&mut self) {
        let Some(next) = self.core.batch(1 << 20, WallTime(0), |_| Codec::Raw).unwrap() else { return };
        let batch = Batch::parse(next.batch.joined()).unwrap();
        self.sent = next.last;
        self.batches.push(batch);
        self.core.sent(&next);
    }

    /// What holds whatever is answered.
    fn check(&self) {
        let status = self.core.status();
        assert!(self.epoch <= Epoch::LIFT_MAX, "epoch {}", self.epoch);
        let own = 1 << 32;
        let most = WriteSeq::LIFT_MAX.raw() + own;
        assert!(
            self.counter.last().raw() <= most,
            "the group's counter was lifted to {}",
            self.counter.last()
        );
        assert!(status.buffered_bytes <= BUFFER + (64 << 10), "{} bytes are buffered", status.buffered_bytes);
        assert!(self.core.sender().in_flight_bytes() <= WINDOW_BYTES + (2 << 20));
        assert!(self.comparing <= COMPARES_MAX, "{} comparisons at once", self.comparing);
        let copies = self.spill.bytes_of(|kind| matches!(kind, Kind::Sync | Kind::SyncZero));
        assert_eq!(copies, 0, "so many bytes of a sync lie in the spill");
    }

    /// How many bytes that the guest has written lie in the spill.
    pub(super) fn spilled_writes(&self) -> u64 {
        self.spill.bytes_of(Kind::is_guest_write)
    }

    pub(super) fn write(&mut self, block: u64) {
        self.writes += 1;
        let bytes = Bytes::from(vec![self.writes as u8; 4096]);
        BlockDevice::write(&*self.disk, block % BLOCKS * BLOCK_BYTES + 8192, bytes).unwrap();
    }
}

/// A recovery side that is new and tells the truth.
#[derive(Debug)]
pub(super) struct Munich {
    replica: Vec<u8>,
    durable: WriteSeq,
}

impl Munich {
    /// It takes the place of whoever was the recovery side before.
    pub(super) fn of(paris: &mut Paris) -> Self {
        paris.batches.clear();
        paris.said.clear();
        paris.step(SenderEvent::LinkLost);
        Self { replica: vec![0u8; SIZE as usize], durable: WriteSeq::ZERO }
    }

    /// A block rots.
    pub(super) fn spoil(&mut self, block: usize) {
        self.replica[block << 16..(block + 1) << 16].fill(0xee);
    }

    /// Takes so many of the batches that have come, the oldest first, and acknowledges them.
    pub(super) fn acknowledge(&mut self, paris: &mut Paris, most: usize) {
        let most = most.min(paris.batches.len());
        for batch in paris.batches.drain(..most).collect::<Vec<_>>() {
            if batch.header().prev_seq != self.durable {
                continue; // From before the stream was begun anew.
            }
            self.durable = batch.header().last_seq;
            apply(&batch, &mut self.replica);
            paris.step(SenderEvent::Received(Message::Ack(Ack {
                durable: self.durable,
                watermark: self.durable,
                applied: WriteSeq::ZERO,
                journal_bytes: 0,
                history_seconds: 0,
                projected_history_seconds: None,
            })));
        }
    }

    /// Answers to the oldest that was said; where nothing was, time goes on.
    pub(super) fn answer(&mut self, paris: &mut Paris) {
        match paris.said.pop_front() {
            Some(Task::Connect) => paris.step(SenderEvent::LinkUp),
            Some(Task::Greet { epoch, .. }) => {
                let answer = match paris.core.sender().state() {
                    // A failover that was claimed is rolled back.
                    State::Fenced { epoch: theirs } if epoch < theirs => {
                        let why = Refusal::Fenced { epoch: theirs, released: true };
                        Message::Refuse(Refuse { why, detail: String::new() })
                    }
                    _ => Message::Welcome(Welcome {
                        epoch,
                        durable: self.durable,
                        incarnation: (self.durable > WriteSeq::ZERO).then_some(ONE),
                        must_compare: false,
                        seeded: false,
                        missing: Vec::new(),
                    }),
                };
                paris.step(SenderEvent::Received(answer));
            }
            Some(Task::Say(Message::Compare(compare))) => {
                let (disk, first) = (compare.disk, compare.first);
                let answer = Compared { disk, first, differs: u64::MAX };
                paris.step(SenderEvent::Received(Message::Compared(answer)));
            }
            Some(_) => {}
            None => {
                paris.now = Monotonic(paris.now.0 + Duration::from_millis(200));
                paris.step(SenderEvent::Received(Message::Heartbeat));
                paris.step(SenderEvent::Tick);
            }
        }
    }

    /// Whether all there is has come, and is told to be.
    fn has_all(&self, paris: &Paris) -> bool {
        let status = paris.core.status();
        paris.core.sender().state() == State::Journaling && !status.gap_open && status.last <= self.durable
    }

    /// Until all of the disk is there; whether it is the same.
    ///
    /// # Panics
    /// Where it does not get there.
    pub(super) fn gets_all(&mut self, paris: &mut Paris) -> bool {
        for _ in 0..STEPS_MAX {
            self.acknowledge(paris, usize::MAX);
            self.answer(paris);
            if self.has_all(paris) {
                let mut disk = vec![0u8; SIZE as usize];
                BlockDevice::read(&*paris.disk, 0, &mut disk).unwrap();
                return disk == self.replica;
            }
        }
        panic!("it does not get there: {:?}, {:?}", paris.core.sender().state(), paris.core.status());
    }
}

fn apply(batch: &Batch, replica: &mut [u8]) {
    for (at, entry) in batch.entries().iter().enumerate().filter(|(_, entry)| entry.kind.changes_disk()) {
        let part = &mut replica[entry.range.start as usize..entry.range.end() as usize];
        match entry.kind.has_payload() {
            true => part.copy_from_slice(&batch.payload(at).unwrap()),
            false => part.fill(0),
        }
    }
}
