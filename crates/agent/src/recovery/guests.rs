//! VMs that run on images: what they do, and what they show.

use super::Recovery;
use crate::alerts::{AlertKind, Alerts, Cause};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{RunDisk, RunState, VmEvent};
use anyhow::Context;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use types::WallTime;

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
        std::fs::create_dir_all(self.run_dir.path()).context("make the run folder")?;
        let path = self.run_dir.join(&format!("screen-{key}.png"));
        let taken = self.adapter.screenshot(&key, &path);
        let read = taken.and_then(|()| std::fs::read(&path).context("read the screenshot"));
        let _ = std::fs::remove_file(&path);
        read.map_err(|error| {
            let advice = "a VM has a screen where its definition says `graphics = \"vga\"` or \"virtio\"";
            OperationError::unavailable(format!("VM {vm}: {error:#}; {advice}"))
        })
    }
}
