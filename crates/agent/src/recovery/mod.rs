//! The recovery side: journals received, images opened, groups failed over.
//!
//! In which order its locks are taken, and that nothing is waited for under most of them, is in ARCHITECTURE, "Locks".

mod admission;
mod at;
mod carry_out;
mod clock_watch;
mod compare;
mod cut;
mod ended;
mod failover;
mod groups;
mod guests;
mod hand_over;
mod images;
mod incoming;
mod journals;
mod leaving;
mod life;
mod lifting;
mod lock;
mod locking;
mod making;
mod one_at_a_time;
mod operations_to_api;
mod plans;
mod policy;
mod promote;
mod promoted;
mod record;
mod remembered;
mod replicas;
mod resume;
mod running_twice;
mod scrub;
mod seeds;
mod side_by_side;
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
use crate::hypervisor::Adapter;
use crate::ledger::Operations;
use crate::own_folders::OwnFolders;
use crate::sockets::RunDir;
use crate::state::{StateDir, random};
use failover::record::FailoverRecord;
use guests::GuestEvents;
pub(crate) use incoming::serve_stream;
use one_at_a_time::OneAtATime;
use plans::Plan;
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
    own_folders: OwnFolders,
    run_dir: RunDir,
    /// What the operator has set for all journals of this agent.
    journal_config: JournalConfig,
    /// Below this many free bytes nothing is journaled any more: the rest is left to what else lives there.
    free_bytes_min: u64,
    shards: Arc<journal::Shards>,
    boot_id: [u8; 16],
    vms: Mutex<BTreeMap<VmId, Arc<RecoveredVm>>>,
    images: Mutex<BTreeMap<String, Arc<images::OpenImage>>>,
    /// Recorded images that cannot be served just now. Taken after `images`.
    waiting_images: Mutex<BTreeMap<String, unserved::Unserved>>,
    failovers: Mutex<BTreeMap<GroupId, FailoverRecord>>,
    /// What changes more than one thing, and goes on after a crash.
    operations: Operations<Plan>,
    /// What is recorded and could not be read when the agent started.
    unreadable: unreadable::Unreadable,
    /// Whose the groups are of which no VM is kept any more.
    remembered: remembered::Remembered,
    /// VMs whose journals are being made.
    making: Mutex<BTreeMap<VmId, record::RecoveryRecord>>,
    turns_of_groups: OneAtATime,
    /// Guests of failovers get their names on this host one at a time.
    naming: Mutex<()>,
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
        let operations = Operations::new(state.clone(), alerts.clone(), "operations");
        Arc::new(Self {
            state,
            artifacts,
            adapter: Adapter::new(
                config.qemu.clone(),
                config.run_dir.join("guests"),
                config.guests.clone(),
                config.launcher.clone(),
            ),
            alerts,
            guest_events: Arc::default(),
            journal_dir: config.journal_dir.clone(),
            own_folders: OwnFolders::new(config),
            run_dir,
            journal_config: config.journal.clone(),
            free_bytes_min: config.journal.free_bytes_min,
            shards: Arc::new(journal::Shards::start(SHARDS, || (clock::wall(), random()))),
            boot_id,
            vms: Mutex::default(),
            images: Mutex::default(),
            waiting_images: Mutex::default(),
            failovers: Mutex::default(),
            operations,
            unreadable: unreadable::Unreadable::default(),
            remembered: remembered::Remembered::default(),
            making: Mutex::default(),
            turns_of_groups: OneAtATime::default(),
            naming: Mutex::default(),
        })
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
