//! Opening an overlay: what its files have, and having them say it for this boot.

use super::bits::{BLOCK, Bits, REGION, runs_of, sectors_with, set_bits_of};
use super::error::OverlayError;
use super::map_file::{Header, Loaded, MapFile, Section};
use super::version_1::Version1;
use crate::store::Store;
use std::collections::BTreeSet;
use std::io;

/// The map files of an overlay, and what stands in them where.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) now: MapFile,
    pub(super) flushed: MapFile,
    pub(super) blocks: Section,
    /// Of `now` only.
    pub(super) regions: Section,
    size_bytes: u64,
}

/// What was found of an overlay.
struct Found {
    own: Loaded,
    /// Regions in doubt.
    fresh: Vec<u8>,
    now: Now,
}

/// What `now` is.
#[derive(PartialEq, Eq)]
enum Now {
    /// As it has to be.
    Right,
    /// Of before a flush that has failed: its regions are right, and kept until they were written again.
    Failed,
    /// Of another boot, or of none that is known.
    Other,
}

impl Files {
    pub(super) fn open(store: &dyn Store, prefix: &str, size_bytes: u64) -> io::Result<Self> {
        let blocks = Section::of_bits(size_bytes.div_ceil(BLOCK), None);
        Ok(Self {
            now: MapFile::open(store, format!("{prefix}.now"))?,
            flushed: MapFile::open(store, format!("{prefix}.flushed"))?,
            blocks,
            regions: Section::of_bits(size_bytes.div_ceil(REGION), Some(blocks)),
            size_bytes,
        })
    }

    /// Finds what stands there, and has it stand so for this boot.
    pub(super) fn take_up(
        &self,
        store: &dyn Store,
        prefix: &str,
        boot_id: [u8; 16],
    ) -> Result<Bits, OverlayError> {
        let header = Header { blocks: self.size_bytes.div_ceil(BLOCK), boot_id, has_failed: false };
        let old = Version1::load(store, prefix, header.blocks, boot_id)?
            .map_err(|what| OverlayError::Map { name: format!("{prefix}.map"), what })?;
        let is_made = self.flushed.header()?;
        // One whose header has rotted, or reads as zeroes, has its bits all the same.
        let is_new = is_made.is_none() && (old.is_some() || !self.flushed.holds_anything()?);
        if is_new {
            self.flushed.clear(self.blocks.end())?;
        }
        let blocks = is_made.map_or(header.blocks, |made| made.blocks);
        if blocks != header.blocks || self.flushed.len()? != self.blocks.end() {
            let name = self.flushed.name.clone();
            return Err(OverlayError::Map { name, what: "made for a disk of another size" });
        }
        let found = match &old {
            // As long as it is there nobody has used the files of the newer form.
            Some(old) => self.found_of_version_1(old)?,
            None => self.found(&header)?,
        };
        self.make_now(&found, &header)?;
        if is_made.is_none() || old.is_some() {
            // Before there is a header, so that one with a header is as long as it has to be.
            self.flushed.sync()?;
            self.flushed.write_header(&header)?;
            self.flushed.sync()?;
        }
        // Also where it is not new: whoever made it may not have come to this.
        store.sync_folder()?;
        if old.is_some() {
            Version1::remove(store, prefix)?;
        }
        Ok(self.bits(found))
    }

    fn found(&self, header: &Header) -> io::Result<Found> {
        if !self.now.len().is_ok_and(|len| len == self.regions.end()) {
            return self.found_of_another_boot();
        }
        let has_failed = match self.now.header()? {
            None => return self.found_of_no_known_boot(),
            Some(now) if (now.blocks, now.boot_id) != (header.blocks, header.boot_id) => {
                return self.found_of_another_boot();
            }
            Some(now) => now.has_failed,
        };
        let fresh = self.fresh_regions()?;
        Ok(match has_failed {
            true => Found { own: self.flushed.load(self.blocks)?, fresh, now: Now::Failed },
            false => Found { own: self.now.load(self.blocks)?, fresh, now: Now::Right },
        })
    }

    fn found_of_another_boot(&self) -> io::Result<Found> {
        let (own, fresh) = (self.flushed.load(self.blocks)?, vec![0; self.regions.bytes]);
        Ok(Found { own, fresh, now: Now::Other })
    }

    /// The header of `now` does not check. Where a block was written since the last flush, what is below is older than
    /// what a guest of this boot was told, and what is in the data file may never have reached the disk before another:
    /// nobody knows which, and neither is read. Whoever made `now`, and died before it had a header, knew no such block.
    fn found_of_no_known_boot(&self) -> io::Result<Found> {
        let (mut own, now) = (self.flushed.load(self.blocks)?, self.now.load(self.blocks)?);
        let has_more =
            |sector: &usize| self.blocks.bytes_of(*sector).any(|at| now.bits[at] & !own.bits[at] != 0);
        let is_unknown =
            |sector: &usize| own.rotten.contains(sector) || now.rotten.contains(sector) || has_more(sector);
        own.rotten = (0..self.blocks.sectors()).filter(is_unknown).collect();
        for sector in &own.rotten {
            own.bits[self.blocks.bytes_of(*sector)].fill(0);
        }
        Ok(Found { own, fresh: self.fresh_regions()?, now: Now::Other })
    }

    /// The regions that were written since the last flush, as `now` tells of them.
    fn fresh_regions(&self) -> io::Result<Vec<u8>> {
        let Loaded { bits: mut fresh, rotten } = self.now.load(self.regions)?;
        for sector in rotten {
            // Nobody knows: all of them.
            self.regions.bytes_of(sector).for_each(|at| fresh[at] = 0xff);
        }
        Ok(fresh)
    }

    /// Which writes a failed flush was about is not known of one: all of it is in doubt.
    fn found_of_version_1(&self, old: &Version1) -> io::Result<Found> {
        self.flushed.put(self.blocks, &old.flushed, 0..self.blocks.sectors())?;
        let fresh = if old.has_failed { 0xff } else { 0 };
        let own = Loaded { bits: old.own.clone(), rotten: Vec::new() };
        Ok(Found { own, fresh: vec![fresh; self.regions.bytes], now: Now::Other })
    }

    /// Writes `now` as it was found, and as it has to be.
    fn make_now(&self, found: &Found, header: &Header) -> io::Result<()> {
        if found.now == Now::Other {
            self.now.clear(self.regions.end())?;
        }
        // Also where it is right: whoever made it may have failed to sync it, and then memory alone has what is read of it,
        // and drops that whenever it is short.
        self.now.put(self.regions, &found.fresh, 0..self.regions.sectors())?;
        // What has rotted never checks meanwhile: where an agent dies here it would have no blocks.
        let whole = (0..self.blocks.sectors()).filter(|sector| !found.own.rotten.contains(sector));
        runs_of(whole).into_iter().try_for_each(|part| self.now.put(self.blocks, &found.own.bits, part))?;
        found.own.rotten.iter().try_for_each(|sector| self.now.spoil(self.blocks, *sector))?;
        // Last: an agent that dies before that leaves what is not believed, or is believed to have failed.
        self.now.write_header(header)?;
        if found.now == Now::Right {
            // A sync that failed would give up what was written since the last flush, which is nowhere else.
            return Ok(());
        }
        // So that a loss of power leaves it a header: without one nobody knows whether this boot has ended.
        self.now.sync()
    }

    fn bits(&self, found: Found) -> Bits {
        let Found { own: Loaded { bits: own, rotten }, fresh, now } = found;
        let rotten: BTreeSet<usize> = rotten.into_iter().collect();
        let regions = self.size_bytes.div_ceil(REGION);
        let doubt: BTreeSet<u64> = set_bits_of(&fresh).filter(|region| *region < regions).collect();
        Bits {
            // Also of what is there already: where a flush has failed, what is read of the file may not be on the disk.
            unsynced: (0..self.blocks.sectors()).filter(|sector| !rotten.contains(sector)).collect(),
            fresh_sectors: sectors_with(&doubt),
            own,
            rotten,
            fresh,
            doubt,
            had_failed: now == Now::Failed,
            failed: None,
        }
    }
}
