//! `cargo xtask sim`.

use clap::Parser;
use sim::{CutSummary, Summary, run, run_cuts};

/// Simulate both sides by seed.
#[derive(Debug, Parser)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    runs: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this seed, with every event told.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() {
    let cli = Cli::parse();
    if let Some(seed) = cli.seed {
        println!("{}\n{}", run(seed, true), run_cuts(seed));
        return;
    }
    let (mut total, mut cuts) = (Summary::default(), CutSummary::default());
    for seed in cli.from..cli.from + cli.runs {
        // A violation panics, and panics name the seed.
        total.add(&run(seed, false));
        cuts.add(&run_cuts(seed));
        if (seed + 1) % 100 == 0 {
            eprintln!("{} seeds", seed + 1 - cli.from);
        }
    }
    println!("{} seeds without a violation\n{total}\n{cuts}", cli.runs);
}
