//! What the API says of changing what goes on: protections, groups, and whose a kept VM is.

use crate::ProtectSettings;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to change of a VM's protection; what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    #[serde(default)]
    pub settings: ProtectSettings,
    /// `HOST:PORT` at which the recovery side's agent is reached from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The agent that is to answer there, `AGENT.SITE`, where it is another than the one so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_agent: Option<String>,
    /// The VM's definition, TOML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Change nothing, and say what would be changed and what that would cost.
    #[serde(default)]
    pub dry_run: bool,
}

/// What to change of a group, for all its VMs on the agent's host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupChangeRequest {
    pub settings: ProtectSettings,
    /// Change nothing, and say what would be changed and what that would cost.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a change is, what it costs, and whether it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// False where it was only asked what it would be, or nothing is to be changed.
    pub is_done: bool,
    pub vms: Vec<ChangedVm>,
    /// What stays as it is though it may have been meant.
    pub notes: Vec<String>,
}

/// A VM that is changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangedVm {
    pub id: String,
    pub vm: String,
    /// Those that become others.
    pub settings: Vec<ChangedSetting>,
    pub costs: Vec<String>,
}

/// One setting, by its name; of a definition a hash is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangedSetting {
    pub name: String,
    pub before: serde_json::Value,
    pub after: serde_json::Value,
}

/// Which agent sends a kept VM from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HandOverRequest {
    /// An agent of the VM's site: its name, or `AGENT.SITE`.
    pub to: String,
}
