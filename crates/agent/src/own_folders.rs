//! What lies in the agent's own folders: nobody who names a path in a request names anything there.
//!
//! What holds: it is asked of where a path leads, and not of how it is written. Promoted disks are the operator's, wherever
//! they lie.

use crate::config::Config;
use crate::error::{OperationError, Result};
use journal::MANIFESTS;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// What the folders of promoted disks begin with.
pub(crate) const DISKS_OF: &str = "disks-of-";

#[derive(Debug)]
pub(crate) struct OwnFolders {
    /// All in them is the agent's.
    whole: Vec<PathBuf>,
    /// Others may have something beside what is the agent's.
    shared: Vec<PathBuf>,
}

impl OwnFolders {
    pub(crate) fn new(config: &Config) -> Self {
        let whole = [&config.state_dir, &config.pki_dir, &config.run_dir];
        let shared =
            [Some(&config.journal_dir), Some(&config.spill_dir), config.journal.replica_folder.as_ref()];
        Self {
            whole: whole.into_iter().cloned().collect(),
            shared: shared.into_iter().flatten().cloned().collect(),
        }
    }

    /// Refuses what lies in them, in the folder of a journal, or in one of `more`; where it leads.
    ///
    /// # Errors
    /// Where it is the agent's own, or cannot be told to be elsewhere.
    pub(crate) fn check(&self, path: &Path, more: &[PathBuf]) -> Result<PathBuf> {
        let real = resolved(path).ok_or_else(|| {
            OperationError::invalid(format!("{}: give a full path, without `..`", path.display()))
        })?;
        let in_shared = |is: fn(&OsStr) -> bool| {
            let roots = self.shared.iter().filter_map(|root| resolved(root));
            roots.filter_map(|root| below(&real, &root).map(OsStr::to_owned)).any(|name| is(&name))
        };
        let in_whole = self.whole.iter().filter_map(|root| resolved(root)).any(|root| real.starts_with(root));
        let is_own = !in_shared(is_promoted) && (in_whole || in_shared(is_of_vms));
        let is_kept = more.iter().filter_map(|folder| resolved(folder)).any(|folder| is_in(&real, &folder));
        let is_in_journal = |folder: &Path| MANIFESTS.iter().any(|name| folder.join(name).exists());
        let is_of_journal =
            real.ancestors().skip(1).any(|folder| is_in_journal(folder) && is_in(&real, folder));
        match is_own || is_kept || is_of_journal {
            false => Ok(real),
            true => Err(OperationError::conflict(format!(
                "{} lies in a folder of the agent's own, or of a journal: give one elsewhere",
                path.display()
            ))),
        }
    }
}

/// Where a path leads: what does not exist yet will lie where the part of it does that exists.
fn resolved(path: &Path) -> Option<PathBuf> {
    let (above, real) = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)))?;
    let rest = path.strip_prefix(above).ok()?;
    let is_plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    // Not joined: an empty rest would make a file's path one of a folder.
    is_plain.then(|| rest.components().fold(real, |path, part| path.join(part)))
}

/// What of `folder` it lies in, or is.
fn below<'a>(path: &'a Path, folder: &Path) -> Option<&'a OsStr> {
    path.strip_prefix(folder).ok()?.components().next().map(Component::as_os_str)
}

fn is_in(path: &Path, folder: &Path) -> bool {
    path.starts_with(folder) && !below(path, folder).is_some_and(is_promoted)
}

fn is_promoted(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(DISKS_OF))
}

/// Whether a folder of journals, replicas or spills has something of the agent's under this name.
fn is_of_vms(name: &OsStr) -> bool {
    let is_id = |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.to_str().is_some_and(|name| is_id(name) || ["seeds", "lock"].contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_lies_in_the_agents_own_folders_is_told_whatever_way_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text =
            "site = \"a\"\nagent = \"b\"\nstate_dir = \"state\"\npki_dir = \"pki\"\nrun_dir = \"run\"\n";
        let own = OwnFolders::new(&Config::parse(text, &at("agent.toml")).unwrap());
        let id = "0123456789abcdef0123456789abcdef";
        for made in ["state/audit", "pki", "run", "moved/replica", "state/journals/seeds/web"] {
            std::fs::create_dir_all(at(made)).unwrap();
        }
        std::fs::write(at("moved/manifest"), "").unwrap();
        symlink(at("state"), at("link")).unwrap();
        for name in [
            "state/journals/0.json",
            "state/audit/1.jsonl",
            "state/journals/seeds/web/vda.raw",
            "state/spill/1",
            "pki/ca.key",
            "run/agent.sock",
            "link/audit/1.jsonl",
            "moved/segment-00000001",
            "moved/replica/vda.raw",
            "new/../state/run.json",
            &format!("state/journals/{id}/manifest"),
        ] {
            assert!(own.check(&at(name), &[]).is_err(), "{name}");
        }
        for name in ["web.raw", "state/journals/disks-of-web-1/vda.raw", "moved/disks-of-web-1/vda.raw"] {
            own.check(&at(name), &[]).unwrap();
        }
        assert!(own.check(&at("kept/vda.raw"), &[at("kept")]).is_err());
    }
}
