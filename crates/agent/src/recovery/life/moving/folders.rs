//! The folders that a journal is moved between: looked at, copied and emptied, so that it survives a crash.

use crate::error::{OperationError, Result};
use anyhow::Context;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path};

/// Copied at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// A target is a full path, and nothing lies there.
pub(super) fn check_target(target: &Path) -> Result<()> {
    if !target.is_absolute() {
        return Err(OperationError::invalid("give the folder's full path"));
    }
    match std::fs::read_dir(target).map(|mut rows| rows.next().is_some()) {
        Ok(true) => Err(OperationError::conflict(format!("{} is not empty", target.display()))),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(OperationError::conflict(format!("{}: {error}", target.display()))),
    }
}

/// A folder is never copied into itself, whatever way the target is written.
pub(super) fn check_not_inside(target: &Path, source: &Path) -> Result<()> {
    if target.components().any(|part| part == Component::ParentDir) {
        return Err(OperationError::invalid(
            "give the folder's full path without `..`: it may lie inside the journal",
        ));
    }
    let source = source.canonicalize().with_context(|| format!("look at {}", source.display()))?;
    // What does not exist yet will lie where the part of it does that exists.
    let exists = target.ancestors().find_map(|part| part.canonicalize().ok());
    if exists.is_some_and(|exists| exists.starts_with(&source)) {
        return Err(OperationError::invalid(format!(
            "{} lies inside the journal that is to be moved: give a folder elsewhere",
            target.display()
        )));
    }
    Ok(())
}

/// Bytes the files of a folder take up on the disk.
pub(super) fn bytes_in(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for row in std::fs::read_dir(folder)? {
        let row = row?;
        let facts = row.metadata()?;
        bytes += if facts.is_dir() { bytes_in(&row.path())? } else { facts.blocks() * 512 };
    }
    Ok(bytes)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder with all above it that are missing; their names survive a crash.
fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().ok_or(ErrorKind::NotFound)?;
    make(parent)?;
    std::fs::create_dir(folder)?;
    sync_folder(parent)
}

/// Removes a folder with all in it, for good; one that is a mount point is emptied. Nothing is done where it is gone.
pub(super) fn remove(folder: &Path) -> anyhow::Result<()> {
    let context = || format!("remove {}", folder.display());
    let rows = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        rows => rows.with_context(context)?,
    };
    for row in rows {
        let row = row.with_context(context)?;
        let is_folder = row.file_type().with_context(context)?.is_dir();
        let removed =
            if is_folder { std::fs::remove_dir_all(row.path()) } else { std::fs::remove_file(row.path()) };
        removed.with_context(context)?;
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => sync_folder(folder).with_context(context),
        removed => {
            removed.with_context(context)?;
            folder.parent().map_or(Ok(()), sync_folder).with_context(context)
        }
    }
}

/// Copies a journal's folder, holes as holes, and makes the copy durable. `copied` hears of each part and may stop it.
pub(super) fn copy<E: From<OperationError>>(
    from: &Path,
    to: &Path,
    copied: &mut impl FnMut(u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let failed = |error: anyhow::Error| E::from(error.into());
    make(to).with_context(|| format!("make {}", to.display())).map_err(failed)?;
    let rows = std::fs::read_dir(from).with_context(|| format!("list {}", from.display())).map_err(failed)?;
    for row in rows {
        let row = row.context("list a folder").map_err(failed)?;
        let target = to.join(row.file_name());
        if row.file_type().context("look at a file").map_err(failed)?.is_dir() {
            copy(&row.path(), &target, copied)?;
        } else if row.file_name() != "lock" {
            copy_file(&row.path(), &target, copied)?;
        }
    }
    sync_folder(to).context("make the copy durable").map_err(failed)
}

fn copy_file<E: From<OperationError>>(
    from: &Path,
    to: &Path,
    copied: &mut impl FnMut(u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let failed = |error: io::Error| {
        E::from(anyhow::Error::new(error).context(format!("copy {}", from.display())).into())
    };
    let source = File::open(from).map_err(failed)?;
    let target = File::create(to).map_err(failed)?;
    let len = source.metadata().map_err(failed)?.len();
    target.set_len(len).map_err(failed)?;
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break, // Nothing but a hole from here on.
            Err(error) => return Err(failed(error.into())),
        };
        let hole = rustix::fs::seek(&source, SeekFrom::Hole(data)).map_err(|error| failed(error.into()))?;
        at = data;
        while at < hole {
            let part = &mut buf[..(hole - at).min(CHUNK_BYTES) as usize];
            source.read_exact_at(part, at).map_err(failed)?;
            target.write_all_at(part, at).map_err(failed)?;
            at += part.len() as u64;
            copied(part.len() as u64)?;
        }
    }
    target.sync_all().map_err(failed)
}
