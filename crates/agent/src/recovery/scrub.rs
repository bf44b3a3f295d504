//! Scrubbing of all journals, one after the other, each once a day, at a rate for all together.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::clock;
use crate::pace::Pace;
use crate::source::with_sources;
use crate::state::random;
use journal::{Scrubbed, Upkeep};
use replication::wire::{Refusal, Refuse};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A journal is read again after this time.
const ROUND: Duration = Duration::from_secs(24 * 3600);
/// One whose disk does not answer is not read from its beginning again before this.
const RETRY: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_secs(60);

impl Recovery {
    /// Reads what is kept again and again, so that rot is found while the other side has what was lost.
    pub(crate) async fn scrub_regularly(self: Arc<Self>) {
        let rate = self.journal_config.scrub_bytes_per_second;
        if rate == 0 {
            return;
        }
        let pace = Arc::new(Pace::new(rate));
        let started = clock::wall();
        let mut failed_at = BTreeMap::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            failed_at.retain(|_, at| clock::wall().since(*at) < RETRY);
            for vm in self.list() {
                let (id, last) = (vm.id(), vm.scrubbed_at().unwrap_or(started));
                if clock::wall().since(last) < ROUND || failed_at.contains_key(&id) {
                    continue;
                }
                let pace = pace.clone();
                match tokio::task::spawn_blocking(move || scrub(&vm, &pace)).await {
                    Ok(true) => {}
                    Ok(false) => drop(failed_at.insert(id, clock::wall())),
                    Err(_) => return,
                }
            }
        }
    }
}

/// One round over a journal; false where its disk does not let it come to the end.
fn scrub(vm: &Arc<RecoveredVm>, pace: &Pace) -> bool {
    let mut place = None;
    let mut whole = true;
    loop {
        let Some(journal) = vm.journal() else { return true };
        let how =
            Upkeep { now: clock::wall(), entropy: random(), threads: 1, pace: &|bytes| pace.spend(bytes) };
        match journal.scrub(place, &how) {
            Ok(step) => {
                whole &= step.damage.is_empty();
                tell(vm, &step);
                place = step.place;
                if place.is_none() {
                    break;
                }
            }
            Err(error) => {
                let error = format!("the journal cannot be scrubbed: {}", with_sources(&error));
                tracing::warn!(vm = vm.name(), error);
                vm.set_error(error);
                return false;
            }
        }
    }
    if whole {
        vm.set_scrubbed(clock::wall());
    }
    true
}

fn tell(vm: &Arc<RecoveredVm>, step: &Scrubbed) {
    if step.rebuilt > 0 {
        tracing::warn!(vm = vm.name(), runs = step.rebuilt, "damaged index runs were made again");
    }
    for damage in &step.damage {
        let text = vm.report_damage(damage);
        // The source greets again, learns that it cannot resume, and sends everything.
        vm.stop_stream(Refuse { why: Refusal::Busy, detail: text });
    }
}
