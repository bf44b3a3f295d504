//! What a [`Sender`](super::Sender) is told, and what it says is to be done.

use super::Differs;
use crate::state::Transition;
use crate::wire::{ArtifactHash, ClockAnswer, Compare, Compared, Message, Refuse};
use types::{BlockRun, Epoch, Incarnation, WriteSeq};

/// Something happened.
#[derive(Debug, Clone)]
pub enum SenderEvent {
    LinkUp,
    LinkLost,
    Received(Message),
    /// A batch was built from the buffer and handed to the link.
    BatchSent {
        last: WriteSeq,
        watermark: WriteSeq,
        bytes: usize,
    },
    /// The buffer had nothing above what was sent.
    NothingToSend,
    /// The copy asked for is in the buffer; or it is not `taken`, since there was no room or it could not be made,
    /// and its blocks are marked again.
    CopyDone {
        taken: bool,
    },
    /// `SyncEnd` is in the buffer, or could not be put there because blocks are marked again.
    SyncClosed {
        closed: bool,
    },
    /// A run of blocks was hashed, or there was none, or it could not be read and is suspect again.
    Hashed(Option<Compare>),
    /// The oldest of the buffer lies in the spill now, or it could not be put there.
    Spilled,
    Pause,
    Resume,
    /// The operator wants everything compared, and history to have a gap until it was.
    Resync,
    /// A bound is exceeded, and the operator wants the protection to stop then; or it is to go on.
    Bounds {
        exceeded: bool,
    },
    Tick,
}

/// Something to do, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderEffect {
    Connect,
    /// Drop the connection, if there is one.
    Disconnect,
    /// Say hello; the driver fills in what the sender does not know.
    SayHello {
        epoch: Epoch,
        incarnation: Incarnation,
        acked: WriteSeq,
        last: WriteSeq,
    },
    Send(Message),
    /// Send all of a file the peer misses, in parts.
    SendArtifact(ArtifactHash),
    /// Build a batch from what the buffer holds above `after` and send it.
    SendBatch {
        after: WriteSeq,
    },
    /// The buffer may forget everything at or below.
    Release {
        up_to: WriteSeq,
    },
    /// Forget the buffer, mark what may differ, begin above `floor`.
    Restart {
        floor: WriteSeq,
        differs: Differs,
    },
    /// Stop buffering: mark the bitmap only.
    StartTracking,
    /// Buffer writes again.
    LeaveTracking,
    /// Copy some marked blocks into the buffer.
    CopyBlocks,
    /// Hash some suspect blocks.
    HashBlocks,
    /// The answer to a comparison.
    Settle(Compared),
    /// No answers come any more: what was being compared is suspect again.
    ForgetCompares,
    /// Everything is suspect from now on, and writes count as missing.
    SuspectEverything,
    /// Move the oldest of the buffer into the spill.
    Spill,
    /// Ask the peer what time it is.
    AskClock,
    /// The peer says what time it is.
    ClockTold(ClockAnswer),
    /// Blocks that the peer has lost: mark them to be copied. The disks have something of each run.
    SendAgain(Vec<BlockRun>),
    /// Nothing is marked any more: put `SyncEnd` into the buffer.
    CloseSync,
    /// Keep this epoch from now on, durably.
    AdoptEpoch(Epoch),
    /// The state has changed.
    Changed(Transition),
    /// The peer refuses, in its own words.
    Refused(Refuse),
    /// The peer is not believed, and why.
    Disbelieved(String),
}
