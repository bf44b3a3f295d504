//! Failover of a group: fence, open images, start VMs, as an operation ([`plan`]); then commit or roll back ([`ending`]).

mod committing;
pub(super) mod ending;
mod fence;
pub(super) mod plan;
pub(super) mod record;
mod rolling_back;
mod steps;
mod telling;

use super::Recovery;
use super::carry_out::Doing;
use super::groups::KeptGroup;
use super::one_at_a_time::Turn;
use super::plans::Plan;
use super::vm::RecoveredVm;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunState, VmDefinition};
use crate::ledger::Asker;
pub(super) use fence::Asked;
use joint::choice::Pick;
use joint::failover::epoch_of;
use plan::FailoverPlan;
use record::{FailoverRecord, Phase, VmRun};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Recovery {
    /// Fails a group over to this side; answers once that is done, or taken back.
    pub(crate) fn failover(
        &self,
        word: &str,
        request: &api::FailoverRequest,
        asker: &Asker,
    ) -> Result<api::Failover> {
        let group = self.group(word)?;
        let label = group.label();
        let _turn = self.turns_of_groups.take(group.id, &label)?;
        // As it is now that nobody else does anything with it.
        let group = self.group(&group.id.to_string())?;
        let pick = group.pick(&request.vms, &request.without)?;
        // All that can hinder it is found before anything is fenced.
        let before = self.check_is_not_failed_over(&group)?;
        let asked = Asked::ask(&group, &request.at, &pick)?;
        let defined = asked.meant.iter().map(|vm| Ok((vm.name(), definition_of(vm)?)));
        let defined = defined.collect::<Result<Vec<_>>>()?;
        let defined: Vec<_> =
            defined.iter().filter_map(|(name, definition)| Some((&**name, definition.as_ref()?))).collect();
        if !defined.is_empty() {
            let checked = self.adapter.check_start(defined.into_iter());
            checked.map_err(|error| OperationError::conflict(format!("{error:#}")))?;
        }
        let known = group.all().filter_map(|vm| vm.journal()).map(|journal| journal.status().epoch);
        let epoch = epoch_of(known, before.map(|before| before.epoch()));
        let (vms, without) = match pick {
            Pick::All => (Vec::new(), Vec::new()),
            Pick::Only(ids) => (ids.iter().map(|id| id.to_string()).collect(), Vec::new()),
            Pick::Without(ids) => (Vec::new(), ids.iter().map(|id| id.to_string()).collect()),
        };
        let notes = asked.meant.iter().filter(|vm| vm.is_streaming()).map(still_there).collect();
        let (group, at, epoch) = (group.id, request.at.clone(), epoch.0);
        let plan = FailoverPlan { group, label: label.clone(), epoch, at, vms, without, notes };
        let held = self.operations.begin(|| Plan::Failover(plan), asker)?;
        self.go_on(held, &Doing::asked_by(self, asker).with_asked(asked))?.done()?;
        let record = self.failovers().get(&group).cloned();
        let record = record.expect("a failover that was done has a record");
        tracing::info!(group = label, epoch, cut = %record.cut(), "failed over");
        Ok(self.failover_to_api(&record))
    }

    /// The failover before, which was rolled back, if there was one.
    fn check_is_not_failed_over(&self, group: &KeptGroup) -> Result<Option<FailoverRecord>> {
        self.check_failover_was_read(group.id)?;
        let before = self.failovers().get(&group.id).cloned();
        if let Some(before) = before.as_ref().filter(|before| !before.is_released()) {
            return Err(OperationError::conflict(format!(
                "group {} has failed over already ({}); commit or roll back first",
                group.label(),
                before.phase_name()
            )));
        }
        Ok(before)
    }

    /// The failover that a group has or had last.
    pub(crate) fn show_failover(&self, word: &str) -> Result<api::Failover> {
        let record = self.failover_of(word)?;
        let record = record
            .ok_or_else(|| OperationError::not_found(format!("group {word:?} has not failed over here")))?;
        Ok(self.failover_to_api(&record))
    }

    /// Pauses the VMs of a failover, or lets them go on.
    pub(crate) fn set_paused(&self, group: &str, paused: bool) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
        let found = self.failover_of(group)?;
        let record = found
            .filter(|record| !record.is_released())
            .ok_or_else(|| OperationError::not_found(format!("group {group:?} has not failed over here")))?;
        for run in &record.vms {
            if run.pid.is_some_and(|pid| self.adapter.state(run.key(), pid) != RunState::Stopped) {
                let told = self.adapter.set_paused(run.key(), paused);
                told.map_err(|error| OperationError::unavailable(format!("VM {}: {error:#}", run.vm)))?;
            }
        }
        tracing::info!(group, paused, "failover paused or resumed");
        Ok(self.failover_to_api(&record))
    }

    fn check_images_were_read(&self, record: &FailoverRecord) -> Result<()> {
        record.vms.iter().try_for_each(|run| self.check_image_was_read(&run.image, &run.id))
    }

    /// A rollback that an agent of before had begun wrote nothing down but what it had done: some images are gone.
    fn check_images_are_there(&self, record: &FailoverRecord) -> Result<()> {
        let is_there = |run: &&VmRun| {
            let id = &run.image;
            let closes = self.waiting_images().get(id).map(|image| image.record.closing.is_some());
            closes.map_or_else(|| self.image(id).is_some(), |closes| !closes)
        };
        match record.vms.iter().find(|run| !is_there(run)) {
            None => Ok(()),
            Some(run) => Err(OperationError::conflict(format!(
                "image {} of VM {}, which the failover of group {} runs on, is gone: roll it back, or, where what is recorded of the image was lost, restore `images/{}.json` of the state folder first and restart the agent",
                run.image, run.vm, record.group, run.image
            ))),
        }
    }

    fn turn_of(&self, word: &str) -> Result<Turn<'_>> {
        let group = self.failed_over_group(word)?;
        self.turns_of_groups.take(group.id, &group.label())
    }

    /// The failover of the group an operator names, if it ever had one.
    fn failover_of(&self, word: &str) -> Result<Option<FailoverRecord>> {
        let id = self.failed_over_group(word)?.id;
        self.check_failover_was_read(id)?;
        Ok(self.failovers().get(&id).cloned())
    }

    /// The failover of a group that is neither final nor undone.
    fn running(&self, group: &str) -> Result<FailoverRecord> {
        match self.failover_of(group)? {
            Some(record) if record.is_undecided() => Ok(record),
            Some(record) => Err(OperationError::conflict(format!(
                "the failover of group {group} is {} already",
                record.phase_name()
            ))),
            None => Err(OperationError::not_found(format!("group {group:?} has not failed over here"))),
        }
    }

    /// Whether an image that a failover ran on may be closed: once that is final, all of the image is its own or nobody wants
    /// it any more (`needs_nothing`), and nobody runs on it. Then nothing is known of its VM any more. The turn is held.
    pub(super) fn let_go_of_image(&self, group: &str, id: &str, needs_nothing: bool) -> Result<()> {
        let record = self.failovers().values().find(|record| record.has_image(id)).cloned();
        let refuse = |detail: String| Err(OperationError::conflict(detail));
        if record.is_none() && self.has_unread_failovers() {
            return refuse(format!(
                "whether the failover of group {group} runs on this image cannot be told: a record of a failover cannot be \
                 read, see `holdfast alerts`"
            ));
        }
        if let Some(record) = &record {
            self.check_is_not_being_committed(record)?;
        }
        match record.as_ref().map(|record| record.phase) {
            Some(Phase::Starting | Phase::Running) => {
                return refuse(format!(
                    "the failover of group {group} runs on this image: roll it back, or commit it and promote the image"
                ));
            }
            Some(Phase::RollingBack) => {
                return refuse(format!(
                    "the failover of group {group} is being rolled back, and the image with it"
                ));
            }
            Some(Phase::Committed) if !needs_nothing => {
                return refuse(format!(
                    "the failover of group {group} is committed, and its disk still needs the journal: `holdfast image promote \
                     {id}` first, or, where nobody wants the disk any more, `holdfast image close {id} --discard`, which \
                     throws away all that its VM wrote since"
                ));
            }
            // A failover that is released or not recorded any more has left it behind.
            Some(Phase::RolledBack | Phase::Committed) | None => {}
        }
        let run = record.and_then(|record| record.vms.into_iter().find(|run| run.image == id));
        if let Some(run) = run {
            if run.pid.is_some_and(|pid| self.adapter.state(run.key(), pid) != RunState::Stopped) {
                return refuse(format!("VM {} runs on this image: shut it down first", run.vm));
            }
            self.forget_guest(run.key());
        }
        Ok(())
    }

    /// What a VM of a failover is called on this host, and its process; none where it has no definition.
    pub(super) fn run_of(&self, group: &str, vm: &str) -> Result<(String, Option<u32>)> {
        let found = self.failover_of(group)?;
        let run = found.and_then(|record| record.vms.into_iter().find(|run| run.answers_to(vm)));
        let run = run.ok_or_else(|| {
            OperationError::not_found(format!("group {group:?} has no failover here with a VM {vm:?}"))
        })?;
        Ok((run.key().to_owned(), run.pid))
    }

    /// VMs of failovers that were started here and whose QEMU is gone: what each is called on this host, and its group. Of
    /// groups with which something is being done nothing is said but their names.
    pub(super) fn ended_guests(&self) -> (BTreeMap<String, String>, BTreeSet<String>) {
        let (mut ended, mut busy) = (BTreeMap::new(), BTreeSet::new());
        let groups: Vec<_> =
            self.failovers().iter().map(|(id, record)| (*id, record.group.clone())).collect();
        for (id, group) in groups {
            let Some(_turn) = self.turns_of_groups.try_take(id) else {
                busy.insert(group);
                continue;
            };
            let runs = self.failovers().get(&id).map(|record| record.vms.clone()).unwrap_or_default();
            let is_gone = |run: &VmRun| run.pid.is_some_and(|pid| !self.adapter.is_alive(run.key(), pid));
            let gone = runs.iter().filter(|run| is_gone(run));
            ended.extend(gone.map(|run| (run.key().to_owned(), group.clone())));
        }
        (ended, busy)
    }

    /// Listens to every VM that runs on: the agent has begun anew.
    pub(super) fn watch_all(&self) {
        let runs: Vec<_> = self.failovers().values().flat_map(|record| record.vms.clone()).collect();
        for run in runs {
            if run.pid.is_some_and(|pid| self.adapter.state(run.key(), pid) != RunState::Stopped) {
                self.watch_guest(run.key());
            }
        }
    }
}

/// What is to be said of a VM whose source is still there.
fn still_there(vm: &Arc<RecoveredVm>) -> String {
    format!(
        "VM {} was still connected and its guest may be running: unless its operator there has chosen otherwise it goes on at \
         site {}, and what it writes there from now on is not replicated",
        vm.name(),
        vm.site()
    )
}

fn definition_of(vm: &RecoveredVm) -> Result<Option<VmDefinition>> {
    let text = vm.record().definition;
    if text.is_empty() {
        return Ok(None);
    }
    VmDefinition::parse(&text)
        .map(Some)
        .map_err(|error| OperationError::conflict(format!("VM {}: {error}", vm.name())))
}

#[cfg(test)]
mod cut_short;
#[cfg(test)]
mod hanging_disk;
#[cfg(test)]
mod tests;
