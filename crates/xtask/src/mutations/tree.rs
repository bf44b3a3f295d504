//! A copy of the workspace that is broken and mended.

use super::list::Mutation;
use crate::prepare::root;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Tree {
    folder: PathBuf,
}

impl Tree {
    /// Copies what git knows of. What has not changed since the last copy is left alone, so that it is not built again.
    pub(super) fn copy(folder: &Path) -> Result<Self> {
        let listed =
            Command::new("git").current_dir(root()).args(["ls-files", "-z"]).output().context("run git")?;
        if !listed.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        let names = String::from_utf8(listed.stdout).context("names of files")?;
        for name in names.split_terminator('\0') {
            // What was deleted and not yet committed.
            let Ok(now) = std::fs::read(root().join(name)) else { continue };
            let path = folder.join(name);
            if std::fs::read(&path).is_ok_and(|before| before == now) {
                continue;
            }
            let parent = path.parent().context("a file is in a folder")?;
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            std::fs::write(&path, now).with_context(|| format!("write {}", path.display()))?;
        }
        remove_others(folder, folder, &names.split_terminator('\0').map(Path::new).collect())?;
        Ok(Self { folder: folder.to_owned() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Breaks it in one place.
    pub(super) fn with(&self, mutation: &Mutation) -> Result<Broken> {
        let path = self.folder.join(&mutation.file);
        let whole = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let places = whole.matches(&mutation.from).count();
        ensure!(places == 1, "{} holds {places} times what is to be broken", mutation.file.display());
        let broken = whole.replace(&mutation.from, &mutation.to);
        std::fs::write(&path, broken).with_context(|| format!("write {}", path.display()))?;
        Ok(Broken { path, whole })
    }
}

/// Removes what the copy of before had and the workspace has no more.
fn remove_others(top: &Path, folder: &Path, known: &BTreeSet<&Path>) -> Result<()> {
    for row in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let row = row.with_context(|| format!("list {}", folder.display()))?;
        let path = row.path();
        if row.file_type().with_context(|| format!("look at {}", path.display()))?.is_dir() {
            remove_others(top, &path, known)?;
        } else if !path.strip_prefix(top).is_ok_and(|name| known.contains(name)) {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// A tree that is broken in one place.
#[must_use]
pub(super) struct Broken {
    path: PathBuf,
    whole: String,
}

impl Broken {
    pub(super) fn mend(self) -> Result<()> {
        std::fs::write(&self.path, &self.whole).with_context(|| format!("write {}", self.path.display()))
    }
}
