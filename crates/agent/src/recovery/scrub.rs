//! Scrubbing of all journals, one after the other, each once a day, at a rate for all together.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::clock;
use crate::error::with_sources;
use crate::pace::Pace;
use crate::state::random;
use joint::life::Use;
use journal::{Clock, Scrubbed, Upkeep};
use replication::wire::{Refusal, Refuse};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A journal is read again after this time.
const EVERY: Duration = Duration::from_secs(24 * 3600);
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
        // By what passes: a clock that jumps makes nobody read everything at once, nor never again.
        let started = clock::now();
        let mut scrubbed_at = BTreeMap::new();
        let mut failed_at = BTreeMap::new();
        loop {
            tokio::time::sleep(INTERVAL).await;
            failed_at.retain(|_, at| clock::now().since(*at) < RETRY);
            for vm in self.list() {
                let (id, last) = (vm.id(), scrubbed_at.get(&vm.id()).copied().unwrap_or(started));
                if clock::now().since(last) < EVERY || failed_at.contains_key(&id) {
                    continue;
                }
                let pace = pace.clone();
                match tokio::task::spawn_blocking(move || scrub(&vm, &pace)).await {
                    Ok(Round::Whole) => drop(scrubbed_at.insert(id, clock::now())),
                    Ok(Round::Again) => {}
                    Ok(Round::CutShort) => drop(failed_at.insert(id, clock::now())),
                    Err(_) => return,
                }
            }
        }
    }
}

/// How a round over a journal ended.
enum Round {
    /// All of it was read and is as it was written.
    Whole,
    /// Something was damaged, or the journal was closed.
    Again,
    /// Its disk did not let it come to the end.
    CutShort,
}

fn scrub(vm: &Arc<RecoveredVm>, pace: &Pace) -> Round {
    let mut place = None;
    let mut whole = true;
    loop {
        let Ok(journal) = vm.lease(Use::Scrub) else { return Round::Again };
        let how = Upkeep {
            clock: Clock::Monotonic(clock::now()),
            pace: &|bytes| pace.spend(bytes),
            ..Upkeep::plain(clock::wall(), random())
        };
        match journal.scrub(place, &how) {
            Ok(step) => {
                whole &= step.damage.is_empty();
                tell(vm, &step);
                place = step.place;
                if place.is_none() {
                    break;
                }
            }
            Err(_) if journal.is_closed() => return Round::Again,
            Err(error) => {
                let error = format!("the journal cannot be scrubbed: {}", with_sources(&error));
                tracing::warn!(vm = vm.name(), error);
                vm.set_error(error);
                return Round::CutShort;
            }
        }
    }
    if !whole {
        return Round::Again;
    }
    vm.set_scrubbed(clock::wall());
    Round::Whole
}

fn tell(vm: &Arc<RecoveredVm>, step: &Scrubbed) {
    if step.rebuilt > 0 {
        tracing::warn!(vm = vm.name(), runs = step.rebuilt, "damaged index runs were made again");
    }
    vm.tell_mended(&step.mended);
    for damage in &step.damage {
        let text = vm.report_damage(damage);
        // The source greets again, learns that it cannot resume, and sends everything.
        if !vm.stop_stream(Refuse { why: Refusal::Busy, detail: text }) {
            tracing::warn!(vm = vm.name(), "its stream does not let go; the journal refuses what it sends");
        }
    }
}
