//! VMs that are protected no more: what their site says of them, written down before it is answered.

use super::Recovery;
use super::groups::site_of;
use joint::admission::{authority, unread};
use replication::wire::{Leave, Message, Refusal, Refuse};

impl Recovery {
    /// Takes note that a VM has left its group; what to answer. Hearing it twice changes nothing, and of a VM that
    /// is not kept here there is nothing to note. Of one whose record cannot be read it is not known whether it is:
    /// whoever says that it leaves is told so, and says it again.
    pub(crate) fn on_leave(&self, leave: &Leave, peer: &str) -> Message {
        match self.leave(leave, peer) {
            Ok(()) => Message::Left(leave.vm),
            Err(refuse) => Message::Refuse(refuse),
        }
    }

    fn leave(&self, leave: &Leave, peer: &str) -> Result<(), Refuse> {
        if let Some(why) = self.unread_vm(leave.vm) {
            return Err(unread(&why));
        }
        let Some(vm) = self.vms().get(&leave.vm).cloned() else { return Ok(()) };
        let refuse = |why, detail: String| Refuse { why, detail };
        let (owner, group) = (vm.site(), vm.group());
        if owner != site_of(peer) || group != leave.group {
            let detail = format!("this VM belongs to group {group} of site {owner}");
            return Err(refuse(Refusal::NotAccepted, detail));
        }
        // Who has lost the authority over a group does not say who belongs to it.
        let unread = self.unread_failover(leave.group);
        let failover = self.failover_known(leave.group, unread.as_deref());
        authority(leave.epoch, &vm.record().group, failover)?;
        if let Some(epoch) = vm.journal().map(|journal| journal.status().epoch)
            && leave.epoch < epoch
        {
            let detail = format!("the journal is at epoch {epoch}");
            return Err(refuse(Refusal::Fenced { epoch, released: true }, detail));
        }
        vm.leave(&self.state, leave.at)
            .map_err(|error| refuse(Refusal::JournalFailed, format!("{error:#}")))?;
        tracing::info!(vm = vm.label(), group = %leave.group, at = %leave.at, "protected no more");
        Ok(())
    }
}
