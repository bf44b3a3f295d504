//! Folders of journals, emptied and removed. Promoted disks that lie in one are the operator's: they stay, whatever is done
//! with the journal.

use crate::own_folders::DISKS_OF;
use anyhow::Context;
use std::fs::{DirEntry, File};
use std::io;
use std::io::ErrorKind;
use std::path::Path;

/// What a folder holds of a journal.
pub(super) fn rows_of(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
    Ok(std::fs::read_dir(folder)?.filter(|row| !row.as_ref().is_ok_and(is_kept)))
}

/// Empties a folder but for what is spared; for good.
pub(super) fn remove_all_but(folder: &Path, spared: &[&str]) -> anyhow::Result<()> {
    let context = || format!("empty {}", folder.display());
    for row in rows_of(folder).with_context(context)? {
        let row = row.with_context(context)?;
        if spared.iter().any(|name| row.file_name() == *name) {
            continue;
        }
        let is_folder = row.file_type().with_context(context)?.is_dir();
        let removed =
            if is_folder { std::fs::remove_dir_all(row.path()) } else { std::fs::remove_file(row.path()) };
        removed.with_context(context)?;
    }
    #[cfg(test)]
    crate::state::death::may_come();
    sync_folder(folder).with_context(context)
}

/// A mount point stays, and so does what is reached by a link, and what another has marked meanwhile.
pub(super) fn remove_if_empty(folder: &Path) -> anyhow::Result<()> {
    use ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound, ResourceBusy};
    let context = || format!("remove {}", folder.display());
    match std::fs::remove_dir(folder) {
        Err(error) if [NotFound, ResourceBusy, DirectoryNotEmpty, NotADirectory].contains(&error.kind()) => {
            Ok(())
        }
        removed => {
            removed.with_context(context)?;
            folder.parent().map_or(Ok(()), sync_folder).with_context(context)
        }
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn is_kept(row: &DirEntry) -> bool {
    let has_name = row.file_name().to_str().is_some_and(|name| name.starts_with(DISKS_OF));
    has_name && row.file_type().is_ok_and(|kind| kind.is_dir())
}
