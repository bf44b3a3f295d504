//! Which files of a crate may know which: no more than two in a circle, and the agent's rooms only what is below them.
//!
//! Two files that know each other are one thing in two parts. Of more than two nobody can change one and read only what
//! stands below it, for nothing does.

mod graph;
mod imports;
mod layers;
#[cfg(test)]
mod tests;
mod words;

use crate::edges::metadata;
use crate::prepare::root;
use anyhow::{Context, Result, bail};
use graph::Graph;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Circles that stood when this check was made, each by one of its files and by how many it has. They may only become
/// smaller, and then the number here does too; nothing is ever added.
const STANDING: &[(&str, usize)] = &[
    ("crates/agent/src/recovery/mod.rs", 14),
    ("crates/agent/src/source/mod.rs", 12),
    ("crates/bench/src/main.rs", 20),
];

pub(crate) fn check() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let own = packages.iter().filter(|package| package["source"].is_null());
    let targets = own.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let files = targets.filter_map(source_of).collect::<BTreeSet<&str>>();
    let (mut circles, mut upward) = (Vec::new(), Vec::new());
    for file in files {
        let graph = Graph::of(Path::new(file), &|path| std::fs::read_to_string(path).ok());
        upward.extend(layers::upward(&graph, &root().join("crates")));
        circles.extend(graph.circles().into_iter().map(|circle| told(&graph, &circle)));
    }
    if !upward.is_empty() {
        bail!("rooms that may not know each other (crates/xtask/src/rooms/layers.rs): {}", upward.join(", "));
    }
    let refused = refused(&circles, STANDING);
    if !refused.is_empty() {
        bail!("files in a circle (crates/xtask/src/rooms.rs):\n{}", refused.join("\n"));
    }
    Ok(())
}

fn source_of(target: &Value) -> Option<&str> {
    let is_build = target["kind"].as_array()?.iter().any(|kind| kind == "custom-build");
    target["src_path"].as_str().filter(|_| !is_build)
}

/// A circle's files, each with those of them it knows.
type Circle = Vec<(String, Vec<String>)>;

fn told(graph: &Graph, circle: &BTreeSet<usize>) -> Circle {
    let name = |at: &usize| {
        let file = graph.files[*at].as_path();
        file.strip_prefix(root()).unwrap_or(file).display().to_string()
    };
    let row = |at: &usize| (name(at), graph.knows[*at].intersection(circle).map(name).collect());
    circle.iter().map(row).collect()
}

/// What has to be said of circles where these were `standing`.
fn refused(circles: &[Circle], standing: &[(&str, usize)]) -> Vec<String> {
    let mut refused = Vec::new();
    for circle in circles {
        let known = standing.iter().find(|(file, _)| circle.iter().any(|(own, _)| own == file));
        let rows = circle.iter().map(|(file, known)| format!("  {file} knows {}", known.join(", ")));
        let rows = rows.collect::<Vec<_>>().join("\n");
        match known {
            Some((_, size)) if *size == circle.len() => {}
            Some((file, size)) if *size > circle.len() => {
                let len = circle.len();
                refused.push(format!(
                    "the circle of {file} has {len} files now, no longer {size}: write that down"
                ));
            }
            Some((_, size)) => refused.push(format!("{} files, {size} before:\n{rows}", circle.len())),
            None => refused.push(format!("{} files that know one another:\n{rows}", circle.len())),
        }
    }
    let is_gone = |file: &str| !circles.iter().flatten().any(|(own, _)| own == file);
    let gone = standing.iter().filter(|(file, _)| is_gone(file));
    refused.extend(gone.map(|(file, _)| format!("{file} is in no circle any more: take it off the list")));
    refused
}
