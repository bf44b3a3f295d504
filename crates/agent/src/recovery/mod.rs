//! The recovery side: journals received, images opened, groups failed over.
//!
//! Locks are taken in this order and never in another; whoever has one takes only such as stand below it:
//!
//! 1. a group's turn (`turns_of_groups`), while its guests are started and stopped: what is done with one group, failover,
//!    commit, rollback and images that are served again, goes one at a time, and no group waits for another;
//! 2. `making`, while a journal is made for a VM that is not kept yet; `naming`, while guests get their names on this host;
//! 3. a VM's `handing_over`, while its stream goes from one connection to the next;
//! 4. `images`, then `waiting_images`;
//! 5. `failovers`;
//! 6. `vms`, then one VM's `inner`, under which its record is saved;
//! 7. `unreadable`, alerts, the events of guests;
//! 8. a [journal's life](life), under which nothing is taken, and nothing is waited for but the end of its leases.
//!
//! From 4 on they are held for a moment. What takes long is kept apart by *states* and not by locks: a lease keeps a
//! journal open, a record says what is under way.

mod admission;
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
mod life;
mod making;
mod one_at_a_time;
mod policy;
mod promote;
mod promoted;
mod record;
mod replicas;
mod resume;
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
use crate::sockets::RunDir;
use crate::state::{StateDir, random};
use failover::FailoverRecord;
use guests::GuestEvents;
pub(crate) use incoming::serve_stream;
use one_at_a_time::OneAtATime;
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
            shards: Arc::new(journal::Shards::start(SHARDS, || (clock::wall(), random()))),
            boot_id,
            vms: Mutex::default(),
            images: Mutex::default(),
            waiting_images: Mutex::default(),
            failovers: Mutex::default(),
            unreadable: unreadable::Unreadable::default(),
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
