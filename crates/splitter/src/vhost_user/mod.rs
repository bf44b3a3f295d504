//! The vhost-user-blk front end: a disk as a virtio device whose queues lie in the guest's own memory.
//!
//! ```text
//!  QEMU ── socket ──▶ Device: features, memory, queues      one thread for each connection
//!  guest ── queue ──▶ Vring ──▶ DiskQueue ──▶ disk          one thread for each queue
//! ```
//!
//! Every request that was taken from a queue stands in the in-flight region until the guest was told of its end.
//! QEMU keeps that region, so an agent that was killed does again what it had taken and not finished: a guest would
//! wait for it for ever. Split queues only; several queues, event index, indirect descriptors, flush, discard, write
//! zeroes. What is there and what is not: `docs/formats/vhost-user.md`. The protocol is
//! <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>, the device section 5.2 of
//! <https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html>.

mod chain;
mod device;
mod features;
mod in_flight;
mod memory;
mod server;
mod shared_memory;
mod vring;

pub use chain::{BrokenChain, parse_request};
pub use server::{DiskSocket, VhostServer};
