//! Failover of a group: fence, open images, start VMs; then commit or roll back.
//!
//! A disk that hangs answers nobody, and a failover is asked for because something does. So all VMs are asked and fenced
//! side by side, within one bound: the operator is told the name of who does not answer where it was to be opened, and it is
//! passed over where the others go without it.
//!
//! The record is saved before each step that cannot be taken back by forgetting it, so an agent that
//! dies in the middle finds the group fenced and the images named when it comes back.

use super::Recovery;
use super::cut::{self, hindrance};
use super::groups::{KeptGroup, Pick};
use super::images::{Closing, ImageRecord, OpenImage};
use super::one_at_a_time::Turn;
use super::promoted::Closed;
use super::side_by_side::side_by_side;
use super::vm::{RecoveredVm, checkpoint_to_api};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunState, StartDisk, VmDefinition};
use anyhow::Context;
use joint::life::Use;
use replication::wire::{Refusal, Refuse};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use types::{Epoch, GroupId, Monotonic, VmId, WriteSeq};

/// How long a failover waits for the journals of a group to say what they have.
const ANSWER_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long it waits for what is being written to them.
const FENCE_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// Why a VM is left out.
const SILENT: &str = "the disk of its journal does not answer";

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

    /// Whoever of the group is neither opened nor left out for another reason did not answer.
    fn leave_out_silent(&mut self, group: &KeptGroup) {
        for vm in &group.members {
            let (id, name) = (vm.id().to_string(), vm.name());
            let is_told =
                self.vms.iter().any(|run| run.id == id) || self.left_out.iter().any(|(out, ..)| *out == id);
            if !is_told {
                self.left_out.push((id, name, SILENT.to_owned()));
            }
        }
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
        let started = clock::now();
        let group = self.group(word)?;
        let label = group.label();
        let _turn = self.turns_of_groups.take(group.id, &label)?;
        // As it is now that nobody else does anything with it.
        let group = self.group(&group.id.to_string())?;
        let pick = group.pick(&request.vms, &request.without)?;
        self.check_failover_was_read(group.id)?;
        let before = self.failovers().get(&group.id).cloned();
        if let Some(before) = before.as_ref().filter(|before| !before.is_released()) {
            return Err(OperationError::conflict(format!(
                "group {label} has failed over already ({}); commit or roll back first",
                before.phase_name()
            )));
        }
        // All that can hinder it is found before anything is fenced.
        let (answering, silent) = who_answers(&group, &pick)?;
        let planned = cut::find(&answering, &request.at, &pick)?;
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
        let done = fence(answering, &silent, &planned.vms, epoch)
            .and_then(|group| self.start(&group, &request.at, &pick, &mut record, started));
        if let Err(error) = done {
            tracing::error!(group = label, error = error.detail, "failover is taken back");
            self.take_back(&mut record)?;
            return Err(error);
        }
        record.leave_out_silent(&group);
        tracing::info!(group = label, %epoch, cut = %WriteSeq::from_raw(record.cut), "failed over");
        notes.append(&mut record.notes);
        notes.extend(self.unread_vms_note());
        record.notes = notes;
        self.keep(&record)?;
        Ok(self.failover_to_api(&record))
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
            let _naming = self.naming.lock().expect("a panic aborts the process");
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
        // Whoever runs by a record that cannot be read may have any name.
        self.has_unread_failovers() || runs.any(|run| run.id != id && run.key() == name)
    }

    /// Makes a failover final: the images go on, the old protected side stays fenced.
    pub(crate) fn commit(&self, group: &str) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
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

    /// Undoes a failover: VMs stop, what they wrote is thrown away, the group is the other side's again.
    pub(crate) fn rollback(&self, group: &str) -> Result<api::Failover> {
        let _turn = self.turn_of(group)?;
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
        let vm = self.vm_of_record(&run.id);
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
            closing: Some(Closing::KEEPS_NOTHING),
        };
        let owner = record.pin_owner();
        if lease.pins().iter().any(|pin| pin.owner == owner) {
            self.finish_image(&lease, &vm.folder(&self.journal_config.folder), &record)?;
        }
        Ok(())
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
    pub(super) fn close_image_of_failover(&self, group: &str, image: &OpenImage) -> Result<Closed> {
        let _turn = self.turn_for_image(&image.record)?;
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
            vm.to_api(&self.journal_config, state, failover.map_or(0, |failover| failover.epoch))
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

/// The group without those whose journals do not answer, and who they are.
///
/// # Errors
/// Where one of them is to be opened.
fn who_answers(group: &KeptGroup, pick: &Pick) -> Result<(KeptGroup, Vec<Arc<RecoveredVm>>)> {
    let all: Vec<_> = group.all().cloned().collect();
    let (_, silent) = side_by_side(&all, ANSWER_PATIENCE, hindrance);
    // Former members are opened where they are named.
    let is_meant = |vm: &&Arc<RecoveredVm>| {
        pick.has(vm.id()) && (matches!(pick, Pick::Only(_)) || vm.record().left.is_none())
    };
    refuse_silent(silent.iter().filter(is_meant), ANSWER_PATIENCE)?;
    Ok((group.clone().without(&silent), silent))
}

/// Nothing of the old epoch is appended from here on: to no journal of the group, for it is the group whose authority
/// passes, also where only some of its VMs are opened. The group without those that do not answer is returned; the record
/// of the failover keeps their streams out, and they are fenced once they answer.
///
/// # Errors
/// Where a VM that is meant does not answer, or cannot be fenced.
fn fence(
    group: KeptGroup,
    silent: &[Arc<RecoveredVm>],
    meant: &[Arc<RecoveredVm>],
    epoch: Epoch,
) -> Result<KeptGroup> {
    let one = move |vm: &RecoveredVm| fence_one(vm, epoch);
    drop(side_by_side(silent, Duration::ZERO, one));
    let is_meant = |vm: &Arc<RecoveredVm>| meant.iter().any(|meant| meant.id() == vm.id());
    let all: Vec<_> = group.all().cloned().collect();
    let (answers, silent) = side_by_side(&all, FENCE_PATIENCE, one);
    for (vm, fenced) in answers {
        match fenced {
            Err(error) if is_meant(&vm) => return Err(error),
            Err(error) => tracing::warn!(vm = vm.name(), error = error.detail, "fenced without its journal"),
            Ok(()) => {}
        }
    }
    refuse_silent(silent.iter().filter(|vm| is_meant(vm)), FENCE_PATIENCE)?;
    Ok(group.without(&silent))
}

/// Once this returns, all that is ever acknowledged of the old epoch is in the journal: a cut that is chosen then has
/// it, and nothing else comes to be in it. What had its place before the epoch was raised, also by a connection that nobody
/// has stopped, is waited for, as long as its disk takes.
fn fence_one(vm: &RecoveredVm, epoch: Epoch) -> Result<()> {
    let why = Refusal::Fenced { epoch, released: false };
    if !vm.stop_stream(Refuse { why, detail: "the group has failed over to this side".into() }) {
        tracing::warn!(vm = vm.name(), "its stream does not let go; the epoch stops what it sends");
    }
    let journal = super::at::journal_of(vm)?;
    while !journal.fence(epoch, FENCE_PATIENCE).context("raise the journal's epoch")? {}
    Ok(())
}

fn refuse_silent<'a>(mut silent: impl Iterator<Item = &'a Arc<RecoveredVm>>, waited: Duration) -> Result<()> {
    let Some(first) = silent.next() else { return Ok(()) };
    let names: Vec<_> = std::iter::once(first).chain(silent).map(|vm| vm.name()).collect();
    let words: Vec<_> = names.iter().map(|name| format!("--without {name}")).collect();
    Err(OperationError::unavailable(format!(
        "VM {}: the disk of its journal has not answered for {} s; see to the disk, or give `{}` to fail the others over \
         without",
        names.join(", "),
        waited.as_secs(),
        words.join(" ")
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
mod hanging_disk;
#[cfg(test)]
mod tests;
