//! The recovery side: journals received, images opened, groups failed over.

mod at;
mod clock_watch;
mod compare;
mod cut;
mod failover;
mod groups;
mod guests;
mod images;
mod incoming;
mod journals;
mod leaving;
mod moving;
mod policy;
mod promote;
mod promoted;
mod record;
mod scrub;
mod seeds;
mod silence;
mod turns;
mod unserved;
mod upkeep;
mod vm;
mod writer;

use crate::alerts::Alerts;
use crate::artifacts::Artifacts;
use crate::clock;
use crate::config::{Config, JournalConfig};
use crate::error::{OperationError, Result};
use crate::hypervisor::Adapter;
use crate::sockets::RunDir;
use crate::state::{StateDir, random};
use failover::FailoverRecord;
use groups::site_of;
use guests::GuestEvents;
pub(crate) use incoming::listen;
use policy::JournalPolicy;
use record::RecoveryRecord;
use replication::wire::{Hello, Refusal, Refuse};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use types::{Epoch, GroupId, VmId};
pub(crate) use vm::{RecoveredVm, checkpoint_to_api, mark_to_api};

/// Pairs of threads that append: as many as there are processors on the smallest machines.
const SHARDS: usize = 2;

/// Everything this agent keeps for others.
#[derive(Debug)]
pub(crate) struct Recovery {
    state: Arc<StateDir>,
    artifacts: Arc<Artifacts>,
    adapter: Adapter,
    alerts: Arc<Alerts>,
    guest_events: Arc<GuestEvents>,
    journal_dir: PathBuf,
    run_dir: RunDir,
    /// What the operator has set for all journals of this agent.
    journal_config: JournalConfig,
    /// Below this many free bytes nothing is journaled any more: the rest is left to what else lives there.
    free_bytes_min: u64,
    dscp: u8,
    shards: Arc<journal::Shards>,
    boot_id: [u8; 16],
    vms: Mutex<BTreeMap<VmId, Arc<RecoveredVm>>>,
    images: Mutex<BTreeMap<String, Arc<images::OpenImage>>>,
    /// Recorded images that cannot be served just now. Taken after `images`.
    waiting_images: Mutex<BTreeMap<String, unserved::Unserved>>,
    failovers: Mutex<BTreeMap<GroupId, FailoverRecord>>,
    /// New journals are made one at a time.
    making: Mutex<()>,
    /// Failover, commit and rollback go one at a time.
    failing_over: Mutex<()>,
}

impl Recovery {
    pub(crate) fn new(
        config: &Config,
        run_dir: RunDir,
        state: Arc<StateDir>,
        artifacts: Arc<Artifacts>,
        boot_id: [u8; 16],
        alerts: Arc<Alerts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            artifacts,
            adapter: Adapter::new(config.qemu.clone(), config.run_dir.join("guests")),
            alerts,
            guest_events: Arc::default(),
            journal_dir: config.journal_dir.clone(),
            run_dir,
            journal_config: config.journal.clone(),
            free_bytes_min: config.journal.free_bytes_min,
            dscp: config.dscp,
            shards: Arc::new(journal::Shards::start(SHARDS, || (clock::wall(), random()))),
            boot_id,
            vms: Mutex::default(),
            images: Mutex::default(),
            waiting_images: Mutex::default(),
            failovers: Mutex::default(),
            making: Mutex::default(),
            failing_over: Mutex::default(),
        })
    }

    /// Takes up every journal, failover and image that is recorded.
    pub(crate) fn resume_all(self: &Arc<Self>) -> anyhow::Result<()> {
        for record in self.state.load_all::<RecoveryRecord>("recovered")? {
            let policy = self.state.load(&policy::file_name(&record.vm))?.unwrap_or_default();
            let vm = RecoveredVm::new(record, policy)?;
            if let Err(error) = self.open_journal(&vm) {
                tracing::error!(vm = vm.name(), error = error.detail, "journal cannot be opened");
                vm.set_error(error.detail);
            }
            self.vms().insert(vm.id(), vm);
        }
        for record in self.state.load_all::<FailoverRecord>("failovers")? {
            self.failovers().insert(record.group_id()?, record);
        }
        self.reopen_images()?;
        self.watch_all();
        Ok(())
    }

    /// The VM a stream is for, with its journal open; made where it is new.
    fn admit(
        self: &Arc<Self>,
        hello: &Hello,
        peer: &str,
    ) -> std::result::Result<(Arc<RecoveredVm>, Arc<journal::Journal>), Refuse> {
        let refuse = |why, detail: String| Refuse { why, detail };
        let known = self.vms().get(&hello.vm).cloned();
        self.check_owner(hello, peer, known.as_deref())?;
        self.check_epoch(hello.group, &hello.group_name, hello.epoch)?;
        let vm = match known {
            Some(vm) => vm,
            None => self.make(hello, peer)?,
        };
        vm.follow(&self.state, hello, peer)
            .map_err(|error| refuse(Refusal::JournalFailed, format!("{error:#}")))?;
        let journal = match vm.journal() {
            Some(journal) => journal,
            None => self.open_journal(&vm).map_err(|error| refuse(Refusal::JournalFailed, error.detail))?,
        };
        let epoch = journal.status().epoch;
        if hello.epoch < epoch {
            // No failover is going on (that was checked first), so the sender may take the epoch up.
            let detail = format!("the journal is at epoch {epoch}");
            return Err(refuse(Refusal::Fenced { epoch, released: true }, detail));
        }
        let disks = journal.disks();
        if disks != hello.disks {
            let list = |disks: &[types::DiskSpec]| {
                let rows = disks.iter().map(|disk| format!("{} of {} bytes", disk.name, disk.size_bytes));
                rows.collect::<Vec<_>>().join(", ")
            };
            let detail = format!(
                "the journal holds {}, the VM has {}; unprotect the VM and protect it anew",
                list(&disks),
                list(&hello.disks)
            );
            return Err(refuse(Refusal::DisksDiffer, detail));
        }
        journal.set(vm.settings(&self.journal_config));
        let floor = self.free_bytes_min;
        let free = vm.free_bytes();
        if free < floor {
            let detail =
                format!("{free} bytes are free under {}, {floor} are needed", self.journal_dir.display());
            return Err(refuse(Refusal::JournalFull, detail));
        }
        Ok((vm, journal))
    }

    /// What a peer says of a VM counts only where VM, group and name are its own site's: no message changes what
    /// a record belongs to.
    fn check_owner(
        &self,
        hello: &Hello,
        peer: &str,
        known: Option<&RecoveredVm>,
    ) -> std::result::Result<(), Refuse> {
        let refuse = |detail: String| Err(Refuse { why: Refusal::NotAccepted, detail });
        let site = site_of(peer);
        if let Some(vm) = known {
            let (owner, record) = (vm.site(), vm.record());
            if owner != site {
                return refuse(format!("this VM is kept for site {owner}, and {peer} is not of it"));
            }
            if record.group_id != hello.group.to_string() {
                let detail = format!(
                    "this VM's journal belongs to group {} ({}), not to {} ({})",
                    record.group, record.group_id, hello.group_name, hello.group
                );
                return refuse(detail);
            }
            if record.left.is_some() {
                return refuse(format!(
                    "VM {} has left its group and its history has ended: protect it anew",
                    record.name
                ));
            }
        }
        for group in self.kept_groups() {
            if group.id == hello.group && group.site != site {
                return refuse(format!("the group's id is that of a group of site {}", group.site));
            }
            let has_name = group.site == site && group.name == hello.group_name;
            if has_name && group.id != hello.group && !group.members.is_empty() {
                return refuse(format!(
                    "site {site} has another group named {} here ({}): join it with `--coordinator`, give this one \
                     another name, or unprotect the VMs of the other",
                    group.name, group.id
                ));
            }
        }
        self.check_vm_name(hello, site)
    }

    /// Among the VMs of a site that are protected now a name means one of them.
    fn check_vm_name(&self, hello: &Hello, site: &str) -> std::result::Result<(), Refuse> {
        let other = self.list().into_iter().find(|vm| {
            let record = vm.record();
            vm.id() != hello.vm && vm.site() == site && record.name == hello.vm_name && record.left.is_none()
        });
        let Some(other) = other else { return Ok(()) };
        let detail = format!(
            "this side already keeps a VM named {} (from {}): remove its journal with `holdfast vm forget {}`, \
             or give one of them another name",
            hello.vm_name,
            other.record().peer,
            other.id()
        );
        Err(Refuse { why: Refusal::NotAccepted, detail })
    }

    /// Whether whoever speaks for a group with this epoch has its authority.
    fn check_epoch(&self, group: GroupId, name: &str, said: Epoch) -> std::result::Result<(), Refuse> {
        let failovers = self.failovers();
        let Some(record) = failovers.get(&group) else { return Ok(()) };
        let (epoch, released) = (Epoch(record.epoch), record.is_released());
        if said >= epoch && released {
            return Ok(());
        }
        let detail = if released {
            format!("the failover was rolled back, the group goes on with epoch {epoch}")
        } else {
            format!("group {name} has failed over to this side")
        };
        Err(Refuse { why: Refusal::Fenced { epoch, released }, detail })
    }

    fn make(self: &Arc<Self>, hello: &Hello, peer: &str) -> std::result::Result<Arc<RecoveredVm>, Refuse> {
        let refuse = |why, detail: String| Refuse { why, detail };
        let _one = self.making.lock().expect("a panic aborts the process");
        if let Some(vm) = self.vms().get(&hello.vm) {
            return Ok(vm.clone()); // Another connection has made it meanwhile.
        }
        self.check_owner(hello, peer, None)?;
        let failed = |detail| refuse(Refusal::JournalFailed, detail);
        let record = RecoveryRecord::from_hello(hello, peer, false);
        let vm = RecoveredVm::new(record, JournalPolicy::default())
            .map_err(|error| failed(format!("{error:#}")))?;
        let store = vm.take_folder(&self.journal_config).map_err(|error| failed(format!("{error:#}")))?;
        let settings = vm.settings(&self.journal_config);
        let seeded = self
            .take_seeds(&vm, &store, &hello.disks)
            .map_err(|error| refuse(Refusal::NotAccepted, format!("{error:#}")))?;
        if seeded {
            vm.set_seeded();
        }
        let create = if seeded { journal::Journal::create_seeded } else { journal::Journal::create };
        let made = create(store, hello.vm, &hello.vm_name, &hello.disks, hello.epoch, settings);
        match made {
            Ok(journal) => drop(vm.set_journal(Arc::new(journal))),
            // The agent died between making it and recording it.
            Err(journal::CreateError::Exists) => {
                self.open_journal(&vm).map_err(|error| failed(error.detail))?;
            }
            Err(error) => return Err(failed(crate::source::with_sources(&error))),
        }
        let record = vm.record();
        self.state.save(&record.file_name(), &record).map_err(|error| failed(format!("{error:#}")))?;
        tracing::info!(vm = hello.vm_name, group = hello.group_name, peer, "journal made");
        self.vms().insert(hello.vm, vm.clone());
        Ok(vm)
    }

    /// Opens the journal from the disk and says what was found wrong.
    fn open_journal(&self, vm: &Arc<RecoveredVm>) -> Result<Arc<journal::Journal>> {
        let _one = vm.lock_opening();
        if let Some(journal) = vm.journal() {
            return Ok(journal); // Another connection has opened it meanwhile.
        }
        let store = vm.take_folder(&self.journal_config)?;
        let opened = journal::Journal::open(store, vm.settings(&self.journal_config)).map_err(|error| {
            anyhow::anyhow!("open the journal of {}: {}", vm.name(), crate::source::with_sources(&error))
        })?;
        if opened.torn_bytes > 0 {
            tracing::info!(
                vm = vm.name(),
                bytes = opened.torn_bytes,
                "a torn end, never acknowledged, was cut off"
            );
        }
        vm.clear_error();
        for damage in &opened.damage {
            vm.report_damage(damage);
        }
        let journal = Arc::new(opened.journal);
        self.rebind_images(vm, &journal);
        Ok(vm.set_journal(journal))
    }

    pub(crate) fn list(&self) -> Vec<Arc<RecoveredVm>> {
        self.vms().values().cloned().collect()
    }

    /// Forgets a VM and its journal, for good.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        let vm = self.vm(name)?;
        if self.has_images(&vm) {
            return Err(OperationError::conflict(format!("images of VM {name} are open; close them first")));
        }
        if vm.is_streaming() {
            return Err(OperationError::conflict(format!(
                "VM {name} is still being sent; unprotect it on the other side first"
            )));
        }
        self.state.remove(&vm.record().file_name())?;
        self.vms().remove(&vm.id());
        let folder = vm.folder(&self.journal_dir);
        drop(vm);
        std::fs::remove_dir_all(&folder)
            .map_err(|error| anyhow::anyhow!("remove {}: {error}", folder.display()).into())
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<RecoveredVm>>> {
        self.vms.lock().expect("a panic aborts the process")
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, Arc<images::OpenImage>>> {
        self.images.lock().expect("a panic aborts the process")
    }

    fn waiting_images(&self) -> MutexGuard<'_, BTreeMap<String, unserved::Unserved>> {
        self.waiting_images.lock().expect("a panic aborts the process")
    }

    fn failovers(&self) -> MutexGuard<'_, BTreeMap<GroupId, FailoverRecord>> {
        self.failovers.lock().expect("a panic aborts the process")
    }
}
