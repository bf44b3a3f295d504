//! Which files are the replicas of journals. A journal goes on writing to its replica whatever else does: one that was
//! protected as a VM's disk would be sent round in a circle, by a guest that has its disk changed under it.

use super::Recovery;
use crate::error::{OperationError, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use types::VmId;

impl Recovery {
    /// Refuses a path that leads into a folder of the agent's, or of a VM that is kept; where it leads.
    pub(super) fn check_is_not_own(&self, path: &Path) -> Result<PathBuf> {
        let vms: Vec<_> = self.vms().values().cloned().collect();
        let kept: Vec<_> = vms.iter().flat_map(|vm| vm.folders(&self.journal_config)).collect();
        self.own_folders.check(path, &kept)
    }

    /// Refuses disks that are replicas: of a journal kept here, under whatever name, or one in a place of replicas; and whatever
    /// else is the agent's own.
    pub(crate) fn check_not_replicas(&self, disks: &[api::ProtectDisk]) -> Result<()> {
        let kept: Vec<_> = self.list().iter().map(|vm| vm.replicas(&self.journal_config)).collect();
        let of_config = self.journal_config.replica_folder.as_deref();
        for disk in disks {
            let path = std::fs::canonicalize(&disk.path).unwrap_or_else(|_| PathBuf::from(&disk.path));
            let is_kept = kept.iter().any(|folder| has_file(folder, &path));
            if is_kept || is_beside_manifest(&path) || of_config.is_some_and(|root| is_in_root(root, &path)) {
                return Err(OperationError::conflict(format!(
                    "{} is the replica of a journal, which writes to it: a VM runs on an image of the journal (`holdfast \
                     image open`, `holdfast failover start`), and is protected by that one's disk once it is promoted",
                    path.display()
                )));
            }
            self.check_is_not_own(&path)?;
        }
        Ok(())
    }
}

/// Whether a folder holds this very file, whatever it is called there.
fn has_file(folder: &Path, path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
    let wanted = identity(path);
    let rows = std::fs::read_dir(folder).into_iter().flatten().flatten();
    wanted.is_some() && rows.map(|row| row.path()).any(|row| identity(&row) == wanted)
}

/// Whether it lies where any journal has its replicas, unless told otherwise.
fn is_beside_manifest(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| folder.ends_with("replica"));
    let journal = folder.and_then(Path::parent);
    journal.is_some_and(|journal| journal::MANIFESTS.iter().any(|name| journal.join(name).exists()))
}

/// Whether it lies where replicas lie below this folder: in one named by a VM's id. Images of VMs may lie beside those.
fn is_in_root(root: &Path, path: &Path) -> bool {
    let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
    let folder = path.parent().filter(|folder| folder.parent() == Some(&root));
    let name = folder.and_then(Path::file_name).and_then(|name| name.to_str());
    name.is_some_and(|name| name.parse::<VmId>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_named_by_a_vm_below_the_folder_of_replicas_is_one_of_theirs_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let id = VmId::from_bytes([7; 16]).to_string();
        assert!(is_in_root(folder.path(), &root.join(&id).join("vda.raw")));
        for other in [root.join("web.raw"), root.join("images/web.raw"), root.join(&id).join("more/web.raw")]
        {
            assert!(!is_in_root(folder.path(), &other), "{}", other.display());
        }
    }

    #[test]
    fn a_file_is_found_by_what_it_is_and_not_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, link) = (folder.path().join("kept"), folder.path().join("web.raw"));
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("vda.raw"), "x").unwrap();
        std::fs::hard_link(kept.join("vda.raw"), &link).unwrap();
        assert!(has_file(&kept, &link));
        std::fs::remove_file(&link).unwrap();
        assert!(!has_file(&kept, &link), "what is not there is nobody's replica");
        std::fs::copy(kept.join("vda.raw"), &link).unwrap();
        assert!(!has_file(&kept, &link), "a copy is not");
    }
}
