//! The journal of one VM at the recovery side: its writes in order, its replica, its images.
//!
//! A [`Journal`] owns one folder (through a [`Store`]). The **redo log** is a chain of segment files that
//! hold batches as they came over the wire; the **replica**, a raw file per disk, stands at the `applied`
//! sequence; the **undo log** holds what the replica's bytes were before. A segment that is sealed gets a
//! footer, a sorted run of its extents; runs are merged, the data never moves. The state of all that is in
//! one manifest, replaced atomically. Formats: `docs/formats/journal.md`.
//!
//! Read at a cut: the newest redo extent above `applied` and at or below the cut, else the oldest undo
//! extent above the cut, else the replica (`read.rs`).
//!
//! What makes each pair of operations safe beside each other; one cell per pair:
//!
//! | | append | footer, merge | fold | step back (undo) | image read | checkpoint list | retention | scrub | crash |
//! |---|---|---|---|---|---|---|---|---|---|
//! | **append** | one writer, under its lock; groups commit in the order they were framed | footers are of sealed segments, append writes the open one; sealing waits for what is in flight | fold takes sealed segments only | a step's target is durable before the step begins | extents are published after the sync that makes them durable | facts are published with the extents | as fold; at the hard limit append refuses | scrub reads sealed segments | a torn end is cut above what was acknowledged, damage below is named |
//! | **footer, merge** | | one at a time | both hold `upkeep`; a segment without a footer is not dropped | as fold | a run is published before the table or runs it replaces are let go, and their files go only behind the gate | rows reach their file and the manifest together with the footer | as fold | a damaged run is rebuilt from footers, a footer from its batches | without a manifest that names it a run is no run; leftovers are removed |
//! | **fold** | | | one at a time, under `upkeep` | a step cut short is finished first | cuts below are retired first and a pin stops it; entries are preferred to the replica until they are gone; files are recycled behind the gate | files of retired checkpoints go with the manifest that retires them | same thing | a segment that is dropped while it is read is passed over | the manifest names the old `applied`: the same bytes are written again |
//! | **step back** | | | | one at a time | before-images are published, and earlier readers gone, before the replica is touched | rows stay until retired | undo segments go below what is retired | as fold | see the story in `undo.rs` |
//! | **image read** | | | | | shared gate; overlays say what is theirs: see [`Overlay`] | | a pin holds the cut | | overlays: see [`Overlay`] |
//! | **checkpoint list** | | | | | | reads a manifest it holds | a list may name a checkpoint retired just now; opening it says so | | |
//! | **retention** | | | | | | | one at a time | as fold | as fold |
//! | **scrub** | | | | | | | | one at a time | changes nothing |
//!
//! None of it is beside the same operation of another [`Journal`] over the folder: there is one at a time (`life.rs`).

mod again;
mod age;
mod append;
mod appraise;
mod checkpoint_files;
mod checkpoints;
mod compact;
mod copies;
mod cost;
mod cover;
mod create;
mod damage;
mod entropy;
mod extent;
mod fold;
mod footers;
mod fs_store;
mod gather;
mod history;
mod image;
mod journal;
mod layout;
mod life;
mod lost;
mod manifest;
mod merge;
mod met;
mod open;
mod overlay;
mod page;
mod payload;
mod pins;
mod promote;
mod read;
mod replica;
mod replica_look;
mod retention;
mod roll;
mod run;
mod run_writer;
mod scrub;
mod scrub_replica;
mod segment;
mod settings;
mod shard;
mod spill;
mod state;
mod status;
mod store;
mod sums;
mod table;
mod timeline;
mod turn;
mod undo;
mod upkeep;
mod verify;
mod view;
mod windows;
mod writer;

pub use checkpoint_files::CheckpointError;
pub use checkpoints::{CheckpointFacts, CheckpointQuery, Thinning};
pub use copies::{NAMES as MANIFESTS, is_journal};
pub use create::CreateError;
pub use damage::Damage;
pub use fold::FoldError;
pub use fs_store::{FsStore, LockError};
pub use gather::batch_room;
pub use history::Listed;
pub use image::{Image, ImageError};
pub use journal::{Journal, Opened, index_pages_read};
pub use lost::LostPiece;
pub use manifest::{Manifest, ManifestError, SegmentInfo};
pub use met::Kept;
pub use open::OpenError;
pub use overlay::{Overlay, OverlayError};
pub use payload::ReadError;
pub use pins::{Expiry, Pin, PinError};
pub use promote::Promotion;
pub use run::RunError;
pub use scrub::{ScrubPlace, Scrubbed};
pub use segment::SegmentError;
pub use settings::{Mode, Settings, SettingsError};
pub use shard::{AppendStream, Report, Shards};
pub use spill::{Released, Spill, SpillError};
pub use status::JournalStatus;
pub use store::{Store, StoreFile};
pub use timeline::{Gap, Timeline};
pub use upkeep::{Clock, Upkeep};
pub use verify::{RecordRow, SegmentReport, VerifyReport, verify};
pub use writer::{AppendError, AppendMeta, Appended};
