//! How far the stream is: whether a sync has really ended, what the group may rest on, and what is written down and shown
//! of it.

use super::Driver;
use crate::source::record::{FirstSync, ProtectionRecord};
use crate::source::save_record;
use replication::State;
use splitter::SyncState;
use types::limits::BLOCK_BYTES;

impl Driver {
    /// Once all of the first sync is durable at the other side, the VM belongs to its group; promises made to others of
    /// it rest on how far it is.
    pub(super) fn follow_sync(&mut self) {
        self.standing = self.core.follow();
        if !self.standing.missing && self.vm.first_sync() != FirstSync::Done {
            self.note_first_sync(FirstSync::Done);
        }
        let standing = self.core.progress().counts(self.vm.is_member()).then_some(self.standing);
        let group = self.vm.group();
        group.note_standing(self.vm.id(), standing, || self.source.lacks_vms_of(group));
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
        let mut record = self.vm.lock_record();
        if record.first_sync != FirstSync::NotBegun {
            return true;
        }
        if self.vm.is_ending() {
            return false;
        }
        let noted = ProtectionRecord { first_sync: FirstSync::Greeted, ..record.clone() };
        // With the record held: an older one is not saved over it.
        match save_record(&self.source.state, &noted) {
            Ok(()) => *record = noted,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(vm = noted.name, error, "that it is protected is not recorded; tried again");
                return false;
            }
        }
        true
    }

    pub(super) fn note_first_sync(&self, how_far: FirstSync) {
        let record = {
            let mut record = self.vm.lock_record();
            record.first_sync = how_far;
            record.clone()
        };
        if let Err(error) = save_record(&self.source.state, &record) {
            tracing::error!(
                vm = record.name,
                error = format!("{error:#}"),
                "how far the first sync is, is not recorded"
            );
        }
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
