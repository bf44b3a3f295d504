//! What a sync reads: marked blocks go into the stream with sequences of their own, suspect ones are hashed.

use crate::capture::Capture;
use crate::device::ExtentKind;
use crate::disk::ProtectedDisk;
use batch::BlockHash;
use std::io;
use std::sync::Arc;
use types::limits::{BLOCK_BYTES, COMPARE_BLOCKS_MAX, RECORD_BYTES_MAX, UNREADABLE_BLOCKS_MAX};
use types::{BlockIndex, ByteRange, DiskIndex, WriteSeq};

/// A marked block could not be read; its mark is set again.
#[derive(Debug, thiserror::Error)]
#[error("cannot read disk {disk} for a sync")]
pub struct CopyError {
    disk: String,
    #[source]
    source: io::Error,
}

/// Copies one run of marked blocks, at most 1 MiB and at most a quarter of the buffer. False where there was no room
/// for it; its marks are set again then.
///
/// # Errors
/// [`CopyError`] where the local disk cannot be read.
pub fn copy_some_blocks(capture: &Capture, disks: &[Arc<ProtectedDisk>]) -> Result<bool, CopyError> {
    let bytes_max = RECORD_BYTES_MAX.min(capture.status().buffer_bytes_max / 4);
    let Some((disk, first, len)) = capture.next_dirty_run((bytes_max / BLOCK_BYTES).max(1)) else {
        return Ok(true);
    };
    let device = &disks[usize::from(disk.0)];
    if device.local().is_gone() {
        capture.forget_run(disk, first, len);
        return Ok(true);
    }
    let disk = device;
    disk.local().settle_others();
    let copied = match disk.copy_run(first, len) {
        Err(_) if may_be_left_out(capture, disk) => copy_one_by_one(disk, first, len),
        other => other,
    };
    copied.map_err(|source| CopyError { disk: disk.local().label(), source })
}

/// Whether a sync goes on without what it cannot read: a disk has lost a few sectors, which is when a copy elsewhere is
/// wanted most. One that is away altogether is waited for, and so is a hypervisor that does not answer.
fn may_be_left_out(capture: &Capture, disk: &ProtectedDisk) -> bool {
    let local = disk.local();
    !local.is_written_elsewhere()
        && capture.status().unreadable_blocks < UNREADABLE_BLOCKS_MAX
        && disk.gives_something()
}

fn copy_one_by_one(disk: &ProtectedDisk, first: BlockIndex, len: u64) -> io::Result<bool> {
    for block in (first.0..first.0 + len).map(BlockIndex) {
        let taken = match disk.copy_run(block, 1) {
            Err(error) => {
                let place = block.range(u64::MAX).start;
                tracing::error!(disk = disk.local().label(), place, %error, "a block cannot be read: the sync goes on without");
                disk.copy_what_can_be_read(block)
            }
            Ok(taken) => taken,
        };
        if !taken {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A run of blocks to be compared with the recovery side's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedRun {
    pub disk: DiskIndex,
    pub first: BlockIndex,
    /// The hashes are of the blocks with every write up to here, and none above.
    pub at: WriteSeq,
    pub hashes: Vec<BlockHash>,
}

/// Hashes one run of suspect blocks, at most 1 MiB; none where there is none just now. The answer goes to
/// [`Capture::end_compare`].
///
/// # Errors
/// [`CopyError`] where the local disk cannot be read; the run is suspect again.
pub fn hash_some_blocks(
    capture: &Capture,
    disks: &[Arc<ProtectedDisk>],
) -> Result<Option<HashedRun>, CopyError> {
    let Some((disk, first, len)) = capture.next_suspects(COMPARE_BLOCKS_MAX as u64) else {
        return Ok(None);
    };
    let device = &disks[usize::from(disk.0)];
    if device.local().is_gone() {
        capture.forget_run(disk, first, len);
        return Ok(None);
    }
    device.local().settle_others();
    match device.hash_run(first, len) {
        Ok((at, hashes)) => Ok(Some(HashedRun { disk, first, at, hashes })),
        Err(_) if may_be_left_out(capture, device) => {
            // These are copied, as far as that can be: no comparison says more. Where each gives itself now, but the run
            // did not, all of them are.
            let unreadable = device.unreadable_of(first, len);
            capture.end_compare_unreadable(disk, first, if unreadable == 0 { u64::MAX } else { unreadable });
            Ok(None)
        }
        Err(source) => {
            // Suspect again before it counts as equal, so that its bit is never lost.
            let end = BlockIndex(first.0 + len - 1).range(device.local().size_bytes()).end();
            let start = first.range(u64::MAX).start;
            capture.mark_suspect(disk, ByteRange::new(start, end - start), false);
            capture.end_compare(disk, first, 0);
            Err(CopyError { disk: device.local().label(), source })
        }
    }
}

/// Has those blocks copied that could not be read and give themselves again; how many. To be called now and then: a block
/// that is still not to be read costs no checkpoint. A dying disk takes its time: `goes_on` is asked before each.
pub fn retry_unreadable(
    capture: &Capture,
    disks: &[Arc<ProtectedDisk>],
    goes_on: impl Fn() -> bool,
) -> usize {
    let gives_itself = |(disk, block): &(DiskIndex, BlockIndex)| {
        let device = &disks[usize::from(disk.0)];
        !device.local().is_gone() && device.unreadable_of(*block, 1) == 0
    };
    let asked = capture.unreadable().into_iter().take_while(|_| goes_on());
    let readable = asked.filter(gives_itself);
    readable.filter(|(disk, block)| capture.copy_unreadable(*disk, *block)).count()
}

/// Marks what may differ from a replica that is known to be zero: all that is allocated.
///
/// A crash story: (1) somebody makes zeroes of a range, and nobody flushes; (2) the disk is protected, and says that nothing
/// is there; (3) the host loses power, and what was there before is back; (4) the region log has only what was written since,
/// or was marked here, and nobody compares the rest. So a hole is believed once everything before it is durable.
///
/// # Errors
/// [`CopyError`] where the local disk cannot be asked, or cannot make that durable; then everything is marked.
pub fn mark_allocated(capture: &Capture, disks: &[Arc<ProtectedDisk>]) -> Result<(), CopyError> {
    let mut failed = None;
    for disk in disks {
        let whole = ByteRange::new(0, disk.local().size_bytes());
        match disk.sync().and_then(|()| disk.local().extents(whole)) {
            Ok(extents) => {
                for extent in extents.iter().filter(|extent| extent.kind == ExtentKind::Data) {
                    capture.mark_dirty(disk.index(), extent.range);
                }
            }
            Err(source) => {
                capture.mark_dirty(disk.index(), whole);
                failed = Some(CopyError { disk: disk.local().label(), source });
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Has everything compared that should be equal; what is found to differ is repaired.
pub fn verify_everything(capture: &Capture, disks: &[Arc<ProtectedDisk>]) {
    for disk in disks {
        capture.mark_suspect(disk.index(), ByteRange::new(0, disk.local().size_bytes()), true);
    }
}

#[cfg(test)]
mod tests;
