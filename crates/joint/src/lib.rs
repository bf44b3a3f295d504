//! What joins splitter, replication and journal on each side: decided here, done by the agent and by the simulator.
//!
//! Nothing in here has a thread, a clock, a socket or a task. Time comes in with each call, and what is to be done goes
//! out as a value or through a seam that the caller implements.
//!
//! - [`admission`]: what is decided about a peer's greeting.
//! - [`choice`]: which cut of a whole group a failover opens, and whom it has.
//! - [`cut`]: one cut of a group whose VMs are on several hosts.
//! - [`failover`]: who has the authority over a group, and of which epoch.
//! - [`life`]: when the journal of a kept VM is open, who uses it, and what ends before the next life begins.
//! - [`membership`]: from when on a VM is of its group, and whom a cut has.
//! - [`progress`]: how far one VM's stream is.
//! - [`promise`]: what synchronous mode may promise in a group of several VMs.
//! - [`source`]: one VM's stream on the protected side: the sender, with what its effects are on.
//! - [`outbox`]: what of a stream goes out next, out of memory or out of the [`spill`].
//! - [`view`](mod@view): what a sender is shown of a capture and its spill.

pub mod admission;
pub mod choice;
pub mod cut;
pub mod failover;
pub mod life;
pub mod membership;
pub mod outbox;
pub mod progress;
pub mod promise;
pub mod source;
pub mod spill;
pub mod view;
