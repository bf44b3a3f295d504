//! Journals that are closed because their disk failed, or was full, or could not be opened: tried again by themselves.
//!
//! What holds: nobody has to come for it. A source that greets opens a journal sooner; where it is lost, the journal is
//! open again soon after its disk answers, and can be failed over from. Between two tries the pause grows.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::clock;
use std::sync::Arc;
use std::time::Duration;
use types::Monotonic;

const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// When a closed journal is tried next.
#[derive(Debug, Default)]
pub(super) struct Reopening {
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
    pub(super) fn hurry(&mut self) {
        self.next = None;
    }
}

impl Recovery {
    /// Opens a closed journal, if it is time to try that.
    pub(super) fn reopen(&self, vm: &Arc<RecoveredVm>) {
        // One that is being moved is opened by whoever moves it, who holds it meanwhile.
        if vm.moving().is_some()
            || vm.journal().is_some()
            || !vm.with_reopening(|tries| tries.is_due(clock::now()))
        {
            return;
        }
        let failed_before = vm.with_reopening(|tries| std::mem::take(&mut tries.failed));
        let shown = vm.last_error();
        if failed_before {
            vm.clear_error();
        }
        match self.open_journal(vm) {
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
                    vm.name(),
                    error.detail
                );
                self.alerts.raise(format!("journal of {}", vm.name()), text);
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
