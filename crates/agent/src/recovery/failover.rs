//! Failover of a group: fence, open images, start VMs; then commit or roll back.
//!
//! The record is saved before each step that cannot be taken back by forgetting it, so an agent that
//! dies in the middle finds the group fenced and the images named when it comes back.

use super::Recovery;
use super::cut;
use super::groups::{KeptGroup, Pick};
use super::images::{Closing, ImageRecord, OpenImage};
use super::vm::{RecoveredVm, checkpoint_to_api};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunState, StartDisk, VmDefinition};
use anyhow::Context;
use joint::life::Use;
use replication::wire::{Refusal, Refuse};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use types::{Epoch, GroupId, Monotonic, VmId, WriteSeq};

/// How long a failover waits for what is being written to a journal.
const FENCE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// Fenced; images are being opened and VMs started.
    Starting,
    Running,
    Committed,
    /// The group is the protected side's again, with the epoch of this record.
    RolledBack,
}

/// A failover, as `state/failovers/GROUP.json` has it. It stays after a rollback, for its epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FailoverRecord {
    group_id: String,
    pub(super) group: String,
    /// Of the group; empty where an older agent has not written it down.
    #[serde(default)]
    pub(super) site: String,
    pub(super) epoch: u64,
    pub(super) phase: Phase,
    pub(super) cut: u64,
    vms: Vec<VmRun>,
    /// VMs that the operator did without, and why: the id, the name and the reason.
    #[serde(default)]
    left_out: Vec<(String, String, String)>,
    #[serde(default)]
    notes: Vec<String>,
    image_open_seconds: f64,
    start_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct VmRun {
    /// Its name then.
    vm: String,
    image: String,
    pid: Option<u32>,
    /// Empty where an older agent has not written it down.
    #[serde(default)]
    id: String,
    /// What it is called on this host while it runs, where that is not its name.
    #[serde(default)]
    key: Option<String>,
}

impl VmRun {
    /// What the hypervisor's files of it are named by: no other VM on this host is.
    fn key(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.vm)
    }

    fn answers_to(&self, word: &str) -> bool {
        self.vm == word || self.id == word
    }
}

impl FailoverRecord {
    pub(super) fn group_id(&self) -> anyhow::Result<GroupId> {
        self.group_id.parse().with_context(|| format!("group id of failover of {}", self.group))
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub(super) fn is_released(&self) -> bool {
        self.phase == Phase::RolledBack
    }

    fn file_name(&self) -> String {
        format!("failovers/{}.json", self.group_id)
    }

    pub(super) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Committed => "committed",
            Phase::RolledBack => "rolled-back",
        }
    }
}

impl Recovery {
    /// Fails a group over to this side.
    pub(crate) fn failover(&self, word: &str, request: &api::FailoverRequest) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let started = clock::now();
        let group = self.group(word)?;
        let pick = group.pick(&request.vms, &request.without)?;
        let label = group.label();
        self.check_failover_was_read(group.id)?;
        let before = self.failovers().get(&group.id).cloned();
        if let Some(before) = before.as_ref().filter(|before| !before.is_released()) {
            return Err(OperationError::conflict(format!(
                "group {label} has failed over already ({}); commit or roll back first",
                before.phase_name()
            )));
        }
        // All that can hinder it is found before anything is fenced.
        let planned = cut::find(&group, &request.at, &pick)?;
        planned.vms.iter().try_for_each(|vm| definition_of(vm).map(drop))?;
        let mut notes: Vec<_> = planned.vms.iter().filter(|vm| vm.is_streaming()).map(still_there).collect();
        let known = group.all().filter_map(|vm| vm.journal()).map(|journal| journal.status().epoch.0).max();
        let epoch = Epoch(known.unwrap_or(0).max(before.map_or(0, |before| before.epoch))).next();
        let mut record = FailoverRecord {
            group_id: group.id.to_string(),
            group: group.name.clone(),
            site: group.site.clone(),
            epoch: epoch.0,
            phase: Phase::Starting,
            cut: 0,
            vms: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
            image_open_seconds: 0.0,
            start_seconds: 0.0,
        };
        self.keep(&record)?;
        let done = self
            .fence(&group, &planned.vms, epoch)
            .and_then(|()| self.start(&group, &request.at, &pick, &mut record, started));
        if let Err(error) = done {
            tracing::error!(group = label, error = error.detail, "failover is taken back");
            self.take_back(&mut record)?;
            return Err(error);
        }
        tracing::info!(group = label, %epoch, cut = %WriteSeq::from_raw(record.cut), "failed over");
        notes.append(&mut record.notes);
        notes.extend(self.unread_vms_note());
        record.notes = notes;
        self.keep(&record)?;
        Ok(self.failover_to_api(&record))
    }

    /// Nothing of the old epoch is appended from here on: to no journal of the group, for it is the group whose
    /// authority passes, also where only some of its VMs are opened.
    fn fence(&self, group: &KeptGroup, meant: &[Arc<RecoveredVm>], epoch: Epoch) -> Result<()> {
        for vm in group.all() {
            let why = Refusal::Fenced { epoch, released: false };
            if !vm.stop_stream(Refuse { why, detail: "the group has failed over to this side".into() }) {
                tracing::warn!(vm = vm.name(), "its stream does not let go; the epoch stops what it sends");
            }
            match fence_journal(vm, epoch) {
                Err(error) if meant.iter().any(|meant| meant.id() == vm.id()) => return Err(error),
                // The record of the failover keeps its stream out.
                Err(error) => {
                    tracing::warn!(vm = vm.name(), error = error.detail, "fenced without its journal");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn start(
        &self,
        group: &KeptGroup,
        at: &str,
        pick: &Pick,
        record: &mut FailoverRecord,
        started: Monotonic,
    ) -> Result<()> {
        // Anew: what arrived until the fence stood counts.
        let found = cut::find(group, at, pick)?;
        record.cut = found.cut.raw();
        record.notes = found.notes;
        let left_out = found.left_out.iter();
        record.left_out = left_out.map(|(vm, why)| (vm.id().to_string(), vm.name(), why.clone())).collect();
        let mut images = Vec::new();
        for vm in &found.vms {
            let image = self.open_at(vm, found.cut, true, Some(record.group.clone()), started)?;
            record.vms.push(VmRun {
                vm: vm.name(),
                image: image.record.id.clone(),
                pid: None,
                id: vm.id().to_string(),
                key: self.is_name_taken(&vm.name(), vm.id(), record).then(|| vm.id().to_string()),
            });
            self.keep(record)?;
            images.push(image);
        }
        record.image_open_seconds = clock::now().since(started).as_secs_f64();
        for (vm, (at, image)) in found.vms.iter().zip(images.iter().enumerate()) {
            let Some(definition) = definition_of(vm)? else { continue };
            let kept = vm.record();
            let journal = super::at::journal_of(vm)?;
            let disks = journal.disks().into_iter();
            let disks: Vec<_> =
                disks.map(|disk| StartDisk { name: disk.name, socket: image.socket.clone() }).collect();
            let file = |name: &str| {
                kept.file(name).filter(|hash| self.artifacts.has(*hash)).map(|hash| self.artifacts.path(hash))
            };
            let key = record.vms[at].key().to_owned();
            let run = self
                .adapter
                .start(&key, &format!("{} (failover)", vm.name()), &definition, file, &disks)
                .with_context(|| format!("start VM {}", vm.name()))?;
            record.vms[at].pid = Some(run.pid);
            self.keep(record)?;
            self.watch_guest(&key);
        }
        record.phase = Phase::Running;
        record.start_seconds = clock::now().since(started).as_secs_f64();
        self.keep(record)?;
        Ok(())
    }

    /// Whether another VM of a failover here goes by this name.
    fn is_name_taken(&self, name: &str, id: VmId, record: &FailoverRecord) -> bool {
        let id = id.to_string();
        let others = self.failovers();
        let runs = others.values().filter(|other| !other.is_released()).chain([record]);
        let mut runs = runs.flat_map(|record| &record.vms);
        runs.any(|run| run.id != id && run.key() == name)
    }

    /// Makes a failover final: the images go on, the old protected side stays fenced.
    pub(crate) fn commit(&self, group: &str) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let mut record = self.running(group)?;
        if record.phase == Phase::Starting {
            return Err(OperationError::conflict(format!(
                "the failover of group {group} was cut short before its VMs ran; roll it back and start it again"
            )));
        }
        self.check_images_were_read(&record)?;
        record.phase = Phase::Committed;
        self.keep(&record)?;
        tracing::info!(group, epoch = record.epoch, "failover committed");
        Ok(self.failover_to_api(&record))
    }

    /// Pauses the VMs of a failover, or lets them go on.
    pub(crate) fn set_paused(&self, group: &str, paused: bool) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
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

    /// Undoes a failover: VMs stop, what they wrote is thrown away, the group is the other side's again.
    pub(crate) fn rollback(&self, group: &str) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let mut record = self.running(group)?;
        self.check_images_were_read(&record)?;
        self.take_back(&mut record)?;
        tracing::info!(group, epoch = record.epoch, "failover rolled back");
        Ok(self.failover_to_api(&record))
    }

    fn take_back(&self, record: &mut FailoverRecord) -> Result<()> {
        for run in &mut record.vms {
            if let Some(pid) = run.pid.take() {
                self.adapter.stop(run.key(), pid).with_context(|| format!("stop VM {}", run.vm))?;
            }
            if let Some(image) = self.image(&run.image) {
                self.end_image(&image)?;
            } else if self.waiting_images().contains_key(&run.image) {
                self.end_waiting(&run.image)?;
            } else {
                self.end_lost_image(run)?;
            }
            self.forget_guest(run.key());
        }
        record.phase = Phase::RolledBack;
        self.keep(record)
    }

    fn check_images_were_read(&self, record: &FailoverRecord) -> Result<()> {
        record.vms.iter().try_for_each(|run| self.check_image_was_read(&run.image, &run.id))
    }

    /// Takes away what an image has left in its journal though nothing is recorded of it any more: its pin would hold
    /// history for ever. One without a pin may have been promoted: its disks are the operator's, and stay.
    fn end_lost_image(&self, run: &VmRun) -> Result<()> {
        let vm = self.list().into_iter().find(|vm| vm.id().to_string() == run.id);
        // What it had went with the journal.
        let Some(vm) = vm else { return Ok(()) };
        let lease = super::at::lease_of(&vm, Use::Image)?;
        let record = ImageRecord {
            id: run.image.clone(),
            vm: run.id.clone(),
            vm_name: run.vm.clone(),
            cut: 0,
            writable: true,
            failover: None,
            open_seconds: 0.0,
            promoted: false,
            closing: Some(Closing { keep_in: None }),
        };
        let owner = record.pin_owner();
        if lease.pins().iter().any(|pin| pin.owner == owner) {
            self.finish_image(&lease, &vm.folder(&self.journal_config.folder), &record)?;
        }
        Ok(())
    }

    /// The failover of the group an operator names, if it ever had one.
    fn failover_of(&self, word: &str) -> Result<Option<FailoverRecord>> {
        let id = self.failed_over_group(word)?.id;
        self.check_failover_was_read(id)?;
        Ok(self.failovers().get(&id).cloned())
    }

    fn running(&self, group: &str) -> Result<FailoverRecord> {
        match self.failover_of(group)? {
            Some(record) if matches!(record.phase, Phase::Running | Phase::Starting) => Ok(record),
            Some(record) => Err(OperationError::conflict(format!(
                "the failover of group {group} is {} already",
                record.phase_name()
            ))),
            None => Err(OperationError::not_found(format!("group {group:?} has not failed over here"))),
        }
    }

    /// Closes an image that a failover ran on: once that is final, all of the image is its own, and nobody runs on it.
    pub(super) fn close_image_of_failover(&self, group: &str, image: &OpenImage) -> Result<Vec<PathBuf>> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let id = &image.record.id;
        let runs_on_it = |record: &&FailoverRecord| record.vms.iter().any(|run| run.image == *id);
        let record = self.failovers().values().find(runs_on_it).cloned();
        let refuse = |detail: String| Err(OperationError::conflict(detail));
        if record.is_none() && self.has_unread_failovers() {
            return refuse(format!(
                "whether the failover of group {group} runs on this image cannot be told: a record of a failover cannot be \
                 read, see `holdfast alerts`"
            ));
        }
        match record.as_ref().map(|record| record.phase) {
            Some(Phase::Starting | Phase::Running) => {
                return refuse(format!(
                    "the failover of group {group} runs on this image: roll it back, or commit it and promote the image"
                ));
            }
            Some(Phase::Committed) if !image.is_promoted() => {
                return refuse(format!(
                    "the failover of group {group} is committed, and its disk still needs the journal: \
                     `holdfast image promote {id} --wait` first"
                ));
            }
            // A failover that is released or not recorded any more has left it behind.
            Some(Phase::RolledBack | Phase::Committed) | None => {}
        }
        let run = record.and_then(|record| record.vms.into_iter().find(|run| run.image == *id));
        if let Some(run) = run {
            if run.pid.is_some_and(|pid| self.adapter.state(run.key(), pid) != RunState::Stopped) {
                return refuse(format!("VM {} runs on this image: shut it down first", run.vm));
            }
            self.forget_guest(run.key());
        }
        self.end_image(image)
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

    /// Listens to every VM that runs on: the agent has begun anew.
    pub(super) fn watch_all(&self) {
        let runs: Vec<_> = self.failovers().values().flat_map(|record| record.vms.clone()).collect();
        for run in runs {
            if run.pid.is_some_and(|pid| self.adapter.state(run.key(), pid) != RunState::Stopped) {
                self.watch_guest(run.key());
            }
        }
    }

    fn keep(&self, record: &FailoverRecord) -> Result<()> {
        self.state.save(&record.file_name(), record)?;
        self.failovers().insert(record.group_id()?, record.clone());
        Ok(())
    }

    /// Groups whose journals are kept here.
    pub(crate) fn groups(&self) -> Vec<api::Group> {
        let to_api = |group: KeptGroup| {
            let failover = self.failovers().get(&group.id).cloned();
            let journals = group.all().filter_map(|vm| vm.journal());
            let epoch = journals.map(|journal| journal.status().epoch.0).max().unwrap_or(0);
            api::Group {
                id: group.id.to_string(),
                epoch: epoch.max(failover.as_ref().map_or(0, |failover| failover.epoch)),
                side: "recovery".into(),
                vms: group.members.iter().map(|vm| vm.name()).collect(),
                former: group.former.iter().map(|vm| vm.name()).collect(),
                failover: failover.as_ref().map(|failover| self.failover_to_api(failover)),
                name: group.name,
                site: group.site,
                ..api::Group::default()
            }
        };
        self.kept_groups().into_iter().map(to_api).collect()
    }

    /// Every kept VM for the operator.
    pub(crate) fn vms_to_api(&self) -> Vec<api::RecoveredVm> {
        let describe = |vm: Arc<RecoveredVm>| {
            let failover = self.failovers().get(&vm.group()).cloned();
            let state = failover.as_ref().and_then(|failover| match failover.phase {
                Phase::Starting | Phase::Running => Some("failed-over"),
                Phase::Committed => Some("committed"),
                Phase::RolledBack => None,
            });
            vm.to_api(&self.journal_dir, state, failover.map_or(0, |failover| failover.epoch))
        };
        self.list().into_iter().map(describe).collect()
    }

    fn failover_to_api(&self, record: &FailoverRecord) -> api::Failover {
        let cut = WriteSeq::from_raw(record.cut);
        let kept: Vec<_> =
            self.list().into_iter().filter(|vm| vm.record().group_id == record.group_id).collect();
        let opened = kept.iter().find(|vm| record.vms.iter().any(|run| run.id == vm.id().to_string()));
        let journal = opened.or(kept.first()).and_then(|vm| vm.journal());
        let checkpoint = journal.and_then(|journal| journal.checkpoint(types::CheckpointId(cut)).ok()?);
        let checkpoint = checkpoint.as_ref().map(checkpoint_to_api);
        let vms = record.vms.iter().map(|run| {
            let state = run.pid.map(|pid| self.adapter.state(run.key(), pid));
            let alive = run.pid.filter(|_| state != Some(RunState::Stopped));
            api::FailoverVm {
                id: run.id.clone(),
                vm: run.vm.clone(),
                image: run.image.clone(),
                socket: self
                    .image(&run.image)
                    .map(|image| image.socket.display().to_string())
                    .unwrap_or_default(),
                pid: alive,
                disks: alive.map(|_| self.guest_disks(run.key())).unwrap_or_default(),
                last_event: self.last_event(run.key()),
                run_state: match state {
                    None if record.is_released() => "stopped".into(),
                    None => "not-defined".into(),
                    Some(RunState::Stopped) => "stopped".into(),
                    Some(RunState::Paused) => "paused".into(),
                    Some(RunState::Running) => "running".into(),
                },
            }
        });
        let left_out = record.left_out.iter().map(|(id, vm, why)| api::LeftOut {
            id: id.clone(),
            vm: vm.clone(),
            why: why.clone(),
        });
        api::Failover {
            group: record.group.clone(),
            group_id: record.group_id.clone(),
            site: kept.first().map(|vm| vm.site()).unwrap_or_default(),
            left_out: left_out.collect(),
            notes: record.notes.clone(),
            epoch: record.epoch,
            phase: record.phase_name().to_owned(),
            cut: cut.to_string(),
            checkpoint,
            vms: vms.collect(),
            image_open_seconds: record.image_open_seconds,
            start_seconds: record.start_seconds,
        }
    }
}

/// Once this returns, all that is ever acknowledged of the old epoch is in the journal: a cut that is chosen then has
/// it, and nothing else comes to be in it. What had its place before the epoch was raised, also by a connection that nobody has stopped, is waited for.
fn fence_journal(vm: &RecoveredVm, epoch: Epoch) -> Result<()> {
    let journal = super::at::journal_of(vm)?;
    if journal.fence(epoch, FENCE_TIMEOUT).context("raise the journal's epoch")? {
        return Ok(());
    }
    Err(OperationError::unavailable(format!(
        "VM {}: the disk of its journal does not answer: what was being written for {} s may still be acknowledged; see to \
         the disk, or do without it with `--without`",
        vm.name(),
        FENCE_TIMEOUT.as_secs()
    )))
}

/// What is to be said of a VM whose source is still there.
fn still_there(vm: &Arc<RecoveredVm>) -> String {
    format!(
        "VM {} was still connected and its guest may be running: it is not stopped at site {}, and what it writes \
         there from now on is not replicated",
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
mod tests;
