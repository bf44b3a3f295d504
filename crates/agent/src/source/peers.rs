//! The links to peers that streams share: one [`Share`] for each peer, with the operator's limits.

use crate::clock;
use crate::config::LinkConfig;
use replication::{Share, StreamId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// All peers this agent sends to.
#[derive(Debug)]
pub(super) struct Peers {
    config: LinkConfig,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    shares: BTreeMap<String, Share>,
    wakers: BTreeMap<StreamId, Arc<Notify>>,
    granted: BTreeMap<StreamId, u64>,
    next: u64,
}

/// One stream's place at its peer.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: String,
    group: String,
    id: StreamId,
}

impl Peers {
    pub(super) fn new(config: LinkConfig) -> Arc<Self> {
        Arc::new(Self { config, inner: Mutex::default() })
    }

    /// A place for a stream; `wake` is told when it may send.
    pub(super) fn join(self: &Arc<Self>, peer: &str, group: &str, wake: Arc<Notify>) -> Place {
        let mut inner = self.lock();
        inner.next += 1;
        let id = StreamId(inner.next);
        inner.wakers.insert(id, wake);
        inner.shares.entry(peer.to_owned()).or_default();
        Place { peers: self.clone(), peer: peer.to_owned(), group: group.to_owned(), id }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

impl Inner {
    /// Tells those that may send now.
    fn grant(&mut self, peer: &str, limit: u64) {
        let Some(share) = self.shares.get_mut(peer) else { return };
        share.set_limit(limit);
        for (id, bytes) in share.grants(clock::now()) {
            self.granted.insert(id, bytes);
            if let Some(wake) = self.wakers.get(&id) {
                wake.notify_one();
            }
        }
    }
}

impl Place {
    pub(super) fn is_at(&self, peer: &str) -> bool {
        self.peer == peer
    }

    /// Wants to send about so many bytes; see [`Place::granted`].
    pub(super) fn want(&self, priority: u8, syncs_only: bool, group_limit: u64, bytes: u64) {
        self.with(|share| {
            share.set_group_limit(&self.group, group_limit);
            share.want(self.id, &self.group, priority, syncs_only, bytes);
        });
    }

    /// The most bytes of payload a batch should have.
    pub(super) fn batch_bytes(&self) -> usize {
        let inner = self.peers.lock();
        inner.shares[&self.peer].batch_bytes(&self.group)
    }

    /// Whether the wish was granted, and for how many bytes.
    pub(super) fn granted(&self) -> Option<u64> {
        self.peers.lock().granted.remove(&self.id)
    }

    pub(super) fn sent(&self, granted: u64, bytes: u64) {
        self.with(|share| share.sent(self.id, granted, bytes));
    }

    pub(super) fn acknowledged(&self, bytes: u64) {
        self.with(|share| share.acknowledged(self.id, bytes));
    }

    /// The connection is gone.
    pub(super) fn leave(&self) {
        self.peers.lock().granted.remove(&self.id);
        self.with(|share| share.leave(self.id));
    }

    /// Time has passed: a limit may let somebody send.
    pub(super) fn tick(&self) {
        self.with(|_| {});
    }

    fn with(&self, change: impl FnOnce(&mut Share)) {
        let limit = self.peers.config.limit_at(clock::wall());
        let mut inner = self.peers.lock();
        change(inner.shares.get_mut(&self.peer).expect("joined before it is used"));
        inner.grant(&self.peer, limit);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        self.peers.lock().wakers.remove(&self.id);
    }
}
