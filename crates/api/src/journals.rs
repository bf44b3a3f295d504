//! What the API says of journals: their state and settings, pins, promotion.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A journal in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Journal {
    pub vm: String,
    /// Where it lies, at the recovery side.
    pub folder: String,
    /// Where its replicas lie.
    pub replica_folder: String,
    /// Whether its file system takes direct I/O; else everything goes through the page cache.
    pub direct_io: bool,
    /// `roll-forward` or `rollback`.
    pub mode: String,
    /// The replica holds every write at or below.
    pub applied_seq: String,
    pub durable_seq: String,
    pub segments: usize,
    pub index_runs: usize,
    pub index_entries: u64,
    pub journal_bytes: u64,
    /// Above it history is folded early; 0 for no limit.
    pub bytes_soft: u64,
    /// Above it nothing more is taken; 0 for no limit but the disk.
    pub bytes_hard: u64,
    pub history_seconds: u64,
    pub history_seconds_max: u64,
    /// What its site asks for, where that is less than what is kept and nobody has taken it over.
    pub asked: Option<AskedTerms>,
    /// How long a history the size limits will leave at the present pace; none where they leave all of it.
    pub projected_history_seconds: Option<u64>,
    pub checkpoints: u64,
    /// All checkpoints are kept up to this age.
    pub keep_all_seconds: u64,
    /// Then one a minute up to this age, then one in 15 minutes.
    pub keep_minutely_seconds: u64,
    /// Tagged checkpoints younger than this hold the history.
    pub keep_tagged_seconds: u64,
    /// What was found damaged and is not made good yet.
    pub damage: Vec<String>,
    /// Bytes of the newest state that are damaged, until the source has sent them again or writes over them.
    #[serde(default)]
    pub damaged_bytes: u64,
    pub pins: Vec<Pin>,
    /// When all of it was last read and found whole (RFC 3339).
    pub scrubbed_at: Option<String>,
    /// The lock of its history, where it is locked.
    #[serde(default)]
    pub lock: Option<HistoryLock>,
}

/// A lock: nothing of the history that is kept goes while it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryLock {
    /// RFC 3339, by the recovery side's clock: it does not end before.
    pub until: String,
    /// Seconds that are still to pass while the agent runs: it does not end before, whatever the clock says.
    pub seconds_left_min: u64,
    /// When it was set or last made longer.
    pub set_at: String,
    pub set_by: String,
    /// That it be lifted, as one person has asked and another has not confirmed yet.
    #[serde(default)]
    pub lift: Option<LiftAsked>,
}

/// A request to lift a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LiftAsked {
    pub id: String,
    pub by: String,
    pub asked_at: String,
    /// Seconds, while the agent runs, in which another person may confirm it.
    pub seconds_left: u64,
}

/// A request to lock a history, or to make its lock longer; one of the two is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    /// A date, to its end in UTC, or a time (RFC 3339); not before the one there is, and ten years from now at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// From now on, by the recovery side's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// What a protected side asks a journal to be kept to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AskedTerms {
    pub history_seconds: u64,
    /// 0 for as much as the disk holds.
    pub bytes_max: u64,
}

/// Settings of one journal; what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JournalSettings {
    /// `roll-forward` or `rollback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// 1 GB to 20 TB and at most the hard limit, or 0 for none; nine tenths of the hard limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_soft: Option<u64>,
    /// Default 86400 (a day).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_all_seconds: Option<u64>,
    /// Default 604800 (a week); not below the former.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_minutely_seconds: Option<u64>,
    /// Default 0: tagged checkpoints go with the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_tagged_seconds: Option<u64>,
    /// Keep to what the VM's site asks for from now on, though it is less. Nothing else shortens history.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take_asked: bool,
    /// Let go of the newest whole state, which is held as long as the newest state is damaged: history is as long as is set then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub let_go: bool,
}

/// Where a journal is to be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// A new or empty folder at the recovery side, its full path.
    pub folder: String,
}

/// A cut that must stay readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pin {
    pub id: u64,
    pub owner: String,
    pub cut: String,
    /// RFC 3339; none for as long as it is not taken away.
    pub expires_at: Option<String>,
}

/// A request to pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
    pub at: String,
    /// Who wants it, or what for.
    pub owner: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_seconds: Option<u64>,
}

/// A request to promote an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// 0 for as fast as it goes.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// What its journal has lost for good becomes zeroes; without this the promotion waits where something is lost.
    #[serde(default)]
    pub lost_as_zeroes: bool,
}

/// Bytes of a disk that follow one another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskRange {
    pub disk: String,
    pub start: u64,
    pub len: u64,
}

/// How far an image is from needing nothing of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Promotion {
    /// `none`, `running`, `done` or `failed`.
    pub state: String,
    /// Bytes that are the image's own.
    pub own_bytes: u64,
    pub total_bytes: u64,
    pub error: Option<String>,
}

/// Files that are to be the first replicas of a VM that is not protected yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedRequest {
    /// The name the VM will have.
    pub vm: String,
    /// Raw images at the recovery side, which are moved beside the replicas.
    pub disks: Vec<crate::ProtectDisk>,
}
