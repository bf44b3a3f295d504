//! Suites: tests that take minutes, and are run before something is called done. Each is a module `suite_NAME` of ignored
//! end-to-end tests, but for `interleavings`: threads that take turns by a seed, which is built by itself, and which is the
//! only one that continuous integration runs.

use crate::backports;
use crate::packages;
use crate::prepare::{self, cargo, root, run_visibly, target};
use anyhow::{Context, Result, bail};

pub(crate) const INTERLEAVINGS: &str = "interleavings";

/// Runs the tests of one suite, or tells which suites there are.
pub(crate) fn run(name: &str) -> Result<()> {
    let known = names()?;
    if name == "list" {
        known.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    if !known.iter().any(|suite| suite == name) {
        bail!("there is no suite {name:?}; there are {}", known.join(", "));
    }
    if name == INTERLEAVINGS {
        return interleavings();
    }
    prepare::for_tests()?;
    if name == "libvirt" {
        packages::ensure(packages::LIBVIRT)?;
        backports::LIBVIRT_ELEVEN.ensure(&target().join("guest"))?;
    }
    let mut command = cargo();
    command.env("HOLDFAST_GUEST_DIR", target().join("guest"));
    command.args(["test", "--workspace", "--test", "end_to_end", "--"]);
    run_visibly(command.args(["--ignored", "--test-threads=1", &format!("suite_{name}::")]))
}

/// Seed by seed, in a target folder of its own: with the feature everything is built anew. `HOLDFAST_INTERLEAVINGS` says how
/// many seeds.
fn interleavings() -> Result<()> {
    for tests in [["sim", "--lib", "interleavings::"], ["journal", "--test", "interleavings"]] {
        let mut command = cargo();
        command.env("CARGO_TARGET_DIR", target().join("interleavings"));
        command.args(["test", "--features", "interleavings", "-p"]);
        run_visibly(command.args(tests))?;
    }
    Ok(())
}

/// Every suite, by the names of its files.
fn names() -> Result<Vec<String>> {
    let folder = root().join("crates/holdfast/tests/end_to_end");
    let rows = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names: Vec<String> = rows
        .filter_map(|row| row.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_prefix("suite_")?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.push(INTERLEAVINGS.to_owned());
    names.sort();
    Ok(names)
}
