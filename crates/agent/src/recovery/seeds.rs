//! Replicas brought to this side by other means, on a disk in somebody's bag perhaps: they wait here until
//! their VM is protected, and are then compared with it instead of being sent.
//!
//! A seed lies in `seeds/VM/DISK.raw` beside the replicas, moved there whole, so that taking it up is one
//! rename on one file system, whatever its size.

use super::Recovery;
use super::vm::RecoveredVm;
use crate::error::{OperationError, Result};
use anyhow::Context;
use journal::FsStore;
use std::path::{Path, PathBuf};
use types::{DiskSpec, is_plain_name};

impl Recovery {
    fn seeds_folder(&self, vm: &str) -> PathBuf {
        let root = self.journal_config.replica_folder.as_ref().unwrap_or(&self.journal_dir);
        root.join("seeds").join(vm)
    }

    /// Takes files as the first replicas of a VM that is not protected yet.
    pub(crate) fn seed(&self, request: &api::SeedRequest) -> Result<api::Done> {
        for name in request.disks.iter().map(|disk| &disk.name).chain([&request.vm]) {
            if !is_plain_name(name) {
                return Err(OperationError::invalid(format!(
                    "name {name:?}: use 1 to 64 letters, digits, '-', '_' and '.'"
                )));
            }
        }
        if self.list().iter().any(|vm| vm.name() == request.vm && vm.record().left.is_none()) {
            return Err(OperationError::conflict(format!(
                "a journal of VM {} is kept here already; what it lacks is found by `holdfast vm verify` on the other side",
                request.vm
            )));
        }
        let folder = self.seeds_folder(&request.vm);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for disk in &request.disks {
            let (from, to) = (Path::new(&disk.path), folder.join(format!("{}.raw", disk.name)));
            if !from.symlink_metadata().is_ok_and(|facts| facts.is_file()) {
                let detail = format!("{} is no file, or a link to one: name the file itself", from.display());
                return Err(OperationError::invalid(detail));
            }
            let real = self.check_is_not_own(from)?;
            std::fs::rename(real, &to).map_err(|error| {
                OperationError::invalid(format!(
                    "cannot move {} to {}: {error}; put it on the file system of the replicas first",
                    from.display(),
                    to.display()
                ))
            })?;
        }
        tracing::info!(vm = request.vm, disks = request.disks.len(), "seeded");
        Ok(api::Done::as_asked())
    }

    /// What waits for the disks of a VM. Disks of another size are refused, disks without a seed are sent.
    pub(super) fn find_seeds(
        &self,
        vm: &RecoveredVm,
        store: &FsStore,
        disks: &[DiskSpec],
    ) -> anyhow::Result<Seeds> {
        let folder = self.seeds_folder(&vm.name());
        let mut waiting = Vec::new();
        for disk in disks {
            let seed = folder.join(format!("{}.raw", disk.name));
            let Ok(facts) = std::fs::metadata(&seed) else { continue };
            anyhow::ensure!(
                facts.len() == disk.size_bytes,
                "the seed {} has {} bytes, the disk has {}: remove it, or bring the right one",
                seed.display(),
                facts.len(),
                disk.size_bytes
            );
            waiting.push((seed, store.replica_path(&disk.name)));
        }
        Ok(Seeds { folder, waiting, taken: Vec::new() })
    }
}

/// The seeds of one VM: each with the replica it becomes.
#[derive(Debug, Default)]
pub(super) struct Seeds {
    folder: PathBuf,
    waiting: Vec<(PathBuf, PathBuf)>,
    taken: Vec<(PathBuf, PathBuf)>,
}

impl Seeds {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.taken.is_empty()
    }

    /// Makes all of them replicas.
    pub(super) fn take(&mut self) -> anyhow::Result<()> {
        for (seed, replica) in std::mem::take(&mut self.waiting) {
            if let Some(parent) = replica.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            std::fs::rename(&seed, &replica).with_context(|| format!("take the seed {}", seed.display()))?;
            self.taken.push((seed, replica));
        }
        if !self.taken.is_empty() {
            let _ = std::fs::remove_dir(&self.folder);
        }
        Ok(())
    }

    /// Puts back to where it lay what was taken.
    pub(super) fn give_back(&mut self) -> anyhow::Result<()> {
        for (seed, replica) in self.taken.drain(..) {
            let put_back = || {
                std::fs::create_dir_all(&self.folder)?;
                std::fs::rename(&replica, &seed)
            };
            put_back().with_context(|| format!("put {} back to {}", replica.display(), seed.display()))?;
        }
        Ok(())
    }
}
