//! VMs that were started here and have ended: nobody else may be there to see it.

use super::Recovery;
use crate::alerts::{AlertKind, Cause};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(5);

impl Recovery {
    /// Watches for as long as the agent runs.
    pub(crate) async fn watch_for_ended_guests(self: Arc<Self>) {
        let mut known = BTreeMap::new();
        loop {
            let recovery = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                recovery.tell_ended(&mut known);
                known
            });
            known = looked.await.expect("a panic aborts the process");
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// A VM that has ended is an alert until its image is closed or rolled back, or it runs again.
    pub(super) fn tell_ended(&self, known: &mut BTreeMap<String, String>) {
        let (mut now, busy) = self.ended_guests();
        let of_busy = known.iter().filter(|(_, group)| busy.contains(*group));
        now.extend(of_busy.map(|(vm, group)| (vm.clone(), group.clone())));
        let cause = |vm: &String| Cause::new(AlertKind::GuestEnded, vm);
        known.extract_if(.., |vm, _| !now.contains_key(vm)).for_each(|(vm, _)| self.alerts.clear(cause(&vm)));
        for (vm, group) in &now {
            let text = format!(
                "VM {vm} of the failover of group {group} does not run any more: it was shut down, or its QEMU has ended; it \
                 stays so, and what it wrote is in its image"
            );
            self.alerts.raise(cause(vm), text);
        }
        known.extend(now);
    }
}
