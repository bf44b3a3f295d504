//! The other hosts of a group that this agent coordinates, as `state/hosts/GROUP.json` has them.
//!
//! What holds: hosts that cannot be read are unknown, not none. The group's VMs are protected all the same, but no
//! checkpoint is taken that might lack a host, and the file is not replaced by one that knows less.

use crate::alerts::Alerts;
use crate::state::StateDir;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Mutex;
use types::GroupId;

/// Each host and how many VMs of the group it has.
type HostVms = BTreeMap<String, u16>;

#[derive(Debug, Default, Serialize, Deserialize)]
struct HostsFile {
    hosts: HostVms,
}

/// Where the hosts of a group are recorded, and whether they could be read.
#[derive(Debug)]
pub(super) struct HostsRecord {
    file_name: String,
    /// Why the hosts are not known, and what to do.
    unreadable: Option<String>,
    /// Held from when the hosts are looked at until they are written down: who came first is not written down last,
    /// without those who came later.
    saving: Mutex<()>,
}

impl HostsRecord {
    /// Reads the record of a group; the hosts are none where it cannot be read.
    pub(super) fn load(state: &StateDir, group: GroupId) -> (Self, HostVms) {
        let file_name = format!("hosts/{group}.json");
        match state.load::<HostsFile>(&file_name) {
            Ok(file) => (
                Self { file_name, unreadable: None, saving: Mutex::default() },
                file.unwrap_or_default().hosts,
            ),
            Err(error) => {
                let why = format!(
                    "its other hosts are not known: {error:#}; mend that file, or remove it to have them join again, \
                     and start the agent anew"
                );
                (Self { file_name, unreadable: Some(why), saving: Mutex::default() }, HostVms::new())
            }
        }
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable.is_some()
    }

    /// Tells the operator whether the hosts could be read.
    pub(super) fn tell(&self, alerts: &Alerts, group: &str) {
        let cause = format!("hosts of group {group}");
        match &self.unreadable {
            Some(why) => alerts.raise(cause, format!("no checkpoints of group {group}: {why}")),
            None => alerts.clear(cause),
        }
    }

    /// # Errors
    /// Where the hosts are not known, why.
    pub(super) fn check_known(&self) -> Result<()> {
        match &self.unreadable {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Writes the hosts down as they are once it is this one's turn.
    pub(super) fn save(&self, state: &StateDir, hosts: impl FnOnce() -> HostVms) -> Result<()> {
        self.check_known()?;
        let _one = self.saving.lock().expect("a panic aborts the process");
        state.save(&self.file_name, &HostsFile { hosts: hosts() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_cannot_be_read_are_unknown_and_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let group = GroupId::from_bytes([3; 16]);
        let hosts = HostVms::from([("two".to_owned(), 1)]);
        let (record, before) = HostsRecord::load(&state, group);
        assert!(before.is_empty() && !record.is_unreadable());
        record.save(&state, || hosts.clone()).unwrap();
        assert_eq!(HostsRecord::load(&state, group).1, hosts);

        let path = state.path(&record.file_name);
        let torn = &std::fs::read(&path).unwrap()[..20];
        std::fs::write(&path, torn).unwrap();
        let (record, none) = HostsRecord::load(&state, group);
        assert!(none.is_empty() && record.check_known().is_err());
        assert!(record.save(&state, HostVms::new).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), torn);
    }

    #[test]
    fn hosts_that_join_at_once_are_all_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let group = GroupId::from_bytes([3; 16]);
        let record = HostsRecord::load(&state, group).0;
        let both = HostVms::from([("one".to_owned(), 1), ("two".to_owned(), 1)]);
        let (saved, second) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (record, state, both) = (&record, &state, &both);
            let first = || {
                scope.spawn(move || {
                    record.save(state, || both.clone()).unwrap();
                    let _ = saved.send(());
                });
                // The second has joined, and would be done by now if it did not have to wait.
                let _ = second.recv_timeout(std::time::Duration::from_millis(200));
                HostVms::from([("one".to_owned(), 1)])
            };
            record.save(state, first).unwrap();
        });
        assert_eq!(HostsRecord::load(&state, group).1, both);
    }
}
