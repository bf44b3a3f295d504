//! The other hosts of a group that this agent coordinates, as `state/hosts/GROUP.json` has them.
//!
//! What holds: hosts that cannot be read are unknown, not none. The group's VMs are protected all the same, but no
//! checkpoint is taken that might lack a host, and the file is not replaced by one that knows less.

use crate::alerts::Alerts;
use crate::state::StateDir;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
}

impl HostsRecord {
    /// Reads the record of a group; the hosts are none where it cannot be read.
    pub(super) fn load(state: &StateDir, group: GroupId) -> (Self, HostVms) {
        let file_name = format!("hosts/{group}.json");
        match state.load::<HostsFile>(&file_name) {
            Ok(file) => (Self { file_name, unreadable: None }, file.unwrap_or_default().hosts),
            Err(error) => {
                let why = format!(
                    "its other hosts are not known: {error:#}; mend that file, or remove it to have them join again, \
                     and start the agent anew"
                );
                (Self { file_name, unreadable: Some(why) }, HostVms::new())
            }
        }
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable.is_some()
    }

    /// Tells the operator, where the hosts could not be read.
    pub(super) fn raise(&self, alerts: &Alerts, group: &str) {
        if let Some(why) = &self.unreadable {
            alerts
                .raise(format!("hosts of group {group}"), format!("no checkpoints of group {group}: {why}"));
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

    /// Writes the hosts down.
    pub(super) fn save(&self, state: &StateDir, hosts: HostVms) -> Result<()> {
        self.check_known()?;
        state.save(&self.file_name, &HostsFile { hosts })
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
        record.save(&state, hosts.clone()).unwrap();
        assert_eq!(HostsRecord::load(&state, group).1, hosts);

        let path = state.path(&record.file_name);
        let torn = &std::fs::read(&path).unwrap()[..20];
        std::fs::write(&path, torn).unwrap();
        let (record, none) = HostsRecord::load(&state, group);
        assert!(none.is_empty() && record.check_known().is_err());
        assert!(record.save(&state, HostVms::new()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), torn);
    }
}
