//! The one door: `cargo xtask demo`, `test`, `check`, `sim`, `mutations`, `fuzz`, `bench`, `ci`.

mod backports;
mod check;
mod demo;
mod edges;
mod fuzz;
mod mutations;
mod named_tests;
mod packages;
mod prepare;
mod report;
mod rooms;
mod run;
mod sources;
mod suites;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Holdfast's own chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Protect a real VM, lose its site, and bring it up at the other one.
    Demo(demo::Demo),
    /// Pass every test but those of suites.
    Test {
        /// Only tests whose name holds this.
        filter: Option<String>,
        /// Instead, one of the suites that take minutes; `list` tells which there are.
        #[arg(long, value_name = "NAME", conflicts_with = "filter")]
        suite: Option<String>,
    },
    /// Make what the tests need, without running any: packages, guest, a second QEMU.
    Prepare,
    /// Format, lints, licences, doubles, edges between crates and circles of files.
    Check,
    /// Simulate both sides by seed, with faults.
    Sim {
        /// How many seeds, the first one, what is played: `--help` behind a `--` tells.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Break the code on purpose, place by place, and see that a test or a seed catches it.
    Mutations {
        /// Only those whose name holds this.
        only: Option<String>,
    },
    /// Feed every parser of foreign bytes what a fuzzer makes up.
    Fuzz {
        /// Only this target.
        target: Option<String>,
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Measure, beside a reference in the same run.
    Bench {
        /// Which bench; all of them if none is named.
        name: Option<String>,
        /// A short form: smaller, fewer rounds.
        #[arg(long)]
        quick: bool,
        /// One JSON object as the last line.
        #[arg(long)]
        json: bool,
        /// Only sections whose name holds this.
        #[arg(long)]
        only: Option<String>,
    },
    /// What continuous integration runs: check, test, threads by seed, a little fuzzing, demo.
    Ci,
    /// Write docs/openapi.json anew.
    Openapi,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Test { suite: Some(suite), .. } => suites::run(&suite),
        Command::Test { filter, .. } => run::test(filter.as_deref()),
        Command::Prepare => prepare::for_tests(),
        Command::Check => check::run(),
        Command::Sim { arguments } => run::sim(&arguments),
        Command::Mutations { only } => mutations::run(only.as_deref()),
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Command::Bench { name, quick, json, only } => run::bench(name, quick, json, only),
        Command::Ci => {
            check::run()?;
            run::test(None)?;
            suites::run(suites::INTERLEAVINGS)?;
            fuzz::run(None, fuzz::SECONDS_IN_CI)?;
            demo::Demo::for_ci().run()
        }
        Command::Openapi => run::openapi(),
    }
}
