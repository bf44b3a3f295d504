//! Where a guest's process lives, so that it is not ended with the agent: a unit of its own where systemd runs, and a control
//! group of its own where it does not.

use std::path::{Path, PathBuf};
use std::process::Command;

const SLICE: &str = "holdfast-guests.slice";
const CGROUPS: &str = "holdfast-guests";

/// What a guest's process is started in.
#[derive(Debug)]
pub(super) enum OwnUnit {
    /// A transient scope: `--system` or `--user`, whose manager that is, and its name.
    Scope(&'static str, String),
    Cgroup(PathBuf),
    /// Neither can be had: it stays in the agent's.
    None,
}

impl OwnUnit {
    /// `name` is nobody else's on this host.
    pub(super) fn find(name: &str) -> Self {
        if let Some(manager) = service_manager() {
            return Self::Scope(manager, format!("holdfast-guest-{}.scope", unit_word(name)));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let Some(root) = cgroup_root(&mounts) else { return Self::None };
        let guests = root.join(CGROUPS);
        sweep(&guests);
        let cgroup = guests.join(unit_word(name));
        match std::fs::create_dir_all(&cgroup) {
            Ok(()) => Self::Cgroup(cgroup),
            Err(error) => {
                tracing::debug!(%error, path = %cgroup.display(), "no control group can be made for a guest");
                Self::None
            }
        }
    }

    /// The command that has `program` run in it.
    pub(super) fn command(&self, program: &Path) -> Command {
        let Self::Scope(manager, unit) = self else { return Command::new(program) };
        let mut command = Command::new("systemd-run");
        command.args([manager, "--scope", "--quiet", "--collect"]);
        command.args([&format!("--unit={unit}"), &format!("--slice={SLICE}"), "--"]);
        command.arg(program);
        command
    }

    pub(super) fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Cgroup(path) => Some(path),
            Self::Scope(..) | Self::None => None,
        }
    }
}

/// Which of systemd's managers answers this user, where one does.
fn service_manager() -> Option<&'static str> {
    if rustix::process::geteuid().is_root() && Path::new("/run/systemd/private").exists() {
        return Some("--system");
    }
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    of_user.is_some_and(|folder| folder.join("systemd/private").exists()).then_some("--user")
}

/// Where the control groups of version 2 are mounted.
fn cgroup_root(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2")).map(|fields| PathBuf::from(fields[1]))
}

/// Removes the control groups of guests that have ended; the system removes none that has processes.
fn sweep(guests: &Path) {
    for row in std::fs::read_dir(guests).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(row.path());
    }
}

/// A word that units may have in their names.
fn unit_word(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_version_2_are_found_beside_those_of_version_1() {
        let mounts =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_root(mounts).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup_root("proc /proc proc rw 0 0\n"), None);
        assert_eq!(unit_word("Büro 1@x/y"), "B_ro_1_x_y");
    }
}
