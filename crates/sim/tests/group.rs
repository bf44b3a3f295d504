//! Some hundred seeds of groups whose members come and go, and which fail over.

use sim::{Summary, run_group};

#[test]
fn groups_whose_members_come_and_go_hold_every_invariant() {
    let mut total = Summary::default();
    for seed in 0..150 {
        total.add(&run_group(seed, false));
    }
    println!("{total}");
    // Otherwise the seeds prove nothing.
    assert!(total.departures > 300 && total.joins > 500 && total.joins_failed > 50, "{total}");
    assert!(total.cuts_opened > 2000 && total.promises > 200, "{total}");
    assert!(total.failovers > 100 && total.rollbacks > 50 && total.commits > 20, "{total}");
    assert!(total.moves > 50 && total.lives_ended > 30 && total.lies > 5000, "{total}");
    assert!(total.image_writes > 1000 && total.image_reads > 1000, "{total}");
}
