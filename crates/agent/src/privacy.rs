//! What an agent keeps is for its own user only: files 0600, folders 0700, whatever the umask it was started with.
//!
//! All of a VM's data lies in these folders, and the keys that open the other side. The umask sees to what is made from
//! now on; what is there already, of an earlier version or out of a copy, is closed when the agent starts, or the agent
//! does not start.

use crate::config::Config;
use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Group and others.
const OTHERS: u32 = 0o077;

/// From now on, what this process makes is for its own user only. To be called first.
pub fn begin() {
    rustix::process::umask(Mode::from_raw_mode(OTHERS));
}

/// A folder of the configuration, and what the agent puts into it.
struct Kept<'a> {
    setting: &'static str,
    path: &'a Path,
    is_ours: fn(&str) -> bool,
    /// Whether it may hold what is not the agent's.
    may_be_shared: bool,
}

fn kept(config: &Config) -> Vec<Kept<'_>> {
    let of_vms = |name: &str| {
        let is_id = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id || name.starts_with("disks-of-") || ["seeds", "lock", "lost+found"].contains(&name)
    };
    let of_pki = |name: &str| {
        ["trust", "site", "lost+found"].contains(&name)
            || [".pem", ".key", ".csr"].iter().any(|part| name.contains(part))
    };
    let of_run = |name: &str| {
        ["agent.sock", "vms", "images", "guests", "taps"].contains(&name) || name.starts_with("screen-")
    };
    let shared = |setting, path, is_ours| Kept { setting, path, is_ours, may_be_shared: true };
    let run_dir = &config.run_dir;
    let mut kept = vec![
        Kept { setting: "run_dir", path: run_dir, is_ours: of_run, may_be_shared: false },
        shared("journal_dir", &config.journal_dir, of_vms),
        shared("spill_dir", &config.spill_dir, of_vms),
        shared("pki_dir", &config.pki_dir, of_pki),
    ];
    kept.extend(config.journal.replica_folder.as_deref().map(|path| shared("replica_dir", path, of_vms)));
    // A state folder that an agent has been in is the agent's, whatever an older one put there.
    if !config.state_dir.join("run.json").exists() {
        let of_state =
            |name: &str| ["lock", "pki", "run", "spill", "journal", "journals", "lost+found"].contains(&name);
        let path = &config.state_dir;
        kept.insert(0, Kept { setting: "state_dir", path, is_ours: of_state, may_be_shared: false });
    }
    kept
}

/// Closes what an agent keeps to others. A folder that holds what is not the agent's is shared: it is left as it is, and
/// only what is the agent's in it is closed.
///
/// # Errors
/// Where something is open to others and stays so, or where a folder is shared that must not be, for its mode says who
/// may come to what is in it; the message says what to do.
pub(crate) fn close(config: &Config) -> Result<()> {
    // What is in it is for guests, each to its own; that folder is closed to all.
    let guests = config.run_dir.canonicalize().map(|run_dir| run_dir.join("guests")).unwrap_or_default();
    let close_all = |folder: &Path| close_all(folder, &guests);
    for kept in kept(config) {
        let (setting, path) = (kept.setting, kept.path.display());
        match entries(&kept)? {
            (_, None) => close_all(kept.path)?,
            (ours, Some(theirs)) if kept.may_be_shared => {
                tracing::info!(setting, %path, theirs, "shared with others: only what is the agent's is closed");
                ours.iter().try_for_each(|path| close_all(path))?;
            }
            (_, Some(theirs)) => bail!(
                "{setting} = {path} holds {theirs:?}, which is not of an agent: give the agent a folder of its own"
            ),
        }
    }
    close_all(&config.state_dir)
}

/// What of a folder is the agent's, and the name of something that is not.
fn entries(kept: &Kept<'_>) -> Result<(Vec<PathBuf>, Option<String>)> {
    let (mut ours, mut theirs) = (Vec::new(), None);
    let rows = match std::fs::read_dir(kept.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((ours, theirs)),
        other => other.with_context(|| format!("list {} = {}", kept.setting, kept.path.display()))?,
    };
    for row in rows {
        let row = row.with_context(|| format!("list {} = {}", kept.setting, kept.path.display()))?;
        let name = row.file_name().to_string_lossy().into_owned();
        if (kept.is_ours)(&name) {
            ours.push(row.path());
        } else {
            theirs = Some(name);
        }
    }
    Ok((ours, theirs))
}

/// Closes everything below `folder` to others, but what lies in `guests`. Links in it are not followed, and sockets are left
/// alone: who may use those is a setting.
///
/// # Errors
/// Where something is open to others and stays so; the message says what to do.
fn close_all(folder: &Path, guests: &Path) -> Result<()> {
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
        if kind.is_dir() && path != guests {
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
        close_all(&kept, Path::new("")).unwrap();
        assert_eq!([mode(&kept), mode(&kept.join("deep"))], [0o700, 0o700]);
        assert_eq!([mode(&kept.join("file")), mode(&kept.join("deep/file"))], [0o600, 0o400]);
        assert_eq!(mode(&other), 0o644, "a link is not followed");
        close_all(&folder.path().join("not there"), Path::new("")).unwrap();
        let by_link = folder.path().join("by link");
        symlink(&kept, &by_link).unwrap();
        set(&kept.join("file"), 0o644);
        close_all(&by_link, Path::new("")).unwrap();
        assert_eq!(mode(&kept.join("file")), 0o600);
    }

    #[test]
    fn a_folder_that_holds_what_is_not_ours_is_left_open_and_ours_in_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("srv");
        let (ours, theirs) = (shared.join("0123456789abcdef0123456789abcdef"), shared.join("theirs"));
        for path in [&shared, &ours, &theirs] {
            std::fs::create_dir_all(path).unwrap();
            set(path, 0o755);
        }
        let config = |more: &str| {
            let text = format!("site = \"a\"\nagent = \"b\"\nstate_dir = \"state\"\n{more}\n");
            Config::parse(&text, &folder.path().join("agent.toml")).unwrap()
        };
        close(&config("journal_dir = \"srv\"")).unwrap();
        assert_eq!([mode(&shared), mode(&ours), mode(&theirs)], [0o755, 0o700, 0o755]);
        let refused = close(&config("run_dir = \"srv\"")).unwrap_err().to_string();
        assert!(refused.contains("run_dir") && refused.contains("of its own"), "{refused}");
        assert_eq!(mode(&shared), 0o755);
        std::fs::remove_dir(&theirs).unwrap();
        close(&config("journal_dir = \"srv\"")).unwrap();
        assert_eq!(mode(&shared), 0o700);
    }
}
