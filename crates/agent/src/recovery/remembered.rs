//! Whose the groups are of which no VM is kept here any more: else whoever knows a group's id could take it by greeting first.
//!
//! What holds: that is written down before the last VM of a group is forgotten. As long as a VM is kept its record says it.
//! What cannot be read is never written over: somebody may restore it.

use crate::alerts::Alerts;
use crate::state::StateDir;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use types::GroupId;
use types::limits::REMEMBERED_GROUPS_MAX;

const FILE: &str = "groups.json";

/// The groups, as `state/groups.json` has them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Groups {
    /// By id, with the site; who came first is forgotten first.
    groups: Vec<(String, String)>,
}

impl Groups {
    fn site_of(&self, group: &str) -> Option<&str> {
        self.groups.iter().find(|(id, _)| id == group).map(|(_, site)| site.as_str())
    }

    /// With one more. No site has others forgotten.
    fn with(&self, group: String, site: String) -> Self {
        let mut groups = self.groups.clone();
        groups.retain(|(id, _)| *id != group);
        let of_site = groups.iter().filter(|(_, of)| *of == site).count();
        let first = groups.iter().position(|(_, of)| *of == site);
        if let Some(first) = first.filter(|_| of_site >= REMEMBERED_GROUPS_MAX) {
            groups.remove(first);
        }
        groups.push((group, site));
        Self { groups }
    }
}

#[derive(Debug, Default)]
pub(super) struct Remembered {
    groups: Mutex<Groups>,
    /// Held while they are written down.
    saving: Mutex<()>,
    /// What is written down of them could not be read.
    is_unread: AtomicBool,
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().expect("a panic aborts the process")
    }

    pub(super) fn site_of(&self, group: GroupId) -> Option<String> {
        self.lock().site_of(&group.to_string()).map(str::to_owned)
    }

    /// Remembers a group, one of whose VMs is being forgotten.
    pub(super) fn add(&self, state: &StateDir, group: GroupId, site: String) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.is_unread.load(Ordering::SeqCst),
            "{} cannot be read: restore it from a backup, or remove it, and restart the agent",
            state.path(FILE).display()
        );
        let group = group.to_string();
        let _one = self.saving.lock().expect("a panic aborts the process");
        let before = self.lock().clone();
        if before.site_of(&group) == Some(&site) {
            return Ok(());
        }
        let now = before.with(group, site);
        state.save(FILE, &now)?;
        *self.lock() = now;
        Ok(())
    }

    pub(super) fn take_up(&self, state: &StateDir, alerts: &Alerts) {
        match state.load::<Groups>(FILE) {
            Ok(groups) => *self.lock() = groups.unwrap_or_default(),
            Err(error) => {
                self.is_unread.store(true, Ordering::SeqCst);
                alerts.raise(
                    "record of groups",
                    format!(
                        "whose the groups were of which no VM is kept any more cannot be read, so that another site may take one \
                         of them, and no VM is forgotten to its end: {error:#}; restore {} from a backup, or remove it, and \
                         restart the agent",
                        state.path(FILE).display()
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PEER, admit_named, append_sync, begin_anew, end, recovery};
    use super::*;
    use crate::ledger::Asker;

    #[test]
    fn a_group_whose_vms_are_all_forgotten_is_taken_by_no_other_site() {
        let folder = tempfile::tempdir().unwrap();
        let side = recovery(folder.path());
        append_sync(&admit_named(&side, 1, "web", PEER).1);
        side.forget("web", &Asker::default()).unwrap();
        end(side);
        let side = recovery(folder.path());
        side.resume_all().unwrap();
        let hello = super::super::tests::hello_of_group(2, 11, "web");
        let refused = side.admit(&hello, "agent-1.oslo").unwrap_err();
        assert!(refused.detail.contains("of a group of site paris"), "{}", refused.detail);
        assert!(side.list().is_empty());
        side.admit(&hello, "agent-2.paris").unwrap();
    }

    #[test]
    fn of_too_many_groups_a_sites_own_first_is_forgotten() {
        let mut groups = Groups::default().with("0".into(), "oslo".into());
        for number in 1..=REMEMBERED_GROUPS_MAX + 1 {
            groups = groups.with(number.to_string(), "paris".into());
        }
        assert_eq!(groups.groups.len(), REMEMBERED_GROUPS_MAX + 1);
        assert_eq!(
            (groups.site_of("0"), groups.site_of("1"), groups.site_of("2")),
            (Some("oslo"), None, Some("paris"))
        );
    }

    /// Somebody may restore it, or what is in it.
    #[test]
    fn a_record_of_groups_that_cannot_be_read_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let side = recovery(folder.path());
        append_sync(&admit_named(&side, 1, "web", PEER).1);
        append_sync(&side.admit(&super::super::tests::hello_of_group(2, 12, "db"), PEER).unwrap().1);
        side.forget("web", &Asker::default()).unwrap();
        end(side);
        let file = folder.path().join("state").join(FILE);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let side = recovery(folder.path());
        side.resume_all().unwrap();
        let refused = side.forget("vm-2", &Asker::default()).unwrap_err();
        assert!(refused.detail.contains("groups.json"), "{}", refused.detail);
        assert_eq!(std::fs::read(&file).unwrap(), whole[..whole.len() - 1]);
        end(side);
        std::fs::write(&file, whole).unwrap();
        let side = recovery(folder.path());
        begin_anew(&side);
        for vm in [1, 2] {
            let group = GroupId::from_bytes([vm + 10; 16]);
            assert_eq!(side.remembered.site_of(group).as_deref(), Some("paris"), "{:?}", side.alerts.list());
        }
    }
}
