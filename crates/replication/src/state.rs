//! The states of a VM's stream, the edges between them, and why each was taken.

use crate::wire::Refusal;
use std::fmt;
use types::Epoch;

/// Where the protection of one VM stands.
///
/// ```text
///            attach                             what differs is not known
///       ┌──────▼──────┐                            ┌──────▼──────┐
///       │ InitialSync │                            │  DeltaSync  │◀──────── any
///       └──────┬──────┘                            └──────┬──────┘
///              │ all sent       ┌─────────────┐           │ all compared, and sent what differs
///              └───────────────▶│  Journaling │◀──────────┘
///                               └─┬─────────▲─┘
///  buffer and spill full, paused  │         │ bitmap drained
///                               ┌─▼─────────┴──────────┐
///                               │ Tracking → BitmapSync │
///                               └───────────────────────┘
///   any ─▶ Paused ─▶ Tracking      (the operator)
///   any ─▶ Fenced ─▶ Tracking      (a higher epoch; left when it is given back)
///   any ─▶ Failed ─▶ as it was     (refused by the peer, or the operator's bounds are exceeded; left when
///                                   the cause is gone)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Sends every block that is allocated; live writes go along.
    InitialSync,
    /// Compares blocks by their hashes and sends those that differ; live writes go along.
    DeltaSync { why: SyncReason },
    /// Every write is on its way, in order.
    Journaling,
    /// Writes only mark the bitmap.
    Tracking { why: TrackingReason },
    /// Sends the marked blocks; live writes go along.
    BitmapSync,
    /// Stopped by the operator; the bitmap goes on.
    Paused,
    /// Another side holds a higher epoch.
    Fenced { epoch: Epoch },
    /// Stopped, though nobody wanted it.
    Failed { why: Failure },
}

/// Why blocks are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncReason {
    /// The replica was brought to the recovery side by other means.
    Preseeded,
    /// The journal knows another stream than this agent does.
    UnknownStream,
    /// The journal knows less than it once acknowledged.
    PeerLostWrites,
    /// The agent was restarted while it compared.
    Interrupted,
    /// The host went down with writes under way; the regions they were in are compared.
    HostCrashed,
    /// The operator wants it.
    Asked,
}

/// Why a protection has stopped by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer refuses the stream.
    Refused(Refusal),
    /// What the peer says of order and authority cannot be.
    Disbelieved,
    /// A bound is exceeded, and the operator wants the protection to stop then.
    BoundExceeded,
}

/// Why writes only mark the bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackingReason {
    /// The link was down or slow until the buffer was full.
    BufferFull,
    /// The operator let the protection go on after a pause.
    Resumed,
    /// No peer has been reached yet in this run of the agent.
    NotYetConnected,
    /// The peer no longer refuses.
    RefusalLifted,
}

/// A change of state, for log and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    pub from: State,
    pub to: State,
}

/// The connection to the peer, beside the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Not connected; the number of tries since it last was.
    Down { tries: u32 },
    /// The agent is connecting.
    Connecting { tries: u32 },
    /// `Hello` has been said.
    Greeting { tries: u32 },
    /// Welcomed.
    Up,
}

impl State {
    /// The word for this state in log, API and screens.
    pub fn name(&self) -> &'static str {
        match self {
            State::InitialSync => "initial-sync",
            State::DeltaSync { .. } => "delta-sync",
            State::Journaling => "journaling",
            State::Tracking { .. } => "tracking",
            State::BitmapSync => "bitmap-sync",
            State::Paused => "paused",
            State::Fenced { .. } => "fenced",
            State::Failed { .. } => "failed",
        }
    }

    /// Why, in words; empty where the state says it all.
    pub fn reason(&self) -> String {
        match self {
            State::DeltaSync { why } => why.to_string(),
            State::Tracking { why } => why.to_string(),
            State::Fenced { epoch } => format!("epoch {epoch} has taken over"),
            State::Failed { why } => why.to_string(),
            State::InitialSync | State::Journaling | State::BitmapSync | State::Paused => String::new(),
        }
    }

    /// Whether blocks are being copied.
    pub fn is_syncing(&self) -> bool {
        matches!(self, State::InitialSync | State::DeltaSync { .. } | State::BitmapSync)
    }

    /// Which edges the diagram has.
    pub(crate) fn may_become(&self, next: &State) -> bool {
        match (self, next) {
            (_, State::Paused | State::Fenced { .. } | State::Failed { .. }) => true,
            (State::Paused | State::Fenced { .. }, State::Tracking { .. }) => true,
            (State::Paused | State::Fenced { .. }, _) => false,
            (_, State::InitialSync | State::DeltaSync { .. }) => true,
            (State::Tracking { .. } | State::Failed { .. }, _) => true,
            (State::InitialSync | State::DeltaSync { .. }, State::Journaling | State::Tracking { .. }) => {
                true
            }
            // A spill that was lost, or the operator's resync let go: what is left is marked.
            (State::InitialSync | State::DeltaSync { .. }, State::BitmapSync) => true,
            (State::Journaling, State::Tracking { .. } | State::BitmapSync) => true,
            (State::Journaling, State::Journaling) => false,
            (State::BitmapSync, State::Journaling | State::Tracking { .. }) => true,
            (State::BitmapSync, State::BitmapSync) => false,
        }
    }
}

impl fmt::Display for SyncReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SyncReason::Preseeded => "pre-seeded replica",
            SyncReason::UnknownStream => "the journal followed another stream",
            SyncReason::PeerLostWrites => "the journal lost acknowledged writes",
            SyncReason::Interrupted => "interrupted comparison",
            SyncReason::HostCrashed => "host crashed",
            SyncReason::Asked => "asked for",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(why) => why.fmt(f),
            Failure::Disbelieved => f.write_str("the recovery side says what cannot be"),
            Failure::BoundExceeded => f.write_str("a bound is exceeded"),
        }
    }
}

impl fmt::Display for TrackingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrackingReason::BufferFull => "buffer full",
            TrackingReason::Resumed => "resumed",
            TrackingReason::NotYetConnected => "not yet connected",
            TrackingReason::RefusalLifted => "refusal lifted",
        })
    }
}

impl Link {
    /// The word for the link in log, API and screens.
    pub fn name(&self) -> &'static str {
        match self {
            Link::Down { .. } => "down",
            Link::Connecting { .. } => "connecting",
            Link::Greeting { .. } => "greeting",
            Link::Up => "up",
        }
    }

    pub(crate) fn tries(&self) -> u32 {
        match self {
            Link::Down { tries } | Link::Connecting { tries } | Link::Greeting { tries } => *tries,
            Link::Up => 0,
        }
    }
}
