//! A recovery side with a valid certificate and a malicious program behind it, against the protected side as the
//! agent runs it: whatever its answers can hold, nothing panics, no queue or
//! counter grows beyond what is checked, and an honest one that comes later gets all of the disk.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::spill::in_memory::InMemory;
use batch::Batch;
use bytes::Bytes;
use proptest::prelude::*;
use replication::wire::{
    Ack, ClockAnswer, Compared, FrameReader, FrameWriter, Leave, Message, Refusal, Refuse, Welcome,
};
use replication::{SenderConfig, SenderEvent, State, SyncReason};
use splitter::{
    BlockDevice, Boot, BufferPool, CaptureConfig, DirtyMap, Extent, ExtentKind, LocalDisk, MapFile,
    RegionLog, copy_some_blocks,
};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use types::limits::{BLOCK_BYTES, COMPARES_MAX, REGION_LOG_BYTES, WINDOW_BYTES};
use types::{BlockIndex, ByteRange, DiskIndex, GroupCounter, GroupId, RunNumber, VmId};

const CASES: u32 = 200;
const BLOCKS: u64 = 12;
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

/// The source of one VM, without sockets, tasks or time of its own.
struct Paris {
    core: SourceCore,
    counter: Arc<GroupCounter>,
    disk: Arc<ProtectedDisk>,
    now: Monotonic,
    epoch: Epoch,
    /// The last that went out over this link.
    sent: WriteSeq,
    comparing: usize,
    /// What went out, for whoever listens.
    said: VecDeque<Task>,
    batches: Vec<Batch>,
    writes: u64,
}

impl Paris {
    fn new(folder: &Path) -> Self {
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
        };
        let now = Monotonic(Duration::from_secs(1));
        let how = CoreConfig { watermark_interval: Duration::from_secs(1), caught_up_bytes: 0 };
        let core = SourceCore::new(config, how, capture, vec![disk.clone()], now);
        core.outbox().give_spill(Box::new(InMemory::of(SPILL_BYTES)));
        Self {
            core,
            counter,
            disk,
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
    fn step(&mut self, event: SenderEvent) {
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
    }

    fn write(&mut self, block: u64) {
        self.writes += 1;
        let bytes = Bytes::from(vec![self.writes as u8; 4096]);
        BlockDevice::write(&*self.disk, block % BLOCKS * BLOCK_BYTES + 8192, bytes).unwrap();
    }
}

/// An answer, its numbers relative to what was said where that is a lie that could be believed.
#[derive(Debug, Clone)]
enum Answer {
    Ack { near: bool, durable: u64, other: u64 },
    Welcome { near: bool, epoch: u64, durable: u64, incarnation: u8, flags: u8 },
    Refuse { why: u8, epoch: u64 },
    Compared { asked: bool, disk: u64, first: u64, differs: u64 },
    Other(u8, u64),
    LinkLost,
    LinkUp,
    Write(u64),
    Wait { seconds: u64 },
}

fn edge() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        BLOCKS,
        1 << 46,
        WriteSeq::LIFT_MAX.raw(),
        WriteSeq::LIFT_MAX.raw() + 1,
        WriteSeq::FOREIGN_MAX.raw(),
        WriteSeq::FOREIGN_MAX.raw() + 1,
        Epoch::LIFT_MAX.0,
        Epoch::LIFT_MAX.0 + 1,
        Epoch::FOREIGN_MAX.0,
        Epoch::FOREIGN_MAX.0 + 1,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    prop_oneof![1 => 0u64..4, 1 => prop::sample::select(edges.to_vec())]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        3 => (any::<bool>(), edge(), edge())
            .prop_map(|(near, durable, other)| Answer::Ack { near, durable, other }),
        4 => (any::<bool>(), edge(), edge(), any::<u8>(), any::<u8>()).prop_map(
            |(near, epoch, durable, incarnation, flags)| Answer::Welcome { near, epoch, durable, incarnation, flags }
        ),
        2 => (any::<u8>(), edge()).prop_map(|(why, epoch)| Answer::Refuse { why, epoch }),
        3 => (any::<bool>(), edge(), edge(), any::<u64>())
            .prop_map(|(asked, disk, first, differs)| Answer::Compared { asked, disk, first, differs }),
        1 => (any::<u8>(), edge()).prop_map(|(which, number)| Answer::Other(which, number)),
        1 => Just(Answer::LinkLost),
        4 => Just(Answer::LinkUp),
        4 => (0..BLOCKS).prop_map(Answer::Write),
        2 => (0u64..70).prop_map(|seconds| Answer::Wait { seconds }),
    ]
}

impl Paris {
    fn hear(&mut self, answer: &Answer) {
        let about = |near: bool, base: WriteSeq, number: u64| {
            WriteSeq::from_raw(if near {
                base.raw().saturating_add(number).saturating_sub(1)
            } else {
                number
            })
        };
        let message = match answer.clone() {
            Answer::Ack { near, durable, other } => {
                let durable = about(near, self.sent, durable);
                let (watermark, applied) = (WriteSeq::from_raw(other), durable);
                Message::Ack(Ack {
                    durable,
                    watermark,
                    applied,
                    journal_bytes: other,
                    history_seconds: other,
                    projected_history_seconds: Some(other),
                })
            }
            Answer::Welcome { near, epoch, durable, incarnation, flags } => Message::Welcome(Welcome {
                epoch: if near { self.epoch } else { Epoch(epoch) },
                durable: about(near, self.sent, durable),
                incarnation: (incarnation % 3 > 0 && flags & 1 == 0)
                    .then(|| Incarnation::from_bytes([incarnation % 3; 16])),
                must_compare: flags & 1 != 0,
                seeded: flags & 2 != 0,
                missing: Vec::new(),
            }),
            Answer::Refuse { why, epoch } => {
                Message::Refuse(Refuse { why: refusal(why, Epoch(epoch)), detail: "no".into() })
            }
            Answer::Compared { asked, disk, first, differs } => {
                let (disk, first) = if asked { (0, 0) } else { (disk as u16, first) };
                Message::Compared(Compared { disk: DiskIndex(disk), first: BlockIndex(first), differs })
            }
            Answer::Other(which, number) => other(which, number),
            Answer::LinkLost => return self.step(SenderEvent::LinkLost),
            Answer::LinkUp => {
                self.step(SenderEvent::Tick);
                return self.step(SenderEvent::LinkUp);
            }
            Answer::Write(block) => {
                self.write(block);
                return self.step(SenderEvent::Tick);
            }
            Answer::Wait { seconds } => {
                self.now = Monotonic(self.now.0 + Duration::from_secs(seconds));
                return self.step(SenderEvent::Tick);
            }
        };
        // What cannot be read ends the link.
        let (header, body) = FrameWriter::default().encode(&message);
        let mut reader = FrameReader::default();
        let header = reader.header(&header).unwrap();
        match reader.message(&header, body.joined()) {
            Ok(message) => self.step(SenderEvent::Received(message)),
            Err(_) => self.step(SenderEvent::LinkLost),
        }
    }
}

fn refusal(why: u8, epoch: Epoch) -> Refusal {
    match why % 9 {
        0 => Refusal::Fenced { epoch, released: false },
        1 => Refusal::Fenced { epoch, released: true },
        2 => Refusal::JournalFull,
        3 => Refusal::JournalFailed,
        4 => Refusal::DisksDiffer,
        5 => Refusal::Busy,
        6 => Refusal::Protocol,
        7 => Refusal::Version,
        _ => Refusal::NotAccepted,
    }
}

fn other(which: u8, number: u64) -> Message {
    let (vm, group) = (VmId::from_bytes([5; 16]), GroupId::from_bytes([1; 16]));
    match which % 5 {
        0 => Message::Heartbeat,
        1 => Message::AskClock(WallTime(number as i64)),
        2 => {
            Message::ClockAnswer(ClockAnswer { asked_at: WallTime(number as i64), says: WallTime(i64::MIN) })
        }
        3 => Message::Leave(Leave { vm, group, epoch: Epoch(number), at: WriteSeq::from_raw(number) }),
        _ => Message::Left(vm),
    }
}

/// A recovery side that is new and tells the truth; true once all of the disk is there.
fn honest(paris: &mut Paris) -> bool {
    let mut replica = vec![0u8; SIZE as usize];
    let mut durable = WriteSeq::ZERO;
    paris.batches.clear();
    paris.said.clear();
    paris.step(SenderEvent::LinkLost);
    for _ in 0..STEPS_MAX {
        for batch in std::mem::take(&mut paris.batches) {
            if batch.header().prev_seq != durable {
                continue; // From before the stream was begun anew.
            }
            durable = batch.header().last_seq;
            apply(&batch, &mut replica);
            let (watermark, applied, seconds) = (durable, WriteSeq::ZERO, 0);
            paris.step(SenderEvent::Received(Message::Ack(Ack {
                durable,
                watermark,
                applied,
                journal_bytes: 0,
                history_seconds: seconds,
                projected_history_seconds: None,
            })));
        }
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
                        durable,
                        incarnation: None,
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
        let status = paris.core.status();
        if paris.core.sender().state() == State::Journaling && !status.gap_open && status.last <= durable {
            let mut disk = vec![0u8; SIZE as usize];
            BlockDevice::read(&*paris.disk, 0, &mut disk).unwrap();
            return disk == replica;
        }
    }
    panic!("it does not get there: {:?}, {:?}", paris.core.sender().state(), paris.core.status());
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

#[test]
fn a_recovery_side_that_lies_costs_an_honest_one_nothing() {
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = runner.run(&prop::collection::vec(answer(), 0..40), |answers| {
        let folder = tempfile::tempdir().unwrap();
        let mut paris = Paris::new(folder.path());
        paris.step(SenderEvent::Tick);
        answers.iter().for_each(|answer| paris.hear(answer));
        prop_assert!(honest(&mut paris), "what an honest side has afterwards is not the disk");
        Ok(())
    });
    run.unwrap();
}

#[test]
fn a_batch_that_was_built_and_could_not_be_sent_is_built_again_over_the_next_link() {
    let folder = tempfile::tempdir().unwrap();
    let mut paris = Paris::new(folder.path());
    paris.step(SenderEvent::Tick);
    assert!(honest(&mut paris));
    paris.write(3);
    // As the driver does where it cannot write down what the batch tells.
    paris.core.push(SenderEvent::Tick);
    while let Some(task) = paris.core.next(paris.now) {
        if matches!(task, Task::WantBatch) {
            let next = paris.core.batch(1 << 20, WallTime(0), |_| Codec::Raw).unwrap();
            assert!(next.is_some());
            paris.core.not_sent();
            paris.core.link_dropped();
            paris.core.push(SenderEvent::LinkLost);
            break;
        }
    }
    assert!(honest(&mut paris), "nothing is sent any more");
}
