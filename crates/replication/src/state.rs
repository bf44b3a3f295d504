//! The states of a VM's stream, the edges between them, and why each was taken.

use crate::wire::Refusal;
use std::fmt;
use types::Epoch;

/// Where the protection of one VM stands.
///
/// ```text
///            attach, restart
///       ┌──────▼──────┐
///       │ InitialSync │
///       └──────┬──────┘
///              │ all sent       ┌─────────────┐
///              └───────────────▶│  Journaling │
///                               └─┬─────────▲─┘
///            buffer full, paused  │         │ bitmap drained
///                               ┌─▼─────────┴──────────┐
///                               │ Tracking → BitmapSync │
///                               └───────────────────────┘
///   any ─▶ Paused ─▶ Tracking      (the operator)
///   any ─▶ Fenced ─▶ Tracking      (a higher epoch; left when it is given back)
///   any ─▶ Failed ─▶ as it was     (refused by the peer; left when the cause is gone)
///   any ─▶ InitialSync             (the journal does not know this incarnation)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Sends every block that may differ; live writes go along.
    InitialSync { why: SyncReason },
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
    /// The peer refuses the stream.
    Failed { why: Refusal },
}

/// Why everything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncReason {
    /// The journal is new.
    FirstProtection,
    /// The agent has started anew and does not know what it had not yet sent.
    AgentRestarted,
    /// The journal knows less than it once acknowledged.
    PeerLostWrites,
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
            State::InitialSync { .. } => "initial-sync",
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
            State::InitialSync { why } => why.to_string(),
            State::Tracking { why } => why.to_string(),
            State::Fenced { epoch } => format!("epoch {epoch} has taken over"),
            State::Failed { why } => why.to_string(),
            State::Journaling | State::BitmapSync | State::Paused => String::new(),
        }
    }

    /// Whether blocks are being copied.
    pub fn is_syncing(&self) -> bool {
        matches!(self, State::InitialSync { .. } | State::BitmapSync)
    }

    /// Which edges the diagram has.
    pub(crate) fn may_become(&self, next: &State) -> bool {
        match (self, next) {
            (_, State::Paused | State::Fenced { .. } | State::Failed { .. }) => true,
            (State::Paused | State::Fenced { .. }, State::Tracking { .. }) => true,
            (State::Paused | State::Fenced { .. }, _) => false,
            (_, State::InitialSync { .. }) => true,
            (State::Tracking { .. } | State::Failed { .. }, _) => true,
            (State::InitialSync { .. }, State::Journaling | State::Tracking { .. }) => true,
            (State::InitialSync { .. }, State::BitmapSync) => false,
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
            SyncReason::FirstProtection => "first protection",
            SyncReason::AgentRestarted => "agent restarted",
            SyncReason::PeerLostWrites => "the journal lost acknowledged writes",
        })
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
