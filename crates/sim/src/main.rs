//! `cargo xtask sim`.

use clap::{Parser, ValueEnum};
use sim::{CutSummary, Summary, run, run_cuts, run_group, run_whole, run_wide};

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
    /// What is played; all of it where none is named.
    #[arg(long)]
    only: Option<Play>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Play {
    Narrow,
    Wide,
    Whole,
    Cuts,
    Group,
}

impl Cli {
    fn plays(&self, play: Play) -> bool {
        self.only.is_none_or(|only| only == play)
    }
}

#[derive(Debug, Default)]
struct Total {
    narrow: Summary,
    wide: Summary,
    whole: Summary,
    cuts: CutSummary,
    group: Summary,
}

impl Total {
    /// A violation panics, and panics name the seed.
    fn play(&mut self, cli: &Cli, seed: u64, tell: bool) {
        if cli.plays(Play::Narrow) {
            self.narrow.add(&run(seed, tell));
        }
        if cli.plays(Play::Wide) {
            self.wide.add(&run_wide(seed, tell));
        }
        if cli.plays(Play::Whole) {
            self.whole.add(&run_whole(seed, tell));
        }
        if cli.plays(Play::Cuts) {
            self.cuts.add(&run_cuts(seed));
        }
        if cli.plays(Play::Group) {
            self.group.add(&run_group(seed, tell));
        }
    }
}

fn main() {
    let cli = Cli::parse();
    let mut total = Total::default();
    if let Some(seed) = cli.seed {
        total.play(&cli, seed, true);
    } else {
        let began = sim::now();
        for seed in cli.from..cli.from + cli.runs {
            total.play(&cli, seed, false);
            let done = seed + 1 - cli.from;
            if done % 100 == 0 || done == cli.runs {
                let rate = done as f64 / began.elapsed().as_secs_f64();
                eprintln!("{done} seeds, {rate:.1} a second; go on with --from {}", seed + 1);
            }
        }
        println!("{} seeds without a violation", cli.runs);
    }
    let Total { narrow, wide, whole, cuts, group } = total;
    println!("narrow: {narrow}\nwide: {wide}\nwhole: {whole}\n{cuts}\ngroup: {group}");
}
