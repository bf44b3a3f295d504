//! The stream between two agents: what is said ([`wire`]), and who decides what to say next.
//!
//! [`Sender`] and [`Receiver`] are state machines without I/O, clock or randomness: they take an event
//! and the time, and push effects. The agent performs the effects on sockets and disks; the simulator
//! performs them by seed. Neither machine knows the splitter or the journal: the sender sees the
//! capture through a [`CaptureView`], the receiver sees the journal through [`Opened`] and durable
//! sequences.

mod receiver;
mod sender;
mod state;
pub mod wire;

pub use receiver::{Opened, Receiver, ReceiverEffect, ReceiverEvent};
pub use sender::{CaptureView, Differs, KeptStream, Sender, SenderConfig, SenderEffect, SenderEvent};
pub use state::{Link, State, SyncReason, TrackingReason, Transition};
