//! The one binary: the agent, and the operator's commands.
//!
//! Exit codes: 0 done; 1 something broke; 2 the command line or the request is wrong; 3 what was named
//! is not there; 4 it does not fit the present state; 5 not possible now, try again; 6 no agent answers;
//! 7 a journal is damaged; 8 a group has failed over, and not all of its VMs run; 9 the time to wait is over, and what was
//! asked for goes on; 130 interrupted, and it goes on.

mod cli;
mod commands;
mod exit;
mod journal_tools;
mod not_waited;
mod operating;
mod pki;
mod policy;
mod print;
mod telling;
mod units;
mod waiting;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    abort_on_panic();
    agent::privacy::begin();
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

/// A broken invariant ends the process, in whatever thread it is found. A release is built so; this is for the builds that
/// tests use.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
