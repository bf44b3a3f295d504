//! The folder of one guest: all of the host's files that its process can reach by name, and what the agent finds of it there.
//!
//! ```text
//! guests/            the agent's alone: nobody gets from one guest's folder to another's
//!   KEY/             the agent's; the guest's process stands in it, and may pass through and not change it
//!     log            the agent's; what the process says
//!     console        the guest's; what its serial line says
//!     qmp, events    monitors: made before the process is the guest's, and given to it open
//!     IMAGE.sock     its disks: the image's own socket under a second name, the guest's while it runs
//!     screen.png     the guest's, while a screenshot is taken
//!     kernel, initrd, firmware    copies, until the process has read them
//! ```
//!
//! Names in it are short, so that the process finds them from where it stands: folders above are closed to it, and
//! nothing that a guest may write to has a name that the agent follows.

use super::claimed_users::Claims;
use super::guest_users::{GuestUser, GuestUsers};
use super::processes;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

pub(super) const MONITOR: &str = "qmp";
pub(super) const EVENTS: &str = "events";
pub(super) const CONSOLE: &str = "console";
pub(super) const SCREEN: &str = "screen.png";
const LOG: &str = "log";
/// Modes of a guest's folder: the guest's group passes through, or it is the agent's own user.
const PASSED: u32 = 0o710;
const CLOSED: u32 = 0o700;
/// A file that the guest's group may read.
const READ: u32 = 0o640;
/// The largest file that a guest's process may write: its console, what it says, a screenshot.
pub(super) const FILE_BYTES_MAX: u64 = 32 << 20;
/// So much of what it says is told where it does not start.
const SAID_BYTES_MAX: u64 = 16 << 10;

/// The folder of the guest of a key.
#[derive(Debug)]
pub(super) struct GuestFolder {
    path: PathBuf,
}

impl GuestFolder {
    pub(super) fn new(guests: &Path, key: &str) -> Self {
        Self { path: guests.join(key) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.join(LOG)
    }

    /// Whether a process stands in it.
    pub(super) fn has(&self, pid: u32) -> bool {
        let facts = |path: &Path| path.metadata().ok().map(|facts| (facts.dev(), facts.ino()));
        let here = facts(&self.path);
        here.is_some() && here == facts(Path::new(&format!("/proc/{pid}/cwd")))
    }

    /// Whether the guest in it has that socket of disks.
    pub(super) fn has_socket(&self, socket: &Path) -> bool {
        self.join(&name_of(socket)).symlink_metadata().is_ok()
    }

    /// Makes it ready for a new process, of a user that no other guest and no process of this host is. `claims` is where the
    /// agents of this host tell one another of such users.
    ///
    /// # Errors
    /// Where a file cannot be made, or all users are in use.
    pub(super) fn prepare(&self, users: Option<GuestUsers>, claims: &Path) -> Result<Option<GuestUser>> {
        let Some(users) = users else {
            self.empty()?;
            set_mode(&self.path, CLOSED)?;
            self.make_its_own(CONSOLE, None)?;
            return Ok(None);
        };
        let claims = Claims::lock(claims)?;
        let mut used = self.used()?;
        used.extend(claims.held()?);
        used.extend(processes::users());
        let user = users.pick(&used)?;
        self.empty()?;
        chown(&self.path, None, Some(user.gid)).context("give the guest's folder to its group")?;
        set_mode(&self.path, PASSED)?;
        claims.put(user.uid, &self.path)?;
        self.make_its_own(CONSOLE, Some(user.uid))?;
        Ok(Some(user))
    }

    fn empty(&self) -> Result<()> {
        for row in std::fs::read_dir(&self.path).context("list the guest's folder")? {
            let path = row.context("list the guest's folder")?.path();
            if path != self.log() {
                std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Nothing runs in it any more.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("remove the guest's folder")
            }
            _ => Ok(()),
        }
    }

    /// The end of what its process has said, which may be anything.
    pub(super) fn said(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let (mut log, mut said) = (File::open(self.log())?, Vec::new());
            let from = log.metadata()?.len().saturating_sub(SAID_BYTES_MAX);
            log.seek(SeekFrom::Start(from))?;
            log.take(SAID_BYTES_MAX).read_to_end(&mut said)?;
            Ok(said)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
    }

    /// Whether there is room for files to be brought, and for what the guest may write.
    ///
    /// # Errors
    /// Where there is not; the message says how much is needed.
    pub(super) fn check_room(&self, files: &[(&str, PathBuf)]) -> Result<()> {
        let lens = files.iter().map(|(name, path)| {
            path.metadata().map(|facts| facts.len()).with_context(|| format!("look at the VM's {name}"))
        });
        let wanted = lens.sum::<Result<u64>>()? + FILE_BYTES_MAX;
        let facts = rustix::fs::statvfs(&self.path).context("ask for the room of guests")?;
        let free = facts.f_bavail.saturating_mul(facts.f_frsize);
        if free < wanted {
            bail!(
                "{} has {} MiB free, and {} MiB are wanted to start a VM there: free some, or set run_dir to a larger file \
                 system",
                self.path.display(),
                free >> 20,
                wanted.div_ceil(1 << 20)
            );
        }
        Ok(())
    }

    /// Copies a file in that the guest's process reads.
    pub(super) fn bring(&self, name: &str, from: &Path, user: Option<GuestUser>) -> Result<()> {
        let to = self.join(name);
        let copy = || -> std::io::Result<()> {
            std::io::copy(&mut File::open(from)?, &mut File::create_new(&to)?)?;
            if let Some(user) = user {
                chown(&to, None, Some(user.gid))?;
                std::fs::set_permissions(&to, Permissions::from_mode(READ))?;
            }
            Ok(())
        };
        copy().with_context(|| format!("bring the guest its {name}"))
    }

    /// What was brought is not needed any more.
    pub(super) fn clear(&self, name: &str) {
        let _ = std::fs::remove_file(self.join(name));
    }

    /// Gives a socket of disks to the guest, in place of one that had its name.
    pub(super) fn give(&self, socket: &Path, uid: Option<u32>) -> Result<()> {
        let (name, new) = (name_of(socket), self.join("socket.new"));
        let give = || -> std::io::Result<()> {
            remove(&new)?;
            std::fs::hard_link(socket, &new)?;
            if let Some(uid) = uid {
                chown(&new, Some(uid), None)?;
            }
            std::fs::rename(&new, self.join(&name))?;
            // Where that was the same socket already.
            remove(&new)
        };
        give().with_context(|| format!("give the guest the socket {}", socket.display()))
    }

    /// Gives a socket of disks that was made anew to the guest that had the one before.
    pub(super) fn give_again(&self, socket: &Path) -> Result<()> {
        if self.join(&name_of(socket)).symlink_metadata().is_err() {
            return Ok(());
        }
        let uid = rustix::process::geteuid().is_root().then(|| self.uid()).flatten();
        self.give(socket, uid)
    }

    /// Takes what a guest's process writes by this name meanwhile.
    pub(super) fn take<T>(&self, name: &str, write: impl FnOnce() -> Result<T>) -> Result<Vec<u8>> {
        remove(&self.join(name)).context("remove an old file")?;
        let uid = rustix::process::geteuid().is_root().then(|| self.uid()).flatten();
        let mut file = self.make_its_own(name, uid)?;
        let mut bytes = Vec::new();
        let read = write().and_then(|_| {
            let read = file.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut bytes);
            read.context("read what the guest's process wrote")
        });
        self.clear(name);
        read.map(|_| bytes)
    }

    /// The user that its guest is, or was, and nobody else; none where it is of the agent's own.
    pub(super) fn uid(&self) -> Option<u32> {
        let owner = |path: &Path| path.symlink_metadata().ok().map(|facts| facts.uid());
        let (agents, guests) = (owner(&self.path)?, owner(&self.join(CONSOLE))?);
        (guests != agents && guests != 0).then_some(guests)
    }

    /// Users that other guests of this agent are or were.
    fn used(&self) -> Result<BTreeSet<u32>> {
        let guests = self.path.parent().context("a guest's folder lies in another")?;
        let rows = std::fs::read_dir(guests).context("list the guests")?;
        let folders = rows.flatten().map(|row| Self { path: row.path() });
        Ok(folders.filter_map(|folder| folder.uid()).collect())
    }

    /// Makes a file that is the guest's: its process finds it there, for it can make none.
    fn make_its_own(&self, name: &str, uid: Option<u32>) -> Result<File> {
        let path = self.join(name);
        let make = || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            if let Some(uid) = uid {
                chown(&path, Some(uid), None)?;
            }
            Ok(file)
        };
        make().with_context(|| format!("make {}", path.display()))
    }
}

/// What a socket is called where a guest finds it.
pub(super) fn name_of(socket: &Path) -> String {
    socket.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}
