//! Changing protections while they go on: an operation, see [`plan`]. What it would cost is told before, see [`cost`].

mod cost;
pub(super) mod plan;

use super::carry_out::Doing;
use super::driver::Command;
use super::plans::Plan;
use super::protecting::{check_peer, check_peer_agent};
use super::record::{FileRecord, ProtectionRecord};
use super::vm::ProtectedVm;
use super::{Changed, Source, save_record};
use crate::error::{OperationError, Result};
use crate::ledger::Asker;
use crate::policy::Policy;
use plan::{ChangePlan, Kept, VmChange};
use std::sync::Arc;
use types::VmId;

impl Source {
    /// Changes what a VM's protection is kept to, or only says what that would cost.
    pub(crate) fn change_vm(
        self: &Arc<Self>,
        name: &str,
        request: &api::ChangeRequest,
        asker: &Asker,
    ) -> Result<api::Change> {
        let _turn = self.changing.take(vec![Changed::Vm(name.to_owned())], &format!("VM {name}"))?;
        let record = self.record_named(name)?;
        self.check_is_its_own(&record, &request.settings)?;
        let change = self.change_of(&record, request)?;
        self.change(&record.group, vec![change], request.dry_run, asker)
    }

    /// The same for all VMs of a group that are protected on this host.
    pub(crate) fn change_group(
        self: &Arc<Self>,
        word: &str,
        request: &api::GroupChangeRequest,
        asker: &Asker,
    ) -> Result<api::Change> {
        let settings = &request.settings;
        let group = self.group_here(word)?;
        if let (Some(_), Some(coordinator)) = (settings.checkpoint_interval_seconds, group.coordinator()) {
            return Err(OperationError::conflict(format!(
                "checkpoints of group {} are taken by its coordinator, {coordinator}: change their interval there",
                group.name()
            )));
        }
        let id = group.id().to_string();
        let names = || -> Vec<String> {
            let mut records = self.live_and_stalled();
            records.retain(|record| record.group_id == id);
            records.into_iter().map(|record| record.name).collect()
        };
        let turns = names().into_iter().map(Changed::Vm).collect();
        let _turn = self.changing.take(turns, &format!("a VM of group {}", group.name()))?;
        let of_each = api::ChangeRequest { settings: settings.clone(), ..api::ChangeRequest::default() };
        let changes = names().into_iter().map(|name| self.change_of(&self.record_named(&name)?, &of_each));
        let changes = changes.collect::<Result<_>>()?;
        let mut change = self.change(group.name(), changes, request.dry_run, asker)?;
        let elsewhere: Vec<_> = group.hosts().to_record().into_keys().collect();
        if !elsewhere.is_empty() {
            change
                .notes
                .push(format!("its VMs on {} stay as they are: change them there", elsewhere.join(", ")));
        }
        Ok(change)
    }

    fn change(
        self: &Arc<Self>,
        group: &str,
        changes: Vec<VmChange>,
        dry_run: bool,
        asker: &Asker,
    ) -> Result<api::Change> {
        let told = changes.iter().map(cost::tell).collect();
        let changes: Vec<_> = changes.into_iter().filter(|change| change.before != change.after).collect();
        let is_done = !dry_run && !changes.is_empty();
        if is_done {
            let plan = ChangePlan { group: group.to_owned(), changes };
            let held = self.operations.begin(|| Plan::Change(plan), asker)?;
            self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
        }
        Ok(api::Change { is_done, vms: told, notes: Vec::new() })
    }

    fn change_of(&self, record: &ProtectionRecord, request: &api::ChangeRequest) -> Result<VmChange> {
        let vm = record.vm.parse().map_err(|_| anyhow::anyhow!("VM id of {} is no id", record.name))?;
        if self.is_being_unprotected(&record.vm) {
            return Err(OperationError::conflict(format!("VM {} is being unprotected", record.name)));
        }
        let before = Kept::of(record);
        let mut after =
            Kept { policy: Policy::from_request(&before.policy, &request.settings)?, ..before.clone() };
        if let Some(peer) = &request.peer {
            check_peer(peer)?;
            after.peer.clone_from(peer);
        }
        if let Some(agent) = &request.peer_agent {
            check_peer_agent(agent)?;
            after.peer_agent = Some(agent.clone());
        }
        if let Some(text) = &request.definition {
            (after.definition, after.files) = self.take_definition(text)?;
        }
        Ok(VmChange { vm, name: record.name.clone(), before, after })
    }

    /// What is the whole group's is changed for all of it.
    fn check_is_its_own(&self, record: &ProtectionRecord, settings: &api::ProtectSettings) -> Result<()> {
        let of_group = settings.checkpoint_interval_seconds.is_some()
            || settings.priority.is_some()
            || settings.bytes_per_second_max.is_some();
        let others = self.live_and_stalled();
        let has_others =
            others.iter().any(|other| other.group_id == record.group_id && other.vm != record.vm);
        if !of_group || !has_others {
            return Ok(());
        }
        Err(OperationError::conflict(format!(
            "the interval of checkpoints, the priority and the rate are those of group {} as a whole, which has other VMs: \
             `holdfast group set {0}`",
            record.group
        )))
    }

    /// Files that definitions name which are being changed.
    pub(super) fn files_of_changes(&self) -> Vec<Vec<FileRecord>> {
        let plans = self.operations.unended().into_iter().filter_map(|(_, plan)| match plan {
            Plan::Change(plan) => Some(plan.changes),
            Plan::Protect(_) | Plan::Unprotect(_) => None,
        });
        plans.flatten().flat_map(|change| [change.before.files, change.after.files]).collect()
    }

    /// What is protected, or waits to be taken up.
    pub(super) fn live_and_stalled(&self) -> Vec<ProtectionRecord> {
        let mut records: Vec<_> = self.list().iter().map(|vm| vm.record()).collect();
        records.extend(self.stalled().values().map(|stalled| stalled.record.clone()));
        records
    }

    fn record_named(&self, name: &str) -> Result<ProtectionRecord> {
        let stalled = self.stalled().get(name).map(|stalled| stalled.record.clone());
        stalled.map_or_else(|| self.vm(name).map(|vm| vm.record()), Ok)
    }

    pub(super) fn is_changed(&self, plan: &ChangePlan, at: usize) -> Result<bool> {
        let change = &plan.changes[at];
        let record = self.record_of(change.vm)?;
        Ok(record.is_none_or(|record| change.after.is_in(&change.before, &record)))
    }

    pub(super) fn run_change(&self, plan: &ChangePlan, at: usize) -> Result<()> {
        let change = &plan.changes[at];
        self.put(change.vm, &change.before, &change.after)
    }

    pub(super) fn undo_change(&self, plan: &ChangePlan, at: usize) -> Result<()> {
        let change = &plan.changes[at];
        self.put(change.vm, &change.after, &change.before)
    }

    /// Writes down what a protection is kept to, and has it kept to that. One that waits is so once it is taken up.
    fn put(&self, vm: VmId, before: &Kept, after: &Kept) -> Result<()> {
        if let Some(live) = self.live(vm) {
            if !self.is_put(&live.record(), before, after) {
                live.put(&self.state, before, after)?;
            }
            self.have_followed(&live, before, after);
            return Ok(());
        }
        let text = vm.to_string();
        let mut stalled = self.stalled().values().find(|stalled| stalled.record.vm == text).cloned();
        if let Some(stalled) = &mut stalled {
            if self.is_put(&stalled.record, before, after) {
                return Ok(());
            }
            after.put_into(before, &mut stalled.record);
            save_record(&self.state, &stalled.record)?;
            self.stalled().insert(stalled.record.name.clone(), stalled.clone());
        }
        Ok(())
    }

    /// Whether it is so here and on the disk: one may be without the other where a record could not be made durable.
    fn is_put(&self, record: &ProtectionRecord, before: &Kept, after: &Kept) -> bool {
        let recorded = self.state.load::<ProtectionRecord>(&record.file_name());
        let is_in = |record: &ProtectionRecord| after.is_in(before, record);
        is_in(record) && recorded.is_ok_and(|found| found.is_some_and(|found| is_in(&found)))
    }

    fn have_followed(&self, vm: &Arc<ProtectedVm>, before: &Kept, after: &Kept) {
        let (policy, capture) = (&after.policy, vm.capture());
        capture.set_buffer(policy.buffer_bytes);
        capture.set_leaves_out(policy.leaves_out());
        let group = vm.group();
        if before.policy.sync() != policy.sync() {
            group.mode_changed(vm, policy.sync(), || self.lacks_vms_of(group));
        }
        // Another member may have another one on record than the group has, which is not what was asked for.
        let interval = policy.checkpoint_interval_seconds;
        if before.policy.checkpoint_interval_seconds != interval {
            group.set_interval(interval);
        }
        vm.follow_fence(self.boot_id);
        vm.command(Command::Follow { greets_anew: before.is_greeted_otherwise(after) });
        tracing::info!(vm = vm.name(), "changed");
    }
}

#[cfg(test)]
mod tests;
