//! Undoing a failover: VMs stop, what they wrote is thrown away, the group is the other side's again. An operation, see
//! [`ending`](super::ending).

use super::super::Recovery;
use super::super::carry_out::Doing;
use super::super::plans::Plan;
use super::ending::{RollbackPlan, RollbackStep};
use super::record::{FailoverRecord, Phase};
use crate::error::{OperationError, Result};
use crate::ledger::{Asker, Held, Outcome};
use operations::{Lock, OperationId};
use types::GroupId;

impl Recovery {
    /// Rolls a failover back, or goes on with that. What cannot be done now is tried again by itself.
    pub(crate) fn rollback(&self, group: &str, asker: &Asker) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
        let mut record = self.running(group)?;
        self.check_images_were_read(&record)?;
        let id = record.group_id()?;
        let under_way = match self.rollback_of(id) {
            Some(under_way) => Some(self.operations.join_idle(under_way, asker)?),
            None => {
                self.end_other(id, asker)?;
                record = self.failovers().get(&id).cloned().unwrap_or(record);
                let plan = plan_for(id, &record);
                (!record.is_released()).then(|| self.begin_rollback(plan, asker)).transpose()?
            }
        };
        if let Some(under_way) = under_way {
            self.go_on(under_way, &Doing::asked_by(self, asker))?.done()?;
        }
        record = self.failovers().get(&id).cloned().unwrap_or(record);
        Ok(self.failover_to_api(&record))
    }

    fn begin_rollback(&self, plan: RollbackPlan, asker: &Asker) -> Result<Held<'_>> {
        self.operations.begin(|| Plan::Rollback(plan), asker)
    }

    fn rollback_of(&self, group: GroupId) -> Option<OperationId> {
        let (id, plan, _) = self.operations.at(Lock::Group(group))?;
        matches!(plan, Plan::Rollback(_)).then_some(id)
    }

    /// Rollbacks that agents of before have begun go on as operations.
    pub(in super::super) fn adopt_rollbacks(&self) {
        let failovers: Vec<_> = {
            let failovers = self.failovers();
            let going = failovers.iter().filter(|(_, record)| record.phase == Phase::RollingBack);
            going.map(|(group, record)| (*group, record.clone())).collect()
        };
        for (group, record) in failovers {
            if self.operations.at(Lock::Group(group)).is_some() {
                continue;
            }
            if let Err(error) = self.begin_rollback(plan_for(group, &record), &Asker::nobody()) {
                tracing::error!(
                    group = record.group,
                    error = error.detail,
                    "the rollback does not go on yet"
                );
            }
        }
    }

    /// Ends another operation that has the group and goes on no more by itself: it is taken back, unless only its end is
    /// to be written down. The group's turn is held.
    fn end_other(&self, group: GroupId, asker: &Asker) -> Result<()> {
        let Some((id, _, control)) = self.operations.at(Lock::Group(group)) else { return Ok(()) };
        let _ = control.cancel();
        match self.go_on(self.operations.hold_idle(id)?, &Doing::asked_by(self, asker))? {
            Outcome::Done | Outcome::TakenBack(_) => {}
            Outcome::Stands(error) => return Err(error),
        }
        let record = self.failovers().get(&group).cloned();
        match record.filter(|record| record.phase == Phase::Committed) {
            None => Ok(()),
            Some(record) => Err(OperationError::conflict(format!(
                "the failover of group {} is committed just now",
                record.group
            ))),
        }
    }

    pub(in super::super) fn is_rollback_step_done(&self, plan: &RollbackPlan, step: RollbackStep) -> bool {
        // Without a record, which an operator has removed, there is nothing to go back.
        let Some(record) = self.going_back(plan) else { return true };
        match step {
            RollbackStep::GoBack => record.phase == Phase::RollingBack,
            // What is gone already is passed over one by one.
            RollbackStep::StopGuests | RollbackStep::EndImages | RollbackStep::Release => false,
        }
    }

    pub(in super::super) fn run_rollback_step(&self, plan: &RollbackPlan, step: RollbackStep) -> Result<()> {
        let Some(mut record) = self.going_back(plan) else { return Ok(()) };
        match step {
            RollbackStep::GoBack => self.keep(&FailoverRecord { phase: Phase::RollingBack, ..record }),
            RollbackStep::StopGuests => self.stop_guests(&mut record),
            RollbackStep::EndImages => {
                self.check_images_were_read(&record)?;
                self.end_images(&record)
            }
            RollbackStep::Release => {
                self.release(&mut record)?;
                tracing::info!(group = record.group, epoch = record.epoch, "failover rolled back");
                Ok(())
            }
        }
    }

    /// The record of a failover that is to go back and is not released yet.
    fn going_back(&self, plan: &RollbackPlan) -> Option<FailoverRecord> {
        let record = self.failovers().get(&plan.group).cloned();
        record.filter(|record| record.epoch == plan.epoch && record.is_undecided())
    }
}

fn plan_for(group: GroupId, record: &FailoverRecord) -> RollbackPlan {
    RollbackPlan { group, label: record.label(), epoch: record.epoch }
}
