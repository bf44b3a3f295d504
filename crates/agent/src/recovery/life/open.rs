//! Opening journals: for a stream that greets, when the agent starts, and by themselves where they are closed because
//! their disk failed, or was full, or could not be opened.
//!
//! What holds: nobody has to come for it. A source that greets opens a journal sooner; where it is lost, the journal is
//! open again soon after its disk answers, and can be failed over from. Between two tries the pause grows.

use super::super::Recovery;
use super::super::vm::RecoveredVm;
use super::{Lease, Opening, journal_alert, not_usable};
use crate::clock;
use crate::error::{OperationError, Result};
use joint::life::{Refused, State, Use};
use journal::Journal;
use std::sync::Arc;
use std::time::Duration;
use types::Monotonic;

const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// When a closed journal is tried next.
#[derive(Debug, Default)]
pub(in super::super) struct Reopening {
    next: Option<Monotonic>,
    pause: Duration,
    /// The last try has failed, with the error that is shown.
    failed: bool,
}

impl Reopening {
    /// Whether it is to be tried now; if so, the next try is later.
    fn is_due(&mut self, now: Monotonic) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.next = Some(Monotonic(now.0 + self.pause));
        true
    }

    /// The next try is due at once.
    #[cfg(test)]
    pub(in super::super) fn hurry(&mut self) {
        self.next = None;
    }
}

impl Recovery {
    /// The journal for a use of it; opened from the disk where it is closed.
    pub(in super::super) fn open_journal(&self, vm: &Arc<RecoveredVm>, what: Use) -> Result<Lease> {
        let unavailable = |state| OperationError::unavailable(not_usable(&vm.name(), state));
        if let Ok(lease) = vm.lease(what) {
            return Ok(lease);
        }
        match vm.life().begin() {
            Ok(opening) => self.open_now(vm, opening)?,
            Err(Refused::State(State::Open)) => {} // Another has opened it meanwhile.
            Err(Refused::State(state)) => return Err(unavailable(state)),
            Err(Refused::Images) => unreachable!("images hinder nobody who opens a journal"),
        }
        vm.lease(what).map_err(|_| unavailable(vm.life().state()))
    }

    /// Opens the journal from the disk and says what was found wrong.
    pub(in super::super) fn open_now(&self, vm: &Arc<RecoveredVm>, opening: Opening) -> Result<()> {
        vm.check_is_kept()?;
        let store = vm.take_folder(&self.journal_config)?;
        let opened =
            Journal::open_of(vm.id(), store, vm.settings(&self.journal_config)).map_err(|error| {
                anyhow::anyhow!("open the journal of {}: {}", vm.name(), crate::error::with_sources(&error))
            })?;
        if opened.torn_bytes > 0 {
            tracing::info!(
                vm = vm.name(),
                bytes = opened.torn_bytes,
                "a torn end, never acknowledged, was cut off"
            );
        }
        vm.tell_mended(&opened.mended);
        for damage in &opened.damage {
            vm.report_damage(damage);
        }
        self.use_opened(vm, opening, Arc::new(opened.journal));
        Ok(())
    }

    /// A journal that was just opened or made is in use, once its images read from it.
    pub(in super::super) fn use_opened(&self, vm: &RecoveredVm, opening: Opening, journal: Arc<Journal>) {
        opening.opened(journal.clone(), |image| self.rebind_image(image, &journal));
        vm.with_reopening(|tries| *tries = Reopening::default());
    }

    /// Opens a closed journal, if it is time to try that.
    pub(in super::super) fn reopen(&self, vm: &Arc<RecoveredVm>) {
        if vm.life().state() != State::Closed || !vm.with_reopening(|tries| tries.is_due(clock::now())) {
            return;
        }
        let failed_before = vm.with_reopening(|tries| std::mem::take(&mut tries.failed));
        let shown = vm.last_error();
        if failed_before {
            vm.clear_error();
        }
        match self.open_journal(vm, Use::Look) {
            Ok(_) => {
                if failed_before {
                    tracing::info!(vm = vm.name(), "the journal can be opened again");
                }
            }
            Err(error) => {
                vm.with_reopening(|tries| tries.failed = true);
                if shown.as_ref() != Some(&error.detail) {
                    tracing::error!(vm = vm.name(), error = error.detail, "journal cannot be opened");
                }
                let text = format!(
                    "VM {}: its journal cannot be opened, so that nothing of it is taken and nothing can be failed over: \
                     {}; tried again by itself, see to its disk",
                    vm.label(),
                    error.detail
                );
                self.alerts.raise(journal_alert(vm), text);
                vm.set_error(error.detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_two_tries_grows_to_a_minute() {
        let mut tries = Reopening::default();
        let at = |seconds| Monotonic(Duration::from_secs(seconds));
        let due: Vec<u64> = (0..240).filter(|second| tries.is_due(at(*second))).collect();
        assert_eq!(due, [0, 5, 15, 35, 75, 135, 195]);
    }
}
