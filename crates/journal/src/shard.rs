//! Shards: a few threads that append for all journals of a process.
//!
//! A framer gathers what has come of a journal, gives it places, checksums and copies it; a writer writes and syncs. So the
//! processor works on one group while the disk has the one before. A group is what waits of a stream, up to 4 MiB; the
//! writer takes all groups of a journal that are framed and syncs each segment once. Whose turn it is, and that a journal's
//! groups are committed in the order they were framed, is in `lanes.rs`.
//!
//! A disk may answer late or never. A thread that stands at one journal is that journal's alone: another takes its place for
//! all others. Who stands is seen by a thread that looks each second while there is work.

mod lanes;

use crate::append::Appender;
use crate::journal::Journal;
use crate::page::PageBuf;
use crate::writer::{AppendError, AppendMeta, Appended, Framed};
use batch::Batch;
use lanes::{Lanes, Role};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::atomic::{AtomicBool, Ordering};
use threads::sync::{Condvar, Mutex, MutexGuard};
use types::{Epoch, WallTime};

/// A group is closed at this size: the disk takes larger writes faster, and one sync serves more
/// (`docs/design/2026-11-25-the-journal-on-disk.md` has the measurement).
const GROUP_BYTES: usize = 4 << 20;
/// How often it is looked whether a thread stands somewhere.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Buffers that are kept to be used again.
const SPARES_MAX: usize = 8;

/// What became of a group of batches.
#[derive(Debug)]
pub struct Report {
    /// How many batches the group had.
    pub batches: usize,
    /// Bytes of them, as encoded.
    pub bytes: usize,
    pub result: Result<Appended, AppendError>,
}

/// A stream into a journal. After the first error nothing more of it is appended, and no other error is reported; what was
/// on its way before may still be reported as durable.
pub struct AppendStream {
    journal: Arc<Journal>,
    /// The file system the journal lies on.
    disk: u64,
    epoch: Epoch,
    failed: AtomicBool,
    report: Box<dyn Fn(Report) + Send + Sync>,
}

impl std::fmt::Debug for AppendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppendStream").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl AppendStream {
    /// A stream that tells `report` of each group, from a shard's thread.
    pub fn new(
        journal: Arc<Journal>,
        epoch: Epoch,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (disk, failed) = (journal.state.store.file_system(), AtomicBool::new(false));
        Arc::new(Self { journal, disk, epoch, failed, report: Box::new(report) })
    }

    fn appender(&self) -> &Appender {
        &self.journal.appender
    }

    fn tell(&self, group: Size, result: Result<Appended, AppendError>) {
        if result.is_err() && self.failed.swap(true, Ordering::SeqCst) {
            return;
        }
        (self.report)(Report { batches: group.batches, bytes: group.bytes, result });
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    batches: usize,
    bytes: usize,
}

struct Group {
    stream: Arc<AppendStream>,
    batches: Vec<Batch>,
    size: Size,
}

type HandedIn = (Arc<AppendStream>, Batch);
type Written = (Arc<AppendStream>, Size, Framed);
type AllLanes = Lanes<HandedIn, Written>;
type Stamp = dyn Fn() -> (WallTime, [u8; 16]) + Send + Sync;

/// The threads. They end once it is dropped and what was handed in is done.
pub struct Shards {
    crew: Arc<Crew>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").finish_non_exhaustive()
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        self.crew.lock().has_ended = true;
        self.crew.wake_all();
    }
}

impl Shards {
    /// Starts `count` framers and as many writers. `stamp` reads this host's clock and brings random bytes.
    ///
    /// # Panics
    /// Where the system has no threads left.
    pub fn start(count: usize, stamp: impl Fn() -> (WallTime, [u8; 16]) + Send + Sync + 'static) -> Self {
        let count = count.max(1);
        let crew = Arc::new(Crew {
            lanes: Mutex::new(Lanes::new(count)),
            to_frame: Condvar::new(),
            to_write: Condvar::new(),
            to_look: Condvar::new(),
            spares: Mutex::new(Vec::new()),
            stamp: Box::new(stamp),
        });
        let expected = "the system has threads left";
        for role in [Role::Frame, Role::Write].repeat(count) {
            crew.lock().add_thread(role);
            crew.start(role).expect(expected);
        }
        let looking = crew.clone();
        spawn("look", move || looking.look_regularly()).expect(expected);
        Self { crew }
    }

    /// Hands a batch in. The caller bounds how many are handed in and not reported.
    pub fn append(&self, stream: &Arc<AppendStream>, batch: Batch) {
        let mut lanes = self.crew.lock();
        if lanes.is_idle() {
            self.crew.to_look.notify_one();
        }
        lanes.push(stream.journal.state.uid, stream.disk, (stream.clone(), batch));
        self.crew.to_frame.notify_one();
    }
}

/// What the threads share. No lock is held while one of them frames, writes or reports.
struct Crew {
    lanes: Mutex<AllLanes>,
    to_frame: Condvar,
    to_write: Condvar,
    to_look: Condvar,
    spares: Mutex<Vec<PageBuf>>,
    stamp: Box<Stamp>,
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    threads::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

impl Crew {
    fn lock(&self) -> MutexGuard<'_, AllLanes> {
        self.lanes.lock().expect("a panic aborts the process")
    }

    fn wake_all(&self) {
        [&self.to_frame, &self.to_write, &self.to_look].into_iter().for_each(Condvar::notify_all);
    }

    /// Starts a thread that is counted already.
    fn start(self: &Arc<Self>, role: Role) -> std::io::Result<()> {
        let crew = self.clone();
        match role {
            Role::Frame => spawn("frame", move || while crew.frame_next() {}),
            Role::Write => spawn("write", move || while crew.write_next() {}),
        }
    }

    /// What `take` finds to be done, once there is something; none where the thread is to end.
    fn next<T>(&self, role: Role, mut take: impl FnMut(&mut AllLanes) -> Option<T>) -> Option<T> {
        let mut lanes = self.lock();
        let is_surplus = lanes.is_surplus(role);
        while !is_surplus && !lanes.is_over(role) {
            if let Some(taken) = take(&mut lanes) {
                return Some(taken);
            }
            let changed = if role == Role::Frame { &self.to_frame } else { &self.to_write };
            lanes = changed.wait(lanes).expect("a panic aborts the process");
        }
        lanes.drop_thread(role);
        None
    }

    /// Frames a group; whether to go on.
    fn frame_next(&self) -> bool {
        let Some((turn, group)) = self.next(Role::Frame, |lanes| lanes.take_to_frame(take_group)) else {
            return false;
        };
        let framed = self.frame(group);
        self.lock().framed(turn, framed);
        self.wake_all();
        true
    }

    fn frame(&self, group: Group) -> Option<Written> {
        let Group { stream, batches, size } = group;
        if stream.failed.load(Ordering::SeqCst) {
            return None;
        }
        let (received_at, entropy) = (self.stamp)();
        let meta = AppendMeta { epoch: stream.epoch, received_at, entropy };
        let spare = self.spares.lock().expect("a panic aborts the process").pop();
        let result = {
            let mut writer = stream.appender().lock_writer();
            stream.appender().frame(&mut writer, batches, meta, spare)
        };
        match result {
            Ok(ready) => Some((stream, size, ready)),
            Err(error) => {
                stream.tell(size, Err(error));
                None
            }
        }
    }

    /// Commits what is framed of a journal; whether to go on.
    fn write_next(&self) -> bool {
        let Some((turn, ready)) = self.next(Role::Write, Lanes::take_to_write) else { return false };
        commit_all(ready, |spare| {
            let mut spares = self.spares.lock().expect("a panic aborts the process");
            if spares.len() < SPARES_MAX {
                spares.push(spare);
            }
        });
        self.lock().written(turn);
        self.wake_all();
        true
    }

    /// While there is work, looks who stands somewhere, and has another take the place.
    fn look_regularly(self: &Arc<Self>) {
        let poisoned = "a panic aborts the process";
        let mut lanes = self.lock();
        loop {
            let rests = |lanes: &mut AllLanes| lanes.is_idle() && !lanes.has_ended;
            lanes = self.to_look.wait_while(lanes, rests).expect(poisoned);
            let goes_on = |lanes: &mut AllLanes| !lanes.is_idle() || !lanes.has_ended;
            lanes = self.to_look.wait_timeout_while(lanes, LOOK_EVERY, goes_on).expect(poisoned).0;
            if lanes.is_idle() && lanes.has_ended {
                return;
            }
            lanes.look();
            for role in [Role::Frame, Role::Write] {
                while lanes.wants_thread(role) {
                    lanes.add_thread(role);
                    if self.start(role).is_err() {
                        // The system has none left: it is tried again.
                        lanes.drop_thread(role);
                        break;
                    }
                }
            }
            self.wake_all();
        }
    }
}

/// What waits of one stream, in its order, up to the size at which a group is closed.
fn take_group(queue: &mut VecDeque<HandedIn>) -> Group {
    let (stream, first) = queue.pop_front().expect("only a queue with something in it has a turn");
    let size = Size { batches: 1, bytes: first.bytes().len() };
    let mut group = Group { stream, batches: vec![first], size };
    while group.size.bytes < GROUP_BYTES
        && let Some((_, batch)) = queue.pop_front_if(|(stream, _)| Arc::ptr_eq(stream, &group.stream))
    {
        group.size.batches += 1;
        group.size.bytes += batch.bytes().len();
        group.batches.push(batch);
    }
    group
}

/// Commits groups, syncing each segment once: at the last group of it that could be written, for one behind it that
/// finds the disk full takes nothing from those before.
fn commit_all(ready: Vec<Written>, emptied: impl Fn(PageBuf)) {
    let mut results: Vec<Result<(), AppendError>> =
        ready.iter().map(|(stream, _, framed)| stream.appender().write(framed)).collect();
    for at in 0..ready.len() {
        let (stream, _, framed) = &ready[at];
        let mut behind = ready[at + 1..].iter().zip(&results[at + 1..]);
        let is_last = behind.all(|((_, _, other), written)| written.is_err() || !framed.is_beside(other));
        if results[at].is_ok() && is_last {
            results[at] = stream.appender().sync(framed);
        }
    }
    for (written, result) in ready.into_iter().zip(results) {
        let (stream, size, framed) = written;
        // A sync that failed has closed the journal: what stood before in its segment is not durable.
        let result = result.and_then(|()| match stream.appender().has_failed() {
            true => Err(AppendError::Closed),
            false => stream.appender().publish(&framed),
        });
        if result.is_err() {
            // What was framed behind it has its place already: the journal is opened again from the disk.
            stream.appender().refuse();
        }
        emptied(stream.appender().finish_group(framed));
        stream.tell(size, result);
    }
}
