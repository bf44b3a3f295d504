//! The stream between two agents: what is said ([`wire`]), and who decides what to say next.
//!
//! [`Sender`] and [`Receiver`] are state machines without I/O, clock or randomness: they take an event
//! and the time, and push effects. The agent performs the effects on sockets and disks; the simulator
//! performs them by seed. Neither machine knows the splitter or the journal: the sender sees the
//! capture through a [`CaptureView`], the receiver sees the journal through [`Opened`] and durable
//! sequences.

mod chooser;
mod receiver;
mod sender;
mod share;
mod state;
pub mod wire;

pub use chooser::{CodecChooser, Compression};

pub use receiver::{Opened, Receiver, ReceiverEffect, ReceiverEvent};
pub use sender::{CaptureView, Differs, KeptStream, Sender, SenderConfig, SenderEffect, SenderEvent};
pub use share::{Share, StreamId};
pub use state::{Failure, Link, State, SyncReason, TrackingReason, Transition};
