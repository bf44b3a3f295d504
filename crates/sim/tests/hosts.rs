//! Cuts across hosts, by seed.

#[test]
fn cuts_across_hosts_are_cuts_whatever_becomes_of_the_hosts() {
    let mut total = sim::CutSummary::default();
    for seed in 0..400 {
        total.add(&sim::run_cuts(seed));
    }
    // Something was played at all.
    assert!(total.stand > 1000 && total.given_up > 1000, "{total}");
    assert!(total.restarts > 100 && total.links_lost > 100, "{total}");
}
