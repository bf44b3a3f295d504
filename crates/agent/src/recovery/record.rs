//! What the recovery side knows of a VM, on disk: all it needs to start it without the other side.

use joint::admission::Terms;
use replication::wire::{ArtifactHash, Hello};
use serde::{Deserialize, Serialize};

/// A kept VM, as `state/recovered/ID.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveryRecord {
    pub(crate) vm: String,
    pub(crate) name: String,
    pub(crate) group_id: String,
    pub(crate) group: String,
    pub(crate) peer: String,
    /// What is kept: the most its site has asked for, until an operator here takes less over.
    pub(crate) history_seconds: u64,
    pub(crate) journal_bytes_max: u64,
    /// What its site asks for now, where that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Asked>,
    pub(crate) definition: String,
    pub(crate) files: Vec<FileRecord>,
    /// The replica was brought here by other means.
    #[serde(default)]
    pub(crate) seeded: bool,
    /// The group is consistent at its checkpoints and nowhere between.
    #[serde(default)]
    pub(crate) spans_hosts: bool,
    /// Of a VM that has left its group: the last sequence its group had drawn then.
    #[serde(default)]
    pub(crate) left: Option<u64>,
    /// It is being deleted, see `forget.rs`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) forgotten: bool,
    /// How old the newest checkpoint may become; 0 where an older agent has not written it down.
    #[serde(default)]
    pub(crate) rpo_seconds: u64,
}

/// Terms that nobody has taken over yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) history_seconds: u64,
    pub(crate) bytes_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) name: String,
    pub(crate) hash: [u8; 32],
}

impl From<Terms> for Asked {
    fn from(asked: Terms) -> Self {
        Self { history_seconds: asked.history_seconds, bytes_max: asked.bytes_max }
    }
}

impl From<Asked> for Terms {
    fn from(asked: Asked) -> Self {
        Self { history_seconds: asked.history_seconds, bytes_max: asked.bytes_max }
    }
}

impl RecoveryRecord {
    /// What its journal is kept to.
    pub(crate) fn terms(&self) -> Terms {
        Terms { history_seconds: self.history_seconds, bytes_max: self.journal_bytes_max }
    }

    pub(crate) fn from_hello(hello: &Hello, peer: &str, terms: Terms) -> Self {
        let files = hello.artifacts.iter();
        Self {
            vm: hello.vm.to_string(),
            name: hello.vm_name.clone(),
            group_id: hello.group.to_string(),
            group: hello.group_name.clone(),
            peer: peer.to_owned(),
            history_seconds: terms.history_seconds,
            journal_bytes_max: terms.bytes_max,
            asked: None,
            definition: hello.definition.clone(),
            files: files.map(|file| FileRecord { name: file.name.clone(), hash: file.hash.0 }).collect(),
            seeded: false,
            spans_hosts: hello.spans_hosts,
            left: None,
            forgotten: false,
            rpo_seconds: hello.rpo_seconds.into(),
        }
    }

    pub(crate) fn file_name(&self) -> String {
        format!("recovered/{}.json", self.vm)
    }

    /// The hash of a file of the definition.
    pub(crate) fn file(&self, name: &str) -> Option<ArtifactHash> {
        self.files.iter().find(|file| file.name == name).map(|file| ArtifactHash(file.hash))
    }
}
