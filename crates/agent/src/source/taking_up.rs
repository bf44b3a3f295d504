//! Taking up what is recorded: when the agent starts, and again and again what could not be.
//!
//! What holds: whoever is recorded is protected or waits here, from the first moment on, so that the others of its group
//! promise nothing without it. Each is tried by itself: a disk that hangs holds up no other, nor the agent's start.

use super::record::ProtectionRecord;
use super::stalled::Stalled;
use super::tapped::{NamedBy, VmTap};
use super::{Changed, Source};
use crate::alerts::{AlertKind, Cause};
use crate::error::{ErrorKind, OperationError, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::limits::VM_START_MAX;

/// How often a protection that could not be taken up is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

impl Source {
    /// Takes up every protection that is recorded. One that cannot be is shown as failed and tried again; the others go
    /// on.
    pub(crate) async fn resume_all(self: &Arc<Self>) -> anyhow::Result<()> {
        self.operations.resume()?;
        self.resume_departures()?;
        for record in self.state.load_each::<ProtectionRecord>("protected")? {
            match record {
                Ok(record) => {
                    self.stalled().insert(record.name.clone(), Stalled::untried(record));
                }
                // Its guest has no disk until this is mended; the others must have theirs.
                Err(error) => {
                    self.absent.note_unknown();
                    self.alerts.raise("protections", format!("a protection is left out: {error:#}"));
                }
            }
        }
        self.try_all(VM_START_MAX).await;
        Ok(())
    }

    /// Tries again, for ever, what could not be taken up.
    pub(crate) async fn retry_regularly(self: Arc<Self>) {
        loop {
            let delay = self.stalled().values().filter_map(Stalled::next_delay).min();
            tokio::time::sleep(delay.unwrap_or(RETRY_INTERVAL)).await;
            self.try_all(RETRY_INTERVAL).await;
        }
    }

    /// Tries all that wait, side by side, and waits for them no longer than `within`.
    async fn try_all(self: &Arc<Self>, within: Duration) {
        let waiting: Vec<_> = self.stalled().values().map(|stalled| stalled.record.clone()).collect();
        let names: Vec<_> = waiting.iter().map(|record| record.name.clone()).collect();
        let mut trying = JoinSet::new();
        for record in waiting {
            let source = self.clone();
            trying.spawn_blocking(move || source.try_one(record));
        }
        let all = async { while trying.join_next().await.is_some() {} };
        if timeout(within, all).await.is_err() {
            names.iter().for_each(|name| self.tell_hanging(name));
        }
        trying.detach_all();
    }

    fn try_one(self: &Arc<Self>, record: ProtectionRecord) {
        // One that hangs is not tried again meanwhile.
        let Some(_turn) = self.changing.try_take(vec![Changed::Vm(record.name.clone())]) else { return };
        // What an operator has changed, ended or is ending meanwhile is not taken up as it was.
        if self.is_being_unprotected(&record.vm) {
            return;
        }
        if self.stalled().get(&record.name).is_none_or(|stalled| stalled.record != record) {
            return;
        }
        match self.check_answers(&record) {
            Ok(()) => self.take_up(record),
            Err(error) => self.stall(record, error),
        }
    }

    /// Whether a VM that runs on its own image can be asked for its disks. Its group is there also where it cannot.
    fn check_answers(self: &Arc<Self>, record: &ProtectionRecord) -> Result<()> {
        let _coming = self.coming_as_recorded(record)?;
        record.qmp.as_deref().map_or(Ok(()), VmTap::answers)
    }

    /// Says of a VM that its try has not ended, unless it just has.
    fn tell_hanging(&self, name: &str) {
        let hangs = self.changing.try_take(vec![Changed::Vm(name.to_owned())]).is_none();
        let why = "its disks do not answer, or whoever runs it; it is taken up by itself once they do";
        match self.stalled().get_mut(name) {
            Some(stalled) if hangs => stalled.error = why.to_owned(),
            _ => return,
        }
        let cause = Cause::new(AlertKind::Protection, name);
        self.alerts.raise(cause.clone(), format!("VM {name} is not protected: {why}"));
        if !self.stalled().contains_key(name) {
            self.alerts.clear(cause);
        }
    }

    pub(super) fn take_up(self: &Arc<Self>, record: ProtectionRecord) {
        let name = record.name.clone();
        if self.vms().contains_key(&name) {
            return;
        }
        match self.begin(record.clone(), NamedBy::Record) {
            Ok(vm) => {
                self.save_changed(&vm, &record);
                if self.stalled().remove(&name).is_some_and(|stalled| stalled.is_tried) {
                    tracing::info!(vm = name, "protection taken up after all");
                }
                self.alerts.clear(Cause::new(AlertKind::Protection, &name));
            }
            Err(error) => self.stall(record, error),
        }
    }

    /// A protection that cannot be taken up waits for the next try.
    fn stall(&self, record: ProtectionRecord, error: OperationError) {
        let name = record.name.clone();
        let is_in_use = error.kind == ErrorKind::InUse;
        let before = self.stalled().get(&name).map_or(0, |stalled| stalled.found_in_use);
        let found_in_use = if is_in_use { before + 1 } else { 0 };
        let stalled = Stalled::new(record, error.detail, found_in_use);
        if stalled.may_come_free() {
            tracing::info!(vm = name, error = stalled.error, "not taken up yet");
        } else {
            let text = format!("VM {name} is not protected: {}; tried again by itself", stalled.error);
            self.alerts.raise(Cause::new(AlertKind::Protection, &name), text);
        }
        self.stalled().insert(name, stalled);
    }
}
