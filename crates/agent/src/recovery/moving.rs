//! Moving a journal to another folder.

use super::Recovery;
use super::policy::{JournalPolicy, file_name};
use crate::error::{OperationError, Result};
use anyhow::Context;
use replication::wire::{Refusal, Refuse};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Copied at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// How far the moving of a journal is.
#[derive(Debug)]
pub(crate) struct Moving {
    target: PathBuf,
    bytes_total: u64,
    bytes_done: AtomicU64,
}

impl Moving {
    pub(super) fn begin(target: PathBuf, bytes_total: u64) -> Self {
        Self { target, bytes_total, bytes_done: AtomicU64::new(0) }
    }

    pub(crate) fn to_api(&self) -> api::Moving {
        api::Moving {
            folder: self.target.display().to_string(),
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
        }
    }
}

impl Recovery {
    /// Moves a journal, not its replicas if they lie elsewhere, to another folder. Its stream is closed
    /// meanwhile: the source buffers, and tracks beyond that.
    pub(crate) fn move_journal(&self, name: &str, folder: &str) -> Result<api::Journal> {
        let vm = self.vm(name)?;
        let target = PathBuf::from(folder);
        check_target(&target)?;
        if vm.moving().is_some() {
            return Err(OperationError::conflict(format!("the journal of VM {name} is being moved already")));
        }
        if self.has_images(&vm) {
            return Err(OperationError::conflict(format!("images of VM {name} are open; close them first")));
        }
        let alone = vm.lock_opening();
        vm.check_is_kept()?;
        let source = vm.folder(&self.journal_config.folder);
        check_not_inside(&target, &source)?;
        let bytes_total = bytes_in(&source).with_context(|| format!("look at {}", source.display()))?;
        let moving = Arc::new(Moving::begin(target.clone(), bytes_total));
        vm.set_moving(Some(moving.clone()));
        if !vm.stop_stream(Refuse { why: Refusal::Busy, detail: "the journal is being moved".into() }) {
            tracing::warn!(
                vm = name,
                "its stream does not let go; closing the journal waits for what it appends"
            );
        }
        vm.close_journal(); // Nothing touches its files from here on.
        if self.has_images(&vm) {
            // Opened just before: they need it where it is.
            vm.set_moving(None);
            drop(alone);
            self.open_journal(&vm)?;
            return Err(OperationError::conflict(format!("images of VM {name} are open; close them first")));
        }
        let copied = copy_folder(&source, &target, &moving);
        vm.set_moving(None);
        if let Err(error) = copied {
            let _ = std::fs::remove_dir_all(&target);
            return Err(error.context(format!("copy the journal to {}", target.display())).into());
        }
        let policy = JournalPolicy { folder: Some(target.clone()), ..vm.policy() };
        self.state.save(&file_name(&vm.id().to_string()), &policy)?;
        vm.set_policy(policy);
        vm.let_go_of_folder();
        drop(alone);
        // The old one is gone only once the new one has been opened.
        self.open_journal(&vm)?;
        std::fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
        tracing::info!(vm = name, folder, "journal moved");
        self.journal_to_api(&vm)
    }
}

fn check_target(target: &Path) -> Result<()> {
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
fn check_not_inside(target: &Path, source: &Path) -> Result<()> {
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
fn bytes_in(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for row in std::fs::read_dir(folder)? {
        let row = row?;
        let facts = row.metadata()?;
        bytes += if facts.is_dir() { bytes_in(&row.path())? } else { facts.blocks() * 512 };
    }
    Ok(bytes)
}

/// Copies a journal's folder, holes as holes, and makes the copy durable.
fn copy_folder(from: &Path, to: &Path, moving: &Moving) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for row in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let row = row.context("list a folder")?;
        let target = to.join(row.file_name());
        if row.file_type().context("look at a file")?.is_dir() {
            copy_folder(&row.path(), &target, moving)?;
        } else if row.file_name() != "lock" {
            copy_file(&row.path(), &target, moving)?;
        }
    }
    File::open(to).and_then(|folder| folder.sync_all()).context("make the copy durable")
}

fn copy_file(from: &Path, to: &Path, moving: &Moving) -> anyhow::Result<()> {
    let context = || format!("copy {}", from.display());
    let source = File::open(from).with_context(context)?;
    let target = File::create(to).with_context(|| format!("make {}", to.display()))?;
    let len = source.metadata().with_context(context)?.len();
    target.set_len(len).with_context(context)?;
    let mut buf = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break, // Nothing but a hole from here on.
            Err(error) => return Err(error).with_context(context),
        };
        let hole = rustix::fs::seek(&source, SeekFrom::Hole(data)).with_context(context)?;
        at = data;
        while at < hole {
            let part = &mut buf[..(hole - at).min(CHUNK_BYTES) as usize];
            source.read_exact_at(part, at).with_context(context)?;
            target.write_all_at(part, at).with_context(context)?;
            at += part.len() as u64;
            moving.bytes_done.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
    target.sync_all().with_context(context)
}
