//! Protections that are recorded but cannot be taken up: the image is missing, in use or damaged. They are
//! shown to the operator, tried again, and can be ended like any other.

use super::freshness::Freshness;
use super::record::ProtectionRecord;
use crate::clock;
use crate::state::StateDir;
use std::time::Duration;

/// A protection that waits for its cause to go away.
#[derive(Debug, Clone)]
pub(super) struct Stalled {
    pub(super) record: ProtectionRecord,
    /// Why it could not be taken up last time.
    pub(super) error: String,
    /// How often it was found in use, one time after the other.
    pub(super) found_in_use: u32,
    /// Whether it was tried to take it up.
    pub(super) is_tried: bool,
}

/// So often, in about a second and a half, an image may be found in use by an agent that is just ending.
const FOUND_IN_USE_MAX: u32 = 5;
/// When what was found in use is tried again, the first time; each time after that is twice as long away.
const RETRY_SOON: Duration = Duration::from_millis(50);

impl Stalled {
    pub(super) fn new(record: ProtectionRecord, error: String, found_in_use: u32) -> Self {
        let mut stalled = Self { record, error, found_in_use, is_tried: true };
        if stalled.may_come_free() {
            stalled.error = format!(
                "{}. If an agent that had it has just ended, or was killed, the system gives it back in a moment: tried again at once",
                stalled.error
            );
        }
        stalled
    }

    /// One that the agent has just found recorded.
    pub(super) fn untried(record: ProtectionRecord) -> Self {
        Self { is_tried: false, ..Self::new(record, "it is being taken up".to_owned(), 0) }
    }

    /// Whether whoever has the image may be about to end.
    pub(super) fn may_come_free(&self) -> bool {
        self.next_delay().is_some()
    }

    /// When it is worth a try of its own, because whoever has the image may be about to end; none where it waits for the
    /// regular one.
    pub(super) fn next_delay(&self) -> Option<Duration> {
        next_delay(self.found_in_use)
    }

    /// The VM for the operator: as `failed`, with what is to be done about it.
    pub(super) fn to_api(&self, state: &StateDir, boot_id: [u8; 16]) -> api::ProtectedVm {
        let record = &self.record;
        let age = Freshness::load(state, record, boot_id).age(clock::now());
        let bound = Duration::from_secs(record.policy.rpo_seconds);
        let disks = record.disks.iter().map(|disk| api::Disk {
            name: disk.name.clone(),
            size_bytes: disk.tapped.as_ref().map_or(0, |tapped| tapped.size_bytes),
            path: disk.path.display().to_string(),
            vhost_user_socket: None,
            ublk_device: None,
        });
        api::ProtectedVm {
            id: record.vm.clone(),
            name: record.name.clone(),
            group: record.group.clone(),
            epoch: record.epoch,
            peer: record.peer.clone(),
            peer_agent: record.peer_agent.clone(),
            state: "failed".into(),
            reason: "not taken up; tried again by itself".into(),
            link: "down".into(),
            last_error: Some(self.error.clone()),
            notes: Vec::new(),
            socket: String::new(),
            qmp: record.qmp.as_ref().map(|path| path.display().to_string()),
            guest: None,
            clients: 0,
            disks: disks.collect(),
            rpo_now_seconds: age.map(|age| age.as_secs_f64()),
            rpo_seconds: record.policy.rpo_seconds,
            // No fresh copy is proven.
            rpo_exceeded: age.is_none_or(|age| age > bound),
            history_exceeded: false,
            on_fenced: record.policy.on_fenced.name().to_owned(),
            mode: "async".into(),
            priority: record.policy.priority,
            clock_skew_seconds: None,
            spill_bytes: 0,
            spill_bytes_max: record.policy.spill_bytes,
            verify: None,
            unreadable_bytes: None,
            asked_again_bytes: 0,
            copied_bytes: 0,
            compared_bytes: 0,
            buffer_bytes: 0,
            buffer_bytes_max: record.policy.buffer_bytes,
            dirty_bytes: 0,
            to_sync_bytes: None,
            sync_progress: None,
            writes: 0,
            write_bytes: 0,
            left_out_bytes: 0,
            write_bytes_per_second: 0.0,
            sent_bytes: 0,
            sent_bytes_per_second: 0.0,
            durable_seq: types::WriteSeq::ZERO.to_string(),
            journal_bytes: 0,
            history_seconds: 0,
            checkpoint_interval_seconds: record.policy.checkpoint_interval_seconds,
        }
    }
}

/// When an image is tried again that was found in use so often, one time after the other.
fn next_delay(found_in_use: u32) -> Option<Duration> {
    (1..=FOUND_IN_USE_MAX).contains(&found_in_use).then(|| RETRY_SOON * (1 << (found_in_use - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_that_is_ending_still_has_is_tried_again_soon_and_then_as_all_else() {
        let delays: Vec<_> = (0..=8).map(|found| next_delay(found).map(|delay| delay.as_millis())).collect();
        let soon = [50, 100, 200, 400, 800].map(Some);
        assert_eq!(delays[0], None, "what is not in use waits for another cause to go");
        assert_eq!(delays[1..6], soon, "each time twice as long away");
        assert_eq!(delays[6..], [None; 3], "somebody has it who stays");
    }
}
