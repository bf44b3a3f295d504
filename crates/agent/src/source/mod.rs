//! The protected side: VMs whose writes are captured, numbered and sent.

mod above;
mod absent;
mod bounds;
mod carry_out;
mod change;
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
mod kept_record;
mod log_rotation;
mod looking;
mod member;
mod nbd_tls;
mod operations_to_api;
mod peers;
mod plans;
mod protecting;
mod rates;
mod record;
mod remote_clients;
mod spill;
mod stalled;
mod standing_still;
mod stopping;
mod stream_status;
mod taking_up;
mod tapped;
#[cfg(test)]
mod tests;
mod unprotecting;
mod unreadable;
mod verify;
mod vm;

use crate::alerts::{AlertKind, Alerts, Cause};
use crate::artifacts::Artifacts;
use crate::clock;
use crate::config::{Compression, Config};
use crate::error::{OperationError, Result};
use crate::ledger::Operations;
use crate::one_at_a_time::OneAtATime;
use crate::pki::Pki;
use crate::policy::Policy;
use crate::sockets::RunDir;
use crate::state::StateDir;
use absent::Absent;
pub(crate) use coordinate::serve_host;
use departure::Departures;
pub(crate) use driver::Command;
use group::Group;
use host_devices::HostDevices;
pub(crate) use nbd_tls::serve_disks;
use peers::Peers;
use plans::Plan;
use record::{ProtectionRecord, save_record};
use replication::wire::ArtifactHash;
use splitter::BufferPool;
use splitter::nbd::Export;
use stalled::Stalled;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tapped::{NamedBy, VmTap, clear_alerts};
use tokio::sync::oneshot;
use types::limits::TAG_BYTES_MAX;
use types::{CheckpointKind, GroupId, RunNumber, VmId};
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
    /// What changes more than one thing, and goes on after a crash.
    operations: Operations<Plan>,
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
        let operations = Operations::new(state.clone(), alerts.clone(), "protected-operations");
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
            operations,
            changing: OneAtATime::default(),
        })
    }

    /// The protected disks that a client over TCP may open, as it knows them, and the VM of each.
    fn remote_exports(&self, may: impl Fn(&str, &str) -> bool) -> (Vec<Export>, Vec<Arc<ProtectedVm>>) {
        let mut exports = Vec::new();
        let mut vms = Vec::new();
        for vm in self.list().into_iter().filter(|vm| !vm.is_tapped()) {
            let name = vm.name();
            for mut export in vm.exports().into_iter().filter(|export| may(&name, &export.name)) {
                export.name = format!("{name}/{}", export.name);
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

    /// Files that the definitions of protected VMs name; none where a record cannot be read, for then nobody knows.
    pub(crate) fn files_in_use(&self) -> Option<BTreeSet<ArtifactHash>> {
        let recorded = self.state.load_each::<ProtectionRecord>("protected").ok()?;
        let coming_up = self.coming_up().into_iter().map(|(_, plan)| Ok(plan.record.files));
        let changed = self.files_of_changes().into_iter().map(Ok);
        let recorded = recorded.into_iter().map(|record| record.map(|record| record.files));
        let mut files = BTreeSet::new();
        for named in recorded.chain(coming_up).chain(changed) {
            let hashes = named.ok()?.into_iter().map(|file| record::parse_hash(&file.hash));
            files.extend(hashes.collect::<Option<Vec<_>>>()?);
        }
        Some(files)
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
        wait_until_had_by(&vm, 2);
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
    ///
    /// What is given tells once the VM's row shows that it has begun, where it does not yet.
    pub(crate) fn resync(self: &Arc<Self>, name: &str) -> Result<Option<oneshot::Receiver<()>>> {
        let _turn = self.changing.take(vec![Changed::Vm(name.to_owned())], &format!("VM {name}"))?;
        let stalled = self.stalled().get(name).cloned();
        let is_meant =
            |stalled: &Stalled| stalled.record.let_go && !self.is_being_unprotected(&stalled.record.vm);
        let Some(stalled) = stalled.filter(is_meant) else {
            return Ok(Some(self.vm(name)?.command_and_show(Command::Resync)));
        };
        let mut record = stalled.record;
        record.let_go = false;
        save_record(&self.state, &record)?;
        self.take_up(record);
        let error = self.stalled().get(name).map(|stalled| stalled.error.clone());
        error.map_or(Ok(None), |error| Err(OperationError::conflict(error)))
    }

    fn end(self: &Arc<Self>, vm: &Arc<ProtectedVm>) {
        self.vms().remove(&vm.name());
        self.leave_group(vm);
        self.has_left(vm.group());
        vm.stop();
        // Whoever drives its stream writes its record down no more.
        wait_until_had_by(vm, 1);
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

/// Waits, for a while, until no more than so many have a VM that was stopped.
fn wait_until_had_by(vm: &Arc<ProtectedVm>, count: usize) {
    for _ in 0..100 {
        if Arc::strong_count(vm) <= count {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
