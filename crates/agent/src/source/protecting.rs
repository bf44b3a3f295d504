//! Beginning protections: an operation, see [`plan`].

pub(super) mod plan;

use super::carry_out::Doing;
use super::host_devices::HostDevices;
use super::plans::Plan;
use super::record::{DiskRecord, FileRecord, ProtectionRecord};
use super::tapped::NamedBy;
use super::vm::ProtectedVm;
use super::{Changed, Source, member, save_record};
use crate::error::{OperationError, Result, with_sources};
use crate::hypervisor::VmDefinition;
use crate::ledger::Asker;
use crate::link::split_peer;
use crate::policy::Policy;
use crate::state::random;
use api::ProtectRequest;
use joint::membership::FirstSync;
use operations::OperationId;
use plan::{ProtectPlan, ProtectStep};
use splitter::RawDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::limits::{DEFINITION_BYTES_MAX, DISKS_MAX};
use types::{Epoch, GroupId, VmId, is_plain_name};

impl Source {
    /// Protects a VM: checks everything first, records what is to be, and begins.
    pub(crate) fn protect(
        self: &Arc<Self>,
        request: &ProtectRequest,
        asker: &Asker,
    ) -> Result<Arc<ProtectedVm>> {
        check_name("VM", &request.name)?;
        self.check_is_new(request)?;
        let group = request.group.clone().unwrap_or_else(|| request.name.clone());
        check_name("group", &group)?;
        check_disks(request)?;
        check_formats(request)?;
        check_addresses(request)?;
        let policy = Policy::from_request(&self.defaults, &request.settings)?;
        let definition = request.definition.as_deref();
        let taken = definition.map(|text| self.take_definition(text)).transpose()?;
        let (definition, files) = taken.unwrap_or_default();
        // Whoever is to be asked over the network is asked before anybody has to wait for this.
        let asked = self.id_of_group(&group, request.coordinator.as_deref())?;
        let _turn = self.changing.take(changed_by(request), &format!("VM {}", request.name))?;
        self.check_is_new(request)?;
        let coming = self.coming(&group, asked, request.coordinator.as_deref(), &policy);
        self.check_coordinator(&group, request.coordinator.as_deref())?;
        let ublk = if request.ublk { self.device_numbers(request)? } else { Vec::new() };
        let vm = VmId::from_bytes(random());
        let record = ProtectionRecord {
            group_id: coming.group.id().to_string(),
            group,
            definition,
            files,
            policy,
            ublk,
            ..record_for(vm, request)
        };
        let held = self.operations.begin(|| Plan::Protect(Box::new(ProtectPlan { vm, record })), asker)?;
        self.go_on(held, &Doing::asked_by(self, asker))?.done()?;
        self.vm(&request.name)
    }

    pub(super) fn is_protect_step_done(&self, plan: &ProtectPlan, step: ProtectStep) -> bool {
        match step {
            ProtectStep::Begin => self.is_protected(plan.vm) && self.is_recorded(&plan.vm.to_string()),
        }
    }

    pub(super) fn run_protect_step(self: &Arc<Self>, plan: &ProtectPlan, step: ProtectStep) -> Result<()> {
        match step {
            ProtectStep::Begin => self.begin_protection(plan),
        }
    }

    /// Whatever of it was begun ends, and nothing of it is left.
    pub(super) fn undo_protect_step(self: &Arc<Self>, plan: &ProtectPlan, step: ProtectStep) -> Result<()> {
        match step {
            ProtectStep::Begin => {
                match self.live(plan.vm) {
                    Some(vm) => vm.detach(self.boot_id)?,
                    None => HostDevices::remove_unserved(&plan.record)?,
                }
                self.end_protection(plan.vm)?;
                self.remove_records(&plan.record)?;
                Ok(self.tell_departure(plan.vm)?)
            }
        }
    }

    fn begin_protection(self: &Arc<Self>, plan: &ProtectPlan) -> Result<()> {
        let vm = match self.live(plan.vm) {
            Some(vm) => vm,
            None => {
                self.check_is_free(&plan.record)?;
                // Devices of the host outlive the agent: whose they are is written down before they are there.
                if !plan.record.ublk.is_empty() {
                    save_record(&self.state, &plan.record)?;
                }
                self.begin(plan.record.clone(), NamedBy::Request)?
            }
        };
        // The VM may have told which disks it has.
        vm.save_record(&self.state)?;
        let record = vm.record();
        tracing::info!(vm = record.name, group = record.group, peer = record.peer, "protected");
        Ok(())
    }

    /// Nobody else has come by its name, or has made another group of that name, while it stood.
    fn check_is_free(&self, record: &ProtectionRecord) -> Result<()> {
        if self.vm_to_api(&record.name).is_ok() {
            return Err(OperationError::conflict(format!("another VM {} is protected by now", record.name)));
        }
        match self.group_named(&record.group) {
            Some(group) if group.id().to_string() != record.group_id => Err(OperationError::conflict(
                format!("group {} is another by now: protect the VM anew", record.group),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Protections that are to begin and are not recorded yet.
    pub(super) fn coming_up(&self) -> Vec<(OperationId, ProtectPlan)> {
        let protects = self.operations.unended().into_iter().filter_map(|(id, plan)| match plan {
            Plan::Protect(plan) => Some((id, *plan)),
            Plan::Unprotect(_) | Plan::Change(_) => None,
        });
        protects.collect()
    }

    /// What is protected, waits to be taken up, or is to be protected.
    fn all_records(&self) -> Vec<ProtectionRecord> {
        let mut records = self.live_and_stalled();
        records.extend(self.coming_up().into_iter().map(|(_, plan)| plan.record));
        records
    }

    /// A monitor has one client: a VM that is protected by it is found by its name, not by silence.
    fn check_monitor(&self, request: &ProtectRequest) -> Result<()> {
        let Some(qmp) = request.qmp.as_deref().map(Path::new) else { return Ok(()) };
        match self.all_records().iter().find(|record| record.qmp.as_deref() == Some(qmp)) {
            Some(record) => Err(OperationError::conflict(format!(
                "the VM behind {} is protected already, as {}; `holdfast vm unprotect {1}` ends that",
                qmp.display(),
                record.name
            ))),
            None => Ok(()),
        }
    }

    fn device_numbers(&self, request: &ProtectRequest) -> Result<Vec<u32>> {
        if request.qmp.is_some() {
            return Err(OperationError::invalid("a VM that runs on its own image has no use for --ublk"));
        }
        HostDevices::free_numbers(request.disks.len(), &self.all_records())
    }

    /// Nobody of its name, and nobody behind its monitor, is protected here.
    fn check_is_new(&self, request: &ProtectRequest) -> Result<()> {
        if self.vms().contains_key(&request.name) || self.stalled().contains_key(&request.name) {
            return Err(OperationError::conflict(format!(
                "VM {} is protected already; `holdfast vm unprotect {0}` ends that",
                request.name
            )));
        }
        if let Some((id, _)) = self.coming_up().into_iter().find(|(_, plan)| plan.record.name == request.name)
        {
            return Err(OperationError::conflict(format!(
                "VM {} is being protected by operation {id}: wait for its end, or cancel it",
                request.name
            )));
        }
        // Until then two records would be of one name, of which the next agent knows one.
        let ends = self.unprotections_under_way(&request.name);
        if let Some((id, _)) = ends.iter().find(|(_, vm)| self.is_recorded(&vm.to_string())) {
            return Err(OperationError::conflict(format!(
                "VM {} is not unprotected yet by operation {id}: see `holdfast operation show {id}` for what is in its way, and \
                 wait for its end",
                request.name
            )));
        }
        self.check_monitor(request)
    }

    /// A group that is here already has the coordinator it has.
    fn check_coordinator(&self, group: &str, given: Option<&str>) -> Result<()> {
        match self.group_named(group) {
            Some(here) if here.coordinator() != given => Err(OperationError::conflict(format!(
                "group {group} is coordinated by {}",
                here.coordinator().unwrap_or("this agent")
            ))),
            _ => Ok(()),
        }
    }

    /// The id of a group: of one that is here, of one that another agent coordinates, or a new one.
    fn id_of_group(&self, group: &str, coordinator: Option<&str>) -> Result<GroupId> {
        self.check_coordinator(group, coordinator)?;
        match (self.group_named(group), coordinator) {
            (Some(group), _) => Ok(group.id()),
            (None, None) => Ok(GroupId::from_bytes(random())),
            (None, Some(coordinator)) => {
                // It joins with its first VM that is in sync; until then the group goes on as it is.
                let asking = member::ask_to_join(self, coordinator, group, 0);
                let id = tokio::runtime::Handle::current().block_on(asking);
                id.map_err(|error| {
                    OperationError::unavailable(format!(
                        "cannot join group {group} at {coordinator}: {error:#}"
                    ))
                })
            }
        }
    }

    /// Reads the VM's definition and takes the files it names.
    pub(super) fn take_definition(&self, text: &str) -> Result<(String, Vec<FileRecord>)> {
        if text.len() > DEFINITION_BYTES_MAX {
            return Err(OperationError::invalid(format!("definition of over {DEFINITION_BYTES_MAX} bytes")));
        }
        let definition =
            VmDefinition::parse(text).map_err(|error| OperationError::invalid(error.to_string()))?;
        let mut files = Vec::new();
        for (name, path) in definition.files() {
            let (hash, size_bytes) = self
                .artifacts
                .take(path)
                .map_err(|error| OperationError::invalid(format!("{name} of the definition: {error:#}")))?;
            files.push(FileRecord { name: name.to_owned(), hash: hash.to_string(), size_bytes });
        }
        Ok((text.to_owned(), files))
    }
}

/// What a request says itself.
fn record_for(vm: VmId, request: &ProtectRequest) -> ProtectionRecord {
    let disks = request.disks.iter().map(|disk| DiskRecord {
        name: disk.name.clone(),
        path: disk.path.clone().into(),
        tapped: None,
        file: None,
    });
    ProtectionRecord {
        vm: vm.to_string(),
        name: request.name.clone(),
        group_id: String::new(),
        group: String::new(),
        epoch: Epoch::FIRST.0,
        peer: request.peer.clone(),
        peer_agent: None,
        disks: disks.collect(),
        definition: String::new(),
        files: Vec::new(),
        policy: Policy::default(),
        paused: false,
        coordinator: request.coordinator.clone(),
        qmp: request.qmp.clone().map(PathBuf::from),
        left_out: Vec::new(),
        let_go: false,
        shared: request.shared,
        ublk: Vec::new(),
        first_sync: FirstSync::NotBegun,
        fenced: None,
        fenced_at: None,
        stands_still: false,
        had_by: Vec::new(),
    }
}

/// What a protection that begins changes.
pub(super) fn changed_by(request: &ProtectRequest) -> Vec<Changed> {
    let mut changed = vec![Changed::Vm(request.name.clone())];
    changed.extend(request.qmp.as_ref().map(|qmp| Changed::Monitor(qmp.into())));
    changed.extend(request.ublk.then_some(Changed::HostDevices));
    changed
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if is_plain_name(name) {
        return Ok(());
    }
    Err(OperationError::invalid(format!(
        "{what} name {name:?}: use 1 to 64 letters, digits, '-', '_' and '.'"
    )))
}

pub(super) fn check_peer(peer: &str) -> Result<()> {
    match split_peer(peer) {
        Some(_) => Ok(()),
        None => Err(OperationError::invalid(format!("peer {peer:?}: give HOST:PORT"))),
    }
}

/// An agent as its certificate names it.
pub(super) fn check_peer_agent(agent: &str) -> Result<()> {
    let is_agent = agent
        .split_once('.')
        .is_some_and(|(name, site)| is_plain_name(name) && is_plain_name(site) && !site.contains('.'));
    match is_agent {
        true => Ok(()),
        false => Err(OperationError::invalid(format!(
            "peer agent {agent:?}: give AGENT.SITE, as its certificate names it; `holdfast vm show` has the one it is now"
        ))),
    }
}

fn check_addresses(request: &ProtectRequest) -> Result<()> {
    check_peer(&request.peer)?;
    match &request.coordinator {
        Some(coordinator) if split_peer(coordinator).is_none() => {
            Err(OperationError::invalid(format!("coordinator {coordinator:?}: give HOST:PORT")))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_disks(request: &ProtectRequest) -> Result<()> {
    if (request.disks.is_empty() && request.qmp.is_none()) || request.disks.len() > DISKS_MAX {
        return Err(OperationError::invalid(format!("name 1 to {DISKS_MAX} disks with --disk NAME=PATH")));
    }
    let mut names: Vec<_> = request.disks.iter().map(|disk| disk.name.as_str()).collect();
    names.iter().try_for_each(|name| check_name("disk", name))?;
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(OperationError::invalid("two disks have the same name"));
    }
    Ok(())
}

/// What a disk begins with is looked at once, before a guest of ours can have written it.
fn check_formats(request: &ProtectRequest) -> Result<()> {
    match request.format.as_deref() {
        Some("raw") => Ok(()),
        Some(other) => {
            Err(OperationError::invalid(format!("format {other:?}: disks are raw; use raw, or nothing")))
        }
        None if request.qmp.is_some() => Ok(()),
        None => request.disks.iter().try_for_each(|disk| {
            let checked = RawDisk::check_is_raw(Path::new(&disk.path));
            checked.map_err(|error| OperationError::invalid(with_sources(&error)))
        }),
    }
}

#[cfg(test)]
mod tests;
