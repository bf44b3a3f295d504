//! What damage costs: out of what could not be read, and of what lies over it or stands in for it, the pieces that are lost.
//!
//! A write that is lost is so from itself on, up to what was written over it. A before-image is what a disk had below the
//! write it was taken for, and so is lost below that, down to the one that was taken there before. A block of the replica
//! is what the disk has from the last write with a before-image on; where there is none, at all cuts.
//!
//! All that could not be read of a place is told in one pass over what lies there, in its order, with what is open at that
//! moment by its place: writes to one place have no bound, and neither has what is damaged of them.

use crate::extent::Extent;
use crate::lost::{LostPiece, Open};
use types::{ByteRange, DiskIndex, WriteSeq};

/// What of a log cannot be read: the bytes of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) disk: DiskIndex,
    pub(crate) range: ByteRange,
    pub(crate) seq: WriteSeq,
}

/// Of writes, while `writes` lie over them, ascending by sequence; each of what is `unread` may be one of those.
pub(crate) fn of_writes(unread: &[Unread], writes: &[Extent]) -> Vec<LostPiece> {
    let (mut open, mut lost) = (Open::default(), Vec::new());
    let mut writes = writes.iter().peekable();
    for one in in_order(unread) {
        while let Some(write) = writes.next_if(|write| write.seq <= one.seq) {
            lost.extend(open.write_over(write.disk, write.range, write.seq));
        }
        lost.extend(open.write_over(one.disk, one.range, one.seq));
        begin(&mut open, one.disk, one.range, one.seq);
    }
    for write in writes {
        lost.extend(open.write_over(write.disk, write.range, write.seq));
    }
    lost.extend(open.iter());
    lost
}

/// Of before-images, beside the `images` that were taken there, ascending by sequence.
pub(crate) fn of_before_images(unread: &[Unread], images: &[Extent]) -> Vec<LostPiece> {
    let (mut open, mut lost) = (Open::default(), Vec::new());
    for one in unread {
        begin(&mut open, one.disk, one.range, WriteSeq::ZERO);
    }
    let mut images = images.iter().peekable();
    for one in in_order(unread) {
        while let Some(image) = images.next_if(|image| image.seq < one.seq) {
            stand_in(&mut open, image);
        }
        let below = open.over(one.disk, one.range).filter_map(|piece| {
            let range = piece.range.intersection(one.range)?;
            Some(LostPiece { range, until: Some(one.seq), ..*piece })
        });
        lost.extend(below);
    }
    lost
}

/// Of parts of the replica, beside the before-images that were taken there and under what the redo log has above; both
/// ascending by sequence.
pub(crate) fn of_replica(
    disk: DiskIndex,
    parts: &[ByteRange],
    images: &[Extent],
    writes: &[Extent],
) -> Vec<LostPiece> {
    let (mut open, mut lost) = (Open::default(), Vec::new());
    parts.iter().for_each(|part| begin(&mut open, disk, *part, WriteSeq::ZERO));
    images.iter().for_each(|image| stand_in(&mut open, image));
    for write in writes {
        lost.extend(open.write_over(write.disk, write.range, write.seq));
    }
    lost.extend(open.iter());
    lost
}

/// What of parts of a disk none of `images` has.
pub(crate) fn beside(disk: DiskIndex, parts: &[ByteRange], images: &[Extent]) -> Vec<ByteRange> {
    let mut left = Open::default();
    parts.iter().for_each(|part| begin(&mut left, disk, *part, WriteSeq::ZERO));
    for image in images {
        left.write_over(image.disk, image.range, image.seq);
    }
    left.iter().map(|piece| piece.range).collect()
}

fn in_order(unread: &[Unread]) -> Vec<Unread> {
    let mut unread = unread.to_vec();
    unread.sort_by_key(|one| (one.seq, one.range.start));
    unread
}

/// From an image on it is the one that tells what was below.
fn stand_in(open: &mut Open, image: &Extent) {
    for part in open.write_over(image.disk, image.range, image.seq) {
        open.insert(LostPiece { from: image.seq, until: None, ..part });
    }
}

/// What nothing is open of in a range is so from `from` on.
fn begin(open: &mut Open, disk: DiskIndex, range: ByteRange, from: WriteSeq) {
    for range in range.gaps(open.over(disk, range).map(|piece| piece.range)) {
        open.insert(LostPiece { disk, range, from, until: None });
    }
}

#[cfg(test)]
mod tests;
