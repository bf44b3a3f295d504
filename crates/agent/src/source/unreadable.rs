//! What becomes of the blocks that a disk does not give, of a VM on our sockets: an operator has to know, and they are
//! tried again.

use super::Source;
use super::vm::ProtectedVm;
use crate::alerts::{AlertKind, Cause};
use splitter::retry_unreadable;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use types::Monotonic;
use types::limits::BLOCK_BYTES;

/// How often blocks that could not be read are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(180);

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
             and has all else; they are tried again every few minutes, and no checkpoint has them until then: replace the disk",
            path.unwrap_or_default(),
            record.name,
            block.0 * BLOCK_BYTES,
            vm.capture().status().unreadable_blocks
        );
        self.alerts.raise(cause, text);
    }
}

/// Tries again what could not be read. At most one try runs at once, however slow the disk is.
#[derive(Debug)]
pub(super) struct Retry {
    tried_at: Monotonic,
    running: Option<JoinHandle<()>>,
}

impl Retry {
    pub(super) fn new(now: Monotonic) -> Self {
        Self { tried_at: now, running: None }
    }

    pub(super) fn now_and_then(&mut self, now: Monotonic, vm: &Arc<ProtectedVm>) {
        let runs = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if runs || now.since(self.tried_at) < RETRY_INTERVAL || vm.capture().first_unreadable().is_none() {
            return;
        }
        self.tried_at = now;
        let vm = vm.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            let blocks = retry_unreadable(vm.capture(), vm.disks(), || !vm.is_ending());
            if blocks > 0 {
                tracing::info!(vm = vm.name(), blocks, "what could not be read can be again, and is copied");
            }
        }));
    }
}
