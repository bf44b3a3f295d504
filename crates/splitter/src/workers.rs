//! Threads of one queue, for what has to be waited for: workers, as many as are needed up to a bound, and one
//! holder of writes that may not be acknowledged yet.

use crate::bounce::Bounce;
use crate::capture::Patience;
use crate::device::BlockDevice;
use crate::disk::{Change, ProtectedDisk};
use crate::queue::{Action, Answer, Done, Job};
use crate::thread_start;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use types::WriteSeq;
use types::limits::QUEUE_WORKERS_MAX;

pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    workers: usize,
    has_holder: bool,
    /// The system has refused one, which was said.
    was_refused: bool,
}

struct Shared {
    device: Arc<dyn BlockDevice>,
    inner: Mutex<Inner>,
    more_work: Condvar,
    more_held: Condvar,
    /// With writes that may not be acknowledged yet.
    patience: Patience,
    /// Counts up when something is done.
    wake: Arc<OwnedFd>,
}

#[derive(Default)]
struct Inner {
    work: VecDeque<Job>,
    idle_workers: usize,
    held: VecDeque<(u64, WriteSeq)>,
    done: VecDeque<Done>,
    ending: bool,
}

impl Workers {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            inner: Mutex::default(),
            more_work: Condvar::new(),
            more_held: Condvar::new(),
            patience: Patience::default(),
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        });
        Ok(Self { shared, threads: Vec::new(), workers: 0, has_holder: false, was_refused: false })
    }

    /// Gives a job to a worker.
    pub(crate) fn work(&mut self, job: Job) {
        let mut inner = self.shared.lock();
        inner.work.push_back(job);
        let is_short = inner.idle_workers < inner.work.len();
        drop(inner);
        if is_short && self.workers < QUEUE_WORKERS_MAX {
            self.start_worker();
        }
        self.shared.more_work.notify_one();
    }

    /// Says that a write is done once it may be acknowledged.
    pub(crate) fn hold(&mut self, token: u64, seq: WriteSeq) {
        self.shared.lock().held.push_back((token, seq));
        self.start_holder();
        self.shared.more_held.notify_one();
    }

    fn start_worker(&mut self) {
        if self.spawn("disk-worker", Shared::run_worker) {
            self.workers += 1;
        }
    }

    fn start_holder(&mut self) {
        self.has_holder = self.has_holder || self.spawn("disk-holder", Shared::run_holder);
    }

    /// Whether something waits for which there is still no thread. It is never done by the queue's own: what it might
    /// wait for could be what that one has to end.
    pub(crate) fn lacks_threads(&mut self) -> bool {
        let inner = self.shared.lock();
        let (has_work, has_held) = (!inner.work.is_empty(), !inner.held.is_empty());
        drop(inner);
        if has_work && self.workers == 0 {
            self.start_worker();
        }
        if has_held {
            self.start_holder();
        }
        (has_work && self.workers == 0) || (has_held && !self.has_holder)
    }

    /// False where the system has no thread left.
    fn spawn(&mut self, name: &str, run: fn(&Shared)) -> bool {
        let shared = self.shared.clone();
        match thread_start::start(name, move || run(&shared)) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                if !std::mem::replace(&mut self.was_refused, true) {
                    tracing::error!(%error, "no thread can be started for a disk; tried again by itself");
                }
                return false;
            }
        }
        self.was_refused = false;
        true
    }

    /// Whoever gave the work is leaving: writes that are held end soon, some of them as [`Answer::Abandoned`].
    pub(crate) fn end_patience(&self) {
        if let Some(disk) = self.shared.device.as_protected() {
            disk.capture().end_patience(&self.shared.patience);
        }
    }

    pub(crate) fn next_done(&self) -> Option<Done> {
        self.shared.lock().done.pop_front()
    }

    /// Readable when something is done.
    pub(crate) fn wake_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// What makes [`Workers::wake_descriptor`] readable.
    pub(crate) fn wake(&self) -> &Arc<OwnedFd> {
        &self.shared.wake
    }

    /// What is done is about to be looked at, all of it.
    pub(crate) fn woken(&self) {
        // Nothing to read is no error: something else was ready.
        let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end_patience();
        self.shared.lock().ending = true;
        self.shared.more_work.notify_all();
        self.shared.more_held.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }

    fn run_worker(&self) {
        loop {
            let mut inner = self.lock();
            inner.idle_workers += 1;
            let is_idle = |inner: &mut Inner| inner.work.is_empty() && !inner.ending;
            inner = self.more_work.wait_while(inner, is_idle).expect("a panic aborts the process");
            inner.idle_workers -= 1;
            if inner.work.is_empty() {
                return;
            }
            drop(inner);
            self.work_once();
        }
    }

    fn work_once(&self) {
        let Some(Job { token, action, durable }) = self.lock().work.pop_front() else { return };
        let is_change = matches!(action, Action::Write { .. } | Action::Zero { .. } | Action::Discard { .. });
        let mut result = self.perform(action);
        if matches!(result, Ok(Answer::Nothing)) && durable && is_change {
            result = self.device.flush().map(|()| Answer::Nothing);
        }
        self.finish(Done { token, result });
    }

    fn perform(&self, action: Action) -> io::Result<Answer> {
        match action {
            Action::Read { at, len } => {
                let mut buffer = Bounce::take(len);
                self.device.read(at, &mut buffer)?;
                Ok(Answer::Read(buffer))
            }
            Action::Write { at, bytes } => self.change(Change::Write { at, bytes }),
            Action::Zero { range, unmap } => self.change(Change::Zero { range, unmap }),
            Action::Discard { range } => self.change(Change::Discard { range }),
            Action::Flush => self.device.flush().map(|()| Answer::Nothing),
            Action::Ask(ask) => ask(&*self.device).map(Answer::Told),
        }
    }

    fn run_holder(&self) {
        loop {
            let inner = self.lock();
            let is_idle = |inner: &mut Inner| inner.held.is_empty() && !inner.ending;
            let inner = self.more_held.wait_while(inner, is_idle).expect("a panic aborts the process");
            if inner.held.is_empty() {
                return;
            }
            drop(inner);
            self.hold_once();
        }
    }

    fn hold_once(&self) {
        let Some((token, seq)) = self.lock().held.pop_front() else { return };
        let disk = self.device.as_protected().expect("only a protected disk's writes are held");
        let answer = self.wait_for(disk, seq);
        self.finish(Done { token, result: Ok(answer) });
    }

    /// Waits until whoever asked may be told of a write, or leaves.
    fn wait_for(&self, disk: &ProtectedDisk, seq: WriteSeq) -> Answer {
        match disk.capture().hold_for(seq, &self.patience) {
            true => Answer::Nothing,
            false => Answer::Abandoned,
        }
    }

    fn change(&self, change: Change) -> io::Result<Answer> {
        let Some(disk) = self.device.as_protected() else {
            return match change {
                Change::Write { at, bytes } => self.device.write(at, bytes),
                Change::Zero { range, unmap } => self.device.write_zeroes(range, unmap),
                Change::Discard { range } => self.device.discard(range),
            }
            .map(|()| Answer::Nothing);
        };
        Ok(disk.change(&change)?.map_or(Answer::Nothing, |seq| self.wait_for(disk, seq)))
    }

    fn finish(&self, done: Done) {
        self.lock().done.push_back(done);
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).expect("a counter far from full");
    }
}
