//! One queue, worked on by a thread of its own.

use super::chain::{BrokenChain, Piece, Request, Status, Wanted, fetch, parse_request, put};
use super::features::SERIAL_BYTES;
use super::in_flight::InFlight;
use super::memory::Memory;
use crate::bounce::Bounce;
use crate::clock::spin;
use crate::device::BlockDevice;
use crate::queue::{Action, Answer, DiskQueue, Done, Job};
use crate::thread_start;
use crate::writers::Writer;
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use types::limits::VIRTIO_BYTES_IN_FLIGHT_MAX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A guest that waits for each request asks for the next within this of being told, or not soon.
const NEXT_WITHIN: Duration = Duration::from_micros(10);

/// What a queue works with.
pub(super) struct Setup {
    pub(super) queue: Queue,
    pub(super) memory: Memory,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) writer: Option<Arc<Writer>>,
    pub(super) serial: [u8; SERIAL_BYTES],
    pub(super) kick: File,
    pub(super) call: Arc<Mutex<Option<File>>>,
    pub(super) in_flight: Option<InFlight>,
    /// What the device is called in messages.
    pub(super) label: String,
}

/// A queue that runs.
pub(super) struct Running {
    thread: JoinHandle<Queue>,
    stop: Arc<Stop>,
}

struct Stop {
    wanted: AtomicBool,
    wake: OwnedFd,
}

impl Running {
    /// Starts a queue's thread.
    ///
    /// # Errors
    /// Where the system has no thread or descriptor left; the queue is given back.
    pub(super) fn start(setup: Setup) -> Result<Self, (Queue, io::Error)> {
        let wake = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(wake) => wake,
            Err(errno) => return Err((setup.queue, errno.into())),
        };
        let stop = Arc::new(Stop { wanted: AtomicBool::new(false), wake });
        let (give, given) = channel::<Setup>();
        let thread = {
            let stop = stop.clone();
            let run = move || run(given.recv().expect("it is given behind this"), &stop);
            thread_start::start("vhost-queue", run)
        };
        match thread {
            Ok(thread) => {
                give.send(setup).unwrap_or_else(|_| unreachable!("its thread waits for it"));
                Ok(Self { thread, stop })
            }
            Err(error) => Err((setup.queue, error)),
        }
    }

    /// As [`Running::stop`], without waiting for it.
    pub(super) fn begin_stop(&self) {
        self.stop.wanted.store(true, Ordering::SeqCst);
        // Full is as good as written.
        let _ = rustix::io::write(&self.stop.wake, &1u64.to_ne_bytes());
    }

    /// Takes no more requests, finishes those that were taken, and gives the queue back. A write that waits for the
    /// recovery side is waited for shortly only.
    pub(super) fn stop(self) -> Queue {
        self.begin_stop();
        self.thread.join().expect("a panic aborts the process")
    }
}

fn run(mut setup: Setup, stop: &Stop) -> Queue {
    let disk = match DiskQueue::new(setup.device.clone(), setup.writer.clone()) {
        Ok(disk) => disk,
        Err(error) => {
            tracing::error!(disk = setup.label, %error, "a queue cannot be served");
            return setup.queue;
        }
    };
    let recovered = setup.recover();
    let slots = usize::from(setup.queue.size());
    let mut vring = Vring {
        setup,
        disk,
        again: recovered,
        counter: 0,
        pending: (0..slots).map(|_| None).collect(),
        in_flight: 0,
        data_bytes: 0,
        untold: false,
        broken: false,
    };
    vring.counter = vring.again.back().map_or(0, |&(counter, _)| counter);
    vring.serve(stop);
    vring.setup.queue
}

impl Setup {
    /// What an agent before this one had taken from the queue and not finished.
    fn recover(&mut self) -> VecDeque<(u64, u16)> {
        let Some(in_flight) = &self.in_flight else { return VecDeque::new() };
        let Ok(used) = self.queue.used_idx(&self.memory.guest, Ordering::Acquire) else {
            return VecDeque::new();
        };
        let (heads, last) = in_flight.recover(used.0);
        if heads.is_empty() {
            return VecDeque::new();
        }
        tracing::info!(
            disk = self.label,
            requests = heads.len(),
            "requests that were cut short are done again"
        );
        self.queue.set_next_used(used.0);
        self.queue.set_next_avail(used.0.wrapping_add(heads.len() as u16));
        let first = last - heads.len() as u64;
        heads.into_iter().enumerate().map(|(at, head)| (first + at as u64 + 1, head)).collect()
    }
}

/// A request the disk works on, by the number of its first descriptor.
struct Pending {
    to_guest: Vec<Piece>,
    status: GuestAddress,
    data_bytes: u64,
}

struct Vring {
    setup: Setup,
    disk: DiskQueue,
    /// To be done before anything new is taken.
    again: VecDeque<(u64, u16)>,
    /// Of the last request that was taken.
    counter: u64,
    pending: Vec<Option<Pending>>,
    in_flight: usize,
    data_bytes: u64,
    /// Requests have ended that the guest has not been told of.
    untold: bool,
    /// The guest has put something into the queue that no driver puts there.
    broken: bool,
}

impl Vring {
    fn serve(&mut self, stop: &Stop) {
        loop {
            let stopping = stop.wanted.load(Ordering::SeqCst);
            if stopping {
                self.disk.end_patience();
            }
            let has_ended = self.end_all();
            // In this order: a kick behind the look at the queue ends the next wait.
            if self.disk.may_be_ready(self.setup.kick.as_fd()) {
                let _ = rustix::io::read(&self.setup.kick, &mut [0u8; 8]);
            }
            let has_taken = (!stopping || !self.again.is_empty()) && self.take_all();
            // Behind both: what there was to be done again may just have been given up.
            if stopping && self.in_flight == 0 && self.again.is_empty() {
                return;
            }
            if !has_taken && !has_ended {
                if !stopping && self.is_asked_at_once() {
                    continue;
                }
                let kick = (self.setup.kick.as_fd(), PollFlags::IN);
                let wake = (stop.wake.as_fd(), PollFlags::IN);
                // A broken queue is kicked in vain, and one that stops need not be told so again.
                let watched = [wake, kick];
                self.disk.wait(match (stopping, self.broken) {
                    (true, _) => &[],
                    (false, true) => &watched[..1],
                    (false, false) => &watched,
                });
            }
        }
    }

    /// Whether the guest has been told of all it asked for, and asks for more within [`NEXT_WITHIN`]. It need not
    /// kick meanwhile, which costs it and this thread less than to sleep and be woken.
    fn is_asked_at_once(&mut self) -> bool {
        if self.in_flight > 0 || self.broken {
            return false;
        }
        let (queue, memory) = (&mut self.setup.queue, &self.setup.memory.guest);
        // What is wrong with the queue is found when requests are taken from it.
        if queue.disable_notification(memory).is_err() {
            return true;
        }
        let seen = queue.next_avail();
        let is_asked = || queue.avail_idx(memory, Ordering::Acquire).map_or(true, |index| index.0 != seen);
        let asked = spin(NEXT_WITHIN, is_asked);
        // In this order: behind the last look the guest kicks again.
        queue.enable_notification(memory).unwrap_or(true) || asked
    }

    fn has_room(&self) -> bool {
        !self.broken && self.data_bytes < VIRTIO_BYTES_IN_FLIGHT_MAX
    }

    /// Takes what the guest has put into the queue; false where there is nothing.
    fn take_all(&mut self) -> bool {
        let mut any = false;
        let taken = loop {
            match self.take_some().and_then(|taken| self.check_memory().map(|()| taken)) {
                Ok(0) => break Ok(()),
                Ok(_) => any = true,
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = taken {
            self.broken = true;
            // Nobody takes anything any more. Their marks stay.
            self.again.clear();
            tracing::error!(disk = self.setup.label, %error, "the guest's driver misbehaves: its queue is served no more until it is reset");
        }
        // What needs no disk has ended already.
        self.notify();
        any
    }

    /// Nothing is believed of memory that was taken away: it reads as zeroes.
    fn check_memory(&self) -> Result<(), TakeError> {
        let is_lost =
            self.setup.memory.is_lost() || self.setup.in_flight.as_ref().is_some_and(InFlight::is_lost);
        if is_lost { Err(TakeError::MemoryLost) } else { Ok(()) }
    }

    fn take_some(&mut self) -> Result<usize, TakeError> {
        let mut taken = 0;
        while let Some((counter, head)) = self.again.pop_front() {
            self.begin(head, counter)?;
            taken += 1;
        }
        self.setup.queue.disable_notification(&self.setup.memory.guest)?;
        while self.has_room() {
            let memory = &self.setup.memory.guest;
            let Some(chain) = self.setup.queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            self.counter += 1;
            self.begin(head, self.counter)?;
            taken += 1;
        }
        // Where more has come meanwhile, the caller looks again.
        let more = self.setup.queue.enable_notification(&self.setup.memory.guest)?;
        Ok(if more && self.has_room() { taken.max(1) } else { taken })
    }

    fn begin(&mut self, head: u16, counter: u64) -> Result<(), TakeError> {
        if self.pending.get(usize::from(head)).is_none_or(Option::is_some) {
            return Err(TakeError::Head(head));
        }
        if let Some(in_flight) = &self.setup.in_flight {
            in_flight.taken(head, counter);
        }
        let queue = &self.setup.queue;
        let table = GuestAddress(queue.desc_table());
        let size = self.setup.device.size_bytes();
        let request = parse_request(&self.setup.memory.guest, table, queue.size(), head, size)?;
        let action = self.action(&request)?;
        // Before a write of what was read from there reaches the disk.
        self.check_memory()?;
        let data_bytes = match &action {
            Ok(Action::Read { len, .. }) => *len as u64,
            Ok(Action::Write { bytes, .. }) => bytes.len() as u64,
            _ => 0,
        };
        self.pending[usize::from(head)] =
            Some(Pending { to_guest: request.to_guest, status: request.status, data_bytes });
        self.in_flight += 1;
        self.data_bytes += data_bytes;
        match action {
            Ok(action) => self.disk.submit(Job { token: head.into(), action, durable: false }),
            Err(status) => self.end(head, status, 0)?,
        }
        Ok(())
    }

    /// What the disk is asked for; a status where there is nothing to ask it.
    fn action(&self, request: &Request) -> Result<Result<Action, Status>, BrokenChain> {
        let is_read_only = self.setup.device.is_read_only();
        Ok(Ok(match request.wanted {
            Wanted::Read { len: 0, .. } | Wanted::Write { len: 0, .. } => return Ok(Err(Status::Ok)),
            Wanted::Read { at, len } => Action::Read { at, len },
            Wanted::Flush => Action::Flush,
            Wanted::Serial => {
                put(&self.setup.memory.guest, &request.to_guest, &self.setup.serial)?;
                return Ok(Err(Status::Ok));
            }
            Wanted::Refused(status) => return Ok(Err(status)),
            _ if is_read_only => return Ok(Err(Status::IoError)),
            Wanted::Write { at, len } => {
                let mut bounce = Bounce::take(len);
                fetch(&self.setup.memory.guest, &request.from_guest, &mut bounce)?;
                Action::Write { at, bytes: bounce.into_bytes() }
            }
            Wanted::Discard { range } | Wanted::Zero { range, .. } if range.is_empty() => {
                return Ok(Err(Status::Ok));
            }
            Wanted::Discard { range } => Action::Discard { range },
            Wanted::Zero { range, unmap } => Action::Zero { range, unmap },
        }))
    }

    /// Ends what the disk has done, and tells the guest; false where nothing is.
    fn end_all(&mut self) -> bool {
        let mut any = false;
        while let Some(Done { token, result }) = self.disk.next_done() {
            any = true;
            if let Err(error) = self.end_one(token as u16, result) {
                self.broken = true;
                tracing::error!(disk = self.setup.label, %error, "the guest's queue cannot be written to");
            }
        }
        self.notify();
        any
    }

    fn end_one(&mut self, head: u16, result: io::Result<Answer>) -> Result<(), TakeError> {
        match result {
            Ok(Answer::Read(data)) => {
                let pending = self.pending[usize::from(head)].as_ref().expect("begun and not ended");
                match put(&self.setup.memory.guest, &pending.to_guest, &data) {
                    Ok(()) => self.end(head, Status::Ok, data.len() as u32),
                    Err(_) => self.end(head, Status::IoError, 0),
                }
            }
            Ok(Answer::Nothing | Answer::Told(_)) => self.end(head, Status::Ok, 0),
            Ok(Answer::Abandoned) => self.abandon(head),
            Err(error) => {
                tracing::warn!(disk = self.setup.label, %error, "request failed");
                self.end(head, Status::IoError, 0)
            }
        }
    }

    /// A write is made that the guest must not be told of. Its mark stays: whoever serves the queue next does it again.
    /// Where nobody keeps marks, the guest is told that it has failed, which nothing else can be made of.
    fn abandon(&mut self, head: u16) -> Result<(), TakeError> {
        if self.setup.in_flight.is_none() {
            return self.end(head, Status::IoError, 0);
        }
        self.forget(head);
        Ok(())
    }

    fn forget(&mut self, head: u16) -> Pending {
        let pending = self.pending[usize::from(head)].take().expect("begun and not ended");
        self.in_flight -= 1;
        self.data_bytes -= pending.data_bytes;
        pending
    }

    fn end(&mut self, head: u16, status: Status, data_written: u32) -> Result<(), TakeError> {
        let pending = self.forget(head);
        let memory = &self.setup.memory.guest;
        memory.write_obj(status as u8, pending.status).map_err(|_| BrokenChain::Unmapped)?;
        if let Some(in_flight) = &self.setup.in_flight {
            in_flight.finishing(head);
        }
        self.setup.queue.add_used(memory, head, data_written + 1)?;
        if let Some(in_flight) = &self.setup.in_flight {
            in_flight.finished(head, self.setup.queue.next_used());
        }
        self.untold = true;
        Ok(())
    }

    /// Tells the guest that requests have ended since it was last told, if it wants to know.
    fn notify(&mut self) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        // Where it cannot be told whether the guest wants to know, it is told.
        if self.setup.queue.needs_notification(&self.setup.memory.guest).unwrap_or(true) {
            let call = self.setup.call.lock().expect("a panic aborts the process");
            if let Some(call) = &*call {
                let _ = rustix::io::write(call, &1u64.to_ne_bytes());
            }
        }
    }
}

/// Why a queue stops.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    #[error("descriptor {0} is in flight already, or is none of the queue's")]
    Head(u16),
    #[error("the guest's memory was taken away")]
    MemoryLost,
    #[error("the queue's rings: {0}")]
    Ring(#[from] virtio_queue::Error),
}

#[cfg(test)]
mod tests;
