//! VMs that are protected no more: what their site says of them, written down before it is answered.

use super::Recovery;
use super::admission::{failed, to_vm};
use super::vm::RecoveredVm;
use joint::admission::{Journal, Kept, Open};
use replication::wire::{Leave, Message, Refuse};

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
        let unread = self.unread_vm(leave.vm);
        let vm = self.vms().get(&leave.vm).cloned();
        // Whether its disk has room is not asked: that may hang.
        let journal = |vm: &RecoveredVm| match vm.journal() {
            None => Journal::Away(vm.life().state()),
            Some(open) => {
                Journal::Open(Open { epoch: open.status().epoch, disks: open.disks(), no_room: None })
            }
        };
        let known = vm.as_ref().map(|vm| (vm.group(), vm.record(), journal(vm)));
        let kept = match (&unread, &known) {
            (Some(why), _) => Kept::Unreadable(why),
            (None, None) => Kept::Not,
            (None, Some((group, record, journal))) => Kept::Is(to_vm(*group, record, journal.clone())),
        };
        let unread = self.unread_failover(leave.group);
        let failover = self.failover_known(leave.group, unread.as_deref());
        let is_news = joint::admission::leave(leave, peer, &kept, failover)?;
        let Some(vm) = vm.filter(|_| is_news) else { return Ok(()) };
        vm.leave(&self.state, leave.at).map_err(|error| failed(format!("{error:#}")))?;
        tracing::info!(vm = vm.label(), group = %leave.group, at = %leave.at, "protected no more");
        Ok(())
    }
}
