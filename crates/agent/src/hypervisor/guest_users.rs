//! Whom guests run as: each as a user of its own, who owns nothing and whom nobody else is.
//!
//! One user for all of them would not do: the system lets a process look into another of the same user, and so into the
//! other's files. The numbers are those that `/etc/subuid` sets aside for a user of that name, or agent.toml names.

use crate::config::GuestsConfig;
use crate::sockets::group_id;
use crate::state::random;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;

/// Users of this host that are set aside for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GuestUsers {
    first: u32,
    last: u32,
    /// The group of all of them; none where each has one of its own number.
    gid: Option<u32>,
}

/// Whom one guest runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GuestUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl GuestUsers {
    /// None where the agent is not root, and cannot start anything as somebody else.
    ///
    /// # Errors
    /// Where there are none; the message says what to do.
    pub(super) fn find(config: &GuestsConfig) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = Self::look_up(config, Path::new("/etc/passwd"), Path::new("/etc/subuid"))?;
        for (setting, gid) in kept_from(config, Path::new("/etc/group"))? {
            if users.may_be_of(gid) {
                bail!(
                    "group {gid}, which {setting} names, is one that VMs run as: whatever breaks out of one would get to what \
                     that group may. Name another group there, or another user or other numbers with `[guests]`"
                );
            }
        }
        Ok(Some(users))
    }

    fn may_be_of(&self, gid: u32) -> bool {
        self.gid.map_or((self.first..=self.last).contains(&gid), |group| group == gid)
    }

    fn look_up(config: &GuestsConfig, users: &Path, set_aside: &Path) -> Result<Self> {
        if let Some((first, last)) = config.uids {
            return Ok(Self { first, last, gid: None });
        }
        let user = &config.user;
        let Some((name, uid, gid)) = find_user(user, users)? else {
            bail!(
                "VMs are not started as root, and there is no user {user:?}: make it, with `useradd --system \
                 --add-subids-for-system {user}`, or name another with `[guests]` in agent.toml"
            );
        };
        if uid == 0 || gid == 0 {
            bail!("[guests] user = {user:?} is root, or of root's group: name another");
        }
        let Some((first, last)) = find_numbers(&[&name, &uid.to_string()], set_aside)? else {
            bail!(
                "no users are set aside for the VMs of {user:?} in {}: `usermod --add-subuids 600000-665535 {user}` does \
                 that, or name them with `[guests] uids` in agent.toml",
                set_aside.display()
            );
        };
        Ok(Self { first, last, gid: Some(gid) })
    }

    /// One whom no other guest is.
    ///
    /// # Errors
    /// Where all are in use.
    pub(super) fn pick(&self, used: &BTreeSet<u32>) -> Result<GuestUser> {
        let count = u64::from(self.last - self.first) + 1;
        // Anywhere, so that two agents of one host seldom begin with the same.
        let start = u64::from_le_bytes(random()[..8].try_into().expect("eight bytes")) % count;
        let tries = count.min(used.len() as u64 + 1);
        let uids = (0..tries).map(|step| self.first + ((start + step) % count) as u32);
        let free = uids.into_iter().find(|uid| !used.contains(uid));
        let uid = free.with_context(|| {
            format!("all {count} users that are set aside for VMs are in use: set more aside, see `[guests]`")
        })?;
        Ok(GuestUser { uid, gid: self.gid.unwrap_or(uid) })
    }
}

/// Groups that may use what the agent serves, each with the setting that names it.
///
/// # Errors
/// Where this host has no such group.
pub(super) fn kept_from<'a>(config: &'a GuestsConfig, groups: &Path) -> Result<Vec<(&'a str, u32)>> {
    let known = config.kept_from.iter().map(|(setting, name)| {
        let gid = group_id(name, groups).with_context(|| setting.clone())?;
        Ok((setting.as_str(), gid.as_raw()))
    });
    known.collect()
}

/// Name, number and group of a user, out of a table as `/etc/passwd` is one.
fn find_user(user: &str, table: &Path) -> Result<Option<(String, u32, u32)>> {
    let text = std::fs::read_to_string(table).with_context(|| format!("read {}", table.display()))?;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        (fields[0] == user || fields[2] == user).then(|| (fields[0].to_owned(), uid, gid))
    };
    Ok(text.lines().find_map(parse))
}

/// The first and the last number that are set aside for somebody, out of a table as `/etc/subuid` is one.
fn find_numbers(names: &[&str], table: &Path) -> Result<Option<(u32, u32)>> {
    let text = match std::fs::read_to_string(table) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("read {}", table.display()))?,
    };
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let last = first.checked_add(count.checked_sub(1)?)?;
        (names.contains(&name) && first > 0 && last < u32::MAX).then_some((first, last))
    };
    Ok(text.lines().find_map(parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(user: &str, set_aside: &str) -> Result<GuestUsers> {
        let folder = tempfile::tempdir().unwrap();
        let (users, numbers) = (folder.path().join("passwd"), folder.path().join("subuid"));
        let known =
            "root:x:0:0::/root:/bin/sh\nguests:x:990:980::/:/usr/sbin/nologin\nwheel:x:991:0::/:/bin/sh\n";
        std::fs::write(&users, known).unwrap();
        std::fs::write(&numbers, set_aside).unwrap();
        GuestUsers::look_up(
            &GuestsConfig { user: user.into(), uids: None, kept_from: Vec::new() },
            &users,
            &numbers,
        )
    }

    #[test]
    fn guests_get_the_numbers_that_are_set_aside_and_are_refused_with_what_to_do_where_there_are_none() {
        let found = GuestUsers { first: 600_000, last: 600_009, gid: Some(980) };
        let set_aside = "anna:100000:65536\nguests:600000:10\n";
        assert_eq!(look_up("guests", set_aside).unwrap(), found);
        assert_eq!(look_up("990", set_aside).unwrap(), found);
        assert_eq!(look_up("guests", "990:600000:10\n").unwrap(), found);
        let said = |user: &str, set_aside: &str| look_up(user, set_aside).unwrap_err().to_string();
        assert!(
            said("nobody-here", set_aside).contains("useradd --system --add-subids-for-system nobody-here")
        );
        assert!(said("guests", "anna:100000:65536\n").contains("usermod --add-subuids"));
        for unusable in ["guests:0:10\n", "guests:600000:0\n", "guests:4294967290:20\n", "guests:x:1\n"] {
            assert!(said("guests", unusable).contains("usermod --add-subuids"), "{unusable}");
        }
        for root in ["root", "0", "wheel"] {
            assert!(said(root, "root:100000:10\nwheel:100000:10\n").contains("is root"), "{root}");
        }
    }

    #[test]
    fn no_guest_has_a_group_that_may_use_what_the_agent_serves() {
        let mut config =
            GuestsConfig { user: "guests".into(), uids: Some((70_000, 70_009)), kept_from: Vec::new() };
        config.kept_from =
            vec![("[sockets] group".into(), "70004".into()), ("[rights] viewer".into(), "0".into())];
        let kept = kept_from(&config, Path::new("/nowhere")).unwrap();
        assert_eq!(kept, [("[sockets] group", 70_004), ("[rights] viewer", 0)]);
        let of = |gid| GuestUsers { first: 70_000, last: 70_009, gid };
        assert!(of(None).may_be_of(70_004) && !of(None).may_be_of(0));
        assert!(of(Some(980)).may_be_of(980) && !of(Some(980)).may_be_of(70_004));
        if rustix::process::geteuid().is_root() {
            let refused = GuestUsers::find(&config).unwrap_err().to_string();
            assert!(refused.contains("[sockets] group") && refused.contains("Name another"), "{refused}");
            config.kept_from.remove(0);
            GuestUsers::find(&config).unwrap();
        }
    }

    #[test]
    fn no_two_guests_are_the_same_user() {
        let users = GuestUsers { first: 70_000, last: 70_004, gid: None };
        let mut used = BTreeSet::new();
        for _ in 0..5 {
            let user = users.pick(&used).unwrap();
            assert!((70_000..=70_004).contains(&user.uid) && user.gid == user.uid);
            assert!(used.insert(user.uid));
        }
        assert!(users.pick(&used).unwrap_err().to_string().contains("all 5"));
    }
}
