//! Tests, simulation, benches.

use crate::packages;
use crate::prepare::{self, cargo, root, run_visibly, target};
use anyhow::{Context, Result};

/// Runs every test, or those whose name holds `filter`. Guests share two cores, so the end-to-end tests
/// run one at a time; the others as cargo likes.
pub(crate) fn test(filter: Option<&str>) -> Result<()> {
    prepare::for_tests()?;
    // Always the whole workspace, also where little of it is wanted: what others have built is used then.
    let run = |arguments: &[&str]| {
        let mut command = cargo();
        command.env("HOLDFAST_GUEST_DIR", target().join("guest"));
        run_visibly(command.args(["test", "--workspace"]).args(filter).args(arguments))
    };
    run(&["--quiet"])?;
    run(&["--test", "end_to_end", "--", "--test-threads=1"])
}

/// Runs the simulator, which has the arguments as they are: many seeds from one on, or one.
pub(crate) fn sim(arguments: &[String]) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "sim", "--"]);
    run_visibly(command.args(arguments))
}

/// Runs a bench, or all.
pub(crate) fn bench(name: Option<String>, quick: bool, json: bool, only: Option<String>) -> Result<()> {
    packages::ensure(packages::BENCH)?;
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(name);
    command.arg("--folder").arg(target().join("bench-files"));
    command.args(quick.then_some("--quick")).args(json.then_some("--json"));
    if let Some(only) = only {
        command.args(["--only", &only]);
    }
    run_visibly(&mut command)
}

/// Writes the OpenAPI document that is checked in.
pub(crate) fn openapi() -> Result<()> {
    let output = cargo()
        .args(["run", "--quiet", "--package", "holdfast", "--", "openapi"])
        .output()
        .context("run holdfast")?;
    let path = root().join("docs/openapi.json");
    std::fs::write(&path, &output.stdout).with_context(|| format!("write {}", path.display()))
}
