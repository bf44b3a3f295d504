//! The folders that a journal is moved between: looked at, marked, copied and emptied, so that it survives a crash.
//!
//! A folder that a move fills or empties has its mark: a symbolic link to the VM's id, which is there at once or not at all,
//! and never twice. What must come before what:
//!
//! 1. The mark, before it is looked whether the folder is empty and lies in nobody's: of two moves to one folder, or to one
//!    inside the other, at least one sees the other's mark.
//! 2. That it was empty, in the operation's record, before the first file: what was there before is never taken away.
//! 3. Nothing is removed from a folder that has not this move's mark; the mark goes last. What is found without one, or with
//!    another's, by a move that goes on after a crash is not its own any more. But an old folder that has this VM's manifest
//!    is its own, and nobody takes one that is not empty: all else goes before it is marked, for a full disk may have no
//!    room for that.

use super::super::emptying::{remove_all_but, remove_if_empty, rows_of, sync_folder};
use crate::error::{OperationError, Result};
use anyhow::Context;
use journal::{MANIFESTS, Manifest};
use rustix::fs::SeekFrom;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};
use types::VmId;

/// Copied at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// The name of the mark.
const MARK: &str = "moving";

/// A target is a full path, and nothing lies there but this VM's mark.
pub(super) fn check_target(target: &Path, vm: VmId) -> Result<()> {
    if !target.is_absolute() {
        return Err(OperationError::invalid("give the folder's full path"));
    }
    let context = || format!("look at {}", target.display());
    let rows = match std::fs::read_dir(target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OperationError::conflict(format!("{}: {error}", target.display()))),
        Ok(rows) => rows,
    };
    if !is_free_for(target, vm).with_context(context)? {
        return Err(marked_by_another(target));
    }
    for row in rows {
        if row.with_context(context)?.file_name() != MARK {
            return Err(OperationError::conflict(format!("{} is not empty", target.display())));
        }
    }
    Ok(())
}

/// A target lies in the folder of no journal that is known by what lies there, and is not called as another VM's would be.
pub(super) fn check_lies_in_no_journal(target: &Path, vm: VmId) -> Result<()> {
    let name = target.file_name().and_then(|name| name.to_str());
    if name.and_then(|name| name.parse().ok()).is_some_and(|other: VmId| other != vm) {
        return Err(OperationError::invalid(
            "the folder has the id of another VM for a name: give it another",
        ));
    }
    // What does not exist yet will lie where the part of it does that exists.
    let above = || target.ancestors().find_map(|part| part.canonicalize().ok());
    let real = target.canonicalize().map_or_else(|_| above(), |real| real.parent().map(Path::to_path_buf));
    let is_there = |path: PathBuf| path.symlink_metadata().is_ok();
    let is_journals = |folder: &Path| MANIFESTS.iter().chain([&MARK]).any(|name| is_there(folder.join(name)));
    match real.iter().flat_map(|real| real.ancestors()).find(|above| is_journals(above)) {
        None => Ok(()),
        Some(above) => Err(OperationError::conflict(format!(
            "{} lies inside {}, which is the folder of a journal: give a folder elsewhere",
            target.display(),
            above.display()
        ))),
    }
}

/// Whether a folder has a manifest, and it is another VM's.
pub(super) fn has_journal_of_another(folder: &Path, vm: VmId) -> bool {
    whose(folder).any(|of| of != Some(vm))
}

/// The VMs that the manifests in a folder are of, where that can be read.
fn whose(folder: &Path) -> impl Iterator<Item = Option<VmId>> {
    let files = MANIFESTS.iter().filter_map(move |name| std::fs::read(folder.join(name)).ok());
    files.filter_map(|bytes| Some(Manifest::decode(&bytes).ok()?.vm.parse().ok()))
}

/// Whether a folder has the mark of this VM's move.
pub(super) fn is_marked(folder: &Path, vm: VmId) -> io::Result<bool> {
    Ok(mark_of(folder)?.is_some_and(|mark| mark == Path::new(&vm.to_string())))
}

/// Whether no other's move has marked it.
fn is_free_for(folder: &Path, vm: VmId) -> io::Result<bool> {
    Ok(mark_of(folder)?.is_none() || is_marked(folder, vm)?)
}

fn mark_of(folder: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::read_link(folder.join(MARK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        mark => mark.map(Some),
    }
}

fn marked_by_another(folder: &Path) -> OperationError {
    OperationError::conflict(format!(
        "{} is being filled or emptied by the move of another journal: see `holdfast operation list`, and give a folder \
         elsewhere; where there is no such move, remove `{MARK}` there",
        folder.display()
    ))
}

/// Marks a folder, making it where it is missing; the mark survives a crash.
pub(super) fn mark(folder: &Path, vm: VmId) -> Result<()> {
    let context = || format!("mark {}", folder.display());
    make(folder).with_context(|| format!("make {}", folder.display()))?;
    match symlink(vm.to_string(), folder.join(MARK)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !is_marked(folder, vm).with_context(context)? {
                return Err(marked_by_another(folder));
            }
        }
        made => made.with_context(context)?,
    }
    #[cfg(test)]
    crate::state::death::may_come();
    Ok(sync_folder(folder).with_context(context)?)
}

/// Takes this VM's mark away, where it is there; for good.
pub(super) fn unmark(folder: &Path, vm: VmId) -> anyhow::Result<()> {
    let context = || format!("take the mark from {}", folder.display());
    if is_marked(folder, vm).with_context(context)? {
        std::fs::remove_file(folder.join(MARK)).with_context(context)?;
        #[cfg(test)]
        crate::state::death::may_come();
        sync_folder(folder).with_context(context)?;
    }
    Ok(())
}

/// Gives a folder back that was marked and not filled.
pub(super) fn give_back(folder: &Path, vm: VmId) -> anyhow::Result<()> {
    unmark(folder, vm)?;
    remove_if_empty(folder)
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
    for row in rows_of(folder)? {
        let row = row?;
        let facts = row.metadata()?;
        bytes += if facts.is_dir() { bytes_in(&row.path())? } else { facts.blocks() * 512 };
    }
    Ok(bytes)
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

/// Empties a folder that is marked, but for its mark.
pub(super) fn empty(folder: &Path) -> anyhow::Result<()> {
    remove_all_but(folder, &[MARK])
}

/// Makes room in a folder that this VM's journal has left, where its manifests say that: they stay.
pub(super) fn make_room(folder: &Path, vm: VmId) -> anyhow::Result<()> {
    match whose(folder).any(|of| of == Some(vm)) {
        true => remove_all_but(folder, &[MARK, MANIFESTS[0], MANIFESTS[1]]),
        false => Ok(()),
    }
}

/// Removes a folder that is marked with all in it, for good; one that is a mount point is emptied.
pub(super) fn remove(folder: &Path, vm: VmId) -> anyhow::Result<()> {
    empty(folder)?;
    give_back(folder, vm)
}

/// Copies a journal's folder, holes as holes, and makes the copy durable. `copied` hears of each part and may stop it.
pub(super) fn copy<E: From<OperationError>>(
    from: &Path,
    to: &Path,
    copied: &mut impl FnMut(u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let failed = |error: anyhow::Error| E::from(error.into());
    make(to).with_context(|| format!("make {}", to.display())).map_err(failed)?;
    let rows = rows_of(from).with_context(|| format!("list {}", from.display())).map_err(failed)?;
    for row in rows {
        let row = row.context("list a folder").map_err(failed)?;
        let target = to.join(row.file_name());
        if row.file_type().context("look at a file").map_err(failed)?.is_dir() {
            copy(&row.path(), &target, copied)?;
        } else if ![OsStr::new("lock"), OsStr::new(MARK)].contains(&&*row.file_name()) {
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
