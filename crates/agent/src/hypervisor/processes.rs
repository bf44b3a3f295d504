//! Which processes there are and whose they are, as the system says it: a process may say of itself what it likes.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;

/// What the system says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// Its user, and those that it may become again.
    users: Vec<u32>,
    has_ended: bool,
}

impl Facts {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/status")).ok()?)
    }

    /// Of what `/proc/PID/status` says. Its name is what the process has chosen, and need not be text.
    fn parse(status: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(status);
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let users = field("Uid")?.split_whitespace().map(|word| word.parse().ok());
        let users = users.collect::<Option<Vec<u32>>>()?;
        // Where its first thread has ended others may run.
        let threads: u64 = field("Threads").and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(Self { users, has_ended: field("State")?.starts_with(['Z', 'X']) && threads <= 1 })
    }
}

/// All processes of this host.
pub(super) fn all() -> impl Iterator<Item = u32> {
    let rows = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    rows.filter_map(|row| row.file_name().to_str()?.parse().ok())
}

/// Whether a process runs, and as that user or as one who can become him.
pub(super) fn is_of(pid: u32, user: u32) -> bool {
    Facts::of(pid).is_some_and(|facts| !facts.has_ended && facts.users.contains(&user))
}

/// Users that any process of this host is, or can become again.
pub(super) fn users() -> BTreeSet<u32> {
    all().filter_map(Facts::of).flat_map(|facts| facts.users).collect()
}

/// What a process was started with, or says so; nothing where it is not there.
pub(super) fn words_of(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Ends a process at once, if it is still the one that is meant: its number may have been given again.
///
/// # Errors
/// Where it cannot be ended.
pub(super) fn kill(pid: u32, is_meant: impl FnOnce() -> bool) -> Result<()> {
    let killed = || -> rustix::io::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        if is_meant() { pidfd_send_signal(&process, Signal::KILL) } else { Ok(()) }
    };
    match killed() {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill process {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_whose_the_system_says_whatever_its_name_is() {
        let facts = |name: &[u8], state: &str, threads: u32| {
            let rest = format!("\nState:\t{state}\nUid:\t70000\t70000\t70001\t70000\nThreads:\t{threads}\n");
            Facts::parse(&[b"Name:\t", name, rest.as_bytes()].concat()).unwrap()
        };
        for name in [&b"qemu"[..], b"Uid: 0 0 0 0", b"\xff\xfe", b""] {
            let found = facts(name, "S (sleeping)", 4);
            assert_eq!((found.users, found.has_ended), (vec![70_000, 70_000, 70_001, 70_000], false));
        }
        assert!(facts(b"qemu", "Z (zombie)", 1).has_ended);
        assert!(!facts(b"qemu", "Z (zombie)", 2).has_ended, "another thread of it runs");
        assert_eq!(Facts::parse(b"Name:\tx\n"), None);
    }

    #[test]
    fn a_process_is_killed_only_where_it_is_the_one_that_is_meant() {
        let own = rustix::process::getuid().as_raw();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        assert!(is_of(pid, own) && !is_of(pid, own + 1) && users().contains(&own));
        kill(pid, || false).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        kill(pid, || true).unwrap();
        assert!(!child.wait().unwrap().success() && !is_of(pid, own));
        kill(pid, || panic!("it is gone")).unwrap();
    }
}
