//! Making a failover final: the images go on, the old protected side stays fenced. An operation, see
//! [`ending`](super::ending).

use super::super::Recovery;
use super::super::carry_out::Doing;
use super::super::plans::Plan;
use super::ending::{CommitPlan, CommitStep};
use super::record::{FailoverRecord, Phase};
use crate::error::{OperationError, Result};
use crate::ledger::{Asker, Held};
use operations::Lock;

impl Recovery {
    /// Makes a failover final.
    pub(crate) fn commit(&self, group: &str, asker: &Asker) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
        let record = self.running(group)?;
        let held = self.begin_commit(group, &record, asker)?;
        self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
        let record = self.failovers().get(&record.group_id()?).cloned().unwrap_or(record);
        Ok(self.failover_to_api(&record))
    }

    fn begin_commit(&self, word: &str, record: &FailoverRecord, asker: &Asker) -> Result<Held<'_>> {
        let refuse = |why: &str| {
            Err(OperationError::conflict(format!("the failover of group {word} cannot be committed: {why}")))
        };
        match record.phase {
            Phase::Starting => {
                return refuse("it is still being started: see `holdfast operation list`, or roll it back");
            }
            Phase::RollingBack => return refuse("it is being rolled back, see `holdfast alerts`"),
            Phase::Running | Phase::Committed | Phase::RolledBack => {}
        }
        self.check_images_were_read(record)?;
        self.check_images_are_there(record)?;
        let group = record.group_id()?;
        match self.operations.at(Lock::Group(group)) {
            Some((id, Plan::Commit(_), _)) => return self.operations.join_idle(id, asker),
            // It runs: only that its start has ended is to be written down.
            Some((id, Plan::Failover(_), _)) => {
                let held = self.operations.hold_idle(id)?;
                self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
            }
            // It is found to be in the way.
            Some(_) | None => {}
        }
        let plan = CommitPlan { group, label: record.label(), epoch: record.epoch };
        self.operations.begin(|| Plan::Commit(plan), asker)
    }

    /// That it is final may yet be taken back.
    pub(super) fn check_is_not_being_committed(&self, record: &FailoverRecord) -> Result<()> {
        match self.operations.at(Lock::Group(record.group_id()?)) {
            Some((id, Plan::Commit(_), _)) => Err(OperationError::conflict(format!(
                "the failover of group {} is being committed by operation {id}: wait for its end",
                record.group
            ))),
            Some(_) | None => Ok(()),
        }
    }

    pub(in super::super) fn is_commit_step_done(&self, plan: &CommitPlan, step: CommitStep) -> bool {
        match step {
            CommitStep::Commit => self.of_commit(plan).is_some_and(|record| record.phase == Phase::Committed),
        }
    }

    pub(in super::super) fn run_commit_step(&self, plan: &CommitPlan, step: CommitStep) -> Result<()> {
        match step {
            CommitStep::Commit => self.write_phase(plan, Phase::Running, Phase::Committed)?,
        }
        tracing::info!(group = plan.label, epoch = plan.epoch, "failover committed");
        Ok(())
    }

    /// What could not be made durable may be on the disk all the same.
    pub(in super::super) fn undo_commit_step(&self, plan: &CommitPlan, step: CommitStep) -> Result<()> {
        match (step, self.of_commit(plan).map(|record| record.phase)) {
            (CommitStep::Commit, Some(now @ (Phase::Running | Phase::Committed))) => {
                self.write_phase(plan, now, Phase::Running)
            }
            (CommitStep::Commit, Some(Phase::Starting | Phase::RollingBack | Phase::RolledBack) | None) => {
                Ok(())
            }
        }
    }

    fn of_commit(&self, plan: &CommitPlan) -> Option<FailoverRecord> {
        self.failovers().get(&plan.group).filter(|record| record.epoch == plan.epoch).cloned()
    }

    fn write_phase(&self, plan: &CommitPlan, from: Phase, to: Phase) -> Result<()> {
        let record = self.of_commit(plan).filter(|record| record.phase == from);
        let record = record.ok_or_else(|| {
            OperationError::conflict(format!("the failover of group {} does not run any more", plan.label))
        })?;
        self.keep(&FailoverRecord { phase: to, ..record })
    }
}
