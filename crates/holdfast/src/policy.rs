//! What a protection is kept to, on the command line: of `vm protect`, `vm set` and `group set`.

use crate::units;
use api::ProtectSettings;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Policy {
    /// Between automatic checkpoints: 1s to 60s.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    checkpoint_interval: Option<u64>,
    /// The history window: 1h to 30d.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    history: Option<u64>,
    /// The journal's size limit, 1G to 20T; `vm set` takes 0 for none.
    #[arg(long, value_parser = units::bytes, value_name = "SIZE")]
    journal_max: Option<u64>,
    /// The RPO bound, 1s to 1h.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    rpo: Option<u64>,
    /// The memory buffer, 1MiB to 4GiB.
    #[arg(long, value_parser = units::bytes, value_name = "SIZE")]
    buffer: Option<u64>,
    /// The spill on the agent's disk: it keeps history whole through an outage. 0 turns it off.
    #[arg(long, value_parser = units::bytes, value_name = "SIZE")]
    spill: Option<u64>,
    /// `async`, or `sync`: the guest's writes wait until they are durable at the recovery side.
    #[arg(long, value_parser = ["async", "sync"])]
    mode: Option<String>,
    /// How long a write waits at most, in synchronous mode: 1s to 5m.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    sync_timeout: Option<u64>,
    /// What becomes of a write that waited that long: `degrade` (it goes on, with an alert) or `hold`.
    #[arg(long, value_parser = ["degrade", "hold"])]
    on_timeout: Option<String>,
    /// The group's weight on the link, 1 to 9.
    #[arg(long, value_name = "1-9")]
    priority: Option<u64>,
    /// The most the group sends in a second; 0 for no limit.
    #[arg(long, value_parser = units::bytes, value_name = "SIZE")]
    rate: Option<u64>,
    /// Stop the protection when its RPO or its history is not kept to.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "true|false")]
    fail_when_exceeded: Option<bool>,
    /// Leave out, while the link is too slow, what is overwritten before the next checkpoint.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "true|false")]
    coalesce: Option<bool>,
    /// What becomes of the guest here once the other site has taken over: `go-on`, `pause` (until that is rolled back) or `stop`
    #[arg(long, value_parser = ["go-on", "pause", "stop"])]
    on_fenced: Option<String>,
}

impl From<Policy> for ProtectSettings {
    fn from(policy: Policy) -> Self {
        Self {
            checkpoint_interval_seconds: policy.checkpoint_interval,
            history_seconds: policy.history,
            journal_bytes_max: policy.journal_max,
            rpo_seconds: policy.rpo,
            buffer_bytes: policy.buffer,
            spill_bytes: policy.spill,
            mode: policy.mode,
            sync_timeout_seconds: policy.sync_timeout,
            on_timeout: policy.on_timeout,
            priority: policy.priority,
            bytes_per_second_max: policy.rate,
            fail_when_exceeded: policy.fail_when_exceeded,
            coalesce: policy.coalesce,
            on_fenced: policy.on_fenced,
        }
    }
}
