//! What an overlay knows of its blocks, in memory.

use super::error::OverlayError;
use super::map_file::{MapFile, SECTOR_BITS, Section};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use types::ByteRange;

pub(super) const BLOCK: u64 = 4096;
/// What was written since the last flush is known by regions of so many bytes.
pub(super) const REGION: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Bits {
    /// Blocks that are the overlay's own.
    pub(super) own: Vec<u8>,
    /// Sectors of `own` that the file of the last flush does not have yet.
    pub(super) unsynced: BTreeSet<usize>,
    /// Sectors of `own` that had rotted: whose their blocks are is not known.
    pub(super) rotten: BTreeSet<usize>,
    /// Regions that were written since the last flush, and those in doubt.
    pub(super) fresh: Vec<u8>,
    /// Sectors of `fresh` with regions in them.
    pub(super) fresh_sectors: BTreeSet<usize>,
    /// Regions of which it is not known whether what is read of them is on the disk: they are written again before the
    /// next flush is told.
    pub(super) doubt: BTreeSet<u64>,
    /// What is in doubt is so for a flush that failed before the overlay was opened.
    pub(super) had_failed: bool,
    /// A flush has failed. Nobody knows which writes are on the disk, and the next sync would succeed without them. The
    /// blocks that were durable before: any other may read as zeroes once the kernel has dropped what it gave up.
    pub(super) failed: Option<Vec<u8>>,
}

impl Bits {
    pub(super) fn check_is_well(&self) -> Result<(), OverlayError> {
        if self.failed.is_some() { Err(OverlayError::Failed) } else { Ok(()) }
    }

    /// Where its map is not known, by the places in the file.
    pub(super) fn rotten_places(&self, section: Section) -> Vec<u64> {
        runs_of(self.rotten.iter().copied()).iter().map(|run| section.at(run.start)).collect()
    }

    /// Whether blocks of its own can be read: what was written since the last flush that went well may be there, and what was
    /// there before it once the kernel has dropped what it gave up.
    pub(super) fn check_is_there(&self, range: ByteRange) -> Result<(), OverlayError> {
        let Some(durable) = &self.failed else { return Ok(()) };
        let is_there = range.units(BLOCK).all(|block| has_bit(durable, block));
        let is_older = !range.units(REGION).any(|region| has_bit(&self.fresh, region));
        if is_there && is_older { Ok(()) } else { Err(OverlayError::Failed) }
    }

    /// Whether it is known of every block of a range whose it is. Else the sector that would tell.
    pub(super) fn check_is_known(&self, range: ByteRange) -> Result<(), usize> {
        let sectors = Section::sectors_of(&range.units(BLOCK));
        match self.rotten.range(sectors).next() {
            None => Ok(()),
            Some(sector) => Err(*sector),
        }
    }

    pub(super) fn has(&self, block: u64) -> bool {
        has_bit(&self.own, block)
    }

    /// How many of some blocks are the overlay's own.
    pub(super) fn own_of(&self, blocks: &Range<u64>) -> u64 {
        if blocks.is_empty() {
            return 0;
        }
        // Bits around them do not change meanwhile.
        count(&self.own[(blocks.start / 8) as usize..((blocks.end - 1) / 8 + 1) as usize])
    }

    /// The range in runs of blocks that are all the overlay's, or all not.
    pub(super) fn runs(&self, range: ByteRange) -> Vec<(ByteRange, bool)> {
        let mut runs: Vec<(ByteRange, bool)> = Vec::new();
        for piece in range.split_at_multiples(BLOCK) {
            let own = self.has(piece.start / BLOCK);
            match runs.last_mut() {
                Some((last, kind)) if *kind == own => last.len += piece.len,
                _ => runs.push((piece, own)),
            }
        }
        runs
    }
}

pub(super) fn has_bit(bits: &[u8], bit: u64) -> bool {
    bits[(bit / 8) as usize] & (1 << (bit % 8)) != 0
}

pub(super) fn set_bits_of(bits: &[u8]) -> impl Iterator<Item = u64> {
    let set = bits.iter().enumerate().filter(|(_, byte)| **byte != 0);
    set.flat_map(|(at, _)| at as u64 * 8..at as u64 * 8 + 8).filter(|bit| has_bit(bits, *bit))
}

pub(super) fn count(bits: &[u8]) -> u64 {
    bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// Sets a run of bits, by one write to the file: here only once it is there. The sectors where something has changed.
pub(super) fn set(
    file: &MapFile,
    section: Section,
    bits: &mut [u8],
    run: &Range<u64>,
) -> io::Result<Range<usize>> {
    if run.is_empty() {
        return Ok(0..0);
    }
    let bytes = (run.start / 8) as usize..((run.end - 1) / 8 + 1) as usize;
    let before = bits[bytes.clone()].to_vec();
    for at in bytes.clone() {
        let first = at as u64 * 8;
        let from = run.start.max(first) - first;
        let to = run.end.min(first + 8) - first;
        bits[at] |= ((0xff_u16 << from) & (0xff_u16 >> (8 - to))) as u8;
    }
    if before == bits[bytes.clone()] {
        return Ok(0..0);
    }
    let sectors = Section::sectors_of(run);
    file.put(section, bits, sectors.clone()).inspect_err(|_| bits[bytes].copy_from_slice(&before))?;
    Ok(sectors)
}

/// The sectors that hold the bits of these regions.
pub(super) fn sectors_with(regions: &BTreeSet<u64>) -> BTreeSet<usize> {
    regions.iter().map(|region| (region / SECTOR_BITS) as usize).collect()
}

/// Sectors in runs that follow each other.
pub(super) fn runs_of(sectors: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for sector in sectors {
        match runs.last_mut() {
            Some(last) if last.end == sector => last.end += 1,
            _ => runs.push(sector..sector + 1),
        }
    }
    runs
}

/// The bytes that one sector of blocks tells of.
pub(super) fn told_by(sector: usize) -> ByteRange {
    ByteRange::new(sector as u64 * SECTOR_BITS * BLOCK, SECTOR_BITS * BLOCK)
}
