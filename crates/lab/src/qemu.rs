//! Which QEMU: the installed one, or one that the chores have unpacked beside it. A program of either is found by its
//! path, so that an agent can be told of it too.

use crate::guest_files::guest_folder;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// A version of QEMU and its tools.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Where its programs are, if not on the path.
    folder: Option<PathBuf>,
}

impl Qemu {
    /// The installed one: 7.2 on Debian 12.
    pub fn system() -> Self {
        Self { folder: None }
    }

    /// QEMU 10.0, which `cargo xtask test` has unpacked.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn ten() -> Result<Self> {
        let folder = guest_folder().join("qemu-10/bin");
        if !folder.exists() {
            bail!("no QEMU 10 in {}: run `cargo xtask prepare`, which unpacks it", folder.display());
        }
        Ok(Self { folder: Some(folder) })
    }

    /// One of its programs, `qemu-system-x86_64`, `qemu-img`, `qemu-io`, `qemu-nbd` or `qemu-storage-daemon`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| name.into(), |folder| folder.join(name))
    }

    /// A command that runs one of its programs.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.program(name))
    }
}
