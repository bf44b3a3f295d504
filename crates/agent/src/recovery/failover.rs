//! Failover of a group: fence, open images, start VMs; then commit or roll back.
//!
//! The record is saved before each step that cannot be taken back by forgetting it, so an agent that
//! dies in the middle finds the group fenced and the images named when it comes back.

use super::Recovery;
use super::at::resolve;
use super::images::OpenImage;
use super::vm::{RecoveredVm, checkpoint_to_api};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunState, StartDisk, VmDefinition};
use anyhow::Context;
use replication::wire::{Refusal, Refuse};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use types::{Epoch, GroupId, Monotonic, WriteSeq};

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
    pub(super) epoch: u64,
    pub(super) phase: Phase,
    pub(super) cut: u64,
    vms: Vec<VmRun>,
    image_open_seconds: f64,
    start_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct VmRun {
    vm: String,
    image: String,
    pid: Option<u32>,
}

impl FailoverRecord {
    pub(super) fn group_id(&self) -> anyhow::Result<GroupId> {
        self.group_id.parse().with_context(|| format!("group id of failover of {}", self.group))
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
    /// Fails a group over to this side, as of `at`.
    pub(crate) fn failover(&self, group: &str, at: &str) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let started = clock::now();
        let vms = self.members(group)?;
        let group_id = vms[0].group();
        let before = self.failovers().get(&group_id).cloned();
        if let Some(before) = before.as_ref().filter(|before| !before.is_released()) {
            return Err(OperationError::conflict(format!(
                "group {group} has failed over already ({}); commit or roll back first",
                before.phase_name()
            )));
        }
        let definitions = vms.iter().map(|vm| definition_of(vm)).collect::<Result<Vec<_>>>()?;
        resolve(&vms, at)?;
        let known = vms.iter().filter_map(|vm| vm.journal()).map(|journal| journal.status().epoch.0).max();
        let epoch = Epoch(known.unwrap_or(0).max(before.map_or(0, |before| before.epoch))).next();
        let mut record = FailoverRecord {
            group_id: group_id.to_string(),
            group: group.to_owned(),
            epoch: epoch.0,
            phase: Phase::Starting,
            cut: 0,
            vms: Vec::new(),
            image_open_seconds: 0.0,
            start_seconds: 0.0,
        };
        self.keep(&record)?;
        let done =
            self.fence(&vms, epoch).and_then(|()| self.start(&vms, &definitions, at, &mut record, started));
        if let Err(error) = done {
            tracing::error!(group, error = error.detail, "failover is taken back");
            self.take_back(&mut record)?;
            return Err(error);
        }
        tracing::info!(group, %epoch, cut = %WriteSeq::from_raw(record.cut), "failed over");
        Ok(self.failover_to_api(&record))
    }

    /// Nothing of the old epoch is appended from here on.
    fn fence(&self, vms: &[Arc<RecoveredVm>], epoch: Epoch) -> Result<()> {
        for vm in vms {
            let why = Refusal::Fenced { epoch, released: false };
            vm.stop_stream(Refuse { why, detail: "the group has failed over to this side".into() });
            let journal = super::at::journal_of(vm)?;
            journal.raise_epoch(epoch).context("raise the journal's epoch")?;
        }
        Ok(())
    }

    fn start(
        &self,
        vms: &[Arc<RecoveredVm>],
        definitions: &[Option<VmDefinition>],
        at: &str,
        record: &mut FailoverRecord,
        started: Monotonic,
    ) -> Result<()> {
        let cut = resolve(vms, at)?;
        record.cut = cut.raw();
        let mut images = Vec::new();
        for vm in vms {
            let image = self.open_at(vm, cut, true, Some(record.group.clone()), started)?;
            record.vms.push(VmRun { vm: vm.name(), image: image.record.id.clone(), pid: None });
            self.keep(record)?;
            images.push(image);
        }
        record.image_open_seconds = clock::now().since(started).as_secs_f64();
        for ((vm, definition), (at, image)) in vms.iter().zip(definitions).zip(images.iter().enumerate()) {
            let Some(definition) = definition else { continue };
            let kept = vm.record();
            let journal = super::at::journal_of(vm)?;
            let disks = journal.disks().into_iter();
            let disks: Vec<_> =
                disks.map(|disk| StartDisk { name: disk.name, socket: image.socket.clone() }).collect();
            let file = |name: &str| {
                kept.file(name).filter(|hash| self.artifacts.has(*hash)).map(|hash| self.artifacts.path(hash))
            };
            let run = self
                .adapter
                .start(&vm.name(), &format!("{} (failover)", vm.name()), definition, file, &disks)
                .with_context(|| format!("start VM {}", vm.name()))?;
            record.vms[at].pid = Some(run.pid);
            self.keep(record)?;
            self.watch_guest(&vm.name());
        }
        record.phase = Phase::Running;
        record.start_seconds = clock::now().since(started).as_secs_f64();
        self.keep(record)?;
        Ok(())
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
        record.phase = Phase::Committed;
        self.keep(&record)?;
        tracing::info!(group, epoch = record.epoch, "failover committed");
        Ok(self.failover_to_api(&record))
    }

    /// Pauses the VMs of a failover, or lets them go on.
    pub(crate) fn set_paused(&self, group: &str, paused: bool) -> Result<api::Failover> {
        let _one = self.failing_over.lock().expect("a panic aborts the process");
        let found = self.failovers().values().find(|record| record.group == group).cloned();
        let record = found
            .filter(|record| !record.is_released())
            .ok_or_else(|| OperationError::not_found(format!("group {group:?} has not failed over here")))?;
        for run in &record.vms {
            if run.pid.is_some_and(|pid| self.adapter.state(&run.vm, pid) != RunState::Stopped) {
                let told = self.adapter.set_paused(&run.vm, paused);
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
        self.take_back(&mut record)?;
        tracing::info!(group, epoch = record.epoch, "failover rolled back");
        Ok(self.failover_to_api(&record))
    }

    fn take_back(&self, record: &mut FailoverRecord) -> Result<()> {
        for run in &mut record.vms {
            if let Some(pid) = run.pid.take() {
                self.adapter.stop(&run.vm, pid).with_context(|| format!("stop VM {}", run.vm))?;
            }
            if let Some(image) = self.image(&run.image) {
                self.end_image(&image)?;
            } else if self.waiting_images().contains_key(&run.image) {
                self.end_waiting(&run.image)?;
            }
            self.forget_guest(&run.vm);
        }
        record.phase = Phase::RolledBack;
        self.keep(record)
    }

    fn running(&self, group: &str) -> Result<FailoverRecord> {
        let found = self.failovers().values().find(|record| record.group == group).cloned();
        match found {
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
        if record.as_ref().is_some_and(|record| record.phase != Phase::Committed) {
            return refuse(format!(
                "the failover of group {group} runs on this image: roll it back, or commit it and promote the image"
            ));
        }
        if !image.is_promoted() {
            return refuse(format!(
                "the failover of group {group} is committed, and its disk still needs the journal: \
                 `holdfast image promote {id} --wait` first"
            ));
        }
        let run = record.and_then(|record| record.vms.into_iter().find(|run| run.image == *id));
        if let Some(run) = run {
            if run.pid.is_some_and(|pid| self.adapter.state(&run.vm, pid) != RunState::Stopped) {
                return refuse(format!("VM {} runs on this image: shut it down first", run.vm));
            }
            self.forget_guest(&run.vm);
        }
        self.end_image(image)
    }

    /// The process of a VM of a failover; none where it has no definition.
    pub(super) fn pid_of(&self, group: &str, vm: &str) -> Result<Option<u32>> {
        let found = self.failovers().values().find(|record| record.group == group).cloned();
        let run = found.and_then(|record| record.vms.into_iter().find(|run| run.vm == vm));
        let run = run.ok_or_else(|| {
            OperationError::not_found(format!("group {group:?} has no failover here with a VM {vm:?}"))
        })?;
        Ok(run.pid)
    }

    /// Listens to every VM that runs on: the agent has begun anew.
    pub(super) fn watch_all(&self) {
        let runs: Vec<_> = self.failovers().values().flat_map(|record| record.vms.clone()).collect();
        for run in runs {
            if run.pid.is_some_and(|pid| self.adapter.state(&run.vm, pid) != RunState::Stopped) {
                self.watch_guest(&run.vm);
            }
        }
    }

    fn keep(&self, record: &FailoverRecord) -> Result<()> {
        self.state.save(&record.file_name(), record)?;
        self.failovers().insert(record.group_id()?, record.clone());
        Ok(())
    }

    fn members(&self, group: &str) -> Result<Vec<Arc<RecoveredVm>>> {
        let vms: Vec<_> = self.list().into_iter().filter(|vm| vm.record().group == group).collect();
        if vms.is_empty() {
            return Err(OperationError::not_found(format!(
                "no journals of a group {group:?} are kept here; fail over at the recovery side"
            )));
        }
        Ok(vms)
    }

    /// Groups whose journals are kept here.
    pub(crate) fn groups(&self) -> Vec<api::Group> {
        let mut groups: Vec<api::Group> = Vec::new();
        for vm in self.list() {
            let record = vm.record();
            if let Some(group) = groups.iter_mut().find(|group| group.id == record.group_id) {
                group.vms.push(record.name);
                continue;
            }
            let failover = self.failovers().get(&vm.group()).cloned();
            let epoch = vm.journal().map_or(0, |journal| journal.status().epoch.0);
            groups.push(api::Group {
                id: record.group_id,
                name: record.group,
                epoch: epoch.max(failover.as_ref().map_or(0, |failover| failover.epoch)),
                side: "recovery".into(),
                vms: vec![record.name],
                failover: failover.as_ref().map(|failover| self.failover_to_api(failover)),
                ..api::Group::default()
            });
        }
        groups
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
        let any = self.list().into_iter().find(|vm| vm.record().group_id == record.group_id);
        let journal = any.and_then(|vm| vm.journal());
        let checkpoint = journal.and_then(|journal| journal.checkpoint(types::CheckpointId(cut)).ok()?);
        let checkpoint = checkpoint.as_ref().map(checkpoint_to_api);
        let vms = record.vms.iter().map(|run| {
            let state = run.pid.map(|pid| self.adapter.state(&run.vm, pid));
            let alive = run.pid.filter(|_| state != Some(RunState::Stopped));
            api::FailoverVm {
                vm: run.vm.clone(),
                image: run.image.clone(),
                socket: self
                    .image(&run.image)
                    .map(|image| image.socket.display().to_string())
                    .unwrap_or_default(),
                pid: alive,
                disks: alive.map(|_| self.guest_disks(&run.vm)).unwrap_or_default(),
                last_event: self.last_event(&run.vm),
                run_state: match state {
                    None if record.is_released() => "stopped".into(),
                    None => "not-defined".into(),
                    Some(RunState::Stopped) => "stopped".into(),
                    Some(RunState::Paused) => "paused".into(),
                    Some(RunState::Running) => "running".into(),
                },
            }
        });
        api::Failover {
            group: record.group.clone(),
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

fn definition_of(vm: &RecoveredVm) -> Result<Option<VmDefinition>> {
    let text = vm.record().definition;
    if text.is_empty() {
        return Ok(None);
    }
    VmDefinition::parse(&text)
        .map(Some)
        .map_err(|error| OperationError::conflict(format!("VM {}: {error}", vm.name())))
}
