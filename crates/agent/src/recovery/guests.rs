//! VMs that run on images: what they do, and what they show.

use super::Recovery;
use crate::alerts::{AlertKind, Alerts, Cause};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunDisk, RunState, VmEvent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::WallTime;

/// What it is an alert of that there is nobody to run VMs as.
const USERS: &str = "users of VMs";
const USERS_INTERVAL: Duration = Duration::from_secs(5);

/// The last event of each VM.
#[derive(Debug, Default)]
pub(super) struct GuestEvents(Mutex<BTreeMap<String, (String, WallTime)>>);

impl GuestEvents {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, WallTime)>> {
        self.0.lock().expect("a panic aborts the process")
    }

    fn note(&self, vm: &str, event: &VmEvent, alerts: &Alerts) {
        tracing::info!(vm, %event, "guest");
        self.lock().insert(vm.to_owned(), (event.to_string(), clock::wall()));
        if event.is_bad() {
            alerts.raise(alert_of(vm), format!("VM {vm}, which runs on an image here: {event}"));
        }
    }
}

fn alert_of(vm: &str) -> Cause {
    Cause::new(AlertKind::Guest, vm)
}

impl Recovery {
    /// Says, for as long as the agent runs, where VMs could not be started here: before there is need of them.
    pub(crate) async fn watch_guest_users(self: Arc<Self>) {
        loop {
            match self.adapter.check_users() {
                Ok(()) => self.alerts.clear(USERS),
                Err(error) => self.alerts.raise(USERS, format!("no VM can be started here: {error:#}")),
            }
            tokio::time::sleep(USERS_INTERVAL).await;
        }
    }

    /// Listens to a VM that runs from here on.
    pub(super) fn watch_guest(&self, vm: &str) {
        let (events, alerts, name) = (self.guest_events.clone(), self.alerts.clone(), vm.to_owned());
        if let Err(error) = self.adapter.watch(vm, move |event| events.note(&name, &event, &alerts)) {
            tracing::warn!(vm, error = format!("{error:#}"), "what the guest does is not told");
        }
    }

    /// Nothing that has happened to a VM matters any more.
    pub(super) fn forget_guest(&self, vm: &str) {
        self.guest_events.lock().remove(vm);
        self.alerts.clear(alert_of(vm));
    }

    pub(super) fn last_event(&self, vm: &str) -> Option<api::GuestEvent> {
        let found = self.guest_events.lock().get(vm).cloned();
        found.map(|(what, at)| api::GuestEvent { what, at: clock::to_text(at) })
    }

    /// What a running VM does with its disks; nothing where it does not answer.
    pub(super) fn guest_disks(&self, vm: &str) -> Vec<api::GuestDisk> {
        let to_api = |disk: RunDisk| api::GuestDisk {
            name: disk.name,
            size_bytes: disk.size_bytes,
            read_bytes: disk.read_bytes,
            written_bytes: disk.written_bytes,
            failed_requests: disk.failed_requests,
        };
        self.adapter.disks(vm).unwrap_or_default().into_iter().map(to_api).collect()
    }

    /// What a VM of a failover shows on its screen, as PNG.
    pub(crate) fn screenshot(&self, group: &str, vm: &str) -> Result<Vec<u8>> {
        let (key, pid) = self.run_of(group, vm)?;
        if pid.is_none_or(|pid| self.adapter.state(&key, pid) == RunState::Stopped) {
            return Err(OperationError::conflict(format!("VM {vm} does not run here")));
        }
        self.adapter.screenshot(&key).map_err(|error| {
            let advice = "a VM has a screen where its definition says `graphics = \"vga\"` or \"virtio\"";
            OperationError::unavailable(format!("VM {vm}: {error:#}; {advice}"))
        })
    }
}
