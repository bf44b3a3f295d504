//! How far the stream is: whether a sync has really ended, what the group may rest on, and what is written down and shown
//! of it.

use super::Driver;
use joint::membership::FirstSync;
use replication::{SenderEvent, State};
use splitter::SyncState;
use tokio::task::block_in_place;
use types::limits::BLOCK_BYTES;

impl Driver {
    /// Once all of the first sync is durable at the other side, the VM belongs to its group.
    pub(super) fn follow_sync(&mut self) {
        self.standing = self.core.follow();
        if !self.standing.missing
            && self.vm.first_sync() != FirstSync::Done
            && !self.note_first_sync(FirstSync::Done)
        {
            // It is so all the same; after the next start it is found out again.
            self.vm.lock_record().first_sync = FirstSync::Done;
        }
        self.tell_standing();
    }

    /// Has promises made to others of the group rest on how far the VM is, once an image of the group may have it.
    fn tell_standing(&self) {
        let standing = self.vm.may_be_there().then_some(self.standing);
        let group = self.vm.group();
        group.note_standing(self.vm.id(), standing, || self.source.lacks_vms_of(group));
    }

    /// Ends a sync.
    ///
    /// 1. That the first one ends is written down.
    /// 2. Promises to others of the group rest on this VM from now on: on one that misses writes.
    /// 3. The end goes into the buffer, and over the link when it may.
    ///
    /// An agent that dies after the third may have left a state at the recovery side that others are opened with, and
    /// whose end nobody has heard of here: the next agent knows it by the first.
    pub(super) fn close_sync(&mut self) {
        if !self.vm.may_be_there() {
            if !self.note_first_sync(FirstSync::Closing) {
                return self.core.push(SenderEvent::SyncClosed { closed: false });
            }
            self.tell_standing();
        }
        self.core.close_sync();
    }

    /// In synchronous mode guest writes wait again once the stream has caught up.
    pub(super) fn rejoin_sync(&mut self) {
        let degraded = self.vm.capture().status().sync == SyncState::Degraded;
        if degraded && self.standing.caught_up && self.vm.capture().return_to_sync() {
            tracing::info!(vm = self.vm.name(), "synchronous: guest writes wait for the recovery side");
        }
    }

    /// Before the recovery side may hear of the VM that is written down, and of one that is being unprotected it does
    /// not hear any more: whoever leaves knows by that whether there is somebody to tell. False where nothing may be
    /// said.
    pub(super) fn note_greeting(&self) -> bool {
        if self.vm.first_sync().was_heard_of() {
            return true;
        }
        let is_unheard = |first_sync: FirstSync| !first_sync.was_heard_of();
        !self.vm.is_ending() && self.put_first_sync(is_unheard, FirstSync::Greeted)
    }

    /// Writes down how far the first sync is; false where it could not be, and stays as it was.
    pub(super) fn note_first_sync(&self, how_far: FirstSync) -> bool {
        self.put_first_sync(|_| true, how_far)
    }

    fn put_first_sync(&self, if_now: impl FnOnce(FirstSync) -> bool, how_far: FirstSync) -> bool {
        let put = block_in_place(|| self.vm.put_first_sync(&self.source.state, if_now, how_far));
        if let Err(error) = &put {
            let (vm, error) = (self.vm.name(), format!("{error:#}"));
            tracing::error!(vm, ?how_far, error, "how far the first sync is, is not recorded");
        }
        put.is_ok()
    }

    /// The state as it is shown: a sync is one until all of it is durable at the other side, and the first one is
    /// the first one, whatever came between.
    pub(super) fn shown_state(&self) -> &'static str {
        let state = self.core.sender().state();
        // Nothing was heard since from the side that has taken over.
        if matches!(state, State::Tracking { .. }) && self.vm.lock_record().fenced.is_some() {
            return "fenced";
        }
        let name = match self.core.progress().ending_sync() {
            Some(name) if state == State::Journaling => name,
            _ => state.name(),
        };
        match self.vm.first_sync() {
            FirstSync::Done => name,
            _ if name == State::BitmapSync.name() => State::InitialSync.name(),
            _ => name,
        }
    }

    pub(super) fn to_sync_bytes(&self) -> u64 {
        let status = self.vm.capture().status();
        (status.dirty_blocks + status.unsettled_blocks) * BLOCK_BYTES
    }
}
