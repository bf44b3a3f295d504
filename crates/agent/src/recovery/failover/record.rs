//! What is written down of a failover: who has the authority over a group, and what was chosen of images and guests
//! before any of them was made.

use anyhow::Context;
pub(in super::super) use joint::failover::Phase;
use serde::{Deserialize, Serialize};
use types::{Epoch, GroupId, VmId, WriteSeq};

/// [`Phase`], as the record has it. Agents of before did not write `rolling-back`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Phase", rename_all = "kebab-case")]
enum PhaseText {
    Starting,
    Running,
    Committed,
    RollingBack,
    RolledBack,
}

/// A failover, as `state/failovers/GROUP.json` has it. It stays after a rollback, for its epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct FailoverRecord {
    pub(in super::super) group_id: String,
    pub(in super::super) group: String,
    /// Of the group; empty where an older agent has not written it down.
    #[serde(default)]
    pub(in super::super) site: String,
    pub(in super::super) epoch: u64,
    #[serde(with = "PhaseText")]
    pub(in super::super) phase: Phase,
    pub(super) cut: u64,
    /// Empty until the cut is chosen.
    pub(super) vms: Vec<VmRun>,
    /// VMs that the operator did without, and why: the id, the name and the reason.
    #[serde(default)]
    pub(super) left_out: Vec<(String, String, String)>,
    #[serde(default)]
    pub(super) notes: Vec<String>,
    pub(super) image_open_seconds: f64,
    pub(super) start_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct VmRun {
    /// Its name then.
    pub(super) vm: String,
    pub(super) image: String,
    pub(super) pid: Option<u32>,
    /// Empty where an older agent has not written it down.
    #[serde(default)]
    pub(super) id: String,
    /// What it is called on this host while it runs, where that is not its name.
    #[serde(default)]
    pub(super) key: Option<String>,
}

impl VmRun {
    /// What the hypervisor's files of it are named by: no other VM on this host is.
    pub(super) fn key(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.vm)
    }

    pub(super) fn answers_to(&self, word: &str) -> bool {
        self.vm == word || self.id == word
    }
}

impl FailoverRecord {
    pub(in super::super) fn group_id(&self) -> anyhow::Result<GroupId> {
        self.group_id.parse().with_context(|| format!("group id of failover of {}", self.group))
    }

    /// `SITE/NAME`, to tell of it; the name alone where an older agent has not written down more.
    pub(super) fn label(&self) -> String {
        let (site, group) = (&self.site, &self.group);
        if site.is_empty() { group.clone() } else { format!("{site}/{group}") }
    }

    pub(in super::super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    pub(super) fn cut(&self) -> WriteSeq {
        WriteSeq::from_raw(self.cut)
    }

    /// Whether that VM is started here; by its name where an older agent has written down no id.
    pub(in super::super) fn has(&self, id: VmId, name: &str) -> bool {
        let id = id.to_string();
        self.vms.iter().any(|run| run.id == id || (run.id.is_empty() && run.vm == name))
    }

    pub(in super::super) fn is_released(&self) -> bool {
        self.phase.is_released()
    }

    /// It is neither final nor undone: an operator may still roll it back, or do so again.
    pub(in super::super) fn is_undecided(&self) -> bool {
        self.phase.is_undecided()
    }

    pub(in super::super) fn has_image(&self, id: &str) -> bool {
        self.vms.iter().any(|run| run.image == id)
    }

    pub(super) fn file_name(&self) -> String {
        format!("failovers/{}.json", self.group_id)
    }

    pub(super) fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Committed => "committed",
            Phase::RollingBack => "rolling-back",
            Phase::RolledBack => "rolled-back",
        }
    }
}
