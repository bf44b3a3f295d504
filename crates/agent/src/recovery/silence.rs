//! Sites that have gone silent: a VM that is protected to here and has sent nothing for longer than its bound.
//!
//! Silence is told at this side too, for the other one may be gone with all who would read its alerts.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use types::{Monotonic, VmId};

const INTERVAL: Duration = Duration::from_secs(1);
/// Where the protected side has not said what its bound is.
const BOUND_DEFAULT: Duration = Duration::from_secs(60);

impl Recovery {
    /// Watches for as long as the agent runs.
    pub(crate) async fn watch_sources(self: Arc<Self>) {
        let mut heard = BTreeMap::new();
        loop {
            self.look_for_silence(&mut heard);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn look_for_silence(&self, heard: &mut BTreeMap<VmId, Monotonic>) {
        let now = clock::now();
        let vms = self.list();
        heard.retain(|id, _| vms.iter().any(|vm| vm.id() == *id));
        for vm in vms {
            let expected = self.is_expected(&vm);
            let heard_at = heard.entry(vm.id()).or_insert(now);
            if vm.is_streaming() {
                *heard_at = now;
            }
            self.tell_silence(&vm, now.since(*heard_at), expected);
            self.tell_running_twice(&vm, now);
        }
    }

    /// Whether anything is to come of it. A group whose failover's record cannot be read is refused here, which is told by
    /// itself.
    pub(super) fn is_expected(&self, vm: &RecoveredVm) -> bool {
        let failed_over = self.failovers().get(&vm.group()).is_some_and(|record| !record.is_released());
        vm.record().left.is_none() && !failed_over && self.unread_failover(vm.group()).is_none()
    }

    fn tell_silence(&self, vm: &RecoveredVm, silent_for: Duration, expected: bool) {
        let cause = silence_alert(vm);
        if !expected || vm.is_streaming() {
            return self.alerts.clear(cause);
        }
        let bound = match vm.record().rpo_seconds {
            0 => BOUND_DEFAULT,
            seconds => Duration::from_secs(seconds),
        };
        if silent_for > bound || self.alerts.remembers(&cause) {
            let text = format!(
                "VM {}: nothing arrives of it from {}; its state here grows old",
                vm.label(),
                vm.record().peer
            );
            self.alerts.raise_for(cause, silent_for, text);
        }
    }
}

/// What a VM of which nothing arrives is an alert of.
pub(super) fn silence_alert(vm: &RecoveredVm) -> Cause {
    Cause::new(AlertKind::SourceSilent, vm.id().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::super::tests::{PEER, admit_named, recovery};
    use super::*;
    use types::WriteSeq;

    /// It was unprotected, and protected anew under its name; then its site falls silent.
    #[test]
    fn a_vm_that_has_left_hides_no_silence_of_its_namesake() {
        for (live, left) in [(1, 2), (2, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let recovery = recovery(folder.path());
            let (gone, _) = admit_named(&recovery, left, "web", PEER);
            gone.leave(&recovery.state, WriteSeq::ZERO).unwrap();
            let (vm, _) = admit_named(&recovery, live, "web", PEER);
            for _ in 0..2 {
                for vm in [&vm, &gone] {
                    recovery.tell_silence(vm, Duration::from_secs(100), recovery.is_expected(vm));
                }
                let told = recovery.alerts.to_api();
                assert_eq!(told.len(), 1, "nobody is told that the site is silent");
                assert_eq!(told[0].subject, vm.id().to_string());
                assert!(told[0].text.contains("paris/web"));
            }
        }
    }
}
