//! Records that cannot be read: each costs what it was of, and an alert that says what to do.
//!
//! What holds: nothing is done that the record might forbid. A VM's stream is refused and its journal is not touched, for
//! its site, its group and its folder are not known. A group is fenced as if it had failed over, for it may have. What
//! an image holds is not deleted with its journal. The name of the file is the id of what it was of.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::error::{OperationError, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use types::{GroupId, VmId};

#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<Found>);

/// What could not be read, and why.
#[derive(Debug, Default)]
struct Found {
    vms: BTreeMap<VmId, String>,
    failovers: BTreeMap<GroupId, String>,
    images: BTreeSet<String>,
}

impl Unreadable {
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl Recovery {
    pub(super) fn leave_out_vm(&self, name: &str, error: &anyhow::Error) {
        let text = format!(
            "what is recorded of the kept VM {name} cannot be read, so that its stream is refused and it cannot be failed \
             over: {error:#}; restore the file from a backup, or remove it (where it is of the folder `journals` and the \
             journal was moved, move that back first), and restart the agent"
        );
        self.alerts.raise(format!("record of VM {name}"), text);
        if let Ok(id) = name.parse() {
            self.unreadable.lock().vms.insert(id, format!("{error:#}"));
        }
    }

    pub(super) fn fence_unread(&self, name: &str, error: &anyhow::Error) {
        let text = format!(
            "what is recorded of a failover of group {name} cannot be read, so that all its streams are refused: {error:#}; \
             its VMs may run here. Restore the file from a backup, or, where they do not run here, remove it, and \
             restart the agent"
        );
        self.alerts.raise(format!("failover of group {name}"), text);
        if let Ok(id) = name.parse() {
            self.unreadable.lock().failovers.insert(id, format!("{error:#}"));
        }
    }

    pub(super) fn leave_out_image(&self, name: String, error: &anyhow::Error) {
        let text = format!(
            "what is recorded of image {name} cannot be read, so that it is not served: {error:#}; what was written to it \
             is kept in the folder `image-{name}` of its journal. Restore the file from a backup, or, where a failover ran \
             on it and may be rolled back, remove the file; then restart the agent"
        );
        self.alerts.raise(format!("image {name}"), text);
        self.unreadable.lock().images.insert(name);
    }

    /// Why a VM's record could not be read, where there is one like that.
    pub(super) fn unread_vm(&self, vm: VmId) -> Option<String> {
        self.unreadable.lock().vms.get(&vm).cloned()
    }

    /// The same of the record of a group's failover.
    pub(super) fn unread_failover(&self, group: GroupId) -> Option<String> {
        self.unreadable.lock().failovers.get(&group).cloned()
    }

    /// Whether a VM's record was read, if there is one, by an image's word of its VM.
    pub(super) fn check_image_has_no_unread_vm(&self, vm: &str) -> Result<()> {
        let Some(why) = vm.parse().ok().and_then(|id| self.unread_vm(id)) else { return Ok(()) };
        Err(OperationError::conflict(format!(
            "what is recorded of its VM cannot be read: {why}; mend it first"
        )))
    }

    /// Whether a VM's record was read, if there is one.
    pub(super) fn check_vm_was_read(&self, id: VmId) -> Result<()> {
        let Some(why) = self.unread_vm(id) else { return Ok(()) };
        Err(OperationError::conflict(format!(
            "what is recorded of VM {id} cannot be read: {why}; mend it as `holdfast alerts` says, restart the agent, and try \
             again"
        )))
    }

    /// Whether all is known of an image that a failover runs on, and of its VM: else it is neither made final nor undone.
    pub(super) fn check_image_was_read(&self, image: &str, vm: &str) -> Result<()> {
        vm.parse().map_or(Ok(()), |id| self.check_vm_was_read(id))?;
        if !self.unreadable.lock().images.contains(image) {
            return Ok(());
        }
        Err(OperationError::conflict(format!(
            "what is recorded of image {image}, which a VM of this failover runs on, cannot be read: restore \
             `images/{image}.json` of the state folder from a backup, or remove it where what was written to the image may \
             be thrown away and roll back then; restart the agent first"
        )))
    }

    /// Whether it is known who has the authority over a group.
    pub(super) fn check_failover_was_read(&self, group: GroupId) -> Result<()> {
        match self.unread_failover(group) {
            None => Ok(()),
            Some(why) => Err(OperationError::conflict(format!(
                "what is recorded of a failover of this group cannot be read, and its VMs may run at the recovery side: \
                 {why}; mend it there"
            ))),
        }
    }

    /// What is to be said of VMs that may belong to any group.
    pub(super) fn unread_vms_note(&self) -> Option<String> {
        let found = self.unreadable.lock();
        let ids: Vec<_> = found.vms.keys().map(VmId::to_string).collect();
        (!ids.is_empty()).then(|| {
            format!(
                "what is recorded of {} cannot be read: whether the group has it is not known, and it is left out",
                ids.join(", ")
            )
        })
    }

    /// Whether it is known of every image of a failover whose it is.
    pub(super) fn has_unread_failovers(&self) -> bool {
        !self.unreadable.lock().failovers.is_empty()
    }

    /// Whether something of an image lies in a VM's journal whose record could not be read.
    pub(super) fn has_unread_images(&self, vm: &RecoveredVm) -> bool {
        let (folder, images) = (vm.folder(&self.journal_dir), self.unreadable.lock().images.clone());
        images.iter().any(|id| folder.join(format!("image-{id}")).exists())
    }
}
