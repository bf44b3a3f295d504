//! The other hosts of a group that this agent coordinates, as the coordinator sees them.
//!
//! A host that has joined once is known from then on, also while it is away: a checkpoint without its VMs
//! would not be one of the group.

use crate::clock;
use crate::wire_io::Outgoing;
use bytes::Bytes;
use replication::wire::{CutMessage, CutRefusal, Message};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use types::limits::GROUP_HOSTS_MAX;
use types::{Monotonic, WriteSeq};

#[derive(Debug, Default)]
pub(super) struct Hosts {
    inner: Mutex<BTreeMap<String, Host>>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct Host {
    vms: u16,
    session: u64,
    queue: Option<UnboundedSender<Outgoing>>,
    /// The highest sequence it has told of.
    last: WriteSeq,
    prepared: Option<(WriteSeq, Option<CutRefusal>)>,
}

/// Why not all hosts have made a cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotPrepared {
    /// Some host is further already.
    Behind(WriteSeq),
    Late(Vec<String>),
    /// VMs there miss writes until a sync is done.
    Syncing(String),
}

/// Why a host was not forgotten.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRemoved {
    Unknown,
    Connected,
}

impl Hosts {
    /// The hosts and their VMs, as they were recorded.
    pub(super) fn known(recorded: &BTreeMap<String, u16>) -> Self {
        let hosts = recorded.iter().map(|(name, &vms)| (name.clone(), Host { vms, ..Host::default() }));
        Self { inner: Mutex::new(hosts.collect()), answered: Condvar::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What is to be recorded.
    pub(super) fn to_record(&self) -> BTreeMap<String, u16> {
        self.lock().iter().map(|(name, host)| (name.clone(), host.vms)).collect()
    }

    pub(super) fn vms(&self) -> u16 {
        self.lock().values().map(|host| host.vms).sum()
    }

    pub(super) fn away(&self) -> Vec<String> {
        let inner = self.lock();
        inner.iter().filter(|(_, host)| host.queue.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// A host has joined over a new connection; its session, or none where there are too many. With no VMs
    /// it leaves.
    pub(super) fn join(&self, name: &str, vms: u16, queue: UnboundedSender<Outgoing>) -> Option<u64> {
        let mut inner = self.lock();
        if vms == 0 {
            inner.remove(name);
            return Some(0);
        }
        if !inner.contains_key(name) && inner.len() >= GROUP_HOSTS_MAX {
            return None;
        }
        let host = inner.entry(name.to_owned()).or_default();
        host.vms = vms;
        host.session += 1;
        host.queue = Some(queue);
        Some(host.session)
    }

    /// Forgets a host that is away.
    pub(super) fn remove(&self, name: &str) -> Result<(), NotRemoved> {
        let mut inner = self.lock();
        match inner.get(name) {
            None => Err(NotRemoved::Unknown),
            Some(host) if host.queue.is_some() => Err(NotRemoved::Connected),
            Some(_) => {
                inner.remove(name);
                Ok(())
            }
        }
    }

    /// The connection of a session is gone.
    pub(super) fn leave(&self, name: &str, session: u64) {
        if let Some(host) = self.lock().get_mut(name)
            && host.session == session
        {
            host.queue = None;
        }
    }

    /// The highest sequence any of them has told of.
    pub(super) fn highest(&self) -> WriteSeq {
        self.lock().values().map(|host| host.last).max().unwrap_or(WriteSeq::ZERO)
    }

    pub(super) fn prepare(&self, cut: WriteSeq) {
        self.say(&CutMessage::Prepare { cut });
    }

    /// Lets all go; with a mark where the cut stands.
    pub(super) fn settle(&self, cut: WriteSeq, mark: Option<Bytes>) {
        self.say(&CutMessage::Settle { cut, mark });
    }

    fn say(&self, message: &CutMessage) {
        for host in self.lock().values() {
            if let Some(queue) = &host.queue {
                // A closed queue means that the connection is gone, which is noticed by who reads it.
                let _ = queue.send(Message::Cut(message.clone()).into());
            }
        }
    }

    /// What a host says to a cut.
    ///
    /// # Errors
    /// Where it says what no counter here may be lifted to.
    pub(super) fn on_prepared(
        &self,
        name: &str,
        cut: WriteSeq,
        refused: Option<CutRefusal>,
    ) -> Result<(), String> {
        let told = if let Some(CutRefusal::Passed(last)) = refused { cut.max(last) } else { cut };
        if told > WriteSeq::CUT_MAX {
            return Err(format!("host {name} says that it has drawn {told}, which no agent comes to"));
        }
        if let Some(host) = self.lock().get_mut(name) {
            host.last = host.last.max(match refused {
                Some(CutRefusal::Passed(last)) => last,
                Some(CutRefusal::Syncing) => WriteSeq::ZERO,
                None => cut,
            });
            host.prepared = Some((cut, refused));
        }
        self.answered.notify_all();
        Ok(())
    }

    /// Waits until all hosts have made the cut, at most `within` from `begun` on.
    pub(super) fn wait_prepared(
        &self,
        cut: WriteSeq,
        begun: Monotonic,
        within: Duration,
    ) -> Result<(), NotPrepared> {
        let mut inner = self.lock();
        loop {
            let answer = |host: &Host| host.prepared.filter(|(of, _)| *of == cut);
            for (name, host) in inner.iter() {
                match answer(host).and_then(|(_, refused)| refused) {
                    Some(CutRefusal::Passed(last)) => return Err(NotPrepared::Behind(last)),
                    Some(CutRefusal::Syncing) => return Err(NotPrepared::Syncing(name.clone())),
                    None => {}
                }
            }
            let late = inner.iter().filter(|(_, host)| answer(host).is_none());
            let late: Vec<String> = late.map(|(name, _)| name.clone()).collect();
            let left = within.saturating_sub(clock::now().since(begun));
            if left.is_zero() {
                return Err(NotPrepared::Late(late));
            }
            if late.is_empty() {
                return Ok(());
            }
            (inner, _) = self.answered.wait_timeout(inner, left).expect("a panic aborts the process");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Host>> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_lifts_the_next_cut_to_what_is_refused() {
        let hosts = Hosts::known(&BTreeMap::from([("beta.site".to_owned(), 1)]));
        let far = WriteSeq::CUT_MAX.next();
        for (cut, refused) in [(WriteSeq::ZERO, Some(CutRefusal::Passed(far))), (far, None)] {
            let why = hosts.on_prepared("beta.site", cut, refused).unwrap_err();
            assert!(why.contains("beta.site"), "{why}");
            assert_eq!(hosts.highest(), WriteSeq::ZERO);
        }
        let passed = Some(CutRefusal::Passed(WriteSeq::from_raw(7)));
        assert_eq!(hosts.on_prepared("beta.site", WriteSeq::ZERO, passed), Ok(()));
        assert_eq!(hosts.highest(), WriteSeq::from_raw(7));
    }
}
