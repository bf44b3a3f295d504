//! VMs that may run twice: their group has failed over to this side, and their own site's agent is there and greets for them.
//!
//! What their guests do there this side cannot tell: that site's operator may have chosen that they stand still.

use super::Recovery;
use super::failover::record::FailoverRecord;
use super::vm::RecoveredVm;
use crate::alerts::{AlertKind, Cause};
use replication::wire::{Refusal, Refuse};
use std::time::Duration;
use types::Monotonic;

/// Who is refused comes again sooner than that.
const HEARD_FOR: Duration = Duration::from_secs(120);

impl Recovery {
    /// Says as long as it is so.
    pub(super) fn tell_running_twice(&self, vm: &RecoveredVm, now: Monotonic) {
        let cause = running_twice_alert(vm);
        let is_it = |record: &FailoverRecord| !record.is_released() && record.has(vm.id(), &vm.name());
        let failed_over = self.failovers().get(&vm.group()).is_some_and(is_it);
        let heard = vm.fenced_greeting_at().is_some_and(|at| now.since(at) < HEARD_FOR);
        if !failed_over || !heard {
            return self.alerts.clear(cause);
        }
        let (label, peer) = (vm.label(), vm.record().peer);
        self.alerts.raise(
            cause,
            format!(
                "VM {label}: its group has failed over to this side, and {peer} is there and would send what it writes: its guest \
                 may run there too. `holdfast vm show` there says whether it does (`fenced`: what its operator has chosen)"
            ),
        );
    }
}

/// Whether a greeting was refused because its group has failed over to this side.
pub(super) fn is_fenced_off(refuse: &Refuse) -> bool {
    matches!(refuse.why, Refusal::Fenced { released: false, .. })
}

/// What a VM that may run twice is an alert of.
pub(super) fn running_twice_alert(vm: &RecoveredVm) -> Cause {
    Cause::new(AlertKind::RunsTwice, vm.id().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::super::tests::{PEER, append_sync, hello, recovery};
    use super::*;
    use crate::clock;
    use crate::ledger::Asker;

    #[test]
    fn a_vm_runs_twice_as_long_as_its_own_site_greets_for_it_and_the_failover_stands() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let [(vm, journal), (other, of_other)] = [1, 2].map(|vm| recovery.admit(&hello(vm), PEER).unwrap());
        [&journal, &of_other].into_iter().for_each(|journal| append_sync(journal));
        drop((journal, of_other));
        let is_told = |now: Monotonic| {
            recovery.tell_running_twice(&vm, now);
            recovery.alerts.to_api().iter().any(|alert| alert.kind == "runs-twice")
        };
        assert!(!is_told(clock::now()));
        let request =
            api::FailoverRequest { at: "latest".into(), vms: vec!["vm-1".into()], without: Vec::new() };
        recovery.failover("web", &request, &Asker::default()).unwrap();
        assert!(!is_told(clock::now()), "nobody was heard since");
        recovery.let_in(&hello(1), "agent.rome").unwrap_err();
        assert!(!is_told(clock::now()), "another site speaks for itself");
        recovery.let_in(&hello(1), PEER).unwrap_err();
        assert!(is_told(clock::now()));
        assert!(!is_told(clock::now().plus(HEARD_FOR)), "it is silent again");
        recovery.let_in(&hello(2), PEER).unwrap_err();
        recovery.tell_running_twice(&other, clock::now());
        assert!(recovery.alerts.to_api().is_empty(), "nothing of it was started here");
        recovery.let_in(&hello(1), PEER).unwrap_err();
        assert!(is_told(clock::now()));
        recovery.rollback("web", &Asker::default()).unwrap();
        assert!(!is_told(clock::now()));
    }
}
