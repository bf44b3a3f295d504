//! The words every other room uses: ids, units, sequences, epochs and limits.
//!
//! Nothing here does I/O, reads a clock, is async or is serialised by serde: a type that goes over a
//! wire, into a file or into JSON is converted by the room that owns that format.

mod checkpoint;
mod ids;
pub mod limits;
mod name;
mod range;
mod seq;
mod sum;
mod time;

pub use checkpoint::{Checkpoint, CheckpointId, CheckpointKind, ParseCheckpointIdError};
pub use ids::{GroupId, Incarnation, ParseIdError, VmId};
pub use name::is_plain_name;
pub use range::{BlockIndex, BlockRun, ByteRange, DiskIndex, DiskSpec};
pub use seq::{Epoch, GroupCounter, RunNumber, WriteSeq};
pub use sum::sum_matches;
pub use time::{Monotonic, WallTime};
