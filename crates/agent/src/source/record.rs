//! What a protection is, on disk.

use crate::hypervisor::DiskFacts;
use crate::policy::{OnFenced, Policy};
use crate::state::StateDir;
use anyhow::Context;
use joint::membership::FirstSync;
use serde::{Deserialize, Serialize};
use splitter::{Course, Fence};
use std::path::PathBuf;
use std::time::Duration;

/// A protected VM, as `state/protected/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProtectionRecord {
    pub(crate) vm: String,
    pub(crate) name: String,
    pub(crate) group_id: String,
    pub(crate) group: String,
    pub(crate) epoch: u64,
    pub(crate) peer: String,
    /// The agent that has answered there, `AGENT.SITE`: no other is spoken to. None before the first has, and where an
    /// older agent has not written it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer_agent: Option<String>,
    pub(crate) disks: Vec<DiskRecord>,
    /// TOML; empty where the VM has none.
    pub(crate) definition: String,
    pub(crate) files: Vec<FileRecord>,
    pub(crate) policy: Policy,
    pub(crate) paused: bool,
    /// The agent that coordinates the group, where it is not this one.
    #[serde(default)]
    pub(crate) coordinator: Option<String>,
    /// The control socket of a VM that runs on its own image; then the paths of disks are its own names for them.
    #[serde(default)]
    pub(crate) qmp: Option<PathBuf>,
    /// Images of disks that the operator of a VM that runs on its own image has left out.
    #[serde(default)]
    pub(crate) left_out: Vec<String>,
    /// Several clients may write to its disks at once: they agree among themselves.
    #[serde(default)]
    pub(crate) shared: bool,
    /// An image was closed because its path led elsewhere: only the file that it was is taken up.
    #[serde(default)]
    pub(crate) let_go: bool,
    /// Numbers of the ublk devices that its disks are, in their order; empty where none were asked for.
    #[serde(default)]
    pub(crate) ublk: Vec<u32>,
    /// Whether the recovery side has ever had a state of the VM that can be opened. Older agents have not written it
    /// down; what they protected counts as having had one.
    #[serde(default, with = "FirstSyncText")]
    pub(crate) first_sync: FirstSync,
    /// The epoch that has taken over from here, as far as is known.
    #[serde(default)]
    pub(crate) fenced: Option<u64>,
    /// When that was heard. None also where an older agent has heard it.
    #[serde(default)]
    pub(crate) fenced_at: Option<FencedAt>,
    /// Clients that have had its disks and are no processes of this host, the newest last.
    #[serde(default)]
    pub(crate) had_by: Vec<String>,
    /// Its hypervisor was told to have it stand still, because another site has taken over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) stands_still: bool,
}

/// A moment by the clock that runs on while the host is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FencedAt {
    pub(crate) boot_id: [u8; 16],
    pub(crate) up_milliseconds: u64,
}

/// [`FirstSync`], as the record has it.
#[derive(Serialize, Deserialize)]
#[serde(remote = "FirstSync", rename_all = "kebab-case")]
enum FirstSyncText {
    NotBegun,
    Greeted,
    Running,
    Closing,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// What a disk is known by that its VM runs on itself. None where an older version has written this: then its
    /// path is the name that QEMU had for it.
    #[serde(default)]
    pub(crate) tapped: Option<TappedRecord>,
    /// What its path led to when it was last taken up; none of a VM that runs on its own image.
    #[serde(default)]
    pub(crate) file: Option<ImageFile>,
}

/// Which file or block device a disk is. Nothing here changes with a boot of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageFile {
    pub(crate) size_bytes: u64,
    /// Both 0 of a block device.
    pub(crate) inode: u64,
    pub(crate) made_at_nanoseconds: i64,
}

impl ImageFile {
    pub(crate) fn is_same_file(&self, other: &ImageFile) -> bool {
        (self.inode, self.made_at_nanoseconds) == (other.inode, other.made_at_nanoseconds)
    }
}

/// See [`crate::hypervisor::DiskFacts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TappedRecord {
    pub(crate) device: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) image: String,
    pub(crate) inode: Option<u64>,
    pub(crate) size_bytes: u64,
}

impl TappedRecord {
    pub(super) fn of(facts: &DiskFacts) -> Self {
        let DiskFacts { device, serial, image, inode, size_bytes } = facts.clone();
        Self { device, serial, image, inode, size_bytes }
    }

    pub(super) fn facts(&self) -> DiskFacts {
        let Self { device, serial, image, inode, size_bytes } = self.clone();
        DiskFacts { device, serial, image, inode, size_bytes }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) name: String,
    pub(crate) hash: String,
    pub(crate) size_bytes: u64,
}

/// So many clients of other hosts are known by name.
const HAD_BY_MAX: usize = 64;

impl ProtectionRecord {
    /// Whom its disks take while another side has taken over; none where nobody has. `up`: for how long the host has been up
    /// in this boot. Where it is not known when the fence came, it has come now.
    pub(crate) fn fence(&self, boot_id: [u8; 16], up: Duration) -> Option<Fence> {
        self.fenced?;
        let since = match self.fenced_at {
            Some(at) if at.boot_id == boot_id => Duration::from_millis(at.up_milliseconds),
            Some(_) => Duration::ZERO,
            None => up,
        };
        Some(Fence { since, known: self.had_by.iter().cloned().collect() })
    }

    /// What is to become of its guest now; that it goes on, where no other site has taken over.
    pub(crate) fn on_fenced(&self) -> OnFenced {
        self.fenced.map_or(OnFenced::GoOn, |_| self.policy.on_fenced)
    }

    /// What becomes of requests to disks that are served here.
    pub(crate) fn course(&self) -> Course {
        match self.on_fenced() {
            OnFenced::GoOn => Course::GoesOn,
            OnFenced::Pause => Course::Waits,
            OnFenced::Stop => Course::Fails,
        }
    }

    /// Notes by which epoch another site has taken over, or that none has any more; whether it is news. A later epoch does not
    /// make the fence a later one.
    pub(super) fn note_fenced(&mut self, fenced: Option<u64>, now: FencedAt) -> bool {
        if self.fenced == fenced {
            return false;
        }
        if self.fenced.is_none() || fenced.is_none() {
            self.fenced_at = fenced.map(|_| now);
        }
        self.fenced = fenced;
        true
    }

    /// Notes a client that has its disks; whether it is news.
    pub(crate) fn note_had_by(&mut self, client: &str) -> bool {
        if self.had_by.iter().any(|known| known == client) {
            return false;
        }
        self.had_by.push(client.to_owned());
        let over = self.had_by.len().saturating_sub(HAD_BY_MAX);
        self.had_by.drain(..over);
        true
    }

    pub(crate) fn file_name(&self) -> String {
        file_name(&self.vm)
    }

    /// Where the age of its newest checkpoint is kept.
    pub(crate) fn freshness_name(&self) -> String {
        format!("freshness/{}.json", self.vm)
    }

    /// Where the dirty map is kept.
    pub(crate) fn map_name(&self) -> String {
        format!("tracking/{}.map", self.vm)
    }

    /// Where the dirty-region log is kept.
    pub(crate) fn region_log_name(&self) -> String {
        format!("tracking/{}.regions", self.vm)
    }
}

/// Writes a protection's record down.
pub(crate) fn save_record(state: &StateDir, record: &ProtectionRecord) -> anyhow::Result<()> {
    state.save(&record.file_name(), record).context("save the protection")
}

/// Where a VM's protection is recorded, by the VM's id.
pub(crate) fn file_name(vm: &str) -> String {
    format!("protected/{vm}.json")
}

/// The bytes of a hash in hexadecimal.
pub(crate) fn parse_hash(text: &str) -> Option<replication::wire::ArtifactHash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(replication::wire::ArtifactHash(hash))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::source::tests::record;

    const BOOT: [u8; 16] = [1; 16];
    const UP: Duration = Duration::from_secs(500);

    #[test]
    fn a_fence_is_as_old_as_it_was_heard_of_and_older_than_all_in_another_boot() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = record(folder.path(), "web", FirstSync::Done);
        assert_eq!(record.fence(BOOT, UP), None, "nobody has taken over");
        record.fenced = Some(7);
        let since = |record: &ProtectionRecord, boot| record.fence(boot, UP).unwrap().since;
        assert_eq!(since(&record, BOOT), UP, "an older agent has not said when");
        record.fenced_at = Some(FencedAt { boot_id: BOOT, up_milliseconds: 90_000 });
        assert_eq!(since(&record, BOOT), Duration::from_secs(90));
        assert_eq!(since(&record, [2; 16]), Duration::ZERO, "no process is older than the host's start");
    }

    #[test]
    fn clients_that_had_the_disks_are_known_each_once_and_so_many_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = record(folder.path(), "web", FirstSync::Done);
        assert!(record.note_had_by("a") && !record.note_had_by("a"));
        (0..HAD_BY_MAX).for_each(|number| assert!(record.note_had_by(&number.to_string())));
        assert!(record.had_by.len() == HAD_BY_MAX && record.had_by[0] == "0", "the oldest is forgotten");
        record.fenced = Some(7);
        assert!(record.fence(BOOT, UP).unwrap().known.contains("63"));
    }
}
