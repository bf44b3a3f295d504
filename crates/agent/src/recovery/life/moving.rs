//! Moving a journal to another folder: an operation, see [`plan`].

mod folders;
pub(in super::super) mod plan;

use super::super::Recovery;
use super::super::carry_out::{Doing, Outcome, StepError};
use super::super::plans::{Plan, Step};
use super::super::policy::{JournalPolicy, file_name};
use super::super::vm::RecoveredVm;
use super::{NotClosed, list, not_usable};
use crate::error::{OperationError, Result};
use anyhow::Context;
use folders::{bytes_in, check_not_inside, check_target, copy, remove};
use joint::life::{Refused, State, Task, Use};
use operations::{At, Lock, Progress};
use plan::{MovePlan, MoveStep};
use replication::wire::{Refusal, Refuse};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long whoever wants a journal's folder waits for those that use it: a scrub of a segment, a step of a fold.
pub(super) const FOLDER_PATIENCE: Duration = Duration::from_secs(120);

impl Recovery {
    /// Moves a journal, not its replicas if they lie elsewhere, to another folder; answers once it is there, or where it
    /// was. Its stream is closed meanwhile: the source buffers, and tracks beyond that.
    pub(crate) fn move_journal(&self, name: &str, folder: &str) -> Result<api::Journal> {
        let vm = self.vm(name)?;
        let target = PathBuf::from(folder);
        check_target(&target)?;
        // Where it lies is looked at once nobody else moves it.
        let plan = || {
            let source = vm.folder(&self.journal_config.folder);
            let (vm, label) = (vm.id(), vm.label());
            Plan::Move(MovePlan { vm, label, source, target, copies: false, switches: false })
        };
        let id = self.begin(plan)?;
        match self.go_on(id, &Doing::waited_for(self))? {
            Outcome::Done => {}
            Outcome::TakenBack(error) | Outcome::Stands(error) => return Err(error),
        }
        tracing::info!(vm = name, folder, "journal moved");
        self.journal_to_api(&vm)
    }

    /// How far the moving of a VM's journal is, while it is on its way.
    pub(in super::super) fn moving(&self, vm: &RecoveredVm) -> Option<api::Moving> {
        let book = self.operations.book();
        let (record, control) = book.get(book.holder(Lock::Kept(vm.id()))?)?;
        let Plan::Move(plan) = &record.plan else { return None };
        // What is left then is only to be removed.
        let is_there = matches!(record.step(), Some((_, Step::Move(MoveStep::Remove))));
        let Progress { done, total } = control.progress();
        let folder = plan.target.display().to_string();
        (!is_there).then_some(api::Moving { folder, bytes_done: done, bytes_total: total })
    }

    pub(in super::super) fn is_move_step_done(&self, plan: &MovePlan, step: MoveStep) -> bool {
        let vm = self.vms().get(&plan.vm).cloned();
        match (step, vm) {
            (MoveStep::Copy, vm) => vm.is_some_and(|vm| self.lies_at(&vm, &plan.target)),
            // It was forgotten: it needs no opening.
            (MoveStep::Open, vm) => vm.is_none_or(|vm| vm.life().state() == State::Open),
            (MoveStep::Remove, _) => !plan.source.exists(),
        }
    }

    pub(in super::super) fn run_move_step(
        &self,
        plan: &mut MovePlan,
        step: MoveStep,
        at: &mut At<'_, MovePlan>,
    ) -> std::result::Result<(), StepError> {
        let vm = self.vms().get(&plan.vm).cloned();
        match (step, vm) {
            (MoveStep::Copy, Some(vm)) => self.copy_journal(&vm, plan, at),
            (MoveStep::Copy, None) => Err(OperationError::not_found("its VM is not kept any more").into()),
            (MoveStep::Open, Some(vm)) => Ok(self.open_journal(&vm, Use::Look).map(drop)?),
            (MoveStep::Open, None) => Ok(()),
            (MoveStep::Remove, vm) => {
                if vm.is_some_and(|vm| self.lies_at(&vm, &plan.source)) {
                    let detail = format!("the journal lies in {} again", plan.source.display());
                    return Err(OperationError::conflict(detail).into());
                }
                Ok(remove(&plan.source).map_err(OperationError::from)?)
            }
        }
    }

    pub(in super::super) fn undo_move_step(&self, plan: &MovePlan, step: MoveStep) -> Result<()> {
        assert_eq!(step, MoveStep::Copy, "there is a way back from nothing else");
        if plan.copies {
            remove(&plan.target)?;
        }
        if let Some(vm) = self.vms().get(&plan.vm).cloned() {
            // It goes on where it was. Where it cannot be opened now that is tried again by itself.
            let _ = self.open_journal(&vm, Use::Look);
        }
        Ok(())
    }

    fn lies_at(&self, vm: &RecoveredVm, folder: &Path) -> bool {
        vm.folder(&self.journal_config.folder) == folder
    }

    fn copy_journal(
        &self,
        vm: &Arc<RecoveredVm>,
        plan: &mut MovePlan,
        at: &mut At<'_, MovePlan>,
    ) -> std::result::Result<(), StepError> {
        vm.check_is_kept().map_err(OperationError::from)?;
        check_not_inside(&plan.target, &plan.source)?;
        self.check_no_images(vm)?;
        if !vm.stop_stream(Refuse { why: Refusal::Busy, detail: "the journal is being moved".into() }) {
            tracing::warn!(vm = plan.label, "its stream does not let go; the journal's folder waits for it");
        }
        let _taken = vm.life().take_folder(Task::Move, FOLDER_PATIENCE).map_err(|why| not_taken(vm, &why))?;
        self.check_no_images(vm)?; // None that is not served, either.
        if plan.switches {
            // What could not be made durable may be on the disk all the same: it is not to name what is removed now.
            self.save_policy(vm, &vm.policy())?;
        }
        if plan.copies {
            remove(&plan.target).map_err(OperationError::from)?;
        } else {
            check_target(&plan.target)?;
            plan.copies = true;
            at.keep(plan)?;
        }
        let total = bytes_in(&plan.source).with_context(|| format!("look at {}", plan.source.display()));
        let (mut done, total) = (0, total.map_err(OperationError::from)?);
        copy(&plan.source, &plan.target, &mut |bytes| {
            done += bytes;
            at.progress(Progress { done, total });
            at.check().map_err(StepError::from)
        })?;
        plan.switches = true;
        at.keep(plan)?;
        let policy = JournalPolicy { folder: Some(plan.target.clone()), ..vm.policy() };
        self.save_policy(vm, &policy)?;
        vm.set_policy(policy);
        vm.let_go_of_folder();
        Ok(())
    }

    fn save_policy(&self, vm: &RecoveredVm, policy: &JournalPolicy) -> Result<()> {
        Ok(self.state.save(&file_name(&vm.id().to_string()), policy)?)
    }

    fn check_no_images(&self, vm: &RecoveredVm) -> Result<()> {
        match self.has_images(vm) {
            true => Err(super::images_are_open(vm)),
            false => Ok(()),
        }
    }
}

/// Why somebody does not get a journal's folder.
pub(super) fn not_taken(vm: &RecoveredVm, why: &NotClosed) -> OperationError {
    let name = vm.name();
    match why {
        NotClosed::Refused(Refused::Images) => super::images_are_open(vm),
        NotClosed::Refused(Refused::State(state)) => OperationError::conflict(not_usable(&name, *state)),
        NotClosed::StillUsed(uses) => OperationError::unavailable(format!(
            "the journal of VM {name} is still used by {} after {} s, and goes on as before: try again later, and see to its \
             disk where that does not end",
            list(uses),
            FOLDER_PATIENCE.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests;
