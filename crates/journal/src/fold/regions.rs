//! What a fold writes, place by place: extents out of two merges, grouped by region, with the wide ones that lie over it.
//!
//! Places come in ascending order and do not overlap, so that several threads may write them side by side. Where nothing
//! but wide extents is, a place is as long as they are: a hole is made in one piece.

use crate::cover::LogKind;
use crate::extent::{Extent, REGION_BYTES, place_key};
use crate::merge::Merge;
use crate::run::RunError;
use types::{ByteRange, DiskIndex, WriteSeq};

/// The extents of one place that are to be folded, ascending by sequence.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) disk: DiskIndex,
    pub(crate) range: ByteRange,
    pub(crate) extents: Vec<Extent>,
}

impl Region {
    /// Where it begins, as [`place_key`] counts.
    pub(crate) fn place(&self) -> u64 {
        place_key(self.disk, self.range.start)
    }
}

/// Which extents are.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Of the disks, in bytes.
    pub(crate) sizes: Vec<u64>,
    pub(crate) above: WriteSeq,
    pub(crate) target: WriteSeq,
}

pub(crate) struct Regions {
    narrow: Merge,
    wide: Merge,
    wanted: Wanted,
    next_narrow: Option<Extent>,
    next_wide: Option<Extent>,
    /// Wide extents over the place that comes next, of each piece the newest: at most one of each length.
    over: Vec<Extent>,
    /// Up to here, as [`place_key`] counts, everything is told of.
    at: u64,
}

fn start_of(extent: &Extent) -> u64 {
    place_key(extent.disk, extent.range.start)
}

fn region_of(extent: &Extent) -> u64 {
    start_of(extent) / REGION_BYTES * REGION_BYTES
}

impl Regions {
    pub(crate) fn new(mut narrow: Merge, mut wide: Merge, wanted: Wanted) -> Result<Self, RunError> {
        let next_narrow = wanted.next(&mut narrow, false)?;
        let next_wide = wanted.next(&mut wide, true)?;
        Ok(Self { narrow, wide, wanted, next_narrow, next_wide, over: Vec::new(), at: 0 })
    }

    /// The next place.
    pub(crate) fn next(&mut self) -> Result<Option<Region>, RunError> {
        let at = self.at;
        self.over.retain(|wide| start_of(wide) + wide.range.len > at);
        if self.over.is_empty() {
            let narrow = self.next_narrow.as_ref().map(region_of);
            let Some(next) = narrow.into_iter().chain(self.next_wide.as_ref().map(start_of)).min() else {
                return Ok(None);
            };
            self.at = next;
        }
        self.take_wide()?;
        let mut extents = self.over.clone();
        let mut end = self.end_of_over();
        if self.next_narrow.as_ref().is_some_and(|next| region_of(next) == self.at) {
            end = end.map(|_| self.at + REGION_BYTES);
            while let Some(extent) = self.next_narrow.take_if(|next| region_of(next) == self.at) {
                end = if self.over.is_empty() {
                    end.max(Some(start_of(&extent) + extent.range.len))
                } else {
                    end
                };
                extents.push(extent);
                self.next_narrow = self.wanted.next(&mut self.narrow, false)?;
            }
        }
        let end = end.expect("something begins here");
        let first = extents.first().expect("something begins here");
        let (disk, base) = (first.disk, place_key(first.disk, 0));
        let range = ByteRange::new(self.at - base, end - self.at);
        self.at = if self.over.is_empty() { self.at + REGION_BYTES } else { end };
        extents.sort_by_key(|extent| extent.seq);
        Ok(Some(Region { disk, range, extents }))
    }

    /// Takes up the wide extents that begin here.
    fn take_wide(&mut self) -> Result<(), RunError> {
        while let Some(extent) = self.next_wide.take_if(|next| start_of(next) == self.at) {
            // Of one piece the newest comes last.
            self.over.retain(|other| other.range != extent.range);
            self.over.push(extent);
            self.next_wide = self.wanted.next(&mut self.wide, true)?;
        }
        Ok(())
    }

    /// Up to where the same wide extents lie over everything, and nothing else; none where there are no wide ones.
    fn end_of_over(&self) -> Option<u64> {
        let ends = self.over.iter().map(|wide| start_of(wide) + wide.range.len);
        let narrow = self.next_narrow.as_ref().map(region_of).filter(|next| *next > self.at);
        let others = narrow.into_iter().chain(self.next_wide.as_ref().map(start_of));
        ends.min().map(|end| others.fold(end, u64::min))
    }
}

impl Wanted {
    fn next(&self, merge: &mut Merge, wide: bool) -> Result<Option<Extent>, RunError> {
        while let Some(extent) = merge.next()? {
            if extent.seq > self.above && extent.seq <= self.target {
                self.check(&extent, wide)?;
                return Ok(Some(extent));
            }
        }
        Ok(None)
    }

    /// Nothing is written past the end of a replica, whatever an index says.
    fn check(&self, extent: &Extent, wide: bool) -> Result<(), RunError> {
        let range = extent.range;
        let fits = self.sizes.get(usize::from(extent.disk.0)).is_some_and(|size| range.fits(*size));
        let is_placed = match wide {
            true => extent.wide_piece().is_some(),
            false => range.start / REGION_BYTES == (range.end() - 1) / REGION_BYTES,
        };
        if fits && is_placed {
            return Ok(());
        }
        let what = "the index has an extent that no disk has a place for";
        Err(RunError::Damaged { name: LogKind::Redo.name().into(), what })
    }
}
