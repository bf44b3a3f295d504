//! The steps of a failover, done and undone. Each may be cut short at any instruction and is then done again: what is made
//! already is found by the names that the failover's record has for it.

use super::super::Recovery;
use super::super::at::journal_of;
use super::super::cut::{self, GroupCut};
use super::super::groups::KeptGroup;
use super::super::images::{Closing, ImageRecord, Zeroed};
use super::super::vm::RecoveredVm;
use super::definition_of;
use super::fence::{Asked, SILENT};
use super::plan::{FailoverPlan, FailoverStep};
use super::record::{FailoverRecord, Phase, VmRun};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::StartDisk;
use anyhow::Context;
use joint::life::Use;
use std::path::Path;
use std::sync::Arc;
use types::{Epoch, Monotonic, VmId};

impl Recovery {
    pub(in super::super) fn is_failover_step_done(&self, plan: &FailoverPlan, step: FailoverStep) -> bool {
        let record = self.failovers().get(&plan.group).cloned();
        let record = record.filter(|record| record.epoch == plan.epoch);
        match step {
            FailoverStep::Fence => record.is_some_and(|record| !record.vms.is_empty()),
            // What is there already is passed over one by one.
            FailoverStep::OpenImages | FailoverStep::StartGuests => false,
            // Whoever is quicker than this operation may have committed it meanwhile, or rolled it back; without a record, which
            // an operator has removed, there is nothing to write down.
            FailoverStep::Finish => record.is_none_or(|record| record.phase != Phase::Starting),
        }
    }

    /// `asked` is what was found out when the failover was asked for, where that is just now.
    pub(in super::super) fn run_failover_step(
        &self,
        plan: &FailoverPlan,
        step: FailoverStep,
        asked: Option<Asked>,
        started: Monotonic,
    ) -> Result<()> {
        match step {
            FailoverStep::Fence => self.fence_and_choose(plan, asked),
            FailoverStep::OpenImages => self.open_images(plan, started),
            FailoverStep::StartGuests => self.start_guests(plan, started),
            FailoverStep::Finish => {
                self.keep(&FailoverRecord { phase: Phase::Running, ..self.starting(plan)? })
            }
        }
    }

    pub(in super::super) fn undo_failover_step(&self, plan: &FailoverPlan, step: FailoverStep) -> Result<()> {
        // Without a record nothing was done.
        let Ok(mut record) = self.starting(plan) else { return Ok(()) };
        match step {
            FailoverStep::Fence => self.release(&mut record),
            FailoverStep::OpenImages => {
                self.check_images_were_read(&record)?;
                self.end_images(&record)
            }
            FailoverStep::StartGuests => self.stop_guests(&mut record),
            FailoverStep::Finish => unreachable!("there is no way back from it"),
        }
    }

    /// The record of a failover that is being started.
    fn starting(&self, plan: &FailoverPlan) -> Result<FailoverRecord> {
        let record = self.failovers().get(&plan.group).cloned();
        let is_it = |record: &FailoverRecord| record.epoch == plan.epoch && record.phase == Phase::Starting;
        record.filter(is_it).ok_or_else(|| {
            OperationError::conflict(format!("no failover of group {} is being started", plan.label))
        })
    }

    fn fence_and_choose(&self, plan: &FailoverPlan, asked: Option<Asked>) -> Result<()> {
        let group = self.group(&plan.group.to_string())?;
        let pick = group.pick(&plan.vms, &plan.without)?;
        if self.starting(plan).is_err() {
            self.keep(&begun(plan, &group))?;
        }
        let asked = asked.map_or_else(|| Asked::ask(&group, &plan.at, &pick), Ok)?;
        let answering = asked.fence(Epoch(plan.epoch))?;
        // Anew: what arrived until the fence stood counts.
        self.choose(plan, &group, cut::find(&answering, &plan.at, &pick)?)
    }

    /// Writes down the cut, and by which names its images and guests will be known, before there are any.
    fn choose(&self, plan: &FailoverPlan, group: &KeptGroup, found: GroupCut) -> Result<()> {
        let mut record = self.starting(plan)?;
        record.cut = found.cut.raw();
        let left_out = found.left_out.iter();
        record.left_out = left_out.map(|(vm, why)| (vm.id().to_string(), vm.name(), why.clone())).collect();
        let notes = [plan.notes.clone(), found.notes].concat();
        record.notes = notes.into_iter().chain(self.unread_vms_note()).collect();
        let _naming = self.naming.lock().expect("a panic aborts the process");
        for vm in &found.vms {
            record.vms.push(VmRun {
                vm: vm.name(),
                image: self.new_image_id(),
                pid: None,
                id: vm.id().to_string(),
                key: self.is_name_taken(&vm.name(), vm.id(), &record).then(|| vm.id().to_string()),
            });
        }
        leave_out_silent(&mut record, group);
        self.keep(&record)
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

    fn open_images(&self, plan: &FailoverPlan, started: Monotonic) -> Result<()> {
        let mut record = self.starting(plan)?;
        for run in &record.vms {
            self.have_image(&record, run, started)?;
        }
        record.image_open_seconds = clock::now().since(started).as_secs_f64();
        self.keep(&record)
    }

    /// Opens an image of a failover, or serves it again where it was opened before.
    fn have_image(&self, record: &FailoverRecord, run: &VmRun, started: Monotonic) -> Result<()> {
        if self.image(&run.image).is_some() {
            return Ok(());
        }
        self.check_image_was_read(&run.image, &run.id)?;
        if self.serve_waiting(&run.image)? {
            return Ok(());
        }
        let (vm, group) = (self.vm_of_run(run)?, Some(record.group.clone()));
        self.open_at(run.image.clone(), &vm, record.cut(), true, group, started).map(drop)
    }

    fn vm_of_run(&self, run: &VmRun) -> Result<Arc<RecoveredVm>> {
        self.vm_of_record(&run.id).ok_or_else(|| {
            OperationError::not_found(format!("the journal of VM {} is not kept here any more", run.vm))
        })
    }

    fn start_guests(&self, plan: &FailoverPlan, started: Monotonic) -> Result<()> {
        let mut record = self.starting(plan)?;
        // One that does not start keeps none of the others from it.
        let mut failed = Vec::new();
        for at in 0..record.vms.len() {
            let run = record.vms[at].clone();
            if run.pid.is_some() && run.pid == self.adapter.find(run.key()) {
                continue;
            }
            match self.start_guest(&run) {
                Ok(Some(pid)) => {
                    record.vms[at].pid = Some(pid);
                    self.keep(&record)?;
                    self.watch_guest(run.key());
                }
                Ok(None) => {}
                Err(error) => failed.push(error),
            }
        }
        if let Some(kind) = failed.first().map(|error| error.kind) {
            let details: Vec<String> = failed.into_iter().map(|error| error.detail).collect();
            return Err(OperationError { kind, detail: details.join("; ") });
        }
        record.start_seconds = clock::now().since(started).as_secs_f64();
        self.keep(&record)
    }

    /// Starts a VM on its image, or finds it where it runs already; its process, where it is defined.
    fn start_guest(&self, run: &VmRun) -> Result<Option<u32>> {
        let vm = self.vm_of_run(run)?;
        let Some(definition) = definition_of(&vm)? else { return Ok(None) };
        let image = self.image(&run.image).ok_or_else(|| {
            OperationError::unavailable(format!("image {} of VM {} is not served", run.image, run.vm))
        })?;
        let disks = journal_of(&vm)?.disks().into_iter();
        let disks: Vec<_> =
            disks.map(|disk| StartDisk { name: disk.name, socket: image.socket.clone() }).collect();
        let kept = vm.record();
        let file = |name: &str| {
            kept.file(name).filter(|hash| self.artifacts.has(*hash)).map(|hash| self.artifacts.path(hash))
        };
        let title = format!("{} (failover)", vm.name());
        let started = self.adapter.start(run.key(), &title, &definition, file, &disks);
        Ok(Some(started.with_context(|| format!("start VM {}", vm.name()))?.pid))
    }

    /// A guest that runs on an image finds its disks where it had them.
    pub(in super::super) fn give_to_guest(&self, image: &str, socket: &Path) -> Result<()> {
        let runs: Vec<_> = self.failovers().values().flat_map(|record| record.vms.clone()).collect();
        match runs.iter().find(|run| run.image == image) {
            Some(run) => Ok(self.adapter.give_again(run.key(), socket)?),
            None => Ok(()),
        }
    }

    pub(super) fn stop_guests(&self, record: &mut FailoverRecord) -> Result<()> {
        for at in 0..record.vms.len() {
            let run = &record.vms[at];
            // Also one that was started and never written down.
            self.adapter.stop(run.key()).with_context(|| format!("stop VM {}", run.vm))?;
            self.forget_guest(run.key());
            if record.vms[at].pid.take().is_some() {
                self.keep(record)?;
            }
        }
        Ok(())
    }

    pub(super) fn end_images(&self, record: &FailoverRecord) -> Result<()> {
        for run in &record.vms {
            if let Some(image) = self.image(&run.image) {
                self.end_image(&image)?;
            } else if self.waiting_images().contains_key(&run.image) {
                self.end_waiting(&run.image)?;
            } else {
                self.end_lost_image(run)?;
            }
        }
        Ok(())
    }

    /// The group is the protected side's again.
    pub(super) fn release(&self, record: &mut FailoverRecord) -> Result<()> {
        record.phase = Phase::RolledBack;
        self.keep(record)
    }

    /// Takes away what an image has left in its journal though nothing is recorded of it any more: its pin would hold
    /// history for ever. One without a pin may have been promoted: its disks are the operator's, and stay.
    fn end_lost_image(&self, run: &VmRun) -> Result<()> {
        // What it had went with the journal.
        let Some(vm) = self.vm_of_record(&run.id) else { return Ok(()) };
        let lease = super::super::at::lease_of(&vm, Use::Image)?;
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
            lost_as_zeroes: false,
            zeroed: Zeroed::default(),
        };
        let owner = record.pin_owner();
        if lease.pins().iter().any(|pin| pin.owner == owner) {
            self.finish_image(&lease, &vm.folder(&self.journal_config.folder), &record)?;
        }
        Ok(())
    }

    pub(super) fn keep(&self, record: &FailoverRecord) -> Result<()> {
        self.state.save(&record.file_name(), record)?;
        self.failovers().insert(record.group_id()?, record.clone());
        Ok(())
    }
}

/// The record of a failover of which nothing is chosen yet.
fn begun(plan: &FailoverPlan, group: &KeptGroup) -> FailoverRecord {
    FailoverRecord {
        group_id: group.id.to_string(),
        group: group.name.clone(),
        site: group.site.clone(),
        epoch: plan.epoch,
        phase: Phase::Starting,
        cut: 0,
        vms: Vec::new(),
        left_out: Vec::new(),
        notes: Vec::new(),
        image_open_seconds: 0.0,
        start_seconds: 0.0,
    }
}

/// Whoever of the group is neither opened nor left out for another reason did not answer.
fn leave_out_silent(record: &mut FailoverRecord, group: &KeptGroup) {
    for vm in &group.members {
        let (id, name) = (vm.id().to_string(), vm.name());
        let is_opened = record.vms.iter().any(|run| run.id == id);
        if !is_opened && !record.left_out.iter().any(|(out, ..)| *out == id) {
            record.left_out.push((id, name, SILENT.to_owned()));
        }
    }
}
