//! The overlay of a writable image's disk: a sparse data file and a map of the 4 KiB blocks it holds.
//!
//! Three files, because two kinds of crash need two promises:
//!
//! - `data` holds the blocks at their own place.
//! - `live` is the map as it is now, kept in the page cache and never synced. It survives the death of
//!   the agent, so a guest that goes on after a `kill -9` reads back every write it was acknowledged.
//!   It carries the host's boot id and is believed only within that boot, and not after a flush has failed.
//! - `map` is the map as of the last flush. On a flush the data is synced first and the map after it, so
//!   that after a loss of power no block is taken from the data file that never reached the disk: the
//!   block below, older but whole, is read instead.
//!
//! ```text
//! map, live:   0  [4] magic "HFOV"   4  u32 version   8  u64 blocks   16  [16] boot id   32  bits, LSB first
//! ```

use crate::store::{Store, StoreFile};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use types::ByteRange;

const BLOCK: u64 = 4096;
const MAGIC: [u8; 4] = *b"HFOV";
/// 1: the first.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
/// In `live`, after a flush has failed: it is believed in no boot.
const NO_BOOT: [u8; 16] = [0; 16];
/// The map is made durable in pieces of this many bytes.
const MAP_PAGE: usize = 4096;

/// Why an overlay could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("overlay map {name}: {what}")]
    Map { name: String, what: &'static str },
    #[error(
        "the overlay could not be made durable before: what was written since the last flush may be lost; mend the \
         disk and start the agent anew, or close the image"
    )]
    Failed,
    #[error("cannot read or write the overlay")]
    Io(#[from] io::Error),
}

/// The new blocks of one disk of an image.
#[derive(Debug)]
pub struct Overlay {
    data: Arc<dyn StoreFile>,
    live: Arc<dyn StoreFile>,
    map: Arc<dyn StoreFile>,
    size_bytes: u64,
    bits: Mutex<Bits>,
}

#[derive(Debug)]
struct Bits {
    bytes: Vec<u8>,
    /// Pages of `bytes` that `map` does not have yet.
    unsynced: BTreeSet<usize>,
    /// A flush has failed. Nobody knows which writes are on the disk, and the next sync would succeed without them. The
    /// blocks that were durable before: any other may read as zeroes once the kernel has dropped what it gave up.
    failed: Option<Vec<u8>>,
}

impl Bits {
    fn check_is_well(&self) -> Result<(), OverlayError> {
        if self.failed.is_some() { Err(OverlayError::Failed) } else { Ok(()) }
    }

    /// Whether blocks of its own can be read.
    fn check_is_there(&self, range: ByteRange) -> Result<(), OverlayError> {
        let Some(durable) = &self.failed else { return Ok(()) };
        let is_there = range.units(BLOCK).all(|block| has_bit(durable, block));
        if is_there { Ok(()) } else { Err(OverlayError::Failed) }
    }

    fn has(&self, block: u64) -> bool {
        has_bit(&self.bytes, block)
    }
}

impl Overlay {
    /// Opens the overlay of a disk of `size_bytes`, or makes an empty one.
    ///
    /// # Errors
    /// [`OverlayError::Map`] where the map is of another disk or damaged.
    pub fn open(
        store: &dyn Store,
        folder: &str,
        disk: &str,
        size_bytes: u64,
        boot_id: [u8; 16],
    ) -> Result<Self, OverlayError> {
        let name = |part: &str| format!("{folder}/{disk}.{part}");
        let data = store.open(&name("data"), true)?;
        data.set_len(size_bytes)?;
        let blocks = size_bytes.div_ceil(BLOCK);
        let live = store.open(&name("live"), true)?;
        let map = store.open(&name("map"), true)?;
        let durable = load_map(&*map, blocks, None).map_err(|what| named(what, &name("map")))?;
        let current = load_map(&*live, blocks, Some(boot_id)).map_err(|what| named(what, &name("live")))?;
        let is_new = durable.is_none();
        if let Some(bits) = durable.as_ref().filter(|_| has_failed(&*live)) {
            write_again(&*data, size_bytes, bits)?;
        }
        let bytes = current.or(durable).unwrap_or_else(|| vec![0; blocks.div_ceil(8) as usize]);
        // Also of the map itself: where a flush has failed, what is read of it may not be on the disk.
        let unsynced = if is_new { BTreeSet::new() } else { (0..bytes.len().div_ceil(MAP_PAGE)).collect() };
        let header = encode_header(blocks, boot_id);
        live.set_len((HEADER_BYTES + bytes.len()) as u64)?;
        live.write_at(HEADER_BYTES as u64, &bytes)?;
        live.write_at(0, &header)?;
        if is_new {
            map.set_len((HEADER_BYTES + bytes.len()) as u64)?;
            map.write_at(0, &header)?;
            map.sync_data()?;
        }
        // Also where it is not new: whoever made it may not have come to this.
        store.sync_folder()?;
        Ok(Self { data, live, map, size_bytes, bits: Mutex::new(Bits { bytes, unsynced, failed: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().expect("a panic aborts the process")
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
        let runs = self.runs(ByteRange::new(start, buf.len() as u64));
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
        runs_of(&self.lock(), range)
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
        bits.check_is_well()?;
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
        bits.check_is_well()?;
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
        bits.check_is_well()?;
        for (run, own) in runs_of(&bits, range) {
            if own {
                continue;
            }
            let mut bytes = vec![0; run.len as usize];
            below(run.start, &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                self.data.write_at(run.start, &bytes).map_err(OverlayError::Io)?;
            } else {
                self.data.zero(run).map_err(OverlayError::Io)?;
            }
            self.mark(&mut bits, run).map_err(OverlayError::Io)?;
        }
        Ok(())
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
        if blocks.is_empty() {
            return Ok(());
        }
        let bytes = (blocks.start / 8) as usize..((blocks.end - 1) / 8 + 1) as usize;
        let mut wanted = bits.bytes[bytes.clone()].to_vec();
        for (at, byte) in bytes.clone().zip(&mut wanted) {
            let first = at as u64 * 8;
            let from = blocks.start.max(first) - first;
            let to = blocks.end.min(first + 8) - first;
            *byte |= ((0xff_u16 << from) & (0xff_u16 >> (8 - to))) as u8;
        }
        if wanted != bits.bytes[bytes.clone()] {
            self.live.write_at((HEADER_BYTES + bytes.start) as u64, &wanted)?;
            bits.bytes[bytes.clone()].copy_from_slice(&wanted);
            bits.unsynced.extend(bytes.start / MAP_PAGE..(bytes.end - 1) / MAP_PAGE + 1);
        }
        Ok(())
    }

    /// Makes every write so far durable.
    ///
    /// # Errors
    /// As the file system says; after one every write and flush fails with [`OverlayError::Failed`], and every read of
    /// what was not durable before.
    pub fn flush(&self) -> Result<(), OverlayError> {
        let mut bits = self.lock();
        bits.check_is_well()?;
        let flushed = self.flush_all(&mut bits);
        if flushed.is_err() {
            let none = || vec![0; bits.bytes.len()];
            let durable = load_map(&*self.map, self.size_bytes.div_ceil(BLOCK), None).ok().flatten();
            bits.failed = Some(durable.unwrap_or_else(none));
            // Whoever opens it next, also in this boot, is to take the map as of the last flush.
            self.live.write_at(0, &encode_header(0, NO_BOOT))?;
        }
        Ok(flushed?)
    }

    fn flush_all(&self, bits: &mut Bits) -> io::Result<()> {
        self.data.sync_data()?;
        if bits.unsynced.is_empty() {
            return Ok(());
        }
        for page in &bits.unsynced {
            let from = page * MAP_PAGE;
            let to = (from + MAP_PAGE).min(bits.bytes.len());
            self.map.write_at((HEADER_BYTES + from) as u64, &bits.bytes[from..to])?;
        }
        self.map.sync_data()?;
        bits.unsynced.clear();
        Ok(())
    }

    /// Bytes of blocks the overlay holds.
    pub fn held_bytes(&self) -> u64 {
        self.lock().bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>() * BLOCK
    }
}

/// Whether a flush has failed since it was last opened.
fn has_failed(live: &dyn StoreFile) -> bool {
    let mut header = [0; HEADER_BYTES];
    live.read_at(0, &mut header).is_ok() && header == encode_header(0, NO_BOOT)
}

/// Writes the blocks that a map has once more, as they are read.
fn write_again(data: &dyn StoreFile, size_bytes: u64, bits: &[u8]) -> io::Result<()> {
    for block in (0..size_bytes.div_ceil(BLOCK)).filter(|&block| has_bit(bits, block)) {
        let mut bytes = vec![0; BLOCK.min(size_bytes - block * BLOCK) as usize];
        data.read_at(block * BLOCK, &mut bytes)?;
        data.write_at(block * BLOCK, &bytes)?;
    }
    Ok(())
}

fn has_bit(bits: &[u8], block: u64) -> bool {
    bits[(block / 8) as usize] & (1 << (block % 8)) != 0
}

fn runs_of(bits: &Bits, range: ByteRange) -> Vec<(ByteRange, bool)> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for piece in range.split_at_multiples(BLOCK) {
        let own = bits.has(piece.start / BLOCK);
        match runs.last_mut() {
            Some((last, kind)) if *kind == own => last.len += piece.len,
            _ => runs.push((piece, own)),
        }
    }
    runs
}

fn named(what: MapFault, name: &str) -> OverlayError {
    match what {
        MapFault::Not(what) => OverlayError::Map { name: name.to_owned(), what },
        MapFault::Io(error) => OverlayError::Io(error),
    }
}

enum MapFault {
    Not(&'static str),
    Io(io::Error),
}

fn encode_header(blocks: u64, boot_id: [u8; 16]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&VERSION.to_le_bytes());
    header[8..16].copy_from_slice(&blocks.to_le_bytes());
    header[16..].copy_from_slice(&boot_id);
    header
}

/// The bits of a map file; none where it is empty, or was kept in another boot than `boot_id`.
fn load_map(
    file: &dyn StoreFile,
    blocks: u64,
    boot_id: Option<[u8; 16]>,
) -> Result<Option<Vec<u8>>, MapFault> {
    let expected = HEADER_BYTES as u64 + blocks.div_ceil(8);
    let len = file.len().map_err(MapFault::Io)?;
    if len < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header).map_err(MapFault::Io)?;
    if let Some(boot_id) = boot_id
        && header != encode_header(blocks, boot_id)
    {
        return Ok(None);
    }
    if header[..4] != MAGIC || header[4..8] != VERSION.to_le_bytes() {
        return Err(MapFault::Not("the magic or version does not match"));
    }
    if len != expected || header[8..16] != blocks.to_le_bytes() {
        return Err(MapFault::Not("made for a disk of another size"));
    }
    let mut bits = vec![0; blocks.div_ceil(8) as usize];
    file.read_at(HEADER_BYTES as u64, &mut bits).map_err(MapFault::Io)?;
    Ok(Some(bits))
}
