//! Which crates of the workspace may know which.

use crate::prepare::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;

/// Everything that is allowed; what is not in here is refused. `dev` edges are for tests only.
const ALLOWED: &[(&str, &[&str])] = &[
    ("threads", &[]),
    ("types", &[]),
    ("api", &[]),
    ("batch", &["types"]),
    ("splitter", &["threads", "types", "batch"]),
    ("replication", &["types", "batch"]),
    ("journal", &["threads", "types", "batch"]),
    ("joint", &["threads", "types", "batch", "splitter", "replication"]),
    ("operations", &["types"]),
    ("agent", &["types", "batch", "api", "splitter", "replication", "journal", "joint", "operations"]),
    ("holdfast", &["types", "api", "agent", "journal"]),
    ("lab", &[]),
    ("sim", &["threads", "types", "batch", "splitter", "replication", "journal", "joint"]),
    ("bench", &["types", "batch", "journal", "agent", "api", "splitter", "lab"]),
    ("xtask", &["lab"]),
];
const ALLOWED_IN_TESTS: &[(&str, &[&str])] =
    &[("holdfast", &["lab", "batch", "replication"]), ("journal", &["sim"])];

/// `cargo metadata` of the workspace.
pub(crate) fn metadata() -> Result<Value> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("read cargo's metadata")
}

pub(crate) fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let own: BTreeSet<&str> = packages
        .iter()
        .filter(|package| package["source"].is_null())
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut refused = Vec::new();
    for package in packages.iter().filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().context("a package's name")?;
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let to = dependency["name"].as_str().context("a dependency's name")?;
            let list = if dependency["kind"] == "dev" { ALLOWED_IN_TESTS } else { ALLOWED };
            let allowed = [ALLOWED, list]
                .iter()
                .any(|list| list.iter().any(|(from, to_all)| *from == name && to_all.contains(&to)));
            if own.contains(to) && !(allowed && (dependency["kind"] == "dev" || list == ALLOWED)) {
                refused.push(format!("{name} → {to}"));
            }
        }
    }
    if !refused.is_empty() {
        bail!("crates that may not know each other (ARCHITECTURE.md): {}", refused.join(", "));
    }
    Ok(())
}
