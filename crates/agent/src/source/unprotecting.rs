//! Ending protections: an operation, see [`plan`].

pub(super) mod plan;

use super::carry_out::Doing;
use super::host_devices::HostDevices;
use super::plans::Plan;
use super::record::{ProtectionRecord, file_name};
use super::tapped::{NamedBy, VmTap, clear_alerts};
use super::vm::ProtectedVm;
use super::{Changed, Source};
use crate::error::{OperationError, Result};
use crate::ledger::{Asker, Held};
use operations::OperationId;
use plan::{UnprotectPlan, UnprotectStep};
use std::sync::Arc;
use types::{VmId, WriteSeq};

impl Source {
    /// Ends a protection, or goes on with that. The VM's image stays as it is; its socket goes.
    pub(crate) fn unprotect(self: &Arc<Self>, name: &str, asker: &Asker) -> Result<()> {
        let vm = {
            let _turn = self.changing.take(vec![Changed::Vm(name.to_owned())], &format!("VM {name}"))?;
            let (vm, held) = self.begin_unprotecting(name, asker)?;
            self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
            vm
        };
        self.wait_for_departure(vm);
        Ok(())
    }

    fn begin_unprotecting(&self, name: &str, asker: &Asker) -> Result<(VmId, Held<'_>)> {
        let stalled = self.stalled().get(name).map(|stalled| stalled.record.clone());
        let stalled = stalled.as_ref().map(id_of).transpose()?;
        let protected = stalled.or_else(|| self.vm(name).ok().map(|vm| vm.id()));
        // One that has its name now is another than one whose end is yet to be told.
        let is_it = |(_, vm): &(OperationId, VmId)| protected.is_none_or(|protected| protected == *vm);
        if let Some((id, vm)) = self.unprotections_under_way(name).into_iter().find(is_it) {
            return Ok((vm, self.operations.join_idle(id, asker)?));
        }
        let vm = match stalled {
            Some(vm) => vm,
            None => {
                let vm = self.vm(name)?;
                vm.check_is_not_mounted()?;
                check_is_not_used(&vm)?;
                vm.id()
            }
        };
        let plan = UnprotectPlan { vm, name: name.to_owned() };
        Ok((vm, self.operations.begin(|| Plan::Unprotect(plan), asker)?))
    }

    /// What has begun may have come to where the VM is not found by its name any more.
    pub(super) fn unprotections_under_way(&self, name: &str) -> Vec<(OperationId, VmId)> {
        let of_name = self.operations.unended().into_iter().filter_map(|(id, plan)| match plan {
            Plan::Unprotect(plan) if plan.name == name => Some((id, plan.vm)),
            Plan::Unprotect(_) | Plan::Protect(_) | Plan::Change(_) => None,
        });
        of_name.collect()
    }

    pub(super) fn is_unprotect_step_done(&self, plan: &UnprotectPlan, step: UnprotectStep) -> bool {
        match step {
            UnprotectStep::Detach | UnprotectStep::Depart => !self.is_protected(plan.vm),
            UnprotectStep::End => !self.is_protected(plan.vm) && !self.is_recorded(&plan.vm.to_string()),
            UnprotectStep::Tell => self.is_departure_told(plan.vm),
        }
    }

    pub(super) fn run_unprotect_step(
        self: &Arc<Self>,
        plan: &UnprotectPlan,
        step: UnprotectStep,
    ) -> Result<()> {
        match step {
            UnprotectStep::Detach => self.detach(plan.vm),
            UnprotectStep::Depart => match self.record_of(plan.vm)? {
                Some(record) => Ok(self.record_departure(&record, self.last_drawn_of(&record))?),
                None => Ok(()),
            },
            UnprotectStep::End => self.end_protection(plan.vm),
            UnprotectStep::Tell => Ok(self.tell_departure(plan.vm)?),
        }
    }

    pub(super) fn undo_unprotect_step(
        self: &Arc<Self>,
        plan: &UnprotectPlan,
        step: UnprotectStep,
    ) -> Result<()> {
        match step {
            UnprotectStep::Detach => {
                self.attach_anew(plan.vm);
                Ok(())
            }
            UnprotectStep::Depart => Ok(self.take_departure_back(plan.vm)?),
            UnprotectStep::End | UnprotectStep::Tell => unreachable!("there is no way back from it"),
        }
    }

    fn detach(&self, vm: VmId) -> Result<()> {
        match self.live(vm) {
            Some(vm) => {
                check_is_not_used(&vm)?;
                vm.detach(self.boot_id)
            }
            None => self.record_of(vm)?.as_ref().map_or(Ok(()), HostDevices::remove_unserved),
        }
    }

    /// A VM that was left goes on as one whose tap was lost does.
    fn attach_anew(self: &Arc<Self>, vm: VmId) {
        let Some(name) = self.live(vm).filter(|vm| vm.is_left()).map(|vm| vm.name()) else { return };
        let why = "it was not unprotected after all";
        let text = format!("VM {name} is not protected: {why}; attached again by itself");
        self.lose(&name, why, text, |_| ());
    }

    /// Ends the stream of a VM, and removes what is recorded of its protection.
    pub(super) fn end_protection(self: &Arc<Self>, id: VmId) -> Result<()> {
        let Some(record) = self.record_of(id)? else { return Ok(()) };
        // Until the list of those that are told of has it.
        let _absent = self.absent.note(&record.group_id);
        let is_stalled =
            self.stalled().get(&record.name).is_some_and(|stalled| stalled.record.vm == record.vm);
        let left_at = self.last_drawn_of(&record);
        let record = match self.live(id) {
            Some(vm) => {
                self.end(&vm);
                // It may have been told of until just now, and is not any more.
                vm.record()
            }
            None => record,
        };
        self.have_departure(&record, left_at)?;
        self.remove_records(&record)?;
        if is_stalled {
            self.stalled().remove(&record.name);
            if let Some(group) = self.group_named(&record.group) {
                self.has_left(&group);
            }
            self.leave_stalled(&record);
        }
        self.alerts.forget_protection(&record.name);
        clear_alerts(self, &record.name);
        tracing::info!(vm = record.name, "unprotected");
        Ok(())
    }

    /// The last sequence that a VM may have.
    pub(super) fn last_drawn_of(&self, record: &ProtectionRecord) -> WriteSeq {
        let group = self.group_named(&record.group).filter(|group| group.id().to_string() == record.group_id);
        group.map_or(WriteSeq::before_run(self.run), |group| group.counter().last())
    }

    /// Removes what is recorded of a protection, its own record last: while that is there the rest may be found.
    pub(super) fn remove_records(&self, record: &ProtectionRecord) -> anyhow::Result<()> {
        self.state.remove(&record.freshness_name())?;
        self.state.remove(&record.map_name())?;
        self.state.remove(&record.region_log_name())?;
        self.state.remove(&record.file_name())
    }

    /// Leaves a VM that is not tapped now without a trace, where it can be reached. One that has ended has none; in one
    /// that does not answer a change log is left, which costs it nothing.
    fn leave_stalled(&self, record: &ProtectionRecord) {
        let Some(control) = &record.qmp else { return };
        let tap = VmTap::open(self, &mut record.clone(), control, NamedBy::Record);
        if let Err(error) = tap.and_then(|tap| tap.detach()) {
            tracing::info!(vm = record.name, error = error.detail, "unprotected without asking the VM");
        }
    }

    pub(super) fn live(&self, id: VmId) -> Option<Arc<ProtectedVm>> {
        self.vms().values().find(|vm| vm.id() == id).cloned()
    }

    /// Whether it is protected, or waits to be taken up.
    pub(super) fn is_protected(&self, id: VmId) -> bool {
        let text = id.to_string();
        self.live(id).is_some() || self.stalled().values().any(|stalled| stalled.record.vm == text)
    }

    pub(super) fn is_recorded(&self, vm: &str) -> bool {
        self.state.path(&file_name(vm)).exists()
    }

    /// What a protection is, also of one that was ended in part.
    pub(super) fn record_of(&self, id: VmId) -> Result<Option<ProtectionRecord>> {
        if let Some(vm) = self.live(id) {
            return Ok(Some(vm.record()));
        }
        let text = id.to_string();
        let stalled = self.stalled().values().find(|stalled| stalled.record.vm == text).cloned();
        match stalled {
            Some(stalled) => Ok(Some(stalled.record)),
            None => Ok(self.state.load(&file_name(&text))?),
        }
    }
}

fn id_of(record: &ProtectionRecord) -> Result<VmId> {
    Ok(record.vm.parse().map_err(|_| anyhow::anyhow!("VM id of {} is no id", record.name))?)
}

fn check_is_not_used(vm: &ProtectedVm) -> Result<()> {
    if vm.is_tapped() || vm.clients() == 0 {
        return Ok(());
    }
    Err(OperationError::conflict(format!(
        "VM {} runs on the agent's socket; stop it first, then start it on its plain image",
        vm.name()
    )))
}

#[cfg(test)]
mod tests;
