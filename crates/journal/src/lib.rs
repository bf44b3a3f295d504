//! The journal of one VM at the recovery side: its writes in order, its replica, its images.
//!
//! A [`Journal`] owns one folder (through a [`Store`]): segment files of batches stored verbatim, a
//! manifest, a raw replica per disk, and the overlays of writable images. The replica stands at the
//! `applied` sequence; everything newer is in the segments. A read at a cut prefers the newest journal
//! entry at or below the cut and falls back to the replica.
//!
//! What makes each pair of operations safe beside each other:
//!
//! | | append | fold | image read | crash |
//! |---|---|---|---|---|
//! | **append** | one writer, under its lock | fold takes sealed segments only, append writes the open one | entries are published after the sync that makes them durable | torn tail is cut above what was acknowledged |
//! | **fold** | | one at a time, under its lock | a pin keeps the cut at or above `applied`; entries leave the index only once the replica is durable, and open files outlive their removal | idempotent: the manifest still names the old `applied`, the fold is repeated |
//! | **image read** | | | shared lock for the look-up, none for the reading | overlays say what is theirs: see [`Overlay`] |
//!
//! Segments are scanned when the journal is opened, and the index is kept in memory; the entries per
//! write are 32 bytes. Formats: `docs/formats/journal.md`.

mod append;
mod fold;
mod image;
mod index;
mod journal;
mod layout;
mod manifest;
mod open;
mod overlay;
mod segment;
mod store;
mod timeline;
mod verify;

pub use append::{AppendError, Appended};
pub use fold::{FoldError, Folded};
pub use image::{Image, ImageError};
pub use journal::{Journal, JournalStatus, ReadError, Settings};
pub use manifest::{Manifest, ManifestError, SegmentInfo};
pub use open::{CreateError, Damage, OpenError, Opened};
pub use overlay::{Overlay, OverlayError};
pub use segment::SegmentError;
pub use store::{FsStore, LockError, Store, StoreFile};
pub use timeline::{Gap, Timeline, newest_common_cut};
pub use verify::{RecordRow, SegmentReport, VerifyReport, verify};
