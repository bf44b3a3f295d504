//! Both sides of a protection in one thread, by seed: the real sender, receiver, capture, write path and
//! journal over a simulated disk, network and clock. Never shipped.
//!
//! [`run`] plays one seed: two VMs of one group write with overlaps while links are lost at any message,
//! either process is killed, the recovery side loses power with whatever it had not synced, its disk
//! fills up or fails, the operator pauses, tags, fails over and rolls back, and retention folds. After
//! every event the `invariant_*` functions hold; at the end everything comes to rest and both sides are
//! equal. A failure is its seed: `cargo xtask sim --seed N` plays it again.
//!
//! Not simulated: several guest writes in flight at once (each completes before the next begins), loss
//! of power at the protected side, and damage of bytes that had been synced.

mod invariants;
mod link;
mod local_disk;
mod recovery;
mod rng;
mod source;
mod store;
mod world;

pub use rng::Rng;
pub use store::SimStore;
pub use world::{Summary, run};
