//! Threads of a journal's whole process, that take turns by a seed: those that append, those that keep it up, those that read
//! an image of it, write to it, and make it a plain disk.
#![allow(clippy::unwrap_used, reason = "a test")]

mod images;
mod shards;
#[path = "../stream/mod.rs"]
mod stream;
