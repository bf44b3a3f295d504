//! What is kept in mind from one harm to the next.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Every checkpoint of a VM, oldest first, and how many bytes it says are damaged as of it.
pub(super) type Listed = Vec<(String, u64)>;

/// Which checkpoints each VM had when they were last listed.
#[derive(Debug, Default)]
pub(super) struct Seen(pub(super) BTreeMap<&'static str, Listed>);

impl Seen {
    /// What was damaged on purpose has cost what it costs: it is looked at from here on.
    pub(super) fn begin_anew(&mut self, vm: &'static str, now: Listed) {
        self.0.insert(vm, now);
    }
}

/// What of a journal is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Manifest,
    Checkpoints,
    Index,
    Checksums,
    Sealed,
    Open,
    BeforeImages,
    OpenBeforeImages,
    Replica,
}

/// Damage that nobody has looked for yet.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) vm: &'static str,
    pub(super) kind: Kind,
    pub(super) folder: PathBuf,
    /// The checkpoints there were.
    pub(super) before: Listed,
}
