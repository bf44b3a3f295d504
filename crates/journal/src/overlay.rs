//! The overlay of a writable image's disk: a sparse data file and maps of the 4 KiB blocks it holds.
//!
//! Three files, because two kinds of crash need two promises:
//!
//! - `data` holds the blocks at their own place.
//! - `now` is the map as it is now, kept in the page cache and never synced but when it is made. It survives the death of
//!   the agent, so a guest that goes on after a `kill -9` reads back every write it was acknowledged.
//!   It carries the host's boot id and is believed only within that boot, and not after a flush has failed. Where that has
//!   rotted nobody knows, and what only `now` has is an error.
//! - `flushed` is the map as of the last flush. On a flush the data is synced first and the map after it, so
//!   that after a loss of power no block is taken from the data file that never reached the disk: the
//!   block below, older but whole, is read instead.
//!
//! What a flush that fails was about is on the disk or not, and counts as clean: the next one would be told as done without
//! it. So `now` also knows which regions were written since the last flush, from before they are. Whoever finds such
//! regions when the overlay is opened within the same boot has them *in doubt*, whether a flush had failed, and could say
//! so, or the agent was killed: they are written once more before they are read or his next flush is told, in steps that
//! last each. After a reboot nothing is in doubt, for what is read then comes from the disk.
//!
//! What the maps look like is in `overlay/map_file.rs`. Where a sector of one has rotted, whose the blocks are that it
//! tells of is not known, and reading or writing them is an error.

mod bits;
mod error;
mod map_file;
mod opening;
mod version_1;

use crate::store::{Store, StoreFile};
use bits::{BLOCK, Bits, REGION, runs_of, told_by};
use map_file::Header;
use opening::Files;
use std::io;
use std::sync::Arc;
use threads::sync::atomic::{AtomicU64, Ordering};
use threads::sync::{Mutex, MutexGuard};
use types::ByteRange;

pub use error::OverlayError;

/// Regions in doubt that are written again in one step, under the lock.
const REGIONS_A_STEP: usize = 16;
/// Sectors of a map that are looked at in one step of a scrub, under the lock.
const SECTORS_A_LOOK: usize = 2048;

/// The new blocks of one disk of an image.
#[derive(Debug)]
pub struct Overlay {
    data: Arc<dyn StoreFile>,
    files: Files,
    size_bytes: u64,
    boot_id: [u8; 16],
    bits: Mutex<Bits>,
    /// As `bits` has them, for whoever must not wait for a flush.
    held_blocks: AtomicU64,
    regions_in_doubt: AtomicU64,
    had_failed: bool,
    damage: Vec<String>,
}

impl Overlay {
    /// Opens the overlay of a disk of `size_bytes`, or makes an empty one.
    ///
    /// # Errors
    /// [`OverlayError::Map`] where the map is of another disk.
    pub fn open(
        store: &dyn Store,
        folder: &str,
        disk: &str,
        size_bytes: u64,
        boot_id: [u8; 16],
    ) -> Result<Self, OverlayError> {
        let prefix = format!("{folder}/{disk}");
        let data = store.open(&format!("{prefix}.data"), true)?;
        data.set_len(size_bytes)?;
        let files = Files::open(store, &prefix, size_bytes)?;
        let bits = files.take_up(store, &prefix, boot_id)?;
        let held_blocks = AtomicU64::new(bits::count(&bits.own));
        let regions_in_doubt = AtomicU64::new(bits.doubt.len() as u64);
        let places = bits.rotten_places(files.blocks).into_iter();
        let damage = places.map(|at| format!("{} at byte {at}", files.flushed.name)).collect();
        let had_failed = bits.had_failed;
        let bits = Mutex::new(bits);
        Ok(Self { data, files, size_bytes, boot_id, bits, held_blocks, regions_in_doubt, had_failed, damage })
    }

    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().expect("a panic aborts the process")
    }

    fn check_is_known(&self, bits: &Bits, range: ByteRange) -> Result<(), OverlayError> {
        bits.check_is_known(range).map_err(|sector| {
            let told = told_by(sector);
            OverlayError::Rotten {
                name: self.files.flushed.name.clone(),
                at: self.files.blocks.at(sector),
                from: told.start,
                to: told.end().min(self.size_bytes),
            }
        })
    }

    /// Fills `buf` from `start`; what the overlay does not hold is asked of `below`.
    ///
    /// # Errors
    /// What `below` fails with, or an [`OverlayError`] converted to it.
    pub fn read_at<E: From<OverlayError>>(
        &self,
        start: u64,
        buf: &mut [u8],
        mut below: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = ByteRange::new(start, buf.len() as u64);
        let runs = {
            let mut bits = self.lock();
            self.check_is_known(&bits, range)?;
            self.settle(&mut bits, range).map_err(OverlayError::Io)?;
            bits.runs(range)
        };
        for (range, own) in runs {
            let at = (range.start - start) as usize;
            let part = &mut buf[at..at + range.len as usize];
            if own {
                self.data.read_at(range.start, part).map_err(OverlayError::Io)?;
                // Only then: what was read before the flush failed is right.
                self.lock().check_is_there(range)?;
            } else {
                below(range.start, part)?;
            }
        }
        Ok(())
    }

    /// The range in runs of blocks that are all the overlay's, or all not.
    pub fn runs(&self, range: ByteRange) -> Vec<(ByteRange, bool)> {
        self.lock().runs(range)
    }

    /// Writes `bytes` at `start`; blocks only partly covered are completed from `below`.
    ///
    /// # Errors
    /// What `below` fails with, or an [`OverlayError`] converted to it.
    pub fn write_at<E: From<OverlayError>>(
        &self,
        start: u64,
        bytes: &[u8],
        mut below: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = ByteRange::new(start, bytes.len() as u64);
        let mut bits = self.lock();
        self.begin_write(&mut bits, range)?;
        self.complete_edges(&bits, range, &mut below)?;
        self.data.write_at(start, bytes).map_err(OverlayError::Io)?;
        self.mark(&mut bits, range).map_err(OverlayError::Io)?;
        Ok(())
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As [`Overlay::write_at`].
    pub fn zero<E: From<OverlayError>>(
        &self,
        range: ByteRange,
        mut below: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bits = self.lock();
        self.begin_write(&mut bits, range)?;
        self.complete_edges(&bits, range, &mut below)?;
        self.data.zero(range).map_err(OverlayError::Io)?;
        self.mark(&mut bits, range).map_err(OverlayError::Io)?;
        Ok(())
    }

    /// Makes every block of `range` the overlay's own, bringing from `below` what it does not hold. Zeroes
    /// stay holes.
    ///
    /// # Errors
    /// As [`Overlay::write_at`].
    pub(crate) fn copy_up<E: From<OverlayError>>(
        &self,
        range: ByteRange,
        mut below: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Held throughout: a guest's write to one of these blocks must not be copied over.
        let mut bits = self.lock();
        self.begin_write(&mut bits, range)?;
        for (run, own) in bits.runs(range) {
            if own {
                continue;
            }
            let mut bytes = vec![0; run.len as usize];
            below(run.start, &mut bytes)?;
            self.put(run, &bytes).map_err(OverlayError::Io)?;
            self.mark(&mut bits, run).map_err(OverlayError::Io)?;
        }
        Ok(())
    }

    /// Whether a range may be written; if so, that its regions are is known from here on.
    fn begin_write(&self, bits: &mut Bits, range: ByteRange) -> Result<(), OverlayError> {
        bits.check_is_well()?;
        self.check_is_known(bits, range)?;
        let regions = range.units(REGION);
        let sectors = bits::set(&self.files.now, self.files.regions, &mut bits.fresh, &regions)?;
        bits.fresh_sectors.extend(sectors);
        Ok(())
    }

    /// Writes bytes to their place; zeroes as a hole.
    fn put(&self, range: ByteRange, bytes: &[u8]) -> io::Result<()> {
        if batch::is_zero(bytes) {
            return self.data.zero(range);
        }
        self.data.write_at(range.start, bytes)
    }

    /// Copies up the first and the last block of `range` where it covers them only in part.
    fn complete_edges<E: From<OverlayError>>(
        &self,
        bits: &Bits,
        range: ByteRange,
        below: &mut impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if range.is_empty() {
            return Ok(());
        }
        let (first, last) = (range.start / BLOCK, (range.end() - 1) / BLOCK);
        for block in [first, last] {
            let start = block * BLOCK;
            let whole = ByteRange::new(start, BLOCK.min(self.size_bytes - start));
            let covered = range.start <= whole.start && whole.end() <= range.end();
            if covered || bits.has(block) {
                continue;
            }
            let mut old = vec![0; whole.len as usize];
            below(whole.start, &mut old)?;
            self.data.write_at(whole.start, &old).map_err(OverlayError::Io)?;
        }
        Ok(())
    }

    /// Makes all blocks of a range the overlay's own, by one write to the map.
    fn mark(&self, bits: &mut Bits, range: ByteRange) -> io::Result<()> {
        let blocks = range.units(BLOCK);
        let before = bits.own_of(&blocks);
        let sectors = bits::set(&self.files.now, self.files.blocks, &mut bits.own, &blocks)?;
        self.held_blocks.fetch_add(bits.own_of(&blocks) - before, Ordering::Relaxed);
        bits.unsynced.extend(sectors);
        Ok(())
    }

    /// Makes every write so far durable. What is in doubt is written again first, a step at a time: others go on between.
    ///
    /// # Errors
    /// As the file system says; after one every write and flush fails with [`OverlayError::Failed`], and every read of
    /// regions that were written since the flush before.
    pub fn flush(&self) -> Result<(), OverlayError> {
        loop {
            let mut bits = self.lock();
            bits.check_is_well()?;
            let flushed = self.write_again(&mut bits).and_then(|()| self.flush_all(&mut bits));
            if let Err(error) = flushed {
                self.fail(&mut bits);
                return Err(error.into());
            }
            if bits.doubt.is_empty() {
                return Ok(());
            }
        }
    }

    /// Nothing is taken any more. Whoever opens it next within this boot is to take the map as of the last flush. Where
    /// that cannot be written down he takes what is there; what of it is in doubt he knows all the same.
    fn fail(&self, bits: &mut Bits) {
        let durable = self.files.flushed.load(self.files.blocks).map(|loaded| loaded.bits);
        bits.failed = Some(durable.unwrap_or_else(|_| vec![0; bits.own.len()]));
        let _ = self.files.now.write_header(&Header { has_failed: true, ..self.header() });
    }

    fn header(&self) -> Header {
        Header { blocks: self.size_bytes.div_ceil(BLOCK), boot_id: self.boot_id, has_failed: false }
    }

    /// Writes some of what is in doubt once more, as it is read.
    fn write_again(&self, bits: &mut Bits) -> io::Result<()> {
        let step = bits.doubt.iter().take(REGIONS_A_STEP).copied().collect();
        self.write_regions_again(bits, step)
    }

    /// What is in doubt of a range is written again before it is shown: once the kernel has dropped what it gave up, what was
    /// there before would be read, and a guest would see its disk change by itself.
    fn settle(&self, bits: &mut Bits, range: ByteRange) -> io::Result<()> {
        if bits.doubt.is_empty() || bits.failed.is_some() {
            return Ok(());
        }
        let shown = bits.doubt.range(range.units(REGION)).copied().collect();
        self.write_regions_again(bits, shown)
    }

    fn write_regions_again(&self, bits: &mut Bits, regions: Vec<u64>) -> io::Result<()> {
        for region in regions {
            let start = region * REGION;
            let range = ByteRange::new(start, REGION.min(self.size_bytes - start));
            for (run, _) in bits.runs(range).into_iter().filter(|(_, own)| *own) {
                let mut bytes = vec![0; run.len as usize];
                self.data.read_at(run.start, &mut bytes)?;
                self.put(run, &bytes)?;
            }
            bits.doubt.remove(&region);
        }
        self.regions_in_doubt.store(bits.doubt.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn flush_all(&self, bits: &mut Bits) -> io::Result<()> {
        let Files { now, flushed, blocks, regions, .. } = &self.files;
        self.data.sync_data()?;
        // Of what is in doubt the data may not be on the disk yet.
        if bits.doubt.is_empty() && !bits.unsynced.is_empty() {
            // Also the header: what is read of it may not be on the disk, where whoever made it could not sync it.
            flushed.write_header(&self.header())?;
            for sectors in runs_of(bits.unsynced.iter().copied()) {
                flushed.put(*blocks, &bits.own, sectors)?;
            }
            flushed.sync()?;
            bits.unsynced.clear();
        }
        // Only once all of it is on the disk.
        let sectors = std::mem::take(&mut bits.fresh_sectors);
        sectors.iter().for_each(|sector| bits.fresh[regions.bytes_of(*sector)].fill(0));
        for region in &bits.doubt {
            bits.fresh[(region / 8) as usize] |= 1 << (region % 8);
        }
        bits.fresh_sectors = bits::sectors_with(&bits.doubt);
        runs_of(sectors).into_iter().try_for_each(|sectors| now.put(*regions, &bits.fresh, sectors))
    }

    /// Reads the map of the last flush from the disk again, and makes anew what has rotted there; the places of that. What
    /// had rotted before the overlay was opened is not known, and stays so.
    ///
    /// # Errors
    /// As the file system says, and as [`Overlay::flush`].
    pub fn scrub(&self, store: &dyn Store) -> Result<Vec<String>, OverlayError> {
        let (flushed, blocks) = (self.files.flushed.on_disk(store)?, self.files.blocks);
        let mut places = Vec::new();
        for first in (0..blocks.sectors()).step_by(SECTORS_A_LOOK) {
            // Held, so that no sector is being written meanwhile.
            let mut bits = self.lock();
            let part = first..blocks.sectors().min(first + SECTORS_A_LOOK);
            let mut rotten = flushed.rotten(blocks, part)?;
            rotten.retain(|sector| !bits.rotten.contains(sector));
            places.extend(
                rotten.iter().map(|sector| format!("{} at byte {}", flushed.name, blocks.at(*sector))),
            );
            bits.unsynced.extend(rotten);
        }
        if !places.is_empty() {
            self.flush()?;
        }
        Ok(places)
    }

    /// Where the map had rotted when the overlay was opened: reading what that tells of is an error.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Whether a flush had failed when it was opened, so that what is in doubt may be lost.
    pub fn had_failed(&self) -> bool {
        self.had_failed
    }

    /// Bytes that are to be written again before a flush is told.
    pub fn in_doubt_bytes(&self) -> u64 {
        self.regions_in_doubt.load(Ordering::Relaxed) * REGION
    }

    /// Bytes of blocks the overlay holds.
    pub fn held_bytes(&self) -> u64 {
        self.held_blocks.load(Ordering::Relaxed) * BLOCK
    }
}
