//! What a recovery side may say, and the sender believes.
//!
//! A sequence and an epoch of the peer become this side's own, and every other peer hears them from then on. So a peer
//! lifts them only to where all of them are still heard; above that stands only what this side has come to by itself.

use types::limits::EPOCHS_AHEAD_MAX;
use types::{BlockRun, Epoch, WriteSeq};

/// Whether the counter, which has drawn `drawn`, may be lifted to what a journal says it has.
pub(super) fn check_seq(durable: WriteSeq, drawn: WriteSeq) -> Result<(), String> {
    if durable <= WriteSeq::LIFT_MAX.max(drawn) {
        return Ok(());
    }
    Err(format!(
        "it says that its journal has {durable}, which no agent comes to; {drawn} is the last one here"
    ))
}

/// Whether the epoch here may be lifted to the peer's.
pub(super) fn check_epoch(epoch: Epoch, ours: Epoch) -> Result<(), String> {
    if epoch <= Epoch::LIFT_MAX.max(Epoch(ours.0.saturating_add(EPOCHS_AHEAD_MAX))) {
        return Ok(());
    }
    Err(format!("it says that the epoch is {epoch}, which no group comes to; it is {ours} here"))
}

/// Whether there is something of each run of blocks on the disks here.
pub(super) fn check_runs(runs: &[BlockRun], disk_sizes: &[u64]) -> Result<(), String> {
    let is_there = |run: &&BlockRun| {
        disk_sizes.get(usize::from(run.disk.0)).is_some_and(|&size| !run.range(size).is_empty())
    };
    match runs.iter().find(|run| !is_there(run)) {
        None => Ok(()),
        Some(run) => Err(format!(
            "it says that it has lost {} blocks of disk {} from block {} on, of which the VM has none",
            run.blocks, run.disk.0, run.first.0
        )),
    }
}
