//! Moving a journal to another folder.
//!
//! 1. Its stream is told to go, and whoever uses the journal is waited for; nobody begins to meanwhile. Then the folder is
//!    this file's alone.
//! 2. It is copied. Where that fails the copy goes, and the journal is opened where it was.
//! 3. That it lies elsewhere is written down. An agent that dies before that opens the old one, after it the new one.
//! 4. It is opened there, and only then the old one goes.

use super::super::Recovery;
use super::super::policy::{JournalPolicy, file_name};
use super::super::vm::RecoveredVm;
use super::{NotClosed, list, not_usable};
use crate::error::{OperationError, Result};
use anyhow::Context;
use joint::life::{Refused, Task, Use};
use replication::wire::{Refusal, Refuse};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Copied at once.
const CHUNK_BYTES: u64 = 1 << 20;
/// How long whoever wants a journal's folder waits for those that use it: a scrub of a segment, a step of a fold.
pub(super) const FOLDER_PATIENCE: Duration = Duration::from_secs(120);

/// How far the moving of a journal is.
#[derive(Debug)]
pub(crate) struct Moving {
    target: PathBuf,
    bytes_total: u64,
    bytes_done: AtomicU64,
}

impl Moving {
    fn begin(target: PathBuf, bytes_total: u64) -> Self {
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
        vm.check_is_kept()?;
        let source = vm.folder(&self.journal_config.folder);
        check_not_inside(&target, &source)?;
        self.check_no_images(&vm)?;
        if !vm.stop_stream(Refuse { why: Refusal::Busy, detail: "the journal is being moved".into() }) {
            tracing::warn!(vm = name, "its stream does not let go; the journal's folder waits for it");
        }
        let taken = vm.life().take_folder(Task::Move, FOLDER_PATIENCE).map_err(|why| not_taken(&vm, &why))?;
        self.check_no_images(&vm)?; // None that is not served, either.
        let bytes_total = bytes_in(&source).with_context(|| format!("look at {}", source.display()))?;
        let moving = Arc::new(Moving::begin(target.clone(), bytes_total));
        vm.set_moving(Some(moving.clone()));
        let moved = self.move_folder(&vm, &source, &target, &moving);
        vm.set_moving(None);
        drop(taken);
        // The old one is gone only once the new one has been opened; where nothing was moved it is opened again.
        let opened = self.open_journal(&vm, Use::Look);
        moved?;
        drop(opened?);
        std::fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
        tracing::info!(vm = name, folder, "journal moved");
        self.journal_to_api(&vm)
    }

    /// Steps 2 and 3.
    fn move_folder(&self, vm: &RecoveredVm, source: &Path, target: &Path, moving: &Moving) -> Result<()> {
        let policy = JournalPolicy { folder: Some(target.to_path_buf()), ..vm.policy() };
        let copied = copy_folder(source, target, moving)
            .with_context(|| format!("copy the journal to {}", target.display()))
            .and_then(|()| self.state.save(&file_name(&vm.id().to_string()), &policy));
        if let Err(error) = copied {
            let _ = std::fs::remove_dir_all(target);
            return Err(error.into());
        }
        vm.set_policy(policy);
        vm.let_go_of_folder();
        Ok(())
    }

    fn check_no_images(&self, vm: &RecoveredVm) -> Result<()> {
        match self.has_images(vm) {
            true => Err(super::images_are_open(vm)),
            false => Ok(()),
        }
    }
}

/// Why somebody does not get a journal's folder.
pub(super) fn not_taken(vm: &RecoveredVm, why: &NotClosed) -> OperationError {
    let name = vm.name();
    match why {
        NotClosed::Refused(Refused::Images) => super::images_are_open(vm),
        NotClosed::Refused(Refused::State(state)) => OperationError::conflict(not_usable(&name, *state)),
        NotClosed::StillUsed(uses) => OperationError::unavailable(format!(
            "the journal of VM {name} is still used by {} after {} s, and goes on as before: try again later, and see to its \
             disk where that does not end",
            list(uses),
            FOLDER_PATIENCE.as_secs()
        )),
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
