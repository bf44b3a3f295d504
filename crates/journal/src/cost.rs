//! What damage costs: out of what could not be read, and of what lies over it or stands in for it, the pieces that are lost.
//!
//! A write that is lost is so from itself on, up to what was written over it. A before-image is what a disk had below the
//! write it was taken for, and so is lost below that, down to the one that was taken there before. A block of the replica
//! is what the disk has from the last write with a before-image on; where there is none, at all cuts.

use crate::extent::Extent;
use crate::lost::LostPiece;
use types::{ByteRange, DiskIndex, WriteSeq};

/// What of a log cannot be read: the bytes of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) disk: DiskIndex,
    pub(crate) range: ByteRange,
    pub(crate) seq: WriteSeq,
}

/// Of a write, while `writes` lie over it, ascending by sequence.
pub(crate) fn of_write(unread: Unread, writes: &[Extent]) -> Vec<LostPiece> {
    let whole = LostPiece { disk: unread.disk, range: unread.range, from: unread.seq, until: None };
    ended(whole, writes)
}

/// Of a before-image, beside the `images` that were taken there, ascending by sequence.
pub(crate) fn of_before_image(unread: Unread, images: &[Extent]) -> Vec<LostPiece> {
    let older = images.iter().filter(|image| image.seq < unread.seq);
    let parts = begun(unread.disk, unread.range, older);
    parts.into_iter().map(|piece| LostPiece { until: Some(unread.seq), ..piece }).collect()
}

/// Of a block of the replica, beside the before-images that were taken there and under what the redo log has above.
pub(crate) fn of_replica(
    disk: DiskIndex,
    range: ByteRange,
    images: &[Extent],
    writes: &[Extent],
) -> Vec<LostPiece> {
    let parts = begun(disk, range, images.iter());
    parts.into_iter().flat_map(|piece| ended(piece, writes)).collect()
}

/// Parts of a range, each from the newest of `images` on, which ascend.
fn begun<'a>(
    disk: DiskIndex,
    range: ByteRange,
    images: impl DoubleEndedIterator<Item = &'a Extent>,
) -> Vec<LostPiece> {
    let (mut open, mut pieces) = (vec![range], Vec::new());
    for image in images.rev().filter(|image| image.disk == disk) {
        open = open.into_iter().flat_map(|part| taken(part, image, &mut pieces)).collect();
    }
    pieces.extend(open.into_iter().map(|range| LostPiece { disk, range, from: WriteSeq::ZERO, until: None }));
    pieces
}

/// Takes for `image` what of a part it has; the rest.
fn taken(part: ByteRange, image: &Extent, pieces: &mut Vec<LostPiece>) -> Vec<ByteRange> {
    let Some(both) = part.intersection(image.range) else { return vec![part] };
    pieces.push(LostPiece { disk: image.disk, range: both, from: image.seq, until: None });
    part.without(image.range).collect()
}

/// A piece in parts, each up to the first of `writes` over it.
fn ended(whole: LostPiece, writes: &[Extent]) -> Vec<LostPiece> {
    let mut lost = vec![whole];
    for write in writes.iter().filter(|write| write.seq > whole.from) {
        lost = lost
            .into_iter()
            .flat_map(|piece| piece.written_over(write.disk, write.range, write.seq))
            .collect();
    }
    lost
}

#[cfg(test)]
mod tests;
