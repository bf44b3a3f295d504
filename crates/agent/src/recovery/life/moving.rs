//! Moving a journal to another folder: an operation, see [`plan`].

mod folders;
pub(in super::super) mod plan;

use super::super::Recovery;
use super::super::carry_out::Doing;
use super::super::plans::{Plan, Step};
use super::super::policy::{JournalPolicy, file_name};
use super::super::vm::RecoveredVm;
use super::{NotClosed, list, not_usable};
use crate::error::{OperationError, Result};
use crate::ledger::{Asker, StepError};
use anyhow::Context;
use folders::{
    bytes_in, check_lies_in_no_journal, check_not_inside, check_target, copy, empty, give_back,
    has_journal_of_another, is_marked, make_room, mark, remove, unmark,
};
use joint::life::{Refused, State, Task, Use};
use operations::{At, Lock, Progress};
use plan::{MovePlan, MoveStep};
use replication::wire::{Refusal, Refuse};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use types::VmId;

/// How long whoever wants a journal's folder waits for those that use it: a scrub of a segment, a step of a fold.
pub(super) const FOLDER_PATIENCE: Duration = Duration::from_secs(120);

impl Recovery {
    /// Moves a journal, not its replicas if they lie elsewhere, to another folder; answers once it is there, or where it
    /// was. Its stream is closed meanwhile: the source buffers, and tracks beyond that.
    pub(crate) fn move_journal(&self, name: &str, folder: &str, asker: &Asker) -> Result<api::Journal> {
        let vm = self.vm(name)?;
        let target = PathBuf::from(folder);
        check_target(&target, vm.id())?;
        // It may go back to where journals lie.
        if target != self.journal_dir.join(vm.id().to_string()) {
            self.check_is_not_own(&target)?;
        }
        // Where it lies is looked at once nobody else moves it.
        let plan = || {
            let source = vm.folder(&self.journal_config.folder);
            let (vm, label) = (vm.id(), vm.label());
            Plan::Move(MovePlan { vm, label, source, target, copies: false, switches: false })
        };
        let held = self.operations.begin(plan, asker)?;
        self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
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
            (MoveStep::Remove, _) => {
                !plan.source.exists() && is_marked(&plan.target, plan.vm).is_ok_and(|marked| !marked)
            }
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
                Ok(self.remove_source(plan)?)
            }
        }
    }

    /// Removes the folder that the journal has left, unless another has come there meanwhile: then it was empty already.
    fn remove_source(&self, plan: &MovePlan) -> Result<()> {
        unmark(&plan.target, plan.vm)?;
        if !plan.source.exists() {
            return Ok(());
        }
        if !self.is_anothers(&plan.source, plan.vm) {
            make_room(&plan.source, plan.vm)?;
        }
        mark(&plan.source, plan.vm)?;
        if self.is_anothers(&plan.source, plan.vm) {
            let source = plan.source.display();
            tracing::warn!(vm = plan.label, %source, "the old folder has the journal of another VM now, and stays");
            return Ok(unmark(&plan.source, plan.vm)?);
        }
        Ok(remove(&plan.source, plan.vm)?)
    }

    pub(in super::super) fn undo_move_step(&self, plan: &MovePlan, step: MoveStep) -> Result<()> {
        assert_eq!(step, MoveStep::Copy, "there is a way back from nothing else");
        match is_marked(&plan.target, plan.vm).context("look at the target")? {
            true if plan.copies => remove(&plan.target, plan.vm)?,
            true => give_back(&plan.target, plan.vm)?,
            // Nothing is known to be this move's.
            false => {}
        }
        let vm = self.vms().get(&plan.vm).cloned();
        if let Some(vm) = vm {
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
        self.check_lies_alone(vm)?;
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
        self.take_target(plan, at)?;
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

    /// Makes the target this move's, and no other's, with nothing in it.
    fn take_target(
        &self,
        plan: &mut MovePlan,
        at: &mut At<'_, MovePlan>,
    ) -> std::result::Result<(), StepError> {
        let is_ours = is_marked(&plan.target, plan.vm).context("look at the target");
        if plan.copies && is_ours.map_err(OperationError::from)? {
            return Ok(empty(&plan.target).map_err(OperationError::from)?);
        }
        if plan.copies {
            // Whoever finds the mark that is made now is to know that nothing was copied there.
            plan.copies = false;
            at.keep(plan)?;
        }
        check_target(&plan.target, plan.vm)?;
        check_lies_in_no_journal(&plan.target, plan.vm)?;
        mark(&plan.target, plan.vm)?;
        // Nobody else comes from here on.
        if let Err(error) = self.check_is_free(plan) {
            give_back(&plan.target, plan.vm).map_err(OperationError::from)?;
            return Err(error.into());
        }
        plan.copies = true;
        Ok(at.keep(plan)?)
    }

    fn check_is_free(&self, plan: &MovePlan) -> Result<()> {
        check_target(&plan.target, plan.vm)?;
        check_lies_in_no_journal(&plan.target, plan.vm)?;
        let others: Vec<_> = self.vms().values().filter(|vm| vm.id() != plan.vm).cloned().collect();
        match others
            .iter()
            .find(|vm| vm.folders(&self.journal_config).iter().any(|folder| is_in(&plan.target, folder)))
        {
            None => Ok(()),
            Some(vm) => Err(OperationError::conflict(format!(
                "{} lies where the journal of VM {} has its files: give a folder elsewhere",
                plan.target.display(),
                vm.label()
            ))),
        }
    }

    /// Whether a folder that this VM's journal has left is another's by now.
    fn is_anothers(&self, folder: &Path, vm: VmId) -> bool {
        self.who_lies_in(folder, vm).is_some() || has_journal_of_another(folder, vm)
    }

    /// Another VM, if it has files in this folder.
    fn who_lies_in(&self, folder: &Path, vm: VmId) -> Option<Arc<RecoveredVm>> {
        let mut others: Vec<_> = self.vms().values().filter(|other| other.id() != vm).cloned().collect();
        others.retain(|vm| vm.folders(&self.journal_config).iter().any(|of_other| is_in(of_other, folder)));
        others.pop()
    }

    /// What is removed with a VM's folders is that VM's alone.
    pub(super) fn check_lies_alone(&self, vm: &RecoveredVm) -> Result<()> {
        let folders = vm.folders(&self.journal_config);
        match folders.iter().find_map(|folder| Some((folder, self.who_lies_in(folder, vm.id())?))) {
            None => Ok(()),
            Some((folder, other)) => Err(OperationError::conflict(format!(
                "the journal of VM {} has files in {}, which would be removed with it: `holdfast journal move` that one \
                 elsewhere first",
                other.label(),
                folder.display()
            ))),
        }
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

/// Whether a path that exists lies in a folder, or is it, whatever way they are written.
fn is_in(path: &Path, folder: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(path).zip(real(folder)).is_some_and(|(path, folder)| path.starts_with(folder))
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
