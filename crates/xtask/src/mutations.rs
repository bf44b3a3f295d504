//! What the tests are worth: the code is broken on purpose, in one place at a time, and the test or the seeds that are said
//! to catch it have to.
//!
//! The places are in `crates/xtask/mutations.toml`. A test holds that each still is where it is said to be; that each is
//! caught takes a build apiece, so it is run by hand: `cargo xtask mutations`. Everything happens in a copy under
//! `target/mutations`.

mod list;
mod tree;

use crate::prepare::target;
use anyhow::{Context, Result, bail};
use list::Mutation;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;
use tree::Tree;

/// What has not ended by then has been stopped by what was broken, which is as good as a failure.
const STUCK_AFTER: Duration = Duration::from_secs(600);

/// Breaks each place whose name holds `only`, one after the other, and tells which were caught.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    let all = list::read()?;
    let wanted: Vec<&Mutation> =
        all.iter().filter(|one| only.is_none_or(|only| one.name.contains(only))).collect();
    if wanted.is_empty() {
        bail!("no such mutation; the names are in {}", list::path().display());
    }
    let folder = target().join("mutations");
    let tree = Tree::copy(&folder.join("tree"))?;
    let mut missed = Vec::new();
    for (at, mutation) in wanted.iter().enumerate() {
        let began = lab::now();
        let outcome = try_one(&tree, &folder, mutation).with_context(|| mutation.name.clone())?;
        let seconds = began.elapsed().as_secs();
        println!("{}/{} {}: {} ({seconds} s)", at + 1, wanted.len(), mutation.name, outcome.words());
        if !outcome.is_caught() {
            missed.push(mutation.name.as_str());
        }
    }
    if !missed.is_empty() {
        bail!("not caught: {}; what was said is in {}", missed.join(", "), folder.join("log").display());
    }
    println!("all {} were caught", wanted.len());
    Ok(())
}

enum Outcome {
    Caught,
    Stuck,
    Missed,
    /// It fails as it is, so it shows nothing.
    FailsUnbroken,
    DoesNotBuild,
}

impl Outcome {
    fn words(&self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::Stuck => "caught: it does not end",
            Self::Missed => "NOT CAUGHT",
            Self::FailsUnbroken => "the test fails without it",
            Self::DoesNotBuild => "does not build",
        }
    }

    fn is_caught(&self) -> bool {
        matches!(self, Self::Caught | Self::Stuck)
    }
}

/// Runs the test twice: as the code is, and broken.
fn try_one(tree: &Tree, folder: &std::path::Path, mutation: &Mutation) -> Result<Outcome> {
    let log = folder.join("log");
    let step = |arguments: &[String]| -> Result<Option<bool>> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(tree.folder()).args(arguments).env("CARGO_TARGET_DIR", folder.join("target"));
        let out = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        command.stdout(out.try_clone().context("share the log")?).stderr(out).stdin(Stdio::null());
        bounded(&mut command)
    };
    let (build, catch) = mutation.caught_by.commands();
    if step(&build)? != Some(true) || step(&catch)? != Some(true) {
        return Ok(Outcome::FailsUnbroken);
    }
    let broken = tree.with(mutation)?;
    let outcome = if step(&build)? != Some(true) {
        Outcome::DoesNotBuild
    } else {
        match step(&catch)? {
            Some(true) => Outcome::Missed,
            Some(false) => Outcome::Caught,
            None => Outcome::Stuck,
        }
    };
    broken.mend()?;
    Ok(outcome)
}

/// Whether it succeeded; none where it was ended because it did not end.
fn bounded(command: &mut Command) -> Result<Option<bool>> {
    use std::os::unix::process::CommandExt as _;
    let mut child = command.process_group(0).spawn().with_context(|| format!("run {command:?}"))?;
    let began = lab::now();
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(Some(status.success()));
        }
        if began.elapsed() > STUCK_AFTER {
            // Its tests are its children.
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).status().context("run kill")?;
            child.wait().context("wait")?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
