//! Shards: a few pairs of threads that append for all journals of a process.
//!
//! Of each pair the framer gathers what has come, gives it places, checksums and copies it; the writer
//! writes and syncs. So the processor works on one group while the disk has the one before. A group of a
//! stream is closed when it holds 4 MiB, when it has waited 5 ms, or when nothing more is waiting; the
//! writer takes all groups that are ready and syncs each segment once. A journal always belongs to one
//! shard, so its groups are committed in the order they were framed.

use crate::append::Appender;
use crate::journal::Journal;
use crate::page::PageBuf;
use crate::writer::{AppendError, AppendMeta, Appended, Framed};
use batch::Batch;
use std::sync::Arc;
use std::time::Duration;
use threads::sync::atomic::{AtomicBool, Ordering};
use threads::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use types::{Epoch, WallTime};

/// Groups that are framed but not yet written, of one shard; as many may be synced together.
const FRAMED_MAX: usize = 4;
/// A group is closed at this size: the disk takes larger writes faster, and one sync serves more
/// (`docs/design/2026-11-25-the-journal-on-disk.md` has the measurement).
const GROUP_BYTES: usize = 4 << 20;
/// A group waits no longer for more to come.
const GROUP_WAIT: Duration = Duration::from_millis(5);

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
        Arc::new(Self { journal, epoch, failed: AtomicBool::new(false), report: Box::new(report) })
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
    since: WallTime,
}

type Written = (Arc<AppendStream>, Size, Framed);
type Stamp = dyn Fn() -> (WallTime, [u8; 16]) + Send + Sync;

/// The pairs of threads. They end once it is dropped and what was handed in is done.
#[derive(Debug)]
pub struct Shards {
    queues: Vec<Sender<(Arc<AppendStream>, Batch)>>,
}

impl Shards {
    /// Starts `count` pairs. `stamp` reads this host's clock and brings random bytes.
    ///
    /// # Panics
    /// Where the system has no threads left.
    pub fn start(count: usize, stamp: impl Fn() -> (WallTime, [u8; 16]) + Send + Sync + 'static) -> Self {
        let stamp: Arc<Stamp> = Arc::new(stamp);
        let start = |number: usize| {
            let (send, receive) = channel();
            let (framed, to_write) = sync_channel(FRAMED_MAX);
            let (emptied, spares) = channel();
            let stamp = stamp.clone();
            let spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
                threads::thread::Builder::new().name(name).spawn(body).expect("the system has threads left")
            };
            spawn(
                format!("frame-{number}"),
                Box::new(move || frame_all(&receive, &framed, &spares, &*stamp)),
            );
            spawn(format!("write-{number}"), Box::new(move || write_all(&to_write, &emptied)));
            send
        };
        Self { queues: (0..count.max(1)).map(start).collect() }
    }

    /// Hands a batch in. The caller bounds how many are handed in and not reported.
    pub fn append(&self, stream: &Arc<AppendStream>, batch: Batch) {
        let shard = stream.journal.state.uid as usize % self.queues.len();
        self.queues[shard].send((stream.clone(), batch)).expect("the threads live as long as the queue");
    }
}

fn frame_all(
    queue: &Receiver<(Arc<AppendStream>, Batch)>,
    framed: &SyncSender<Written>,
    spares: &Receiver<PageBuf>,
    stamp: &Stamp,
) {
    let mut groups: Vec<Group> = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some((stream, batch)) = next.take() {
            let (now, _) = stamp();
            add(&mut groups, stream, batch, now);
            let is_due =
                |group: &mut Group| group.size.bytes >= GROUP_BYTES || now.since(group.since) > GROUP_WAIT;
            for group in groups.extract_if(.., is_due) {
                frame_group(group, framed, spares, stamp);
            }
            next = queue.try_recv().ok();
        }
        for group in groups.drain(..) {
            frame_group(group, framed, spares, stamp);
        }
    }
}

fn add(groups: &mut Vec<Group>, stream: Arc<AppendStream>, batch: Batch, now: WallTime) {
    let at = groups.iter().position(|group| Arc::ptr_eq(&group.stream, &stream)).unwrap_or_else(|| {
        groups.push(Group { stream, batches: Vec::new(), size: Size::default(), since: now });
        groups.len() - 1
    });
    let group = &mut groups[at];
    group.size.bytes += batch.bytes().len();
    group.size.batches += 1;
    group.batches.push(batch);
}

fn frame_group(group: Group, framed: &SyncSender<Written>, spares: &Receiver<PageBuf>, stamp: &Stamp) {
    let Group { stream, batches, size, .. } = group;
    if stream.failed.load(Ordering::SeqCst) {
        return;
    }
    let (received_at, entropy) = stamp();
    let meta = AppendMeta { epoch: stream.epoch, received_at, entropy };
    let result = {
        let mut writer = stream.appender().lock_writer();
        stream.appender().frame(&mut writer, batches, meta, spares.try_recv().ok())
    };
    match result {
        Ok(ready) => framed.send((stream, size, ready)).expect("the writer lives as long as the framer"),
        Err(error) => stream.tell(size, Err(error)),
    }
}

fn write_all(to_write: &Receiver<Written>, emptied: &Sender<PageBuf>) {
    while let Ok(first) = to_write.recv() {
        let mut ready = vec![first];
        while ready.len() < FRAMED_MAX
            && let Ok(next) = to_write.try_recv()
        {
            ready.push(next);
        }
        commit_all(ready, emptied);
    }
}

/// Commits groups, syncing each segment once: at the last group of it that could be written, for one behind it that
/// finds the disk full takes nothing from those before.
fn commit_all(ready: Vec<Written>, emptied: &Sender<PageBuf>) {
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
        // The framer is gone only when all ends.
        let _ = emptied.send(stream.appender().finish_group(framed));
        stream.tell(size, result);
    }
}
