//! Undoing a failover: VMs stop, what they wrote is thrown away, the group is the other side's again.
//!
//! What must be durable before what:
//!
//! 1. That it goes back, before the first VM is stopped or the first image is closed: from here on nobody can commit it, and
//!    whoever starts again goes on with it by itself.
//! 2. That VMs do not run, and that images are closed, each as it is done: all of it may be done again.
//! 3. That the group is released, once nothing of the failover is left: only then its other side writes again.

use super::super::Recovery;
use super::super::carry_out::{Doing, Outcome};
use super::record::{FailoverRecord, Phase};
use crate::error::{OperationError, Result};
use operations::Lock;
use types::GroupId;

impl Recovery {
    /// Rolls a failover back, or goes on with that. What cannot be done now is tried again by itself.
    pub(crate) fn rollback(&self, group: &str) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
        let mut record = self.running(group)?;
        self.check_images_were_read(&record)?;
        self.end_starting(record.group_id()?)?;
        record = self.failovers().get(&record.group_id()?).cloned().unwrap_or(record);
        if !record.is_released() {
            self.take_back(&mut record)?;
        }
        Ok(self.failover_to_api(&record))
    }

    fn take_back(&self, record: &mut FailoverRecord) -> Result<()> {
        if record.phase != Phase::RollingBack {
            record.phase = Phase::RollingBack;
            self.keep(record)?;
        }
        if let Err(error) = self.take_all_back(record) {
            let text = format!(
                "the failover of group {} is not rolled back yet, so that its site stays fenced: {}; it is tried again by itself",
                record.group, error.detail
            );
            self.alerts.raise(cause(record), text.clone());
            return Err(OperationError::unavailable(text));
        }
        self.alerts.clear(cause(record));
        tracing::info!(group = record.group, epoch = record.epoch, "failover rolled back");
        Ok(())
    }

    fn take_all_back(&self, record: &mut FailoverRecord) -> Result<()> {
        self.check_images_were_read(record)?;
        self.stop_guests(record)?;
        self.end_images(record)?;
        self.release(record)
    }

    /// Goes on with every rollback that failed, or was cut short with the agent's end. Whoever does something with its group
    /// comes first.
    pub(in super::super) fn go_on_with_rollback(&self, group: GroupId) {
        let Some(_turn) = self.turns_of_groups.try_take(group) else { return };
        let record = self.failovers().get(&group).cloned();
        if let Some(mut record) = record.filter(|record| record.phase == Phase::RollingBack) {
            // What is in its way is an alert.
            let _ = self.take_back(&mut record);
        }
    }

    /// The groups that are being rolled back.
    pub(in super::super) fn rolling_back(&self) -> Vec<GroupId> {
        let failovers = self.failovers();
        let going = failovers.iter().filter(|(_, record)| record.phase == Phase::RollingBack);
        going.map(|(group, _)| *group).collect()
    }

    /// Ends the operation that starts a failover, where it goes on no more by itself: it is taken back, unless only its end
    /// is to be written down. The group's turn is held.
    fn end_starting(&self, group: GroupId) -> Result<()> {
        let Some((id, control)) = self.operations.at(Lock::Group(group)) else { return Ok(()) };
        let _ = control.cancel();
        match self.go_on(id, &Doing::waited_for(self))? {
            Outcome::Done | Outcome::TakenBack(_) => Ok(()),
            Outcome::Stands(error) => Err(error),
        }
    }
}

fn cause(record: &FailoverRecord) -> String {
    format!("rollback of group {}", record.group_id)
}
