//! What a sender is shown of a capture and its spill.

use replication::CaptureView;
use splitter::CaptureStatus;

/// The spill, as far as a sender has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpillRoom {
    /// It takes more.
    pub has_room: bool,
    /// What was spilled cannot be read any more.
    pub lost: bool,
}

/// The view of this moment. `tells`: the watermark is worth a batch of its own; else it is no further than the last record.
pub fn view(status: &CaptureStatus, spill: SpillRoom, tells: bool) -> CaptureView {
    CaptureView {
        tracking: status.tracking,
        gap_open: status.gap_open,
        deaf: status.deaf,
        dirty_blocks: status.dirty_blocks,
        suspect_blocks: status.suspect_blocks,
        unsettled_blocks: status.unsettled_blocks,
        buffered_bytes: status.buffered_bytes,
        buffer_bytes_max: status.buffer_bytes_max,
        copies: status.copies,
        spill_has_room: spill.has_room,
        spill_lost: spill.lost,
        spills: status.spilled > status.released,
        released: status.released,
        last: status.last,
        drawn: status.watermark,
        watermark: if tells { status.watermark } else { status.last },
    }
}
