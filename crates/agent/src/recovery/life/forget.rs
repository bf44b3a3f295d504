//! Forgetting a VM and its journal, for good: an operation, see [`plan`].

pub(in super::super) mod plan;

use super::super::Recovery;
use super::super::admission::asked_alert;
use super::super::carry_out::Doing;
use super::super::lifting::lift_asked_alert;
use super::super::locking::locked_full_alert;
use super::super::plans::Plan;
use super::super::policy::file_name;
use super::super::running_twice::running_twice_alert;
use super::super::scrub::scrub_alert;
use super::super::silence::silence_alert;
use super::super::upkeep::upkeep_alert;
use super::super::vm::RecoveredVm;
use super::emptying::{remove_all_but, remove_if_empty, sync_folder};
use super::moving::{FOLDER_PATIENCE, not_taken};
use super::{images_are_open, journal_alert};
use crate::alerts::Alerts;
use crate::error::{ErrorKind as OperationErrorKind, OperationError, Result};
use crate::ledger::{Asker, Held, StepError};
use anyhow::Context;
use joint::life::{State, Task, Use};
use operations::{At, Lock};
use plan::{ForgetPlan, ForgetStep};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

impl Recovery {
    /// The VM to forget. A name that also fits one that is forgotten in part is not taken for the one that is kept: whoever
    /// repeats what has failed means the former.
    fn vm_to_forget(&self, word: &str) -> Result<Arc<RecoveredVm>> {
        let fits = |vm: &&Arc<RecoveredVm>| vm.is_forgotten() && vm.answers_to(word);
        let half_forgotten: Vec<_> = self.vms().values().filter(fits).cloned().collect();
        if let Some(vm) = half_forgotten.iter().find(|vm| vm.id().to_string() == word) {
            return Ok(vm.clone());
        }
        match (self.vm(word), half_forgotten.as_slice()) {
            (kept, []) => kept,
            (Ok(kept), _) if kept.id().to_string() == word => Ok(kept),
            (Err(error), _) if error.kind != OperationErrorKind::NotFound => Err(error),
            (Err(_), [one]) => Ok(one.clone()),
            (kept, half_forgotten) => {
                let row = |vm: &Arc<RecoveredVm>| format!("{} ({}), forgotten in part", vm.label(), vm.id());
                let kept = kept.iter().map(|vm| format!("{} ({}), which is kept", vm.label(), vm.id()));
                let rows: Vec<String> = half_forgotten.iter().map(row).chain(kept).collect();
                Err(OperationError::conflict(format!(
                    "VM {word:?} may be {}: name it by its id",
                    rows.join(", or ")
                )))
            }
        }
    }

    /// Forgets a VM and its journal, for good, or goes on with that. None where another does that just now: whoever has asked
    /// hears of its end.
    pub(crate) fn forget(&self, word: &str, asker: &Asker) -> Result<Option<()>> {
        let Some(held) = self.begin_forgetting(word, asker)? else { return Ok(None) };
        self.go_on(held, &Doing::asked_by(self, asker))?.done().map(Some)
    }

    fn begin_forgetting(&self, word: &str, asker: &Asker) -> Result<Option<Held<'_>>> {
        let vm = self.vm_to_forget(word)?;
        if let Some((id, Plan::Forget(_), _)) = self.operations.at(Lock::Kept(vm.id())) {
            return self.operations.join(id, asker);
        }
        if self.has_images(&vm) {
            return Err(images_are_open(&vm));
        }
        vm.check_not_locked("forgetting it")?;
        vm.check_is_not_sent()?;
        self.operations.begin(|| Plan::Forget(plan_for(&vm)), asker).map(Some)
    }

    /// What agents of before have begun to forget goes on as an operation.
    pub(in super::super) fn adopt_forgetting(&self) {
        let half_forgotten: Vec<_> = self.vms().values().filter(|vm| vm.is_forgotten()).cloned().collect();
        half_forgotten.iter().for_each(|vm| self.adopt_forgetting_of(vm));
    }

    fn adopt_forgetting_of(&self, vm: &RecoveredVm) {
        if self.operations.at(Lock::Kept(vm.id())).is_some() {
            return;
        }
        // It goes on and never begins: an operation of this agent may just have taken it back, and the VM is kept.
        let plan = ForgetPlan { deletes: true, ..plan_for(vm) };
        if let Err(error) = self.operations.begin(|| Plan::Forget(plan), &Asker::nobody()) {
            tracing::error!(vm = vm.label(), error = error.detail, "the forgetting does not go on yet");
        }
    }

    pub(in super::super) fn is_forget_step_done(&self, plan: &ForgetPlan, step: ForgetStep) -> bool {
        let vm = self.vms().get(&plan.vm).cloned();
        match step {
            // Where a part may be deleted it was marked, and one that is not has come anew.
            ForgetStep::Mark => vm.is_none_or(|vm| vm.is_forgotten() || plan.deletes),
            // One that has come anew has nothing to do with it.
            ForgetStep::Delete | ForgetStep::Remove => vm.is_none_or(|vm| !vm.is_forgotten()),
        }
    }

    pub(in super::super) fn run_forget_step(
        &self,
        plan: &mut ForgetPlan,
        step: ForgetStep,
        at: &mut At<'_, ForgetPlan>,
    ) -> std::result::Result<(), StepError> {
        let vm = self.vms().get(&plan.vm).cloned();
        let Some(vm) = vm else { return Ok(()) };
        match step {
            ForgetStep::Mark => Ok(vm.begin_forgetting(&self.state).map(drop)?),
            ForgetStep::Delete => self.delete_journal(&vm, plan, at),
            ForgetStep::Remove => Ok(self.remove_forgotten(&vm)?),
        }
    }

    /// Only what has not come to deleting is taken back.
    pub(in super::super) fn undo_forget_step(&self, plan: &ForgetPlan, step: ForgetStep) -> Result<()> {
        let vm = self.vms().get(&plan.vm).cloned();
        match (step, vm) {
            (ForgetStep::Mark, Some(vm)) => {
                vm.keep_after_all(&self.state)?;
                // It goes on as it was. Where it cannot be opened now that is tried again by itself.
                let _ = self.open_journal(&vm, Use::Look);
                Ok(())
            }
            (ForgetStep::Mark, None) | (ForgetStep::Delete, _) => Ok(()),
            (ForgetStep::Remove, _) => unreachable!("there is no way back from it"),
        }
    }

    fn delete_journal(
        &self,
        vm: &Arc<RecoveredVm>,
        plan: &mut ForgetPlan,
        at: &mut At<'_, ForgetPlan>,
    ) -> std::result::Result<(), StepError> {
        self.check_lies_alone(vm)?;
        let taken = match vm.life().take_folder(Task::Delete, FOLDER_PATIENCE) {
            Ok(taken) if !self.has_images(vm) => taken,
            Ok(_) => return Err(images_are_open(vm).into()),
            // By an agent's step before this one, in this very life.
            Err(_) if vm.life().state() == State::Gone => return Ok(()),
            Err(why) => return Err(not_taken(vm, &why).into()),
        };
        if !plan.deletes {
            plan.deletes = true;
            at.keep(plan)?;
        }
        for folder in vm.folders(&self.journal_config) {
            remove_durably(&folder)?;
        }
        vm.let_go_of_folder();
        taken.deleted();
        Ok(())
    }

    fn remove_forgotten(&self, vm: &Arc<RecoveredVm>) -> Result<()> {
        self.remembered.add(&self.state, vm.group(), vm.site()).context("remember whose its group is")?;
        self.state.remove(&file_name(&vm.id().to_string())).context("remove the journal's settings")?;
        self.state.remove(&vm.record().file_name())?;
        self.vms().remove(&vm.id());
        clear_alerts(&self.alerts, vm);
        tracing::info!(vm = vm.label(), "forgotten");
        Ok(())
    }
}

fn plan_for(vm: &RecoveredVm) -> ForgetPlan {
    // Of what an agent of before has begun a part may be deleted.
    ForgetPlan { vm: vm.id(), label: vm.label(), deletes: vm.is_forgotten() }
}

/// Once this returns, no crash brings it back.
fn remove_durably(folder: &Path) -> Result<()> {
    #[cfg(test)]
    crate::state::death::may_come();
    if folder.try_exists().with_context(|| format!("look at {}", folder.display()))? {
        remove_all_but(folder, &[])?;
        return Ok(remove_if_empty(folder)?);
    }
    // By an agent before this one, which may not have come to sync it.
    match folder.parent().map_or(Ok(()), sync_folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(anyhow::Error::new(error).context(format!("sync what {} lay in", folder.display())).into())
        }
        _ => Ok(()),
    }
}

fn clear_alerts(alerts: &Alerts, vm: &RecoveredVm) {
    alerts.clear(journal_alert(vm));
    alerts.clear(scrub_alert(vm));
    alerts.clear(upkeep_alert(vm));
    alerts.clear(asked_alert(vm));
    alerts.clear(silence_alert(vm));
    alerts.clear(locked_full_alert(vm));
    alerts.clear(lift_asked_alert(vm));
    alerts.clear(running_twice_alert(vm));
}

#[cfg(test)]
mod tests;
