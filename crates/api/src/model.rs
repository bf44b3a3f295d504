//! The JSON of every request and answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error, as RFC 9457 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A short stable name for the kind of error: `about:blank#` and the word.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// What happened and what to do about it.
    pub detail: String,
}

/// The agent and everything on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub site: String,
    pub agent: String,
    pub version: String,
    pub run: u32,
    /// What is wrong, in words; `/v1/alerts` has more of it.
    pub alerts: Vec<String>,
    pub protected: Vec<ProtectedVm>,
    pub recovered: Vec<RecoveredVm>,
    pub images: Vec<Image>,
}

/// Something that is wrong and wants somebody, until its cause is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// `rpo`, `never-copied`, `history`, `sync-degraded`, `link-down`, `failed`, `fenced`, `protection`, `image`,
    /// `written-beside`, `second-writer`, `departure`, `source-silent`, `image-unserved`, `guest`, `guest-ended`,
    /// `no-spill` or `agent`.
    pub kind: String,
    /// The VM, at the recovery side by its id, or the part of the agent that it is about.
    pub subject: String,
    /// `critical` or `warning`.
    pub severity: String,
    /// By the agent's clock, also over its restarts.
    pub since: String,
    pub age_seconds: u64,
    pub text: String,
    /// What to do about it.
    pub to_do: String,
}

/// A request to protect a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtectRequest {
    pub name: String,
    /// The protection group; the VM's own name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `HOST:PORT` of the agent that coordinates the group, where the group has VMs on several hosts and this
    /// is not the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    pub disks: Vec<ProtectDisk>,
    /// The QMP socket of a VM that runs on its own image and goes on doing so. Its disks' paths are its own names
    /// for them; none are all that can be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// Several clients may write to the disks at once, as the nodes of a cluster do; without it the first that writes to
    /// a disk has it until it is gone, and others can only read.
    #[serde(default)]
    pub shared: bool,
    /// `raw` says that disks that look like images of another format are raw nevertheless; without it such a disk is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Make each disk a block device of the agent's host, through the kernel's ublk driver.
    #[serde(default)]
    pub ublk: bool,
    /// `HOST:PORT` of the recovery side's agent.
    pub peer: String,
    /// The VM's definition, TOML: what the recovery side needs to start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    #[serde(default)]
    pub settings: ProtectSettings,
}

/// A disk of the VM to protect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtectDisk {
    /// The disk's name in the guest, `vda`.
    pub name: String,
    /// A raw image file or a block device on the agent's host.
    pub path: String,
}

/// A protection's policy; what is left out takes the agent's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtectSettings {
    /// 1 to 60, default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_seconds: Option<u64>,
    /// 3600 (1 h) to 2592000 (30 d), default 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_seconds: Option<u64>,
    /// 1 GB to 20 TB; no limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes_max: Option<u64>,
    /// 1 to 3600, default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// 1 MiB to 4 GiB, default 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer_bytes: Option<u64>,
    /// The spill on the agent's disk that keeps order and history through an outage: 0 to 16 TiB, default
    /// 10 GiB; 0 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_bytes: Option<u64>,
    /// `async` (default) or `sync`: a guest's write waits until it is durable at the recovery side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How long it waits at most, in synchronous mode: 1 to 300, default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_timeout_seconds: Option<u64>,
    /// What becomes of it then: `degrade` (default; it goes on asynchronously, with an alert) or `hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<String>,
    /// The group's weight on the link, 1 to 9, default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u64>,
    /// The most the group sends; 0, the default, for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
    /// Whether the protection stops when its RPO or its history is not kept to; it does not by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_when_exceeded: Option<bool>,
    /// Whether writes are left out of a stream that lags, where others overwrite them before the next checkpoint: cuts
    /// between checkpoints cannot be opened then. Not in synchronous mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<bool>,
    /// What becomes of the guest here where the other site has taken over: `go-on` (default), `pause` (it stands still until
    /// that is rolled back) or `stop` (its requests fail; one that runs on its own image is powered off).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_fenced: Option<String>,
}

/// A VM whose writes this agent captures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProtectedVm {
    pub id: String,
    pub name: String,
    pub group: String,
    pub epoch: u64,
    pub peer: String,
    /// The agent that answers there, `AGENT.SITE`, and no other may; none before it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_agent: Option<String>,
    /// `initial-sync`, `delta-sync`, `journaling`, `tracking`, `bitmap-sync`, `paused`, `fenced` or `failed`.
    pub state: String,
    /// Why it is so, where the state alone does not say.
    pub reason: String,
    /// `down`, `connecting`, `greeting` or `up`.
    pub link: String,
    /// What the peer or the link said last when something was wrong.
    pub last_error: Option<String>,
    /// What is so by the way the VM is protected, with what to do about it: no alerts, for nothing is broken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The NBD socket to start the VM on; empty where it runs on its own image.
    pub socket: String,
    /// The QMP socket, where the VM runs on its own image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// What a VM that runs on its own image is doing, in QEMU's word: `running`, `paused`, `io-error` and others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// Connected NBD clients.
    pub clients: usize,
    pub disks: Vec<Disk>,
    /// Age of the newest checkpoint that is complete at the recovery side; it goes on over restarts. None where none
    /// ever was.
    pub rpo_now_seconds: Option<f64>,
    pub rpo_seconds: u64,
    /// Whether a copy younger than the bound is not proven: it is too old, or there never was one.
    pub rpo_exceeded: bool,
    /// Whether the history at the recovery side falls, or is about to fall, short of what was asked for.
    pub history_exceeded: bool,
    /// What becomes of its guest where the other site has taken over: `go-on`, `pause` or `stop`.
    pub on_fenced: String,
    /// `async`, `sync`, or `sync-degraded`: guest writes should wait for the recovery side, and do not.
    pub mode: String,
    pub priority: u64,
    /// The peer's clock less this agent's, in seconds, as last measured.
    pub clock_skew_seconds: Option<f64>,
    pub buffer_bytes: u64,
    pub buffer_bytes_max: u64,
    pub spill_bytes: u64,
    pub spill_bytes_max: u64,
    /// To be copied or compared.
    pub dirty_bytes: u64,
    /// Everything the recovery side does not have for good yet: what is to be copied or compared, and what waits in
    /// buffer and spill. Nobody knows it of a VM that is not taken up.
    pub to_sync_bytes: Option<u64>,
    /// Blocks of 64 KiB that cannot be read here as a whole: the recovery side, and so every checkpoint, has of them what
    /// it had before. They are tried again every few minutes. Nobody knows it of a VM that is not taken up.
    pub unreadable_bytes: Option<u64>,
    /// What the recovery side had lost to damage and asked for again since the agent started, in whole blocks of 64 KiB.
    pub asked_again_bytes: u64,
    /// What syncs have put into the stream, and what they have compared, since the agent started.
    pub copied_bytes: u64,
    pub compared_bytes: u64,
    /// How much of a running sync is done, 0 to 1: durable at the recovery side.
    pub sync_progress: Option<f64>,
    /// Guest writes since the agent started.
    pub writes: u64,
    pub write_bytes: u64,
    /// Of these, what needed not be sent: it was overwritten before the next checkpoint.
    pub left_out_bytes: u64,
    pub write_bytes_per_second: f64,
    /// Sent over the link since the agent started.
    pub sent_bytes: u64,
    pub sent_bytes_per_second: f64,
    pub durable_seq: String,
    pub journal_bytes: u64,
    pub history_seconds: u64,
    pub checkpoint_interval_seconds: u64,
    /// The last comparison of both sides, if there was one since the agent started.
    pub verify: Option<Verify>,
}

/// A comparison of both sides while the guest writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verify {
    /// `running`, `waiting` (for the link or a sync) or `done`.
    pub state: String,
    pub compared_bytes: u64,
    pub total_bytes: u64,
    /// What was found to differ; it is sent again.
    pub differing_bytes: u64,
    /// What could not be read at the protected side, in whole blocks of 64 KiB: nobody knows whether it is equal.
    pub unreadable_bytes: u64,
    /// Where something differs, as far as there is room for; each is whole blocks of 64 KiB.
    pub differing: Vec<Extent>,
    /// Whether all that differed is at the recovery side by now.
    pub repaired: bool,
}

/// A place on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    pub disk: String,
    pub start: u64,
    pub bytes: u64,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    pub name: String,
    pub size_bytes: u64,
    /// Where it lies, on the side that has it.
    pub path: String,
    /// Where a hypervisor that has vhost-user-blk attaches to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user_socket: Option<String>,
    /// The block device it is on the agent's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ublk_device: Option<String>,
}

/// A VM whose journal this agent keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecoveredVm {
    pub id: String,
    /// Unique among the VMs of a site that are protected now.
    pub name: String,
    /// The site it is protected at.
    pub site: String,
    pub group: String,
    pub group_id: String,
    pub epoch: u64,
    /// `initial-sync` (nothing of it can be opened yet), `damaged` (no checkpoint is whole; each can be opened by its id all the
    /// same), `following`, `left` (it is protected no more; its history
    /// stays), `failed-over`, `committed`, `moving`, `opening` (its journal is just being opened) or `failed`.
    pub state: String,
    /// How far its journal is on the way to another folder.
    pub moving: Option<Moving>,
    pub last_error: Option<String>,
    /// Whether its stream is connected.
    pub connected: bool,
    pub peer: Option<String>,
    pub disks: Vec<Disk>,
    pub durable_seq: String,
    /// Whether writes are missing until a sync ends.
    pub syncing: bool,
    /// Guest writes in the journal since it was opened.
    pub writes: u64,
    pub journal_bytes: u64,
    pub journal_bytes_max: u64,
    pub history_seconds: u64,
    pub history_seconds_max: u64,
    /// How long a history the size limits will leave at the present pace; none where they leave all of it.
    pub projected_history_seconds: Option<u64>,
    /// All of them, also those that are damaged.
    pub checkpoints: u64,
    /// Bytes of the newest state that are damaged.
    #[serde(default)]
    pub damaged_bytes: u64,
    /// The newest that is whole.
    pub newest_checkpoint: Option<Checkpoint>,
    /// The newest whole state that can be opened.
    pub tail: Option<String>,
    /// Of a VM that has left its group: what the group had drawn by then.
    pub left_at: Option<String>,
    /// Until when nothing of its history goes (RFC 3339), where it is locked.
    #[serde(default)]
    pub locked_until: Option<String>,
}

/// A journal that is being copied to another folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    pub folder: String,
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// A group and where its authority lies, at this agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    pub id: String,
    /// Unique among the groups of a site.
    pub name: String,
    /// The site it is protected at.
    pub site: String,
    pub epoch: u64,
    /// `protected` or `recovery`.
    pub side: String,
    pub vms: Vec<String>,
    /// VMs that have left it and whose journals are kept.
    pub former: Vec<String>,
    pub failover: Option<Failover>,
    /// The agent that coordinates the group, where it is not this one.
    pub coordinator: Option<String>,
    /// Hosts with VMs of the group beside this one, where this one coordinates it.
    pub hosts: Vec<String>,
    /// Of those, the ones that are not connected: no checkpoint is taken without them.
    pub hosts_away: Vec<String>,
    /// Cuts across hosts since the agent started, and how many of them were given up.
    pub cuts_across_hosts: u64,
    pub cuts_given_up: u64,
    /// How long guests' acknowledgements were held for one.
    pub hold_last_seconds: f64,
    pub hold_longest_seconds: f64,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    pub id: String,
    pub cut: String,
    /// `automatic` or `tagged`.
    pub kind: String,
    pub tag: String,
    pub taken_at: String,
    /// Guest writes of the VM since the checkpoint before; 0 where this side does not know.
    #[serde(default)]
    pub writes: u64,
    /// Bytes of them.
    #[serde(default)]
    pub write_bytes: u64,
    /// Shannon entropy of a sample of them, in bits a byte: text is near 4, encrypted data near 8. None where no data was
    /// written, or this side does not know.
    #[serde(default)]
    pub entropy_bits: Option<f64>,
    /// Bytes of the VM's disks that are damaged in the journal as of this checkpoint: reading them fails, and nothing else.
    #[serde(default)]
    pub damaged_bytes: u64,
}

/// A page of checkpoints, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointPage {
    pub checkpoints: Vec<Checkpoint>,
    /// Give this as `cursor` for the next page; none where this is the last.
    pub next: Option<String>,
    /// Where checkpoints may be missing in the list, because what has them cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// A request for a tagged checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagRequest {
    pub tag: String,
}

/// A request to open an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenImageRequest {
    pub vm: String,
    /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
    pub at: String,
    #[serde(default)]
    pub writable: bool,
}

/// An open image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    pub id: String,
    pub vm: String,
    pub cut: String,
    /// When the newest checkpoint at or below the cut was taken: it is as of then, or somewhat later. None where that is not known.
    #[serde(default)]
    pub taken_at: Option<String>,
    /// The checkpoint at the cut, if it is one.
    pub checkpoint: Option<Checkpoint>,
    pub writable: bool,
    /// The NBD socket to attach to; each disk is an export by its name.
    pub socket: String,
    pub disks: Vec<Disk>,
    pub overlay_bytes: u64,
    /// Of a writable image: how far it is from needing nothing of the journal.
    pub promotion: crate::Promotion,
    /// Who holds it: `operator`, or `failover` of a group.
    pub owner: String,
    /// How long opening took.
    pub open_seconds: f64,
    /// Bytes that were lost and are zeroes, as was asked for when it was promoted.
    #[serde(default)]
    pub zeroed_bytes: u64,
    /// Where they are: the first of them.
    #[serde(default)]
    pub zeroed: Vec<crate::DiskRange>,
    /// What is to be known of the moment it was opened at; in the answer to that only.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Why it is not served; of one that is, what is wrong with it.
    pub error: Option<String>,
}

/// An image that is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClosedImage {
    pub done: bool,
    /// The plain disks of an image that was promoted: they stay.
    pub kept: Vec<String>,
    /// Why what was written to them since the last flush may be lost.
    #[serde(default)]
    pub lost: Option<String>,
}

/// A request to fail a group over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
    pub at: String,
    /// Only these VMs of the group, by name or id. None: all that belong to it at that moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<String>,
    /// All but these: the word that is needed where one of them cannot be opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

/// A failover of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Failover {
    pub group: String,
    pub group_id: String,
    /// The site the group is protected at.
    pub site: String,
    pub epoch: u64,
    /// `starting`, `running`, `committed`, `rolling-back` or `rolled-back`.
    pub phase: String,
    pub cut: String,
    /// When the newest checkpoint at or below the cut was taken: it is as of then, or somewhat later. None where that is not known.
    #[serde(default)]
    pub taken_at: Option<String>,
    /// The checkpoint at the cut, if it is one.
    pub checkpoint: Option<Checkpoint>,
    pub vms: Vec<FailoverVm>,
    /// Members of the group that it does without, by the operator's word.
    pub left_out: Vec<LeftOut>,
    /// What the operator should know of it.
    pub notes: Vec<String>,
    /// From the request to images open.
    pub image_open_seconds: f64,
    /// From the request to VMs started.
    pub start_seconds: f64,
}

/// A member of a group that its failover does without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftOut {
    pub id: String,
    pub vm: String,
    pub why: String,
}

/// A VM of a failover.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FailoverVm {
    pub id: String,
    pub vm: String,
    pub image: String,
    pub socket: String,
    /// Process id of the running VM; none where it has no definition or has stopped.
    pub pid: Option<u32>,
    /// `running`, `paused`, `stopped` or `not-defined`.
    pub run_state: String,
    /// Its disks, while it runs.
    pub disks: Vec<GuestDisk>,
    /// The last thing that happened to it since it was started, as far as this run of the agent knows.
    pub last_event: Option<GuestEvent>,
}

/// A disk of a VM that runs, and what the VM has done with it since it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestDisk {
    pub name: String,
    pub size_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub failed_requests: u64,
}

/// Something that happened to a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestEvent {
    /// `powered off`, `restarted`, `paused`, `resumed`, `crashed`, or which disk failed.
    pub what: String,
    pub at: String,
}

/// An answer that has little else to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    pub done: bool,
    /// What was done, where a request may mean several things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

impl Done {
    /// What was asked for, which can be one thing only.
    #[must_use]
    pub fn as_asked() -> Self {
        Self { done: true, what: None }
    }
}
