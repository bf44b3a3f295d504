//! Who may use the sockets of disks: the agent's user alone, or a group as well, `[sockets]` in agent.toml.
//!
//! A socket is made for the agent's user only, by the umask, and given to the group once it is there: at no time can
//! anybody else connect. The API's socket is of no group: whom it answers is a matter of rights.

use anyhow::{Context, Result, bail};
use rustix::fs::Gid;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Whom the sockets of disks are given to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketAccess {
    group: Option<Gid>,
    mode: u32,
}

/// Modes of a folder that sockets lie in: its group may pass through and not list it, or make sockets of its own too,
/// of which each can only be removed by whom it is of.
const PASSED: u32 = 0o710;
const SHARED: u32 = 0o1730;
const CLOSED: u32 = 0o700;
const PASSED_BY_ALL: u32 = 0o001;

/// The folder that all sockets of an agent lie in, and whom those of disks are for.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
    access: SocketAccess,
}

impl RunDir {
    /// Makes the folder.
    ///
    /// # Errors
    /// Where it cannot be made or given to the group.
    pub(crate) fn make(path: &Path, access: SocketAccess) -> Result<Self> {
        access.make_folder(path, PASSED)?;
        Ok(Self { path: path.to_path_buf(), access })
    }

    /// Lets everybody of this host pass through to what lies in it, each of which has a mode of its own.
    ///
    /// # Errors
    /// Where its mode cannot be set.
    pub(crate) fn let_all_pass(&self) -> Result<()> {
        let mode = self.path.metadata().map(|facts| facts.permissions().mode() | PASSED_BY_ALL);
        mode.and_then(|mode| std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode)))
            .with_context(|| format!("set the mode of {}", self.path.display()))
    }

    /// A folder in it for sockets that the agent serves.
    pub(crate) fn served(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        self.access.make_folder(&path, PASSED)?;
        Ok(path)
    }

    /// A folder in it for sockets that hypervisors serve.
    pub(crate) fn of_hypervisors(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        self.access.make_folder(&path, SHARED)?;
        Ok(path)
    }

    /// Gives a socket that was made to whom it is for.
    pub(crate) fn give(&self, socket: &Path) -> Result<()> {
        self.access.give(socket, self.access.mode)
    }
}

impl SocketAccess {
    /// The group by its name or number.
    ///
    /// # Errors
    /// Where this host has no such group.
    pub(crate) fn new(group: Option<&str>, mode: u32) -> Result<Self> {
        let group =
            group.map(|name| group_id(name, Path::new("/etc/group"))).transpose().context("[sockets]")?;
        Ok(Self { group, mode })
    }

    fn make_folder(self, path: &Path, mode: u32) -> Result<()> {
        std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        self.give(path, if self.group.is_some() { mode } else { CLOSED })
    }

    fn give(self, path: &Path, mode: u32) -> Result<()> {
        // The group first: the mode is never meant for the group of before.
        if self.group.is_some() {
            rustix::fs::chown(path, None, self.group)
                .with_context(|| format!("give {} to the group of [sockets]", path.display()))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("set the mode of {}", path.display()))
    }
}

/// A group's number, from a table as `/etc/group` is one.
pub(crate) fn group_id(name: &str, table: &Path) -> Result<Gid> {
    if let Ok(number) = name.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    let text = std::fs::read_to_string(table).with_context(|| format!("read {}", table.display()))?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse::<u32>().ok()).flatten()
    });
    match found {
        Some(number) => Ok(Gid::from_raw(number)),
        None => bail!(
            "there is no group {name:?} in {}; make it, or name another: a group's number is taken too",
            table.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_known_by_name_and_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("group");
        std::fs::write(&table, "root:x:0:\nkvm:x:104:libvirt-qemu\nkvm2:x:105:\n").unwrap();
        assert_eq!(group_id("kvm", &table).unwrap().as_raw(), 104);
        assert_eq!(group_id("77", &table).unwrap().as_raw(), 77);
        let unknown = group_id("kv", &table).unwrap_err().to_string();
        assert!(unknown.contains("no group \"kv\"") && unknown.contains("number"), "{unknown}");
    }
}
