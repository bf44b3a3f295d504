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
            if !from.is_file() {
                return Err(OperationError::invalid(format!("{} is no file", from.display())));
            }
            std::fs::rename(from, &to).map_err(|error| {
                OperationError::invalid(format!(
                    "cannot move {} to {}: {error}; put it on the file system of the replicas first",
                    from.display(),
                    to.display()
                ))
            })?;
        }
        tracing::info!(vm = request.vm, disks = request.disks.len(), "seeded");
        Ok(api::Done { done: true })
    }

    /// Makes what waits for a VM its replicas; true where there was something. Disks of another size are
    /// refused, disks without a seed are sent.
    pub(super) fn take_seeds(
        &self,
        vm: &RecoveredVm,
        store: &FsStore,
        disks: &[DiskSpec],
    ) -> anyhow::Result<bool> {
        let folder = self.seeds_folder(&vm.name());
        let mut taken = false;
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
            let replica = store.replica_path(&disk.name);
            if let Some(parent) = replica.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            std::fs::rename(&seed, &replica).with_context(|| format!("take the seed {}", seed.display()))?;
            taken = true;
        }
        if taken {
            let _ = std::fs::remove_dir(&folder);
        }
        Ok(taken)
    }
}
