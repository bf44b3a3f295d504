//! Synchronous mode: which guest writes wait for the recovery side, and for how long.
//!
//! ```text
//!              caught up
//!   Degraded ───────────▶ Synchronous ──▶ (no answer in time, `degrade`) ──▶ Degraded
//! ```
//!
//! It begins degraded, because a stream that still syncs has nothing to promise. From then on a write that
//! has its place in the stream is acknowledged to the guest only once it is durable in the journal. A gap in
//! the stream (a pause, a local write that failed) lets writes pass: they are marked, and the state says so.

use std::time::Duration;
use types::WriteSeq;

/// What a group in synchronous mode has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncPolicy {
    /// How long a write waits before the link counts as stalled.
    pub timeout: Duration,
    pub on_timeout: OnTimeout,
}

/// What becomes of a guest's write that gets no answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// It goes on asynchronously, with an alarm, until the stream has caught up.
    Degrade,
    /// It waits for as long as it takes.
    Hold,
}

/// Whether guest writes wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncState {
    /// They do not: the mode is not chosen.
    Asynchronous,
    /// They do.
    Synchronous,
    /// They should, and do not.
    Degraded,
}

impl SyncState {
    /// The word for it in log, API and screens.
    pub fn name(self) -> &'static str {
        match self {
            SyncState::Asynchronous => "async",
            SyncState::Synchronous => "sync",
            SyncState::Degraded => "sync-degraded",
        }
    }
}

/// What the other VMs of the group have at the recovery side: an image of the group is of one moment, so that what one VM
/// was promised rests on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Others {
    /// Everything of them up to here is there, for good.
    pub up_to: WriteSeq,
    /// One of them misses writes in its stream: no promise can be kept.
    pub missing: bool,
    /// All are being sent, with little on the way.
    pub caught_up: bool,
}

impl Others {
    /// A VM that is alone.
    pub const NONE: Others = Others { up_to: WriteSeq::MAX, missing: false, caught_up: true };
}

/// What a write is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    No,
    UntilReleased,
    AtMost(Duration),
}

#[derive(Debug)]
pub(crate) struct SyncGate {
    policy: Option<SyncPolicy>,
    degraded: bool,
}

impl SyncGate {
    pub(crate) fn new(policy: Option<SyncPolicy>) -> Self {
        Self { policy, degraded: true }
    }

    /// Changes what is chosen. Where it was not chosen before, there is nothing to promise yet.
    pub(crate) fn set(&mut self, policy: Option<SyncPolicy>) {
        self.degraded |= self.policy.is_none();
        self.policy = policy;
    }

    pub(crate) fn policy(&self) -> Option<SyncPolicy> {
        self.policy
    }

    /// `counts`: the write has its place in the stream.
    pub(crate) fn hold(&self, seq: WriteSeq, released: WriteSeq, counts: bool) -> Hold {
        match self.policy {
            Some(policy) if counts && !self.degraded && released < seq => match policy.on_timeout {
                OnTimeout::Degrade => Hold::AtMost(policy.timeout),
                OnTimeout::Hold => Hold::UntilReleased,
            },
            _ => Hold::No,
        }
    }

    pub(crate) fn on_timeout(&mut self) {
        self.degraded = true;
    }

    /// True where it was degraded before.
    pub(crate) fn rejoin(&mut self) -> bool {
        std::mem::replace(&mut self.degraded, false) && self.policy.is_some()
    }

    pub(crate) fn state(&self) -> SyncState {
        match self.policy {
            None => SyncState::Asynchronous,
            Some(_) if self.degraded => SyncState::Degraded,
            Some(_) => SyncState::Synchronous,
        }
    }
}
