//! The messages of a stream and their bytes (`docs/formats/wire.md`).
//!
//! ```text
//!   Sender                                   Receiver
//!     │ Hello (who, epoch, incarnation, disks)  │
//!     ├────────────────────────────────────────▶│ opens the journal
//!     │ Welcome (durable, incarnation, missing) │ or Refuse (why)
//!     │◀────────────────────────────────────────┤
//!     │ ArtifactPart …  (missing files)         │
//!     ├────────────────────────────────────────▶│
//!     │ Batch, Batch, …                         │ journal, fsync
//!     ├────────────────────────────────────────▶│
//!     │ Ack (durable so far, cumulative)        │
//!     │◀────────────────────────────────────────┤
//!     │ Compare (hashes of a run of blocks)     │ looks at the same blocks
//!     ├────────────────────────────────────────▶│
//!     │ Compared (which of them differ)         │
//!     │◀────────────────────────────────────────┤
//!     │ SendAgain (runs of blocks it has lost)  │
//!     │◀────────────────────────────────────────┤
//!     │ Heartbeat both ways when quiet          │
//! ```
//!
//! On a connection of its own, a host of a group that spans several says `Join` to the one that coordinates
//! it; then `Cut` messages go both ways ([`CutMessage`]). On another, a sender says `Leave` of a VM that is protected no
//! more, and hears `Left`.
//!
//! Every message has a fixed header with magic, protocol version, kind, length, its number on this
//! connection (from 1, no gaps) and a CRC-32C over header and body. The header's shape and the kinds
//! `Hello` and `Refuse` stay readable in every version, so that two versions can tell each other so.

mod body;
mod frame;
mod message;

pub use frame::{FrameReader, FrameWriter, HEADER_BYTES, Header, VERSION, VERSION_MIN, WireError};
pub use message::{
    Ack, ArtifactHash, ArtifactOffer, ArtifactPart, ClockAnswer, Compare, Compared, CutMessage, CutRefusal,
    Hello, Join, Leave, Message, Refusal, Refuse, Welcome,
};

#[cfg(test)]
mod tests;
