//! Fuzzing every parser of foreign bytes with libFuzzer, on the stable toolchain: coverage comes from a
//! stable LLVM pass, and what a sanitizer would find in unsafe code is not looked for (there is hardly any).
//! The folder has the layout of cargo-fuzz, which works on it too.

use crate::packages;
use crate::prepare::{cargo, root, run_visibly, target};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// What continuous integration gives each target.
pub(crate) const SECONDS_IN_CI: u64 = 10;
const TARGETS: &[&str] = &["batch", "wire", "maps", "nbd", "virtio", "manifest", "journal_files", "overlay"];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
];

/// Fuzzes one target or all, so many seconds each, beginning with the corpus that is checked in. What it
/// finds stays under `target/fuzz-findings`.
pub(crate) fn run(only: Option<&str>, seconds: u64) -> Result<()> {
    packages::ensure(packages::FUZZ)?;
    let wanted: Vec<&str> =
        TARGETS.iter().copied().filter(|name| only.is_none_or(|only| only == *name)).collect();
    if wanted.is_empty() {
        bail!("no such target; there are {}", TARGETS.join(", "));
    }
    let folder = target().join("fuzz");
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--target", TRIPLE]);
    build.arg("--manifest-path").arg(root().join("fuzz/Cargo.toml"));
    build.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", FLAGS.join(" "));
    eprintln!("building the fuzz targets …");
    run_visibly(&mut build)?;
    for name in wanted {
        let (corpus, findings) = (target().join("fuzz-corpus").join(name), target().join("fuzz-findings"));
        for folder in [&corpus, &findings] {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        eprintln!("fuzzing {name} for {seconds} s …");
        let program = folder.join(TRIPLE).join("release").join(name);
        let mut command = Command::new(program);
        // What is new goes to the first folder, the one that is checked in is only read.
        command.arg(&corpus).arg(root().join("fuzz/corpus").join(name));
        command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1").arg("-verbosity=0");
        command.arg("-max_len=65536").arg("-timeout=30").arg("-rss_limit_mb=4096");
        command.arg(format!("-artifact_prefix={}/{name}-", findings.display()));
        run_visibly(&mut command)?;
    }
    Ok(())
}
