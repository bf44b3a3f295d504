//! Both sides of a protection in one thread, by seed: the real sender, receiver, capture, write path and
//! journal over a simulated disk, network and clock. Never shipped.
//!
//! [`run`] plays one seed: two VMs of one group write with overlaps while links are lost at any message,
//! either process is killed, the recovery side loses power with whatever it had not synced, its disk
//! fills up or fails, the operator pauses, tags, fails over and rolls back, and retention folds. After
//! every event the `invariant_*` functions hold; at the end everything comes to rest and both sides are
//! equal. A failure is its seed: `cargo xtask sim --seed N` plays it again.
//!
//! A quarter of the runs are in synchronous mode: whatever the guest was told of while the mode was kept is in
//! the newest image. In an eighth pages of sealed segments change by themselves: no checkpoint goes for it, and what cannot be read
//! is no more than what lay in them (`spoilt.rs`).
//!
//! [`run_wide`] plays all that and more, drawn from numbers of its own, so that the seeds of [`run`] stay what they were:
//! images at any checkpoint that are written to, flushed, promoted while they are read and folded under, closed, and served
//! again after each restart; pins and tags; disks that are full by what files take up and get room back, that stand still,
//! and that forget what a failed sync gave up; agents that are killed in the middle of something.
//!
//! [`run_whole`] plays all that, and whatever else has come since: history windows of seconds, limits that the journal
//! reaches, thinning and tags that hold; clocks that jump by a year; disks of either side on which nothing moves at all;
//! files that cannot be read for a while, and copies that rot of what is kept twice. Whoever looks afterwards can read everything.
//!
//! In half of them pages rot at any time, of open segments, of replicas and of what tells of both, and the scrub comes by
//! step by step (`rot.rs`, `decayed.rs`).
//!
//! Whatever is played: a checkpoint that could be opened goes by retention alone (`retained.rs`), what waits is within its
//! bounds, and, where whole runs ask for it, what was told as durable is there without anything that was not synced.
//!
//! [`run_group`] plays groups whose members come and go (`group.rs`), with what both sides decide about that.
//!
//! [`run_cuts`] plays the cuts of groups on several hosts, by themselves.
//!
//! Not simulated: local writes of one guest that end in another order than they began, the streams of groups
//! with VMs on several hosts, and damage of overlays' and dirty maps and of both copies of what is kept twice.

mod clock;
mod decayed;
mod faults;
mod group;
mod hosts;
mod image_model;
mod images;
#[cfg(all(test, feature = "interleavings"))]
mod interleavings;
mod invariants;
mod link;
mod local_disk;
mod moment;
mod recovery;
mod rest;
mod retained;
mod rng;
mod rot;
mod rotting;
mod source;
mod spill;
mod spoilt;
mod store;
mod summary;
mod threads;
mod whole;
mod whole_draw;
mod wide;
mod world;

pub use clock::now;
pub use group::run_group;
pub use hosts::{CutSummary, run_cuts};
pub use rng::Rng;
pub use store::{Decay, SimStore};
pub use summary::Summary;
pub use world::{run, run_whole, run_wide};
