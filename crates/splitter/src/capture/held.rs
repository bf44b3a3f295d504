//! Writes that are committed, and of which the guest may not be told yet: while the group's hosts agree on a cut, and in
//! synchronous mode until the recovery side has them.
//!
//! What holds: a guest is told of a write only where the policy lets it know. Whoever holds a write may have to leave
//! before that: the agent is stopped, the client hangs up, the hypervisor takes the queue back. He has the answer if it
//! comes within [`HELD_AT_END_MAX`]; else nobody is told anything. The write is made, it has its place in the stream and
//! its bit in the dirty map, so the guest's asking again is all that is left to happen to it.

use super::{Capture, Inner};
use crate::clock::Deadline;
use crate::sync_gate::{Hold, Others, SyncState};
use std::sync::OnceLock;
use threads::sync::MutexGuard;
use threads::sync::atomic::Ordering;
use types::WriteSeq;
use types::limits::HELD_AT_END_MAX;

/// How long somebody holds writes: for as long as the policy wants, until he leaves.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    ends_at: OnceLock<Deadline>,
}

impl Patience {
    fn is_ending(&self) -> bool {
        self.ends_at.get().is_some()
    }
}

impl Capture {
    /// Waits while the group's hosts agree on a cut. In synchronous mode it also waits until everything of
    /// this VM, and of the others of its group, up to `seq` is durable at the recovery side, or the policy lets the guest
    /// go on without.
    pub fn hold(&self, seq: WriteSeq) {
        self.hold_for(seq, &Patience::default());
    }

    /// As [`Capture::hold`], for somebody who may leave: false where he has, and the guest must not be told.
    pub(crate) fn hold_for(&self, seq: WriteSeq, patience: &Patience) -> bool {
        self.gate.pass();
        if !self.is_sync() {
            return true;
        }
        let mut inner = self.lock();
        loop {
            match inner.hold(seq) {
                Hold::No => return true,
                Hold::UntilReleased | Hold::AtMost(_) if patience.is_ending() => {
                    return self.hold_to_the_end(inner, seq, patience);
                }
                Hold::UntilReleased => {
                    inner = self.released.wait(inner).expect("a panic aborts the process");
                }
                Hold::AtMost(timeout) => {
                    let (since, policy) = (inner.released, inner.sync.policy());
                    let is_held = |inner: &mut Inner| {
                        inner.hold(seq) != Hold::No && !patience.is_ending() && inner.sync.policy() == policy
                    };
                    let waited = self.released.wait_timeout_while(inner, timeout, is_held);
                    let result;
                    (inner, result) = waited.expect("a panic aborts the process");
                    if result.timed_out() && inner.hold(seq) != Hold::No {
                        tracing::warn!(waits_for = %seq, durable = %since, "synchronous mode: no answer in time");
                        inner.sync.on_timeout();
                        self.tell_held();
                    }
                }
            }
        }
    }

    /// The last wait of somebody who leaves. It is spared where another has waited in vain and nothing has come since:
    /// queues and connections that leave one after the other do not each wait for a link that is lost.
    fn hold_to_the_end(&self, inner: MutexGuard<'_, Inner>, seq: WriteSeq, patience: &Patience) -> bool {
        let left = patience.ends_at.get().map_or(HELD_AT_END_MAX, Deadline::left);
        let is_held = |inner: &mut Inner| {
            inner.hold(seq) != Hold::No && inner.waited_in_vain.is_none_or(|at| at != inner.promised())
        };
        let waited = self.released.wait_timeout_while(inner, left, is_held);
        let (mut inner, _) = waited.expect("a panic aborts the process");
        if inner.hold(seq) == Hold::No {
            return true;
        }
        inner.waited_in_vain = Some(inner.promised());
        drop(inner);
        self.tell_held();
        false
    }

    /// Whoever holds writes with this patience is leaving.
    pub(crate) fn end_patience(&self, patience: &Patience) {
        patience.ends_at.get_or_init(|| Deadline::after(HELD_AT_END_MAX));
        // Whoever has looked before that waits by the time the lock is had, and is told.
        drop(self.lock());
        self.tell_held();
    }

    /// Whether synchronous mode is chosen.
    pub fn is_sync(&self) -> bool {
        self.is_sync.load(Ordering::SeqCst)
    }

    /// Whether [`Capture::hold`] would return at once.
    pub fn may_acknowledge(&self, seq: WriteSeq) -> bool {
        if self.gate.is_closed() {
            return false;
        }
        if !self.is_sync() {
            return true;
        }
        self.lock().hold(seq) == Hold::No
    }

    /// Whether a write that was committed as `seq` waits for the recovery side.
    pub fn is_held(&self, seq: WriteSeq) -> bool {
        self.is_sync() && self.lock().hold(seq) != Hold::No
    }

    /// Everything is well: guest writes wait for the recovery side again. To be said when the stream has
    /// caught up; true where that is news.
    pub fn return_to_sync(&self) -> bool {
        let mut inner = self.lock();
        let others_are_well = !inner.others.missing && inner.others.caught_up;
        !inner.gap_open && !inner.tracking && others_are_well && inner.sync.rejoin()
    }

    /// What the other VMs of the group have at the recovery side now.
    pub fn follow_others(&self, others: Others) {
        if !self.is_sync() {
            return;
        }
        let mut inner = self.lock();
        if inner.others != others {
            inner.others = others;
            if others.missing {
                inner.sync.on_timeout();
            }
            drop(inner);
            self.tell_held();
        }
    }

    /// What held writes wait for may have come.
    pub(super) fn tell_held(&self) {
        if self.is_sync() {
            self.released.notify_all();
        }
    }
}

impl Inner {
    /// What a write is to do that was committed as `seq`: one from before a sync, or in it, is in an image once
    /// the sync has ended.
    fn hold(&self, seq: WriteSeq) -> Hold {
        self.sync.hold(seq.max(self.sync_end), self.promised(), self.counts())
    }

    /// Whether a write has its place in a stream that an image can be of.
    fn counts(&self) -> bool {
        !self.gap_open && !self.tracking && !self.others.missing
    }

    /// As [`Inner::hold`] has it: where writes pass for a gap in the stream, the mode does not say that they wait.
    pub(super) fn sync_state(&self) -> SyncState {
        match self.sync.state() {
            SyncState::Synchronous if !self.counts() => SyncState::Degraded,
            state => state,
        }
    }

    /// What has come so far of what held writes wait for.
    fn promised(&self) -> WriteSeq {
        self.released.min(self.others.up_to)
    }
}

#[cfg(test)]
mod tests;
