//! What an agent keeps is for its own user only: files 0600, folders 0700, whatever the umask it was started with.
//!
//! All of a VM's data lies in these folders, and the keys that open the other side. The umask sees to what is made from
//! now on; what is there already, of an earlier version or out of a copy, is closed when the agent starts, or the agent
//! does not start.

use anyhow::{Context, Result};
use rustix::fs::Mode;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Group and others.
const OTHERS: u32 = 0o077;

/// From now on, what this process makes is for its own user only. To be called first.
pub fn begin() {
    rustix::process::umask(Mode::from_raw_mode(OTHERS));
}

/// Closes everything below `folder` to others. Links in it are not followed, and sockets are left alone: who may use
/// those is a setting.
///
/// # Errors
/// Where something is open to others and stays so; the message says what to do.
pub(crate) fn close(folder: &Path) -> Result<()> {
    // The folder itself may be named by a link: of another disk, as a rule.
    let mut open: Vec<_> = folder.canonicalize().into_iter().collect();
    while let Some(path) = open.pop() {
        let kind = match path.symlink_metadata() {
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("look at {}", path.display()))?,
        };
        if kind.is_symlink() || kind.file_type().is_socket() {
            continue;
        }
        close_one(&path, &kind)?;
        if kind.is_dir() {
            for row in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                open.push(row.with_context(|| format!("list {}", path.display()))?.path());
            }
        }
    }
    Ok(())
}

fn close_one(path: &Path, kind: &std::fs::Metadata) -> Result<()> {
    let mode = kind.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & !OTHERS)).with_context(|| {
        format!(
            "{} is open to other users of this host (mode {mode:o}) and cannot be closed to them: \
             run `chmod -R go= ` on its folder, or give the agent a folder of its own",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn everything_in_a_folder_is_closed_to_others_and_nothing_outside_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, other) = (folder.path().join("kept"), folder.path().join("other"));
        std::fs::create_dir_all(kept.join("deep")).unwrap();
        for (path, was) in
            [(other.clone(), 0o644), (kept.join("file"), 0o664), (kept.join("deep/file"), 0o444)]
        {
            std::fs::write(&path, "x").unwrap();
            set(&path, was);
        }
        symlink(&other, kept.join("link")).unwrap();
        set(&kept, 0o755);
        set(&kept.join("deep"), 0o750);
        close(&kept).unwrap();
        assert_eq!([mode(&kept), mode(&kept.join("deep"))], [0o700, 0o700]);
        assert_eq!([mode(&kept.join("file")), mode(&kept.join("deep/file"))], [0o600, 0o400]);
        assert_eq!(mode(&other), 0o644, "a link is not followed");
        close(&folder.path().join("not there")).unwrap();
        let by_link = folder.path().join("by link");
        symlink(&kept, &by_link).unwrap();
        set(&kept.join("file"), 0o644);
        close(&by_link).unwrap();
        assert_eq!(mode(&kept.join("file")), 0o600);
    }
}
