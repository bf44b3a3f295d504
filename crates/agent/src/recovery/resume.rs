//! Taking up what is recorded, when the agent starts: all records first, then the disks they lie on.
//!
//! What holds: a record that cannot be read costs only what it was of, see `unreadable.rs`; all others are taken up. A disk
//! that hangs holds up no journal on another disk, nor the agent's start: what is not open or served in time is known, with
//! an alert, and goes on by itself.

use super::failover::record::FailoverRecord;
use super::images::ImageRecord;
use super::life::journal_alert;
use super::record::RecoveryRecord;
use super::side_by_side::side_by_side;
use super::turns::DiskId;
use super::vm::RecoveredVm;
use super::{Recovery, policy};
use anyhow::Result;
use joint::life::State;
use replication::wire::ArtifactHash;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::limits::{JOURNALS_OPENED_AT_ONCE, JOURNALS_START_MAX};

/// The journals of one disk that are to be opened.
struct Opener {
    recovery: Arc<Recovery>,
    waiting: Mutex<VecDeque<Arc<RecoveredVm>>>,
}

impl Opener {
    fn open_all(&self) {
        let next = || self.waiting.lock().expect("a panic aborts the process").pop_front();
        while let Some(vm) = next() {
            self.recovery.take_up(&vm);
        }
    }
}

impl Recovery {
    /// Takes up every journal, failover, image and operation that is recorded. Whose disk does not answer in time is
    /// taken up later.
    ///
    /// # Errors
    /// Where a folder of records cannot be listed: nothing is known then of who may stream.
    pub(crate) fn resume_all(self: &Arc<Self>) -> Result<()> {
        self.resume_records()?;
        self.take_up_all(JOURNALS_START_MAX);
        Ok(())
    }

    /// Knows again all that is recorded. No disk is waited for but that of the state folder.
    pub(super) fn resume_records(&self) -> Result<()> {
        for (name, loaded) in self.state.load_named::<RecoveryRecord>("recovered")? {
            match loaded.and_then(|record| self.resume(record)) {
                Ok(vm) if vm.is_forgotten() => {}
                Ok(vm) => self.tell_asked(&vm),
                Err(error) => self.leave_out_vm(&name, &error),
            }
        }
        for (name, loaded) in self.state.load_named::<FailoverRecord>("failovers")? {
            match loaded.and_then(|record| Ok((record.group_id()?, record))) {
                Ok((group, record)) => drop(self.failovers().insert(group, record)),
                Err(error) => self.fence_unread(&name, &error),
            }
        }
        for (name, loaded) in self.state.load_named::<ImageRecord>("images")? {
            match loaded {
                Ok(record) if self.vm_of_record(&record.vm).is_some() => self.serve_later(record),
                Ok(record) => self.serve_again(record),
                Err(error) => self.leave_out_image(name, &error),
            }
        }
        self.remembered.take_up(&self.state, &self.alerts);
        self.watch_all();
        self.resume_operations()
    }

    /// Opens every journal and serves its images, a few of each disk at once, and waits no longer than `within`.
    pub(super) fn take_up_all(self: &Arc<Self>, within: Duration) {
        let mut waiting: BTreeMap<DiskId, VecDeque<_>> = BTreeMap::new();
        let vms: Vec<_> = self.vms().values().cloned().collect();
        for vm in vms {
            waiting.entry(vm.disk(&self.journal_dir)).or_default().push_back(vm);
        }
        let of_disk = |waiting| {
            let opener = Arc::new(Opener { recovery: self.clone(), waiting: Mutex::new(waiting) });
            std::iter::repeat_n(opener, JOURNALS_OPENED_AT_ONCE)
        };
        let openers: Vec<_> = waiting.into_values().flat_map(of_disk).collect();
        side_by_side(&openers, within, Opener::open_all);
        for vm in self.list() {
            self.tell_unopened(&vm);
        }
        self.tell_unserved();
    }

    /// Opens a journal and serves its images. One that is being forgotten goes on doing so by itself.
    fn take_up(&self, vm: &Arc<RecoveredVm>) {
        if vm.is_forgotten() {
            return;
        }
        self.reopen(vm);
        self.serve_images_of(vm);
        self.tell_leftovers(vm);
    }

    /// Says of a journal that its disk has not answered yet. One that could not be opened has said so itself.
    fn tell_unopened(&self, vm: &RecoveredVm) {
        let is_waited_for = || vm.life().state() != State::Open && vm.last_error().is_none();
        if !is_waited_for() {
            return;
        }
        let text = format!(
            "VM {}: its journal is not open yet, so that nothing of it is taken and nothing can be failed over: its disk \
             does not answer; it is opened by itself once it does",
            vm.label()
        );
        self.alerts.raise(journal_alert(vm), text);
        if !is_waited_for() {
            // `upkeep` says so again where it is damaged.
            self.alerts.clear(journal_alert(vm));
        }
    }

    /// Files that the definitions of kept VMs name; none where a record could not be read, for then nobody knows.
    pub(crate) fn files_in_use(&self) -> Option<BTreeSet<ArtifactHash>> {
        let vms: Vec<_> = self.vms().values().cloned().collect();
        let files = vms.iter().flat_map(|vm| vm.record().files).map(|file| ArtifactHash(file.hash));
        self.unread_vms_note().is_none().then(|| files.collect())
    }

    /// Knows a VM again. Without what the operator has set it is not known where its journal lies.
    fn resume(&self, record: RecoveryRecord) -> Result<Arc<RecoveredVm>> {
        let policy = self.state.load(&policy::file_name(&record.vm))?.unwrap_or_default();
        let vm = RecoveredVm::new(record, policy)?;
        self.vms().insert(vm.id(), vm.clone());
        Ok(vm)
    }
}
