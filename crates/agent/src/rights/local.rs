//! Users of this host at the API's socket: which groups give which role.
//!
//! Who connects is what the system says of the moment in which it connected, its other groups included: a table of
//! processes could tell of another one by now.

use super::caller::{Caller, is_own_user};
use super::role::Role;
use crate::config::RightsConfig;
use crate::sockets::group_id;
use anyhow::{Context, Result};
use rustix::fs::Gid;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use tokio::net::UnixStream;

/// The groups of [rights].
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalRights {
    groups: Vec<(Role, Gid)>,
}

/// Groups of a process that are looked at; the system knows no more of any.
const GROUPS_MAX: usize = 65_536;

impl LocalRights {
    /// # Errors
    /// Where this host has no such group.
    pub(crate) fn new(config: &RightsConfig) -> Result<Self> {
        let named = Role::ALL.into_iter().filter_map(|role| Some((role, config.group_of(role)?)));
        let known = named.map(|(role, name)| {
            let group = group_id(name, Path::new("/etc/group"));
            group.map(|group| (role, group)).with_context(|| format!("[rights] {role}"))
        });
        Ok(Self { groups: known.collect::<Result<_>>()? })
    }

    /// Whether anybody but the agent's user and root may have a role.
    pub(crate) fn names_any(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// Where the system does not say.
    pub(crate) fn caller(&self, stream: &UnixStream) -> Result<Caller> {
        let peer = stream.peer_cred().context("ask who has connected")?;
        let mut groups = vec![peer.gid()];
        if self.names_any() {
            groups.extend(other_groups(stream).context("ask for the groups of who has connected")?);
        }
        let role = self.role(is_own_user(peer.uid()), &groups);
        Ok(Caller::User { uid: peer.uid(), pid: peer.pid(), role })
    }

    fn role(&self, has_all: bool, groups: &[u32]) -> Option<Role> {
        if has_all {
            return Some(Role::Admin);
        }
        self.groups.iter().filter(|(_, gid)| groups.contains(&gid.as_raw())).map(|(role, _)| *role).max()
    }
}

/// The supplementary groups of who has connected.
fn other_groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the option writes at most `len` bytes, which is how long the vector is, and says in `len` how many.
        let failed = unsafe {
            let (fd, to) = (stream.as_raw_fd(), groups.as_mut_ptr().cast());
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, to, &mut len) != 0
        };
        let count = len as usize / size_of::<libc::gid_t>();
        if !failed {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_a_users_groups_counts_and_no_group_gives_nothing() {
        let gid = Gid::from_raw;
        let rights = LocalRights {
            groups: vec![(Role::Viewer, gid(10)), (Role::Operator, gid(11)), (Role::Admin, gid(12))],
        };
        assert_eq!(rights.role(false, &[5, 10, 11]), Some(Role::Operator));
        assert_eq!(rights.role(false, &[12]), Some(Role::Admin));
        assert_eq!(rights.role(false, &[5, 0]), None);
        assert_eq!(rights.role(true, &[5]), Some(Role::Admin));
        assert_eq!(LocalRights::default().role(false, &[10]), None);
    }

    #[tokio::test]
    async fn who_has_connected_is_told_by_the_system_with_all_groups() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut told = other_groups(&ours).unwrap();
        let mut known: Vec<u32> =
            rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
        let caller = LocalRights::default().caller(&ours).unwrap();
        assert_eq!(caller.role(), Some(Role::Admin), "the agent's own user");
    }
}
