//! `cargo xtask sim`.

use clap::Parser;
use sim::{Summary, run};

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
        println!("{}", run(seed, true));
        return;
    }
    let mut total = Summary::default();
    for seed in cli.from..cli.from + cli.runs {
        // A violation panics, and panics name the seed.
        total.add(&run(seed, false));
        if (seed + 1) % 100 == 0 {
            eprintln!("{} seeds", seed + 1 - cli.from);
        }
    }
    println!("{} seeds without a violation\n{total}", cli.runs);
}
