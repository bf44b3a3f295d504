//! Both sides of one protection with threads as an agent has them, that take turns by a seed: guests that write at once, the
//! driver of the stream, whoever copies, hashes, spills and tidies for it, the recovery side, and an operator.

use crate::invariants::{
    Pair, invariant_at_rest_both_sides_are_equal, invariant_image_at_checkpoint_equals_guest_disk_then,
};
use crate::link::{Connection, Pipe};
use crate::moment::Moment;
use crate::recovery::{RecoveryVm, SETTINGS};
use crate::rng::Rng;
use crate::source::{GuestChange, SourceVm, hello};
use crate::store::SimStore;
use batch::Codec;
use bytes::Bytes;
use joint::outbox::Outbox;
use joint::source::{SourceCore, Task, hash};
use journal::Journal;
use replication::wire::Message;
use replication::{ReceiverEvent, SenderEvent, State};
use splitter::{Capture, Change, OnTimeout, ProtectedDisk, SyncPolicy, SyncState, copy_some_blocks};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize as Count;
use std::time::Duration;
use threads::by_seed::{play, seeds};
use threads::sync::Mutex;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use threads::sync::mpsc::{Receiver, Sender, channel};
use threads::thread;
use types::limits::BATCH_BYTES_TARGET;
use types::{
    ByteRange, Checkpoint, CheckpointId, CheckpointKind, GroupCounter, Monotonic, RunNumber, VmId, WallTime,
    WriteSeq,
};

const WRITES: usize = 20;
/// A stream that is not at rest by then does not come to it.
const ROUNDS_MAX: u64 = 50_000;
const SPILL_BATCHES: usize = 4;

/// What all seeds together came across; else they prove nothing. Counters of the standard library, at which nobody is set
/// aside.
static CHECKPOINTS: Count = Count::new(0);
static PROMISES: Count = Count::new(0);
static SPILLED: Count = Count::new(0);
static ORDERED: Count = Count::new(0);

fn count(what: &Count, by: usize) {
    what.fetch_add(by, std::sync::atomic::Ordering::Relaxed);
}

fn counted(what: &Count) -> usize {
    what.load(std::sync::atomic::Ordering::Relaxed)
}

/// What the driver hears.
enum Event {
    Of(SenderEvent),
    /// From the other side, over the connection of that number.
    Received(u64, Message),
    Tidied,
    Cut,
}

/// What the recovery side hears.
enum ToRecovery {
    Accept(u64),
    Received(u64, Message),
}

/// A clock that goes on whenever somebody looks at it.
#[derive(Clone, Default)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn now(&self) -> Monotonic {
        Monotonic(Duration::from_millis(1000 + self.0.fetch_add(1, Ordering::SeqCst)))
    }

    fn passes(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

struct Driver {
    core: SourceCore,
    vm: VmId,
    disk_bytes: u64,
    time: Time,
    events: Receiver<Event>,
    tell: Sender<Event>,
    to_recovery: Sender<ToRecovery>,
    /// Connections are counted; 0: none.
    link: u64,
    links: u64,
    pipe: Pipe,
    /// A batch is wanted, and the link has no room for it yet.
    wants_batch: bool,
    /// One in so many turns it has.
    slowness: u64,
    rng: Rng,
    /// What others have been given to do.
    busy: u64,
    /// Told once all is at the other side for the first time.
    settled: Option<Sender<()>>,
    /// Nobody writes any more.
    finish: Arc<AtomicBool>,
}

impl Driver {
    /// Goes on until all is at the other side and nobody writes any more.
    fn run(mut self) -> SourceCore {
        for _ in 0..ROUNDS_MAX {
            match self.events.try_recv() {
                Ok(Event::Of(event)) => {
                    let of_a_thread = matches!(
                        event,
                        SenderEvent::CopyDone { .. } | SenderEvent::Hashed(_) | SenderEvent::Spilled
                    );
                    self.busy -= u64::from(of_a_thread);
                    self.core.push(event);
                }
                Ok(Event::Received(link, message)) if link == self.link => {
                    self.core.push(SenderEvent::Received(message));
                }
                Ok(Event::Received(..)) => {}
                Ok(Event::Tidied) => {
                    self.busy -= 1;
                    self.core.tidied();
                }
                Ok(Event::Cut) if self.link > 0 => {
                    self.link = 0;
                    self.core.push(SenderEvent::LinkLost);
                }
                Ok(Event::Cut) => {}
                Err(_) => {
                    if self.is_at_rest() {
                        if self.finish.load(Ordering::SeqCst) {
                            return self.core;
                        }
                        if let Some(settled) = self.settled.take() {
                            settled.send(()).expect("somebody waits for it");
                        }
                    }
                    self.time.passes(20);
                    self.core.push(SenderEvent::Tick);
                    thread::yield_now();
                }
            }
            if self.wants_batch && self.rng.one_in(self.slowness) {
                self.wants_batch = false;
                self.send_batch();
            }
            self.perform_all();
            let caught_up = self.core.follow().caught_up;
            if self.core.status().sync == SyncState::Degraded && caught_up {
                self.core.capture().return_to_sync();
            }
        }
        panic!("does not come to rest: {:?}, {:?}", self.core.sender().state(), self.core.status());
    }

    fn is_at_rest(&self) -> bool {
        let status = self.core.status();
        self.core.sender().state() == State::Journaling
            && status.released == status.last
            && status.buffered_bytes == 0
            && status.unsettled_blocks == 0
            && self.busy == 0
    }

    fn perform_all(&mut self) {
        while let Some(task) = self.core.next(self.time.now()) {
            self.perform(task);
        }
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Connect => {
                self.links += 1;
                (self.link, self.pipe) = (self.links, Pipe::default());
                self.to_recovery.send(ToRecovery::Accept(self.link)).expect("it listens");
                self.core.push(SenderEvent::LinkUp);
            }
            Task::Disconnect => {
                self.link = 0;
                self.core.link_dropped();
            }
            Task::Greet { epoch, incarnation, acked, last } => {
                let hello = hello(self.vm, epoch, incarnation, acked, last, self.disk_bytes);
                self.say(&Message::Hello(Box::new(hello)));
            }
            Task::Say(message) => self.say(&message),
            Task::WantBatch => self.wants_batch = true,
            Task::Restart { floor, differs } => {
                self.core.restart(floor, differs).expect("a disk that works");
            }
            Task::Settle(compared) => drop(self.core.settle(&compared, false)),
            Task::SendAgain(runs) => drop(self.core.send_again(&runs)),
            Task::CloseSync => self.core.close_sync(),
            Task::AskClock => self.say(&Message::AskClock(WallTime(0))),
            Task::Copy => self.have_done(|capture, disks, _| {
                Event::Of(SenderEvent::CopyDone {
                    taken: copy_some_blocks(capture, disks).expect("a disk that works"),
                })
            }),
            Task::Hash => self.have_done(|capture, disks, _| {
                Event::Of(SenderEvent::Hashed(hash(capture, disks).expect("a disk that works")))
            }),
            Task::Spill => self.have_done(|_, _, outbox| {
                spill(outbox);
                Event::Of(SenderEvent::Spilled)
            }),
            Task::Tidy => self.have_done(|_, _, outbox| {
                outbox.tidy();
                Event::Tidied
            }),
            Task::ClockTold(_)
            | Task::SendArtifact(_)
            | Task::AdoptEpoch(_)
            | Task::Released(_)
            | Task::Disbelieved(_)
            | Task::Changed(_)
            | Task::Refused(_) => {}
        }
    }

    fn send_batch(&mut self) {
        // None where it is not wanted any more: the link was lost meanwhile.
        let next = self.core.batch(BATCH_BYTES_TARGET, WallTime(0), |_| Codec::Lz4);
        if let Ok(Some(next)) = next {
            self.core.sent(&next);
            self.say(&Message::Batch(next.batch));
        }
    }

    fn say(&mut self, message: &Message) {
        if self.link > 0 {
            self.pipe.send(message);
            let message = self.pipe.receive().expect("what was just sent");
            self.to_recovery.send(ToRecovery::Received(self.link, message)).expect("it listens");
        }
    }

    /// A thread does it, and says what came of it.
    fn have_done(
        &mut self,
        what: impl FnOnce(&Capture, &[Arc<ProtectedDisk>], &Outbox) -> Event + Send + 'static,
    ) {
        self.busy += 1;
        let (tell, core) = (self.tell.clone(), &self.core);
        let (capture, disks, outbox) = (core.capture().clone(), core.disks().to_vec(), core.outbox().clone());
        thread::spawn(move || {
            let event = what(&capture, &disks, &outbox);
            tell.send(event).expect("the driver waits for it");
        });
    }
}

/// Others have some turns first.
fn linger(rng: &mut Rng) {
    let longest = if rng.one_in(4) { 400 } else { 40 };
    (0..rng.below(longest)).for_each(|_| thread::yield_now());
}

fn spill(outbox: &Outbox) {
    for _ in 0..SPILL_BATCHES {
        let Some(spilling) = outbox.begin_spill(WallTime(0)) else { return };
        if !outbox.end_spill(&outbox.write_spill(spilling)) {
            return;
        }
        count(&SPILLED, 1);
    }
}

/// The recovery side: what comes is appended at once, and now and then its journal is kept up.
fn receive(
    mut recovery: RecoveryVm,
    events: &Receiver<ToRecovery>,
    tell: &Sender<Event>,
    time: &Time,
    seed: u64,
) -> RecoveryVm {
    let (mut rng, mut current, mut link) = (Rng::new(seed), 0, None);
    while let Ok(event) = events.recv() {
        let now = time.now();
        match event {
            ToRecovery::Accept(number) => {
                (current, link) = (number, Some(Connection::default()));
                recovery.accept(now);
            }
            ToRecovery::Received(number, message) if number == current => {
                recovery.run(now, ReceiverEvent::Received(message), &mut link);
            }
            ToRecovery::Received(..) => {}
        }
        let wall = WallTime(now.0.as_micros() as i64);
        recovery.append(now, wall, &mut link, &mut rng);
        if rng.one_in(8) {
            recovery.keep_up(&Moment { now, wall }.upkeep(rng.sixteen()));
        }
        while let Some(message) = link.as_mut().and_then(|link| link.to_sender.receive()) {
            // The driver has gone where all is there.
            drop(tell.send(Event::Received(current, message)));
        }
    }
    recovery
}

/// What a guest and an operator have in hand.
#[derive(Clone)]
struct Site {
    counter: Arc<GroupCounter>,
    disk: Arc<ProtectedDisk>,
    capture: Arc<Capture>,
    history: Arc<Mutex<Vec<GuestChange>>>,
    /// Of two writes without a sequence nobody knows which came first.
    is_unordered: Arc<AtomicBool>,
    tell: Sender<Event>,
    store: SimStore,
}

impl Site {
    fn keeps_its_promise(&self) -> bool {
        let status = self.capture.status();
        status.sync == SyncState::Synchronous && !status.gap_open && !status.tracking
    }

    /// A guest that writes to some sectors, as many as may be to the same as others.
    fn run_guest(&self, sectors: Range<u64>, seed: u64) {
        let mut rng = Rng::new(seed);
        for _ in 0..WRITES {
            linger(&mut rng);
            let start = sectors.start + rng.below(sectors.end - sectors.start);
            let len = 1 + rng.below(128.min(sectors.end - start));
            let range = ByteRange::new(start * 512, len * 512);
            let drawn = self.counter.last();
            let bytes = vec![1 + rng.below(250) as u8; range.len as usize];
            let is_promised = self.keeps_its_promise();
            let change = Change::Write { at: range.start, bytes: Bytes::from(bytes.clone()) };
            let seq = self.disk.change(&change).expect("a disk that works").expect("a write has its place");
            let (before, last) = if seq == WriteSeq::ZERO {
                self.is_unordered.store(true, Ordering::SeqCst);
                (drawn, self.counter.last())
            } else {
                (WriteSeq::from_raw(seq.raw() - 1), seq)
            };
            self.history.lock().expect("no panic").push(GuestChange { before, last, range, bytes });
            self.tell.send(Event::Of(SenderEvent::Tick)).expect("the driver listens");
            self.capture.hold(seq);
            if is_promised && self.keeps_its_promise() {
                let left = Journal::open(Arc::new(self.store.fork_of_what_is_synced()), SETTINGS);
                let there = left.expect("a journal").journal.newest_consistent(WriteSeq::MAX);
                assert!(there >= Some(seq), "{seq} was promised, and {there:?} is there");
                count(&PROMISES, 1);
            }
        }
    }

    fn mark_checkpoint(&self) {
        if self.capture.status().gap_open {
            return;
        }
        let cut = self.counter.draw();
        let checkpoint = Checkpoint {
            id: CheckpointId(cut),
            cut,
            kind: CheckpointKind::Automatic,
            taken_at: WallTime(0),
            members: 1,
            tag: String::new(),
        };
        self.capture.mark_checkpoint(&checkpoint);
        self.tell.send(Event::Of(SenderEvent::Tick)).expect("the driver listens");
    }

    /// Checkpoints, links that are lost, and where nobody waits for the other side also what an operator may ask for.
    fn trouble(&self, is_sync: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        for _ in 0..12 {
            linger(&mut rng);
            match rng.below(6) {
                0..3 => self.mark_checkpoint(),
                3 if !is_sync => {
                    for event in [SenderEvent::Pause, SenderEvent::Resume] {
                        self.tell.send(Event::Of(event)).expect("the driver listens");
                    }
                }
                4 if !is_sync => {
                    self.tell.send(Event::Of(SenderEvent::Resync)).expect("the driver listens");
                }
                _ => self.tell.send(Event::Cut).expect("the driver listens"),
            }
        }
    }
}

fn both_sides(seed: u64) {
    let mut rng = Rng::new(seed);
    let is_sync = seed % 3 == 1;
    let policy = is_sync.then_some(SyncPolicy { timeout: Duration::ZERO, on_timeout: OnTimeout::Hold });
    let disk_bytes = (4 + rng.below(4)) * 65_536 + 512 * rng.below(128);
    let mut source = SourceVm::new(1, disk_bytes, policy, &mut rng);
    let initial = source.disk.content();
    let counter = Arc::new(GroupCounter::new(WriteSeq::before_run(RunNumber(1))));
    let time = Time::default();
    let (mut core, _spill) = source.start_core(&counter, time.now(), &mut rng);
    core.in_group_of_several(false);
    let recovery = RecoveryVm::new(SETTINGS);
    let (tell, events) = channel();
    let (to_recovery, of_source) = channel();
    let site = Site {
        counter,
        disk: core.disks()[0].clone(),
        capture: core.capture().clone(),
        history: Arc::default(),
        is_unordered: Arc::default(),
        tell: tell.clone(),
        store: recovery.store.clone(),
    };
    let finish = Arc::new(AtomicBool::new(false));
    let (settled, is_settled) = channel();
    let driver = Driver {
        core,
        vm: source.vm,
        disk_bytes,
        time: time.clone(),
        events,
        tell: tell.clone(),
        to_recovery,
        link: 0,
        links: 0,
        pipe: Pipe::default(),
        wants_batch: false,
        slowness: [1, 4, 16][rng.below(3) as usize],
        rng: Rng::new(rng.bits()),
        busy: 0,
        settled: Some(settled),
        finish: finish.clone(),
    };
    let driver = thread::spawn(move || driver.run());
    let for_receiver = rng.bits();
    let receiver = thread::spawn(move || receive(recovery, &of_source, &tell, &time, for_receiver));
    let mut writers = Vec::new();
    // Most begin when the first sync has ended, some while it goes on.
    if !seed.is_multiple_of(7) {
        is_settled.recv().expect("the driver says so");
    }
    // Two that write to the same sectors, or side by side into the same block.
    let guests = if seed.is_multiple_of(2) { [0..160, 0..160] } else { [0..160, 160..320] };
    for sectors in guests.clone() {
        let (site, seed) = (site.clone(), rng.bits());
        writers.push(thread::spawn(move || site.run_guest(sectors, seed)));
    }
    let (of_trouble, for_trouble) = (site.clone(), rng.bits());
    writers.push(thread::spawn(move || of_trouble.trouble(is_sync, for_trouble)));
    writers.into_iter().for_each(|thread| thread.join().expect("no panic"));
    finish.store(true, Ordering::SeqCst);
    driver.join().expect("no panic");
    let recovery = receiver.join().expect("no panic");
    source.history = std::mem::take(&mut *site.history.lock().expect("no panic"));
    source.history.sort_by_key(|change| change.last);
    let pair = Pair { source, recovery, initial };
    invariant_at_rest_both_sides_are_equal(&pair);
    if guests[0] != guests[1] || !site.is_unordered.load(Ordering::SeqCst) {
        count(&ORDERED, 1);
        let (compared, _) = invariant_image_at_checkpoint_equals_guest_disk_then(&pair);
        count(&CHECKPOINTS, compared as usize);
    }
}

#[test]
fn what_guests_write_at_once_comes_to_the_other_side_in_their_order() {
    let seeds = seeds(200);
    let played = (seeds.end - seeds.start) as usize;
    play(seeds, both_sides);
    let [checkpoints, promises, spilled, ordered] =
        [&CHECKPOINTS, &PROMISES, &SPILLED, &ORDERED].map(counted);
    println!(
        "{checkpoints} checkpoints, {promises} promises, {spilled} batches spilled, {ordered} of {played} in order"
    );
    assert!(checkpoints > played && promises > played / 4 && spilled > played / 8 && ordered > played / 2);
}
