//! Disks with a file system, looked at from outside the guest with e2fsprogs and libnbd's tools.

use crate::guest_files::run_quietly;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Makes a raw image with an empty ext4 on it.
///
/// # Errors
/// Where `mke2fs` fails.
pub fn make_disk(path: &Path, size_bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(size_bytes).context("size the disk")?;
    run_quietly(Command::new(sbin("mke2fs")).args(["-q", "-F", "-t", "ext4"]).arg(path))
}

/// Copies an export of an NBD socket to a file.
///
/// # Errors
/// Where `nbdcopy` fails.
pub fn copy_image(socket: &str, export: &str, to: &Path) -> Result<()> {
    let _ = std::fs::remove_file(to);
    run_quietly(Command::new("nbdcopy").arg(format!("nbd+unix:///{export}?socket={socket}")).arg(to))
}

/// Replays the file system's journal, as a boot would, and then checks it: true where nothing is wrong.
///
/// # Errors
/// Where `e2fsck` cannot run.
pub fn check_file_system(path: &Path) -> Result<bool> {
    let run = |how: &str| {
        let output = Command::new(sbin("e2fsck")).arg(how).arg(path).output().context("run e2fsck")?;
        output.status.code().context("e2fsck was killed")
    };
    // 1 means "errors corrected", which is what replaying its journal counts as.
    let replayed = run("-p")?;
    if replayed > 1 {
        return Ok(false);
    }
    Ok(run("-fn")? == 0)
}

/// A file's text, read out of a file system image.
///
/// # Errors
/// Where `debugfs` fails, or there is no such file.
pub fn read_file(path: &Path, name: &str) -> Result<String> {
    let output = Command::new(sbin("debugfs"))
        .args(["-R", &format!("cat {name}")])
        .arg(path)
        .output()
        .context("run debugfs")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("not found") {
        bail!("{name} in {}: {}", path.display(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// System tools are not always on an ordinary user's path.
fn sbin(tool: &str) -> String {
    for folder in ["/usr/sbin", "/sbin"] {
        let path = format!("{folder}/{tool}");
        if Path::new(&path).exists() {
            return path;
        }
    }
    tool.to_owned()
}
