//! Users that the agents of this host have given to guests: no two give the same one.
//!
//! ```text
//! /run/holdfast-guest-users/    root's alone, of all agents of this host
//!   lock                        held while somebody picks a user and gives him a console
//!   UID -> GUESTS/KEY           the guest's folder that he was picked for
//! ```
//!
//! Such a link holds while the console in that folder is his.

use super::guest_folder::CONSOLE;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

pub(super) const CLAIMS: &str = "/run/holdfast-guest-users";

/// Nobody else picks a user meanwhile.
#[derive(Debug)]
pub(super) struct Claims {
    folder: PathBuf,
    _lock: File,
}

impl Claims {
    /// Waits for whoever picks one just now.
    ///
    /// # Errors
    /// Where the folder cannot be made or locked.
    pub(super) fn lock(folder: &Path) -> Result<Self> {
        let lock = || -> std::io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let lock = File::options().create(true).write(true).truncate(false).open(folder.join("lock"))?;
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        };
        let _lock = lock().with_context(|| format!("lock {}", folder.display()))?;
        Ok(Self { folder: folder.to_path_buf(), _lock })
    }

    /// Users of whom the console of a guest is; of others nothing is kept.
    ///
    /// # Errors
    /// Where that cannot be listed.
    pub(super) fn held(&self) -> Result<BTreeSet<u32>> {
        let rows = std::fs::read_dir(&self.folder).context("list the users of guests")?;
        let mut held = BTreeSet::new();
        for row in rows.flatten() {
            let Some(uid) = row.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let console = row.path().join(CONSOLE);
            if console.symlink_metadata().is_ok_and(|facts| facts.uid() == uid) {
                held.insert(uid);
            } else {
                let _ = std::fs::remove_file(row.path());
            }
        }
        Ok(held)
    }

    /// To be called before the guest in that folder is that user.
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub(super) fn put(&self, uid: u32, guest: &Path) -> Result<()> {
        let claim = || symlink(std::path::absolute(guest)?, self.folder.join(uid.to_string()));
        claim().with_context(|| format!("write down whose guest user {uid} is"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_guests_as_long_as_its_console_is_his() {
        let folder = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let guest = folder.path().join("web");
        std::fs::create_dir(&guest).unwrap();
        let claims = Claims::lock(&folder.path().join("claims")).unwrap();
        claims.put(own, &guest).unwrap();
        assert_eq!(claims.held().unwrap(), BTreeSet::new());
        std::fs::write(guest.join(CONSOLE), "").unwrap();
        claims.put(own, &guest).unwrap();
        claims.put(own + 1, &guest).unwrap();
        assert_eq!(claims.held().unwrap(), BTreeSet::from([own]));
        claims.put(own + 1, &guest).unwrap();
    }
}
