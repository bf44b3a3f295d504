//! What an operator has to know of a disk that does not give all of itself, of a VM on our sockets.

use super::Source;
use super::vm::ProtectedVm;
use crate::alerts::{AlertKind, Cause};
use types::limits::BLOCK_BYTES;

impl Source {
    /// Raises or clears the alert of a VM. One under the tap has it from whoever watches that.
    pub(super) fn tell_unreadable(&self, vm: &ProtectedVm) {
        if vm.is_tapped() {
            return;
        }
        let record = vm.record();
        let cause = Cause::new(AlertKind::Reading, &record.name);
        let Some((disk, block)) = vm.capture().first_unreadable() else { return self.alerts.clear(cause) };
        let path = record.disks.get(usize::from(disk.0)).map(|disk| disk.path.display().to_string());
        let text = format!(
            "disk {} of VM {} cannot be read at byte {} ({} blocks of 64 KiB): the recovery side keeps what it has of them, \
             and has all else; replace the disk, and `vm resync`",
            path.unwrap_or_default(),
            record.name,
            block.0 * BLOCK_BYTES,
            vm.capture().status().unreadable_blocks
        );
        self.alerts.raise(cause, text);
    }
}
