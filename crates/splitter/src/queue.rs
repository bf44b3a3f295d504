//! One queue of requests to a disk, worked on side by side and never waited for by the thread that owns it.
//!
//! ```text
//!  front end ──submit──▶ ring ──▶ local disk ──▶ commit ──────────────┬──▶ done
//!      ▲           └───▶ workers: whatever has to be waited for ──────┤
//!      └──────────────────────── next_done ◀── holder ◀── must be held┘
//! ```
//!
//! Reads, writes and flushes of a protected disk go through the ring. Workers take the rest: zeroes and discards,
//! writes that overlap one in flight or touch a region that is not in the region log yet, images, and everything
//! where `io_uring` is forbidden. A write that may not be acknowledged yet goes to the holder, which waits for
//! one after the other: what it waits for comes in the order of their sequences.

use crate::bounce::Bounce;
use crate::course::Course;
use crate::device::BlockDevice;
use crate::disk::ProtectedDisk;
use crate::precedence;
use crate::ring::{Ended, Ring, Transfer};
use crate::workers::Workers;
use crate::writers::Writer;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use types::{ByteRange, WriteSeq};

/// Before it is tried again to start a thread that the system had not left.
const THREAD_RETRY_DELAY: Duration = Duration::from_millis(10);

pub(crate) type Question = Box<dyn FnOnce(&dyn BlockDevice) -> io::Result<Vec<u8>> + Send>;

/// What a front end asks of a disk. Ranges lie within it.
pub(crate) enum Action {
    Read {
        at: u64,
        len: usize,
    },
    Write {
        at: u64,
        bytes: Bytes,
    },
    Zero {
        range: ByteRange,
        unmap: bool,
    },
    Discard {
        range: ByteRange,
    },
    Flush,
    /// Whatever else it can tell, in bytes for the front end.
    Ask(Question),
}

impl Action {
    fn changes_disk(&self) -> bool {
        matches!(self, Action::Write { .. } | Action::Zero { .. } | Action::Discard { .. })
    }
}

pub(crate) struct Job {
    /// The front end's own number for it.
    pub(crate) token: u64,
    pub(crate) action: Action,
    /// Done only once it is durable here.
    pub(crate) durable: bool,
}

/// What a job ends with.
#[derive(Debug)]
pub(crate) enum Answer {
    Nothing,
    Read(Bounce),
    Told(Vec<u8>),
    /// Of a write that is made and has its place in the stream, but whoever asked for it has left before he could be
    /// told, or of what has not been begun when he left: he must not be told, and asks again.
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) token: u64,
    pub(crate) result: io::Result<Answer>,
}

pub(crate) struct DiskQueue {
    device: Arc<dyn BlockDevice>,
    /// Whoever asks, where somebody else may have the disk.
    writer: Option<Arc<Writer>>,
    ring: Option<Ring>,
    workers: Workers,
    done: VecDeque<Done>,
    /// Jobs that wait for room in the ring.
    waiting: VecDeque<Job>,
    /// Jobs that wait until the disk goes on.
    standing: VecDeque<Job>,
    /// Whoever gives the jobs is leaving.
    is_leaving: bool,
}

impl DiskQueue {
    /// A queue for the thread that calls this. Where a guest's own disk is behind it, the thread takes precedence.
    ///
    /// # Errors
    /// Where the process has no descriptors left.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, writer: Option<Arc<Writer>>) -> io::Result<Self> {
        let protected = device.as_protected();
        if protected.is_some() {
            precedence::take();
        }
        let has_file = protected.is_some_and(|disk| disk.local().descriptor().is_some());
        let ring = if has_file { Ring::new().inspect_err(say_once).ok() } else { None };
        let workers = Workers::new(device.clone())?;
        if let Some(disk) = device.as_protected() {
            disk.course().wakes(workers.wake());
        }
        let (done, waiting, standing) = Default::default();
        Ok(Self { device, writer, ring, workers, done, waiting, standing, is_leaving: false })
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    /// Takes a job; it is begun at once, or when there is room for it.
    pub(crate) fn submit(&mut self, job: Job) {
        if !self.waiting.is_empty() || self.ring.as_ref().is_some_and(|ring| !ring.has_room()) {
            self.waiting.push_back(job);
        } else {
            self.begin(job);
        }
    }

    fn begin(&mut self, job: Job) {
        match self.course() {
            Course::GoesOn => {}
            Course::Waits if self.is_leaving => {
                return self.done.push_back(Done { token: job.token, result: Ok(Answer::Abandoned) });
            }
            Course::Waits => return self.standing.push_back(job),
            Course::Fails => {
                let result =
                    Err(io::Error::other("another site has taken over, and this VM is to stop here"));
                return self.done.push_back(Done { token: job.token, result });
            }
        }
        let Job { token, action, durable } = job;
        if action.changes_disk() && self.writer.as_ref().is_some_and(|writer| !writer.may_write()) {
            let result = Err(io::ErrorKind::PermissionDenied.into());
            return self.done.push_back(Done { token, result });
        }
        let begun = match action {
            Action::Read { at, len } => self.begin_read(token, at, len),
            Action::Write { at, bytes } => self.begin_write(token, at, bytes, durable),
            Action::Flush => self.begin_flush(token),
            other => Some(other),
        };
        if let Some(action) = begun {
            self.workers.work(Job { token, action, durable });
        }
    }

    /// The ring with the disk and file it may be used for, where the range allows it.
    fn fast(&mut self, range: ByteRange) -> Option<(&mut Ring, &ProtectedDisk, RawFd)> {
        let disk = self.device.as_protected()?;
        let file = disk.local().descriptor()?.as_raw_fd();
        let ring = self.ring.as_mut()?;
        range.is_multiple_of(disk.local().unit_bytes()).then_some((ring, disk, file))
    }

    fn begin_read(&mut self, token: u64, at: u64, len: usize) -> Option<Action> {
        match self.fast(ByteRange::new(at, len as u64)) {
            Some((ring, _, file)) => {
                ring.start(file, token, Transfer::Read { at, buffer: Bounce::take(len) });
                None
            }
            None => Some(Action::Read { at, len }),
        }
    }

    fn begin_write(&mut self, token: u64, at: u64, bytes: Bytes, durable: bool) -> Option<Action> {
        let range = ByteRange::new(at, bytes.len() as u64);
        if let Some(disk) = self.device.as_protected()
            && disk.local().is_written_elsewhere()
            && matches!(disk.try_begin_write(range), Ok(true))
        {
            let seq = disk.end_write(range, &for_the_stream(bytes), true);
            self.end_write(token, seq, Ok(()));
            return None;
        }
        let Some((ring, disk, file)) = self.fast(range) else { return Some(Action::Write { at, bytes }) };
        match disk.try_begin_write(range) {
            Ok(true) => {
                ring.start(file, token, Transfer::Write { at, bytes, durable });
                None
            }
            Ok(false) => Some(Action::Write { at, bytes }),
            Err(error) => {
                self.done.push_back(Done { token, result: Err(error) });
                None
            }
        }
    }

    fn begin_flush(&mut self, token: u64) -> Option<Action> {
        match self.fast(ByteRange::new(0, 0)) {
            Some((ring, _, file)) => {
                ring.start(file, token, Transfer::Sync);
                None
            }
            None => Some(Action::Flush),
        }
    }

    /// The next job that is done.
    pub(crate) fn next_done(&mut self) -> Option<Done> {
        while self.done.is_empty() {
            let Some(ended) = self.ring.as_mut().and_then(Ring::next_ended) else { break };
            self.end(ended);
            self.begin_waiting();
        }
        self.done.pop_front().or_else(|| self.next_of_workers())
    }

    fn next_of_workers(&mut self) -> Option<Done> {
        if !self.may_be_ready(self.workers.wake_descriptor()) {
            return None;
        }
        // In this order: what is done behind the look wakes the next wait.
        self.workers.woken();
        self.begin_standing();
        self.done.pop_front().or_else(|| self.workers.next_done())
    }

    fn course(&self) -> Course {
        self.device.as_protected().map_or(Course::GoesOn, |disk| disk.course().get())
    }

    /// Begins what has waited, unless it has to wait on.
    fn begin_standing(&mut self) {
        if self.standing.is_empty() || (self.course() == Course::Waits && !self.is_leaving) {
            return;
        }
        // A course may be set meanwhile: none is looked at twice.
        for job in std::mem::take(&mut self.standing) {
            self.submit(job);
        }
    }

    /// False where a descriptor that [`DiskQueue::wait`] was told of has not become ready since, as far as
    /// [`DiskQueue::next_done`] has looked.
    pub(crate) fn may_be_ready(&self, descriptor: BorrowedFd<'_>) -> bool {
        self.ring.as_ref().is_none_or(|ring| !ring.is_watched(descriptor))
    }

    fn begin_waiting(&mut self) {
        while self.ring.as_ref().is_none_or(Ring::has_room) {
            let Some(job) = self.waiting.pop_front() else { return };
            self.begin(job);
        }
    }

    fn end(&mut self, ended: Ended) {
        let Ended { token, transfer, result } = ended;
        let disk = self.device.as_protected().expect("the ring is used for protected disks only");
        let local = disk.local();
        let result = match transfer {
            Transfer::Read { at, mut buffer } => {
                // What the ring has not moved in full is tried the plain way, which has the last word.
                let read = match result {
                    Ok(moved) if moved == buffer.len() => Ok(()),
                    _ => local.read_at(at, &mut buffer),
                };
                read.map(|()| Answer::Read(buffer))
            }
            Transfer::Write { at, bytes, durable } => {
                let range = ByteRange::new(at, bytes.len() as u64);
                let written = match result {
                    Ok(moved) if moved == bytes.len() => Ok(()),
                    _ => local
                        .write_at(at, &bytes)
                        .and_then(|()| if durable { local.sync_data() } else { Ok(()) }),
                };
                let seq = disk.end_write(range, &for_the_stream(bytes), written.is_ok());
                return self.end_write(token, seq, written);
            }
            Transfer::Sync => match (result, disk.heard_elsewhere()) {
                (Err(error), _) => Err(error),
                (Ok(_), Some(heard)) => heard.map(|()| Answer::Nothing),
                (Ok(_), None) => {
                    return self.workers.work(Job { token, action: Action::Flush, durable: false });
                }
            },
        };
        self.done.push_back(Done { token, result });
    }

    /// A write is committed, or has failed: it is done, or held.
    fn end_write(&mut self, token: u64, seq: Option<WriteSeq>, written: io::Result<()>) {
        let capture = self.device.as_protected().map(ProtectedDisk::capture);
        let is_held = |seq: &WriteSeq| capture.is_some_and(|capture| !capture.may_acknowledge(*seq));
        match seq.filter(is_held) {
            Some(seq) => self.workers.hold(token, seq),
            None => self.done.push_back(Done { token, result: written.map(|()| Answer::Nothing) }),
        }
    }

    /// Whoever gives the jobs is leaving: writes that are held for the recovery side end soon, with or without it, and
    /// what waits until the disk goes on is not begun.
    pub(crate) fn end_patience(&mut self) {
        self.is_leaving = true;
        self.begin_standing();
        self.workers.end_patience();
    }

    /// Waits until a job is done or one of `watched` is ready. It may return for nothing.
    pub(crate) fn wait(&mut self, watched: &[(BorrowedFd<'_>, PollFlags)]) {
        if self.workers.lacks_threads() {
            std::thread::sleep(THREAD_RETRY_DELAY);
            if let Some(ring) = &mut self.ring {
                ring.look();
            }
            return;
        }
        let wake = self.workers.wake_descriptor();
        match &mut self.ring {
            Some(ring) => {
                let events = |flags: PollFlags| flags.bits().cast_signed();
                ring.watch(wake, events(PollFlags::IN));
                for (descriptor, flags) in watched {
                    ring.watch(*descriptor, events(*flags));
                }
                ring.wait();
            }
            None => {
                let mut all = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                all.extend(watched.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags)));
                // An interruption is as good as a reason to look.
                let _ = rustix::event::poll(&mut all, None);
            }
        }
    }
}

impl Drop for DiskQueue {
    /// Writes that were begun are committed or suspected, whoever asked for them has gone or not.
    fn drop(&mut self) {
        self.waiting.clear();
        self.standing.clear();
        while self.ring.as_ref().is_some_and(|ring| !ring.is_idle()) {
            if let Some(ring) = &mut self.ring {
                ring.wait();
            }
            while let Some(ended) = self.ring.as_mut().and_then(Ring::next_ended) {
                self.end(ended);
            }
        }
    }
}

/// A payload as the stream keeps it until it is acknowledged. A bounce buffer has pages: a small write must not
/// keep one.
fn for_the_stream(bytes: Bytes) -> Bytes {
    if bytes.len() < 2048 { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn say_once(error: &io::Error) {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        tracing::warn!(%error, "io_uring cannot be used here: disks are served by threads, which is slower");
    });
}

#[cfg(test)]
mod tests;
