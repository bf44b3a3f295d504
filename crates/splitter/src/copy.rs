//! The copier of a sync: marked blocks go into the stream with sequences of their own.

use crate::capture::Capture;
use crate::device::ExtentKind;
use crate::disk::ProtectedDisk;
use std::io;
use std::sync::Arc;
use types::ByteRange;
use types::limits::{BLOCK_BYTES, RECORD_BYTES_MAX};

/// A marked block could not be read; its mark is set again.
#[derive(Debug, thiserror::Error)]
#[error("cannot read disk {disk} for a sync")]
pub struct CopyError {
    disk: String,
    #[source]
    source: io::Error,
}

/// Copies one run of marked blocks, at most 1 MiB and at most a quarter of the buffer.
///
/// # Errors
/// [`CopyError`] where the local disk cannot be read.
pub fn copy_some_blocks(capture: &Capture, disks: &[Arc<ProtectedDisk>]) -> Result<(), CopyError> {
    let bytes_max = RECORD_BYTES_MAX.min(capture.status().buffer_bytes_max / 4);
    let Some((disk, first, len)) = capture.next_dirty_run((bytes_max / BLOCK_BYTES).max(1)) else {
        return Ok(());
    };
    let disk = &disks[usize::from(disk.0)];
    disk.copy_run(first, len).map(drop).map_err(|source| CopyError { disk: disk.local().label(), source })
}

/// Marks what may differ from the replica: all that is allocated where the replica is known to be zero,
/// else everything.
///
/// # Errors
/// [`CopyError`] where the local disk cannot be asked.
pub fn mark_what_may_differ(
    capture: &Capture,
    disks: &[Arc<ProtectedDisk>],
    replica_is_zero: bool,
) -> Result<(), CopyError> {
    for disk in disks {
        let whole = ByteRange::new(0, disk.local().size_bytes());
        if !replica_is_zero {
            capture.mark_dirty(disk.index(), whole);
            continue;
        }
        let extents =
            disk.local().extents(whole).map_err(|source| CopyError { disk: disk.local().label(), source })?;
        for extent in extents.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            capture.mark_dirty(disk.index(), extent.range);
        }
    }
    Ok(())
}
