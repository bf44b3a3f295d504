//! The other hosts of a group that this agent coordinates: their connections, and the cuts that are made with them.

use super::group::{Group, Here};
use crate::clock;
use crate::wire_io::Outgoing;
use joint::cut::{
    Ask, CannotBegin, Coordinator, Disbelieved, HostSession, NotRemoved, Outcome, TooManyHosts,
};
use replication::wire::{CutRefusal, Message};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use tokio::sync::mpsc::UnboundedSender;
use types::WriteSeq;

type Queue = UnboundedSender<Outgoing>;

/// Every method takes this lock first and the group's own after it. The clock is read under the lock: an answer that
/// waited for it may have come too late meanwhile.
#[derive(Debug)]
pub(super) struct Hosts {
    inner: Mutex<Inner>,
    came_to_something: Condvar,
}

#[derive(Debug)]
struct Inner {
    coordinator: Coordinator,
    queues: BTreeMap<HostSession, Queue>,
}

impl Hosts {
    /// The hosts and their VMs, as they were recorded.
    pub(super) fn known(recorded: &BTreeMap<String, u16>) -> Self {
        let inner = Inner { coordinator: Coordinator::known(recorded), queues: BTreeMap::new() };
        Self { inner: Mutex::new(inner), came_to_something: Condvar::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.lock().coordinator.has_hosts()
    }

    /// What is to be recorded.
    pub(super) fn to_record(&self) -> BTreeMap<String, u16> {
        self.lock().coordinator.to_record()
    }

    /// The hosts that are not connected.
    pub(super) fn away(&self) -> Vec<String> {
        self.lock().coordinator.away()
    }

    /// A host has come over a new connection; with no VMs it leaves.
    pub(super) fn join(
        &self,
        group: &Group,
        name: &str,
        vms: u16,
        queue: Queue,
    ) -> Result<HostSession, TooManyHosts> {
        let mut inner = self.lock();
        let session = inner.coordinator.join(name, vms, &mut Here(group))?;
        // What the cut that this ended is told goes over the connections of before.
        self.pass_on(&mut inner);
        if vms > 0 {
            inner.queues.insert(session, queue);
        }
        Ok(session)
    }

    /// Whether a host can be forgotten.
    pub(super) fn check_away(&self, name: &str) -> Result<(), NotRemoved> {
        self.lock().coordinator.check_away(name)
    }

    /// Forgets a host that is away.
    pub(super) fn remove(&self, group: &Group, name: &str) -> Result<(), NotRemoved> {
        let mut inner = self.lock();
        inner.coordinator.remove(name, &mut Here(group))?;
        self.pass_on(&mut inner);
        Ok(())
    }

    /// The connection of a session is gone.
    pub(super) fn leave(&self, group: &Group, name: &str, session: HostSession) {
        let mut inner = self.lock();
        inner.queues.remove(&session);
        inner.coordinator.leave(name, session, &mut Here(group));
        self.pass_on(&mut inner);
    }

    /// What a host says to a cut.
    pub(super) fn on_prepared(
        &self,
        group: &Group,
        name: &str,
        session: HostSession,
        answer: (WriteSeq, Option<CutRefusal>),
    ) -> Result<(), Disbelieved> {
        let mut inner = self.lock();
        let heard = inner.coordinator.on_prepared(clock::now(), name, session, answer, &mut Here(group));
        self.pass_on(&mut inner);
        heard
    }

    /// Makes a cut with all hosts and waits for what becomes of it.
    pub(super) fn cut(&self, group: &Group, ask: Ask) -> Result<Outcome, CannotBegin> {
        let mut inner = self.lock();
        let last = group.counter().last();
        inner.coordinator.begin(clock::now(), ask, last, &mut Here(group))?;
        loop {
            inner.coordinator.tick(clock::now(), &mut Here(group));
            self.pass_on(&mut inner);
            if let Some(outcome) = inner.coordinator.outcome() {
                return Ok(outcome);
            }
            let due = inner.coordinator.due().unwrap_or_default();
            let wait = due.since(clock::now());
            (inner, _) =
                self.came_to_something.wait_timeout(inner, wait).expect("a panic aborts the process");
        }
    }

    fn pass_on(&self, inner: &mut Inner) {
        for said in inner.coordinator.said() {
            if let Some(queue) = inner.queues.get(&said.to) {
                // A closed queue means that the connection is gone, which is noticed by who reads it.
                let _ = queue.send(Message::Cut(said.message).into());
            }
        }
        self.came_to_something.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}
