//! Taking up what is recorded, when the agent starts.
//!
//! What holds: a record that cannot be read costs only what it was of, see `unreadable.rs`; all others are taken up.

use super::failover::record::FailoverRecord;
use super::images::ImageRecord;
use super::record::RecoveryRecord;
use super::vm::RecoveredVm;
use super::{Recovery, policy};
use anyhow::Result;
use replication::wire::ArtifactHash;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Recovery {
    /// Takes up every journal, failover, image and operation that is recorded.
    ///
    /// # Errors
    /// Where a folder of records cannot be listed: nothing is known then of who may stream.
    pub(crate) fn resume_all(self: &Arc<Self>) -> Result<()> {
        let mut forgotten = Vec::new();
        for (name, loaded) in self.state.load_named::<RecoveryRecord>("recovered")? {
            match loaded.and_then(|record| self.resume(record)) {
                Ok(vm) if vm.is_forgotten() => forgotten.push(vm),
                Ok(vm) => {
                    self.reopen(&vm);
                    self.tell_asked(&vm);
                }
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
                Ok(record) => self.serve_again(record),
                Err(error) => self.leave_out_image(name, &error),
            }
        }
        // Once it is known which images hold what they have.
        forgotten.iter().for_each(|vm| self.forget_the_rest(vm));
        self.list().iter().for_each(|vm| self.tell_leftovers(vm));
        self.watch_all();
        self.resume_operations()
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
