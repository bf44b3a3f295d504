//! Some hundred seeds, and those that once found something.

use sim::{Summary, run};

#[test]
fn three_hundred_seeds_hold_every_invariant() {
    let mut total = Summary::default();
    for seed in 0..300 {
        total.add(&run(seed, false));
    }
    println!("{total}");
    // Otherwise the seeds prove nothing.
    assert!(total.checkpoints_compared > 1000, "{total}");
    assert!(total.power_losses > 100 && total.folds > 100 && total.failovers > 50, "{total}");
    assert!(total.damaged_checkpoints > 50 && total.blocks_asked_again > 4, "{total}");
}

/// Each of these once broke an invariant.
#[test]
fn seeds_that_once_found_something_hold() {
    for seed in [
        23,    // a welcome while fenced
        27,    // a fold cut short, its checkpoints still listed
        212,   // a batch read back from the page cache after its sync had failed
        2615,  // a fold that failed, then one to further down
        1955,  // the same, for a batch that only moved the watermark
        65515, // a fold whose retiring could not be written down, and then a seal that forgot its gaps
        226,   // retention that left nothing to fail over to while a sync was under way
        52762, // a write told as durable because a sync that had overtaken it was beginning to be
        277,   // a manifest put in place whose folder could not be synced, and its segment made again
        354,   // a promise without a VM whose first sync had ended unheard when the agent was killed
    ] {
        run(seed, false);
    }
}
