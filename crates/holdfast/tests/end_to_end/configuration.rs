//! Every sample configuration is read; every one under `invalid/` is refused with line and cure.

use crate::stage::HOLDFAST;
use std::path::{Path, PathBuf};
use std::process::Command;

fn samples(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(folder);
    let rows = std::fs::read_dir(folder).unwrap().map(|row| row.unwrap().path());
    let mut files: Vec<_> = rows.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn check(path: &Path) -> std::process::Output {
    Command::new(HOLDFAST).args(["agent", "--check", "--config"]).arg(path).output().unwrap()
}

#[test]
fn every_sample_is_read() {
    for path in samples("") {
        let output = check(&path);
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_invalid_sample_is_refused_with_line_and_cure() {
    for path in samples("invalid") {
        // The first line says what must be said: `# LINE: words`.
        let text = std::fs::read_to_string(&path).unwrap();
        let (line, words) = text.lines().next().unwrap().trim_start_matches("# ").split_once(": ").unwrap();
        let output = check(&path);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{} is accepted", path.display());
        let place = format!("{}:{line}:", path.display());
        assert!(said.contains(&place) && said.contains(words), "{said}\nwanted {place} … {words}");
    }
}

#[test]
fn a_missing_configuration_is_said() {
    let output = check(Path::new("/nowhere/agent.toml"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read the configuration"));
}
