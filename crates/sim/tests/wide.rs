//! Some hundred seeds of all that the product does, and those that once found something.

use sim::{Summary, run_wide};

#[test]
fn two_hundred_seeds_hold_every_invariant() {
    let mut total = Summary::default();
    for seed in 0..200 {
        total.add(&run_wide(seed, false));
    }
    println!("{total}");
    // Otherwise the seeds prove nothing.
    assert!(total.images_opened > 500 && total.image_writes > 1000 && total.promoted > 100, "{total}");
    assert!(total.pins > 200 && total.tags > 500, "{total}");
}
