//! The list of what is broken.

use crate::prepare::root;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutation {
    /// What the broken code does.
    pub(super) name: String,
    /// In the workspace's folder.
    pub(super) file: PathBuf,
    /// What stands there, once.
    pub(super) from: String,
    /// What is put in its place.
    pub(super) to: String,
    pub(super) caught_by: Caught,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub(super) enum Caught {
    /// Tests of a crate: of its library, or of one of its files of tests; of those, the ones whose name holds this.
    Test { package: String, target: Option<String>, name: Option<String> },
    /// Seeds of the simulator.
    Seeds { play: String, from: u64, runs: u64 },
}

impl Caught {
    /// Cargo's arguments to build it, and to run it.
    pub(super) fn commands(&self) -> (Vec<String>, Vec<String>) {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
        match self {
            Self::Test { package, target, name } => {
                let target = target.as_ref().map_or("--lib".to_owned(), |target| format!("--test {target}"));
                let line = format!("test --quiet --package {package} {target}");
                let mut run = words(&line);
                run.extend(name.clone());
                (words(&format!("{line} --no-run")), run)
            }
            Self::Seeds { play, from, runs } => {
                let run = format!("run --quiet --package sim -- --only {play} --from {from} --runs {runs}");
                (words("build --quiet --package sim"), words(&run))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mutation: Vec<Mutation>,
}

pub(super) fn path() -> PathBuf {
    root().join("crates/xtask/mutations.toml")
}

pub(super) fn read() -> Result<Vec<Mutation>> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    Ok(file.mutation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_broken_stands_there_once_and_has_a_name_of_its_own() {
        let all = read().unwrap();
        let names: BTreeSet<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        for one in &all {
            let text = std::fs::read_to_string(root().join(&one.file)).expect(&one.name);
            assert_eq!(text.matches(&one.from).count(), 1, "{}: {}", one.name, one.file.display());
            assert_ne!(one.from, one.to, "{}", one.name);
        }
    }

    /// A name that no test has is passed by whatever was broken.
    #[test]
    fn the_tests_that_catch_it_are_where_they_are_looked_for() {
        for one in read().unwrap() {
            let Caught::Test { package, target, name: Some(name) } = &one.caught_by else { continue };
            let folder = root().join("crates").join(package);
            let sources = match target {
                None => sources::below(&folder.join("src")).unwrap(),
                Some(target) => {
                    let mut sources = sources::below(&folder.join("tests").join(target)).unwrap();
                    sources.extend(std::fs::read_to_string(folder.join(format!("tests/{target}.rs"))));
                    sources
                }
            };
            let name = name.rsplit("::").find(|part| !part.is_empty()).unwrap();
            let has_it = sources.iter().any(|text| text.contains(name));
            assert!(has_it, "{}: no test {name} in {package}, {target:?}", one.name);
        }
    }
}
