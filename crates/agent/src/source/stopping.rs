//! The agent's own end: its VMs are stopped side by side, each within a bound.
//!
//! A disk that does not answer, or a monitor that says nothing, costs its own VM a clean stop and no other, and never
//! the agent so long that whoever stops it kills it.

use super::Source;
use crate::clock;
use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::time::Duration;
use types::limits::VM_STOP_MAX;

impl Source {
    /// Stops every VM. Of one that does not come to its end the disks are looked at when the agent is back, as after its
    /// death.
    pub(crate) fn stop_all(&self) {
        let vms = self.list().into_iter().map(|vm| (vm.name(), move || vm.stop()));
        for vm in stop_side_by_side(vms.collect(), VM_STOP_MAX) {
            tracing::error!(vm, "it does not come to its end; the agent ends without it");
        }
    }
}

/// Runs all at once and waits for them; the names of those that have not ended within `limit`.
fn stop_side_by_side(
    vms: Vec<(String, impl FnOnce() + Send + 'static)>,
    limit: Duration,
) -> BTreeSet<String> {
    let until = clock::now().plus(limit);
    let mut left: BTreeSet<String> = vms.iter().map(|(name, _)| name.clone()).collect();
    let (tell, stopped) = channel();
    for (name, stop) in vms {
        let tell = tell.clone();
        let run = move || {
            stop();
            // Nobody listens any more where it was too late.
            let _ = tell.send(name);
        };
        if let Err(error) = std::thread::Builder::new().name("stop".into()).spawn(run) {
            tracing::error!(%error, "no thread can be started to stop a VM");
        }
    }
    drop(tell);
    while !left.is_empty()
        && let Ok(name) = stopped.recv_timeout(until.since(clock::now()))
    {
        left.remove(&name);
    }
    left
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use std::sync::{Arc, Barrier};

    #[test]
    fn vms_stop_side_by_side_and_one_that_hangs_costs_no_other() {
        // Each waits for the other: one after the other they would not end.
        let both = Arc::new(Barrier::new(2));
        let meet = |name: &str| {
            let both = both.clone();
            let stop: Box<dyn FnOnce() + Send> = Box::new(move || {
                both.wait();
            });
            (name.to_owned(), stop)
        };
        assert_eq!(stop_side_by_side(vec![meet("a"), meet("b")], VM_STOP_MAX), BTreeSet::new());
        let hangs: Box<dyn FnOnce() + Send> = Box::new(|| std::thread::sleep(Duration::from_secs(600)));
        let (ended, seen) = channel();
        let ends: Box<dyn FnOnce() + Send> = Box::new(move || ended.send(()).unwrap());
        let vms = vec![("hangs".to_owned(), hangs), ("ends".to_owned(), ends)];
        assert!(stop_side_by_side(vms, Duration::from_millis(300)).contains("hangs"));
        seen.recv().unwrap();
    }

    #[test]
    fn the_service_manager_waits_longer_than_a_vm_may_take() {
        let unit = include_str!("../../../../packaging/holdfast-agent.service");
        let waits = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
        assert!(Duration::from_secs(waits.parse().unwrap()) > VM_STOP_MAX + Duration::from_secs(10));
    }
}
