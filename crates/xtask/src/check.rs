//! What must hold of the source before anything runs.

use crate::edges;
use crate::named_tests;
use crate::packages;
use crate::prepare::{cargo, run_visibly, target};
use crate::rooms;
use anyhow::Result;

/// The checker of licences and doubles, built once under `target/tools`.
const DENY_VERSION: &str = "0.20.2";

pub(crate) fn run() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    run_visibly(cargo().args(["fmt", "--all", "--check"]))?;
    run_visibly(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    packages::ensure(packages::UBLK)?;
    // The end-to-end tests are none of "all targets", since they have to be named to be run.
    let with_ublk = ["--bins", "--lib", "--test", "end_to_end", "--features", "holdfast/ublk"];
    let mut clippy = cargo();
    clippy.args(["clippy", "--quiet", "--workspace"]).args(with_ublk).args(["--", "-D", "warnings"]);
    run_visibly(&mut clippy)?;
    edges::check()?;
    rooms::check()?;
    named_tests::check()?;
    deny()
}

fn deny() -> Result<()> {
    let folder = target().join("tools");
    let tool = folder.join("bin/cargo-deny");
    if !tool.exists() {
        eprintln!(
            "building cargo-deny {DENY_VERSION}, which checks licences and doubles (about a minute, once) …"
        );
        let mut install = cargo();
        // It runs for a second: to build it quickly matters more.
        install.args(["install", "cargo-deny", "--quiet", "--debug", "--locked", "--version", DENY_VERSION]);
        install.arg("--root");
        // Its build goes to a folder of its own: the workspace's flags are not for it.
        lab::run_quietly(install.arg(&folder).env("CARGO_TARGET_DIR", folder.join("build")))?;
        // The binary is all that is needed of it.
        let _ = std::fs::remove_dir_all(folder.join("build"));
    }
    let mut check = std::process::Command::new(tool);
    check.current_dir(crate::prepare::root());
    run_visibly(check.args(["--log-level", "error", "check", "licenses", "bans", "sources"]))
}
