//! The code in the guest's write path.
//!
//! Data flows one way: a front end ([`nbd`]) hands a request to a [`ProtectedDisk`], which writes the
//! one bounce copy of the payload to the local disk and, at completion, commits the same bytes to the
//! VM's [`Capture`]: sequence, buffer or bitmap. A guest write waits for the local disk and for nothing
//! else. Front ends know only [`BlockDevice`], so an image is served by the same code.

mod acceptor;
mod ack_gate;
mod bitmap;
mod bits;
mod bounce;
mod buffer_pool;
mod capture;
mod clock;
mod copy;
mod course;
mod device;
mod dirty;
mod dirty_map;
mod disk;
#[cfg(test)]
mod disks_in_tests;
mod doubts;
mod fence;
mod hung_up;
mod identity;
mod image_lock;
mod kept_header;
mod map_file;
pub mod nbd;
mod on_the_way;
mod peer_process;
mod polite_lock;
mod precedence;
mod queue;
mod range_lock;
mod raw;
mod region_log;
mod ring;
mod room;
mod superseded;
mod sync_gate;
mod tapped;
mod thread_start;
#[cfg(feature = "ublk")]
mod ublk;
pub mod vhost_user;
mod workers;
mod writers;

pub use ack_gate::AckGate;
pub use bitmap::Bitmap;
pub use buffer_pool::BufferPool;
pub use capture::{Capture, CaptureConfig, CaptureStatus, SyncWork, Taken};
pub use copy::{
    CopyError, HashedRun, copy_some_blocks, hash_some_blocks, mark_allocated, retry_unreadable,
    verify_everything,
};
pub use course::Course;
pub use device::{BlockDevice, Extent, ExtentKind};
pub use dirty_map::{DirtyMap, MapStore};
pub use disk::{Change, LocalDisk, Look, ProtectedDisk};
pub use fence::Fence;
pub use identity::{DiskIdentity, FileTime};
pub use image_lock::WriterLock;
pub use kept_header::{Boot, Kept};
pub use map_file::MapFile;
pub use peer_process::peer_process;
pub use raw::{RawDisk, RawDiskError};
pub use region_log::RegionLog;
pub use sync_gate::{OnTimeout, Others, SyncPolicy, SyncState};
pub use tapped::{DiskReader, ReadDoor, TappedDisk, status_of};
#[cfg(feature = "ublk")]
pub use ublk::{UblkDevice, UblkServeError};
pub use writers::{Client, Refusal, Writers};
