//! Forgetting a VM and its journal, for good.
//!
//! 1. Nobody sends it and no image of it is open: its record says that it is forgotten. From here on no stream is let in
//!    and its journal is not opened: whoever greets for it is told to come again.
//! 2. Its journal is closed once nobody uses it any more; no image of it comes to stay meanwhile.
//! 3. Its folders go.
//! 4. Its record goes: whoever greets now gets a new journal.
//!
//! So there is never a journal of which a part is deleted, and none is deleted that was made meanwhile. An agent that dies
//! between 1 and 4 goes on with 3 when it comes back.

use super::super::Recovery;
use super::super::admission::asked_alert;
use super::super::policy::file_name;
use super::super::scrub::scrub_alert;
use super::super::silence::silence_alert;
use super::super::upkeep::upkeep_alert;
use super::super::vm::RecoveredVm;
use super::moving::{FOLDER_PATIENCE, not_taken};
use super::{images_are_open, journal_alert};
use crate::alerts::Alerts;
use crate::error::{ErrorKind as OperationErrorKind, OperationError, Result};
use anyhow::Context;
use joint::life::Task;
use operations::Lock;
use std::io::ErrorKind;
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

    /// Forgets a VM and its journal, for good.
    pub(crate) fn forget(&self, word: &str) -> Result<()> {
        let vm = self.vm_to_forget(word)?;
        if self.has_images(&vm) {
            return Err(images_are_open(&vm));
        }
        if let Some((id, ..)) = self.operations.at(Lock::Kept(vm.id())) {
            return Err(OperationError::conflict(format!(
                "the journal of VM {} is being moved by operation {id}: wait for its end, or cancel it",
                vm.label()
            )));
        }
        let Some(_alone) = vm.forgets() else {
            return Err(OperationError::conflict(format!("VM {} is being forgotten already", vm.label())));
        };
        let has_begun = vm.begin_forgetting(&self.state)?;
        if let Err(error) = self.finish_forgetting(&vm, has_begun) {
            if vm.is_forgotten() {
                self.tell_half_forgotten(&vm, &error);
            }
            return Err(error);
        }
        tracing::info!(vm = vm.label(), "forgotten");
        Ok(())
    }

    /// Steps 2 to 4. Only what has begun in this very call is taken back: of what was begun before a part may be deleted.
    fn finish_forgetting(&self, vm: &Arc<RecoveredVm>, has_begun: bool) -> Result<()> {
        let taken = self.check_lies_alone(vm).and_then(|()| {
            match vm.life().take_folder(Task::Delete, FOLDER_PATIENCE) {
                Ok(taken) if !self.has_images(vm) => Ok(taken),
                refused => Err(refused.err().map_or_else(|| images_are_open(vm), |why| not_taken(vm, &why))),
            }
        });
        if taken.is_err() && has_begun {
            vm.keep_after_all(&self.state)?;
        }
        let taken = taken?;
        for folder in vm.folders(&self.journal_config) {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(anyhow::Error::new(error)
                        .context(format!(
                            "remove {}; `vm forget` of its id {} again removes the rest",
                            folder.display(),
                            vm.id()
                        ))
                        .into());
                }
                _ => {}
            }
        }
        vm.let_go_of_folder();
        self.state.remove(&file_name(&vm.id().to_string())).context("remove the journal's settings")?;
        self.state.remove(&vm.record().file_name())?;
        taken.deleted();
        self.vms().remove(&vm.id());
        clear_alerts(&self.alerts, vm);
        Ok(())
    }

    /// Goes on with what the agent's end has interrupted.
    pub(in super::super) fn forget_the_rest(&self, vm: &Arc<RecoveredVm>) {
        match self.finish_forgetting(vm, false) {
            Ok(()) => tracing::info!(vm = vm.label(), "forgotten, as was asked for before the agent ended"),
            Err(error) => self.tell_half_forgotten(vm, &error),
        }
    }

    /// Its name may be another's by the time somebody reads this.
    fn tell_half_forgotten(&self, vm: &RecoveredVm, error: &OperationError) {
        let (label, id) = (vm.label(), vm.id());
        let text = format!("VM {label} ({id}) is forgotten in part only: {}", error.detail);
        self.alerts.raise(format!("forgetting of {id}"), text);
    }
}

fn clear_alerts(alerts: &Alerts, vm: &RecoveredVm) {
    alerts.clear(journal_alert(vm));
    alerts.clear(scrub_alert(vm));
    alerts.clear(upkeep_alert(vm));
    alerts.clear(format!("forgetting of {}", vm.id()));
    alerts.clear(asked_alert(vm));
    alerts.clear(silence_alert(vm));
}
