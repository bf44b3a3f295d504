//! The recovery side: journals received, images opened, groups failed over.

mod admission;
mod at;
mod clock_watch;
mod compare;
mod cut;
mod failover;
mod forget;
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
mod reopen;
mod replicas;
mod resume;
mod scrub;
mod seeds;
mod silence;
mod turns;
mod unreadable;
mod unserved;
mod upkeep;
mod vm;
mod writer;

use crate::alerts::Alerts;
use crate::artifacts::Artifacts;
use crate::clock;
use crate::config::{Config, JournalConfig};
use crate::error::Result;
use crate::hypervisor::Adapter;
use crate::sockets::RunDir;
use crate::state::{StateDir, random};
use failover::FailoverRecord;
use guests::GuestEvents;
pub(crate) use incoming::listen;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use types::{GroupId, VmId};
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
    /// What is recorded and could not be read when the agent started.
    unreadable: unreadable::Unreadable,
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
            unreadable: unreadable::Unreadable::default(),
            making: Mutex::default(),
            failing_over: Mutex::default(),
        })
    }

    /// Opens the journal from the disk and says what was found wrong.
    fn open_journal(&self, vm: &Arc<RecoveredVm>) -> Result<Arc<journal::Journal>> {
        let _one = vm.lock_opening();
        if let Some(journal) = vm.journal() {
            return Ok(journal); // Another connection has opened it meanwhile.
        }
        vm.check_is_kept()?;
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
        for damage in &opened.damage {
            vm.report_damage(damage);
        }
        let journal = Arc::new(opened.journal);
        self.rebind_images(vm, &journal);
        Ok(vm.set_journal(journal))
    }

    /// All that are kept; those that are being forgotten are not.
    pub(crate) fn list(&self) -> Vec<Arc<RecoveredVm>> {
        let mut vms: Vec<_> = self.vms().values().cloned().collect();
        vms.retain(|vm| !vm.is_forgotten());
        vms
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

#[cfg(test)]
mod tests;
