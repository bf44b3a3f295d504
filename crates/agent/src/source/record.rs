//! What a protection is, on disk.

use crate::hypervisor::DiskFacts;
use crate::policy::Policy;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A protected VM, as `state/protected/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProtectionRecord {
    pub(crate) vm: String,
    pub(crate) name: String,
    pub(crate) group_id: String,
    pub(crate) group: String,
    pub(crate) epoch: u64,
    pub(crate) peer: String,
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
    #[serde(default)]
    pub(crate) first_sync: FirstSync,
    /// The epoch that has taken over from here, as far as is known.
    #[serde(default)]
    pub(crate) fenced: Option<u64>,
}

/// How far the first sync of a VM is. It belongs to its group from the end of it on.
///
/// ```text
///   NotBegun ──▶ Greeted ──▶ Running ──▶ Closing ──▶ Done
/// ```
///
/// Each is written down before what it says can be so, but the last, which says what was heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FirstSync {
    /// The recovery side has not heard of the VM.
    NotBegun,
    /// It may have heard of it, and may keep something of it: it is told when the VM leaves.
    Greeted,
    Running,
    /// Its end may be at the recovery side, whatever was heard of that.
    Closing,
    /// All of it was durable at the recovery side.
    #[default]
    Done,
}

impl FirstSync {
    /// Whether a state of the VM may be at the recovery side that can be opened: then an image of the group may have it,
    /// and what is promised to others of the group rests on it too.
    pub(crate) fn may_be_there(self) -> bool {
        matches!(self, Self::Closing | Self::Done)
    }
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

impl ProtectionRecord {
    pub(crate) fn file_name(&self) -> String {
        format!("protected/{}.json", self.vm)
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
