//! Promotion: an image in use turns into plain disks, in the background.
//!
//! The overlay's data file is a sparse file of the disk's size with each block at its own place. Filling
//! in the blocks that are not the overlay's own yet makes it the plain disk; the overlay's map says how
//! far that is, so a promotion that was cut short goes on where it was, and a guest's writes meanwhile
//! simply are its own blocks already.

use crate::image::{Image, ImageError};
use crate::page::PAGE_BYTES;
use types::limits::SECTOR_BYTES;
use types::{ByteRange, DiskIndex};

/// How far a promotion is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promotion {
    /// Bytes that are the image's own, of all its disks.
    pub own_bytes: u64,
    pub total_bytes: u64,
}

/// Bytes looked at in one step, under the overlay's lock.
const STEP_BYTES: u64 = 1 << 20;
/// Copied up before it is made durable: an agent that dies meanwhile has the next one write no more than that again.
const FLUSH_BYTES: u64 = 256 << 20;

impl Promotion {
    /// Whether the image needs nothing of the journal any more. One that is read-only has nothing of its own, and always does.
    pub fn is_done(&self) -> bool {
        self.total_bytes > 0 && self.own_bytes == self.total_bytes
    }
}

impl Image {
    /// How far the image is from needing nothing of the journal.
    pub fn promotion(&self) -> Promotion {
        let mut promotion = Promotion::default();
        for (overlay, size) in self.overlays().iter().zip(self.sizes()) {
            promotion.own_bytes += overlay.held_bytes().min(*size);
            promotion.total_bytes += size;
        }
        promotion
    }

    /// Copies up what is not the image's own yet, from the lowest byte of the first disk on. `pace` is told
    /// before each step how many bytes it is about to copy; it may wait, and says false to stop. What was
    /// copied is made durable from time to time, and once the whole is done.
    ///
    /// # Errors
    /// [`ImageError::ReadOnly`] for an image without overlays; what reading and writing fail with.
    pub fn promote(&self, pace: impl Fn(u64) -> bool) -> Result<Promotion, ImageError> {
        self.promote_past(pace, |_, _| false)
    }

    /// The same past what is lost for good, as zeroes: `may_zero` is told of it before, in bytes of a disk that follow one
    /// another, and says whether it may be.
    ///
    /// # Errors
    /// As [`Image::promote`]; where it may not, what reading it fails with.
    pub fn promote_past(
        &self,
        pace: impl Fn(u64) -> bool,
        mut may_zero: impl FnMut(DiskIndex, &[ByteRange]) -> bool,
    ) -> Result<Promotion, ImageError> {
        if !self.is_writable() {
            return Err(ImageError::ReadOnly);
        }
        for (at, overlay) in self.overlays().iter().enumerate() {
            let disk = DiskIndex(at as u16);
            let whole = ByteRange::new(0, self.sizes()[at]);
            let mut unflushed = 0;
            for step in whole.split_at_multiples(STEP_BYTES) {
                let missing: u64 =
                    overlay.runs(step).iter().filter(|(_, own)| !own).map(|(range, _)| range.len).sum();
                if missing == 0 {
                    continue;
                }
                if !pace(missing) {
                    return Ok(self.promotion());
                }
                if unflushed >= FLUSH_BYTES {
                    self.flush(disk)?;
                    unflushed = 0;
                }
                match self.bring(disk, step, &[]) {
                    Err(error) if error.is_loss() => {
                        let lost = self.lost_in(disk, step)?;
                        if lost.is_empty() || !may_zero(disk, &lost) {
                            return Err(error);
                        }
                        self.bring(disk, step, &lost)?;
                    }
                    brought => brought?,
                }
                unflushed += missing;
            }
            self.flush(disk)?;
        }
        self.unpin();
        Ok(self.promotion())
    }

    /// Copies up what is not the image's own of a step; what is lost of it as zeroes.
    fn bring(&self, disk: DiskIndex, step: ByteRange, lost: &[ByteRange]) -> Result<(), ImageError> {
        let _reading = self.reading();
        self.overlays()[usize::from(disk.0)].copy_up(step, |start, buf| {
            let end = start + buf.len() as u64;
            let (mut at, mut rest) = (start, buf);
            for lost in lost.iter().filter(|lost| lost.start < end && lost.end() > start) {
                let (from, to) = (lost.start.max(start), lost.end().min(end));
                let (there, after) = rest.split_at_mut((from - at) as usize);
                if !there.is_empty() {
                    self.below(disk, at, there)?;
                }
                let (zeroes, after) = after.split_at_mut((to - from) as usize);
                zeroes.fill(0);
                (at, rest) = (to, after);
            }
            if rest.is_empty() { Ok(()) } else { self.below(disk, at, rest) }
        })
    }

    /// Which bytes of a step that are not the image's own are lost: its sectors one by one, ascending, those beside each
    /// other as one.
    fn lost_in(&self, disk: DiskIndex, step: ByteRange) -> Result<Vec<ByteRange>, ImageError> {
        let mut lost: Vec<ByteRange> = Vec::new();
        let _reading = self.reading();
        for (run, _) in self.overlays()[usize::from(disk.0)].runs(step).into_iter().filter(|(_, own)| !own) {
            for block in run.split_at_multiples(PAGE_BYTES) {
                if self.is_there(disk, block)? {
                    continue;
                }
                for sector in block.split_at_multiples(SECTOR_BYTES) {
                    match lost.last_mut() {
                        _ if self.is_there(disk, sector)? => {}
                        Some(last) if last.end() == sector.start => last.len += sector.len,
                        _ => lost.push(sector),
                    }
                }
            }
        }
        Ok(lost)
    }

    fn is_there(&self, disk: DiskIndex, range: ByteRange) -> Result<bool, ImageError> {
        match self.below(disk, range.start, &mut vec![0; range.len as usize]) {
            Err(error) if error.is_loss() => Ok(false),
            read => read.map(|()| true),
        }
    }
}
