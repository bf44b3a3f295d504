//! Upkeep of all journals, in turn and in the background: footers, merges, folding, retention, scrubbing.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::clock;
use crate::pace::Pace;
use crate::source::with_sources;
use crate::state::random;
use journal::{Clock, Journal, Kept, Upkeep};
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(1);
/// Guides and files not used for so many rounds are let go of.
const REST_EVERY: u64 = 60;
/// Threads that bring a journal's data to its replica.
const FOLD_THREADS: usize = 16;

impl Recovery {
    /// Keeps up every journal, again and again. One journal's turn is bounded, so none waits for another.
    pub(crate) async fn keep_up_regularly(self: Arc<Self>) {
        let fold_pace = Arc::new(Pace::new(self.journal_config.fold_bytes_per_second));
        for round in 1u64.. {
            tokio::time::sleep(INTERVAL).await;
            let mut waiting = self.list();
            while !waiting.is_empty() {
                let mut more = Vec::new();
                for vm in waiting {
                    let (pace, for_vm) = (fold_pace.clone(), vm.clone());
                    let turn = tokio::task::spawn_blocking(move || keep_up(&for_vm, &pace, round));
                    match turn.await {
                        Ok(true) => more.push(vm),
                        Ok(false) => {}
                        Err(_) => return,
                    }
                }
                waiting = more;
            }
        }
    }
}

/// One journal's turn; whether it wants another at once.
fn keep_up(vm: &RecoveredVm, pace: &Pace, round: u64) -> bool {
    let Some(journal) = vm.journal() else { return false };
    if round.is_multiple_of(REST_EVERY) {
        journal.rest();
    }
    let how = Upkeep {
        now: clock::wall(),
        clock: Clock::Monotonic(clock::now()),
        entropy: random(),
        threads: FOLD_THREADS,
        pace: &|bytes| pace.spend(bytes),
    };
    match journal.keep_up(&how) {
        Ok(kept) => {
            tell(vm, &journal, &kept);
            kept.more
        }
        Err(error) => {
            let error = with_sources(&error);
            tracing::error!(vm = vm.name(), error, "upkeep of the journal failed; tried again");
            vm.set_error(error);
            false
        }
    }
}

fn tell(vm: &RecoveredVm, journal: &Journal, kept: &Kept) {
    if kept.segments > 0 {
        let (segments, bytes) = (kept.segments, kept.folded_bytes);
        tracing::info!(vm = vm.name(), segments, bytes, applied = %kept.applied, "folded");
    }
    if kept.merges > 0 {
        tracing::debug!(vm = vm.name(), runs = journal.status().runs, "index runs merged");
    }
}
