//! The sources of the workspace, as text.

use anyhow::{Context, Result};
use std::path::Path;

/// The text of every Rust file below a folder; none where there is no such folder.
pub(crate) fn below(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    if folder.is_dir() {
        add_below(folder, &mut texts)?;
    }
    Ok(texts)
}

fn add_below(folder: &Path, texts: &mut Vec<String>) -> Result<()> {
    for row in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = row?.path();
        if path.is_dir() {
            add_below(&path, texts)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(())
}
