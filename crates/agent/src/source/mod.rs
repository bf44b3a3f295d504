//! The protected side: VMs whose writes are captured, numbered and sent.

mod above;
mod absent;
mod bounds;
mod coordinate;
mod departure;
mod driver;
mod files;
mod freshness;
mod group;
mod heard;
#[cfg_attr(not(feature = "ublk"), path = "no_host_devices.rs")]
mod host_devices;
mod hosts;
mod hosts_record;
mod image_watch;
mod images;
mod log_rotation;
mod looking;
mod member;
mod nbd_tls;
mod peers;
mod rates;
mod record;
mod remote_clients;
mod spill;
mod stalled;
mod stopping;
mod stream_status;
mod taking_up;
mod tapped;
#[cfg(test)]
mod tests;
mod unreadable;
mod verify;
mod vm;

use crate::alerts::{AlertKind, Alerts, Cause};
use crate::artifacts::Artifacts;
use crate::clock;
use crate::config::{Compression, Config};
use crate::error::{OperationError, Result, with_sources};
use crate::hypervisor::VmDefinition;
use crate::link::split_peer;
use crate::one_at_a_time::OneAtATime;
use crate::pki::Pki;
use crate::policy::Policy;
use crate::sockets::RunDir;
use crate::state::{StateDir, random};
use absent::Absent;
use anyhow::Context;
use api::ProtectRequest;
pub(crate) use coordinate::serve_host;
use departure::Departures;
pub(crate) use driver::Command;
use group::Group;
use host_devices::HostDevices;
use joint::membership::FirstSync;
pub(crate) use nbd_tls::serve_disks;
use peers::Peers;
use record::{DiskRecord, FileRecord, ProtectionRecord};
use replication::wire::ArtifactHash;
use splitter::nbd::Export;
use splitter::{BufferPool, RawDisk};
use stalled::Stalled;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tapped::{NamedBy, VmTap, clear_alerts};
use types::limits::{DEFINITION_BYTES_MAX, DISKS_MAX, TAG_BYTES_MAX};
use types::{CheckpointKind, Epoch, GroupId, RunNumber, VmId, WriteSeq, is_plain_name};
pub(crate) use vm::ProtectedVm;

/// Everything this agent protects.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) state: Arc<StateDir>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) pki: Pki,
    pub(crate) site: String,
    pub(crate) run: RunNumber,
    pub(crate) boot_id: [u8; 16],
    pub(crate) run_dir: RunDir,
    pub(crate) compression: Compression,
    pub(crate) dscp: u8,
    pub(crate) spill_dir: PathBuf,
    pub(crate) buffer_pool: Arc<BufferPool>,
    change_log_interval: Duration,
    pub(crate) alerts: Arc<Alerts>,
    peers: Arc<Peers>,
    defaults: Policy,
    vms: Mutex<BTreeMap<String, Arc<ProtectedVm>>>,
    groups: Mutex<BTreeMap<String, Arc<Group>>>,
    stalled: Mutex<BTreeMap<String, Stalled>>,
    absent: Absent,
    departures: Departures,
    changing: OneAtATime<Changed>,
}

/// What is changed by one at a time. A disk that hangs holds up only who changes the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    /// A VM, by its name, while its protection begins, is taken up again, is lost or ended: one that is ended is not taken
    /// up meanwhile.
    Vm(String),
    /// What a VM is controlled by, which has one client.
    Monitor(PathBuf),
    /// Who has which number of a block device of this host.
    HostDevices,
}

/// A VM is coming to the group, which does not go meanwhile with another that leaves or fails.
struct Coming<'a> {
    source: &'a Arc<Source>,
    group: Arc<Group>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.group.expects(-1);
        self.source.end_group(&self.group);
    }
}

impl Source {
    pub(crate) fn new(
        config: &Config,
        run_dir: RunDir,
        state: Arc<StateDir>,
        artifacts: Arc<Artifacts>,
        run: RunNumber,
        boot_id: [u8; 16],
        alerts: Arc<Alerts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            artifacts,
            pki: Pki::new(&config.pki_dir),
            site: config.site.clone(),
            run,
            boot_id,
            run_dir,
            compression: config.compression,
            dscp: config.dscp,
            spill_dir: config.spill_dir.clone(),
            buffer_pool: Arc::new(BufferPool::new(config.buffer_pool_bytes)),
            change_log_interval: Duration::from_secs(config.change_log_seconds),
            alerts,
            peers: Peers::new(config.link.clone()),
            defaults: config.defaults.clone(),
            vms: Mutex::default(),
            groups: Mutex::default(),
            stalled: Mutex::default(),
            absent: Absent::default(),
            departures: Departures::default(),
            changing: OneAtATime::default(),
        })
    }

    /// A monitor has one client: a VM that is protected by it is found by its name, not by silence.
    fn check_monitor(&self, request: &ProtectRequest) -> Result<()> {
        let Some(qmp) = request.qmp.as_deref().map(std::path::Path::new) else { return Ok(()) };
        let stalled: Vec<_> = self.stalled().values().map(|stalled| stalled.record.clone()).collect();
        let records = self.vms().values().map(|vm| vm.record()).chain(stalled).collect::<Vec<_>>();
        match records.iter().find(|record| record.qmp.as_deref() == Some(qmp)) {
            Some(record) => Err(OperationError::conflict(format!(
                "the VM behind {} is protected already, as {}; `holdfast vm unprotect {1}` ends that",
                qmp.display(),
                record.name
            ))),
            None => Ok(()),
        }
    }

    /// Protects a VM: checks everything first, records it, and begins.
    pub(crate) fn protect(self: &Arc<Self>, request: &ProtectRequest) -> Result<Arc<ProtectedVm>> {
        check_name("VM", &request.name)?;
        self.check_is_new(request)?;
        let group = request.group.clone().unwrap_or_else(|| request.name.clone());
        check_name("group", &group)?;
        check_disks(request)?;
        check_formats(request)?;
        if split_peer(&request.peer).is_none() {
            return Err(OperationError::invalid(format!("peer {:?}: give HOST:PORT", request.peer)));
        }
        let policy = Policy::from_request(&self.defaults, &request.settings)?;
        let (definition, files) = self.take_definition(request)?;
        if let Some(coordinator) = &request.coordinator
            && split_peer(coordinator).is_none()
        {
            return Err(OperationError::invalid(format!("coordinator {coordinator:?}: give HOST:PORT")));
        }
        // Whoever is to be asked over the network is asked before anybody has to wait for this.
        let asked = self.id_of_group(&group, request.coordinator.as_deref())?;
        let _turn = self.changing.take(changed_by(request), &format!("VM {}", request.name))?;
        self.check_is_new(request)?;
        let coming = self.coming(&group, asked, request.coordinator.as_deref(), &policy);
        self.check_coordinator(&group, request.coordinator.as_deref())?;
        let disks = request.disks.iter().map(|disk| DiskRecord {
            name: disk.name.clone(),
            path: disk.path.clone().into(),
            tapped: None,
            file: None,
        });
        let record = ProtectionRecord {
            vm: VmId::from_bytes(random()).to_string(),
            name: request.name.clone(),
            group_id: coming.group.id().to_string(),
            group,
            epoch: Epoch::FIRST.0,
            peer: request.peer.clone(),
            disks: disks.collect(),
            definition,
            files,
            policy,
            paused: false,
            coordinator: request.coordinator.clone(),
            qmp: request.qmp.clone().map(PathBuf::from),
            left_out: Vec::new(),
            let_go: false,
            shared: request.shared,
            ublk: if request.ublk { self.device_numbers(request)? } else { Vec::new() },
            first_sync: FirstSync::NotBegun,
            fenced: None,
            fenced_at: None,
            had_by: Vec::new(),
        };
        // Devices of the host outlive the agent: whose they are is written down before they are there.
        if request.ublk {
            self.state.save(&record.file_name(), &record)?;
        }
        let file_name = record.file_name();
        let begun = self.begin(record, NamedBy::Request);
        if begun.is_err() && request.ublk {
            self.state.remove(&file_name)?;
        }
        let vm = begun?;
        // The VM may have told which disks it has.
        let saved = vm.save_record(&self.state);
        if let Err(error) = saved {
            self.end(&vm);
            return Err(error.into());
        }
        let record = vm.record();
        tracing::info!(vm = record.name, group = record.group, peer = record.peer, "protected");
        Ok(vm)
    }

    fn device_numbers(&self, request: &ProtectRequest) -> Result<Vec<u32>> {
        if request.qmp.is_some() {
            return Err(OperationError::invalid("a VM that runs on its own image has no use for --ublk"));
        }
        let mut others: Vec<_> = self.list().iter().map(|vm| vm.record()).collect();
        others.extend(self.stalled().values().map(|stalled| stalled.record.clone()));
        HostDevices::free_numbers(request.disks.len(), &others)
    }

    /// Nobody of its name, and nobody behind its monitor, is protected here.
    fn check_is_new(&self, request: &ProtectRequest) -> Result<()> {
        if self.vms().contains_key(&request.name) || self.stalled().contains_key(&request.name) {
            return Err(OperationError::conflict(format!(
                "VM {} is protected already; `holdfast vm unprotect {0}` ends that",
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

    /// All disks that are protected here, as clients over TCP know them, and the VM of each.
    fn remote_exports(&self) -> (Vec<Export>, Vec<Arc<ProtectedVm>>) {
        let mut exports = Vec::new();
        let mut vms = Vec::new();
        for vm in self.list().into_iter().filter(|vm| !vm.is_tapped()) {
            for mut export in vm.exports() {
                export.name = format!("{}/{}", vm.name(), export.name);
                exports.push(export);
                vms.push(vm.clone());
            }
        }
        (exports, vms)
    }

    pub(crate) fn group_named(&self, name: &str) -> Option<Arc<Group>> {
        self.groups().get(name).cloned()
    }

    /// Writes down what a VM's disks are known by, where an older version has not.
    fn save_changed(&self, vm: &ProtectedVm, before: &ProtectionRecord) {
        let record = vm.record();
        if record == *before {
            return;
        }
        if let Err(error) = save_record(&self.state, &record) {
            tracing::error!(
                vm = record.name,
                error = format!("{error:#}"),
                "what its disks are is not recorded"
            );
        }
    }

    fn begin(self: &Arc<Self>, record: ProtectionRecord, named_by: NamedBy) -> Result<Arc<ProtectedVm>> {
        let Coming { group, .. } = &self.coming_as_recorded(&record)?;
        let vm = ProtectedVm::start(self, group, record, named_by)?;
        group.join(&vm, || self.lacks_vms_of(group));
        self.vms().insert(vm.name(), vm.clone());
        Ok(vm)
    }

    fn coming_as_recorded(self: &Arc<Self>, record: &ProtectionRecord) -> Result<Coming<'_>> {
        let id =
            record.group_id.parse().map_err(|_| anyhow::anyhow!("group id of {} is no id", record.name))?;
        Ok(self.coming(&record.group, id, record.coordinator.as_deref(), &record.policy))
    }

    /// A VM comes to the group of that name; where there is none, to a new one.
    fn coming(
        self: &Arc<Self>,
        name: &str,
        id: GroupId,
        coordinator: Option<&str>,
        policy: &Policy,
    ) -> Coming<'_> {
        let mut groups = self.groups();
        let group = groups.entry(name.to_owned()).or_insert_with(|| {
            Group::start(self, id, name.to_owned(), coordinator.map(str::to_owned), policy)
        });
        group.expects(1);
        Coming { source: self, group: group.clone() }
    }

    /// Ends a group that nobody is of, comes to or waits to be taken up in; whether it has. Not before: its counter goes
    /// with it, and what others of it have drawn would be drawn again.
    fn end_group(&self, group: &Arc<Group>) -> bool {
        let mut groups = self.groups();
        let is_here = groups.get(group.name()).is_some_and(|here| Arc::ptr_eq(here, group));
        let id = group.id().to_string();
        let has_stalled = self.stalled().values().any(|stalled| stalled.record.group_id == id);
        let ends = is_here && group.is_left() && !has_stalled;
        if ends {
            groups.remove(group.name());
        }
        ends
    }

    /// A VM of the group is protected no more.
    fn has_left(self: &Arc<Self>, group: &Arc<Group>) {
        if self.end_group(group) {
            self.alerts.clear(format!("hosts of group {}", group.name()));
            self.leave_coordinator(group);
        }
    }

    /// Reads the VM's definition and takes the files it names.
    fn take_definition(&self, request: &ProtectRequest) -> Result<(String, Vec<FileRecord>)> {
        let Some(text) = &request.definition else { return Ok((String::new(), Vec::new())) };
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
        Ok((text.clone(), files))
    }

    /// Files that the definitions of protected VMs name; none where a record cannot be read, for then nobody knows.
    pub(crate) fn files_in_use(&self) -> Option<BTreeSet<ArtifactHash>> {
        let mut files = BTreeSet::new();
        for record in self.state.load_each::<ProtectionRecord>("protected").ok()? {
            let hashes = record.ok()?.files.into_iter().map(|file| record::parse_hash(&file.hash));
            files.extend(hashes.collect::<Option<Vec<_>>>()?);
        }
        Some(files)
    }

    /// Ends a protection. The VM's image stays as it is; its socket goes.
    pub(crate) fn unprotect(self: &Arc<Self>, name: &str) -> Result<()> {
        let _turn = self.changing.take(vec![Changed::Vm(name.to_owned())], &format!("VM {name}"))?;
        let stalled = self.stalled().get(name).map(|stalled| stalled.record.clone());
        if let Some(record) = stalled {
            return self.unprotect_stalled(&record);
        }
        let vm = self.vm(name)?;
        let record = vm.record();
        if record.qmp.is_none() && vm.clients() > 0 {
            return Err(OperationError::conflict(format!(
                "VM {name} runs on the agent's socket; stop it first, then start it on its plain image"
            )));
        }
        vm.detach()?;
        // Until the recovery side knows, or the list of those that are told of has it.
        let _absent = self.absent.note(&record.group_id);
        let left_at = vm.group().counter().last();
        let departure = self.record_departure(&record, left_at)?;
        self.state.remove(&record.file_name())?;
        self.end(&vm);
        // It may have been told of the VM until just now, and is not any more.
        let departure = match departure {
            None => self.record_departure(&vm.record(), left_at)?,
            departure => departure,
        };
        self.remove_records(&record)?;
        self.alerts.forget_protection(name);
        clear_alerts(self, name);
        tracing::info!(vm = name, "unprotected");
        self.tell_departure(departure);
        Ok(())
    }

    /// Ends a protection that waits to be taken up, and goes on waiting where it cannot be ended.
    fn unprotect_stalled(self: &Arc<Self>, record: &ProtectionRecord) -> Result<()> {
        HostDevices::remove_unserved(record)?;
        // Until the recovery side knows, or the list of those that are told of has it.
        let _absent = self.absent.note(&record.group_id);
        let group = self.group_named(&record.group);
        let last = group.as_ref().map(|group| group.counter().last());
        let departure = self.record_departure(record, last.unwrap_or(WriteSeq::before_run(self.run)))?;
        self.remove_records(record)?;
        self.stalled().remove(&record.name);
        self.alerts.forget_protection(&record.name);
        clear_alerts(self, &record.name);
        group.iter().for_each(|group| self.has_left(group));
        self.tell_departure(departure);
        self.leave_stalled(record);
        Ok(())
    }

    /// Removes what is recorded of a protection.
    fn remove_records(&self, record: &ProtectionRecord) -> anyhow::Result<()> {
        self.state.remove(&record.file_name())?;
        self.state.remove(&record.freshness_name())?;
        self.state.remove(&record.map_name())?;
        self.state.remove(&record.region_log_name())
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

    /// Tells the agent that coordinates a group that no VM of it is here any more.
    fn leave_coordinator(self: &Arc<Self>, group: &Arc<Group>) {
        let Some(coordinator) = group.coordinator().map(str::to_owned) else { return };
        let (source, name) = (self.clone(), group.name().to_owned());
        tokio::spawn(async move {
            if let Err(error) = member::ask_to_join(&source, &coordinator, &name, 0).await {
                let error = format!("{error:#}");
                tracing::warn!(
                    group = name,
                    coordinator,
                    error,
                    "the coordinator was not told that the group left"
                );
            }
        });
    }

    /// The writes of a VM that runs on its own image do not arrive any more: it is taken up anew as soon as it can
    /// be reached.
    fn lose_tap(self: &Arc<Self>, tap: &VmTap, name: &str, why: &str) {
        // Not while it is being unprotected, which this would undo.
        let _turn = self.changing.wait(vec![Changed::Vm(name.to_owned())]);
        if tap.has_ended() {
            return;
        }
        let text = format!("VM {name} is not protected: the tap is lost: {why}; attached again by itself");
        self.lose(name, why, text, |_| ());
    }

    /// An image is not what it was, and nobody uses it: it is closed, and taken up again once it is what it was, or
    /// the operator says that it is meant.
    fn let_image_go(self: &Arc<Self>, id: VmId, name: &str, why: &str) {
        // Not while it is being unprotected, which this would undo.
        let _turn = self.changing.wait(vec![Changed::Vm(name.to_owned())]);
        // Another may have its name meanwhile.
        if self.vm(name).is_ok_and(|vm| vm.id() != id) {
            return;
        }
        let text = format!("VM {name} is not protected: {why}");
        self.lose(name, why, text, |record| record.let_go = true);
    }

    fn lose(
        self: &Arc<Self>,
        name: &str,
        why: &str,
        alert: String,
        note: impl FnOnce(&mut ProtectionRecord),
    ) {
        let Ok(vm) = self.vm(name) else { return };
        self.alerts.raise(Cause::new(AlertKind::Protection, name), alert);
        clear_alerts(self, name);
        let _absent = self.absent.note(&vm.record().group_id);
        self.leave_group(&vm);
        vm.stop();
        // What is kept of its blocks is about to be opened again: nobody but this and the list has it then.
        for _ in 0..100 {
            if Arc::strong_count(&vm) == 2 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut record = vm.record();
        let before = record.clone();
        note(&mut record);
        if record != before
            && let Err(error) = save_record(&self.state, &record)
        {
            tracing::error!(
                vm = name,
                error = format!("{error:#}"),
                "that its image was let go is not recorded"
            );
        }
        let stalled = Stalled::new(record, why.to_owned(), 0);
        // In one step, so that an operator always finds it in one of the two.
        let mut vms = self.vms();
        self.stalled().insert(name.to_owned(), stalled);
        vms.remove(name);
    }

    /// Has everything of a VM compared. Of one whose image was let go it says that the image that is there now is
    /// meant.
    pub(crate) fn resync(self: &Arc<Self>, name: &str) -> Result<()> {
        let _turn = self.changing.take(vec![Changed::Vm(name.to_owned())], &format!("VM {name}"))?;
        let stalled = self.stalled().get(name).cloned();
        let Some(stalled) = stalled.filter(|stalled| stalled.record.let_go) else {
            self.vm(name)?.command(Command::Resync);
            return Ok(());
        };
        let mut record = stalled.record;
        record.let_go = false;
        save_record(&self.state, &record)?;
        self.take_up(record);
        let error = self.stalled().get(name).map(|stalled| stalled.error.clone());
        error.map_or(Ok(()), |error| Err(OperationError::conflict(error)))
    }

    fn end(self: &Arc<Self>, vm: &Arc<ProtectedVm>) {
        self.vms().remove(&vm.name());
        self.leave_group(vm);
        self.has_left(vm.group());
        vm.stop();
    }

    pub(crate) fn vm(&self, name: &str) -> Result<Arc<ProtectedVm>> {
        let found = self.vms().get(name).cloned();
        found.ok_or_else(|| {
            OperationError::not_found(format!(
                "no VM {name:?} is protected here; `holdfast vm list` shows those that are"
            ))
        })
    }

    pub(crate) fn list(&self) -> Vec<Arc<ProtectedVm>> {
        self.vms().values().cloned().collect()
    }

    /// Every protected VM for the operator.
    pub(crate) fn vms_to_api(&self) -> Vec<api::ProtectedVm> {
        let mut rows: Vec<_> = self.list().iter().map(|vm| vm.to_api()).collect();
        let stalled = self.stalled();
        rows.extend(stalled.values().map(|stalled| stalled.to_api(&self.state, self.boot_id)));
        rows
    }

    /// One protected VM for the operator.
    pub(crate) fn vm_to_api(&self, name: &str) -> Result<api::ProtectedVm> {
        if let Some(stalled) = self.stalled().get(name) {
            return Ok(stalled.to_api(&self.state, self.boot_id));
        }
        self.vm(name).map(|vm| vm.to_api())
    }

    pub(crate) fn groups_here(&self) -> Vec<Arc<Group>> {
        self.groups().values().filter(|group| !group.is_empty()).cloned().collect()
    }

    /// Whether an image of a group may have VMs of which nothing is sent from here.
    pub(super) fn lacks_vms_of(&self, group: &Group) -> bool {
        let id = group.id().to_string();
        self.absent.has_of(&id)
            || self.stalled().values().any(|stalled| stalled.record.group_id == id)
            || self.departures.has_of(group.id())
    }

    fn leave_group(&self, vm: &ProtectedVm) {
        vm.group().leave(vm.id(), || self.lacks_vms_of(vm.group()));
    }

    /// Takes a checkpoint of a group with a person's words.
    pub(crate) fn tag(&self, group: &str, tag: &str) -> Result<types::Checkpoint> {
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
            return Err(OperationError::invalid(format!("a tag has 1 to {TAG_BYTES_MAX} bytes")));
        }
        self.group_here(group)?.take(CheckpointKind::Tagged, tag, clock::now())
    }

    /// Forgets a host of a group that is coordinated here; it must be away.
    pub(crate) fn remove_host(&self, group: &str, host: &str) -> Result<()> {
        self.group_here(group)?.remove_host(&self.state, host)
    }

    fn group_here(&self, group: &str) -> Result<Arc<Group>> {
        let here = self.groups();
        here.values().find(|here| here.answers_to(group)).cloned().ok_or_else(|| {
            OperationError::not_found(format!(
                "no group {group:?} is protected here; ask an agent of the protected side"
            ))
        })
    }

    fn vms(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<ProtectedVm>>> {
        self.vms.lock().expect("a panic aborts the process")
    }

    fn stalled(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Stalled>> {
        self.stalled.lock().expect("a panic aborts the process")
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Group>>> {
        self.groups.lock().expect("a panic aborts the process")
    }
}

/// What a protection that begins changes.
fn changed_by(request: &ProtectRequest) -> Vec<Changed> {
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

/// A protection's record, saved.
pub(crate) fn save_record(state: &StateDir, record: &ProtectionRecord) -> anyhow::Result<()> {
    state.save(&record.file_name(), record).context("save the protection")
}
