//! A map file of an overlay: bits in sectors, each of which checks by itself, so that rot is found and costs what the
//! sector tells of.
//!
//! ```text
//! sector 0:  0  [4] magic "HFOV"   4  u32 version   8  u64 blocks   16  [16] boot id   32  u8 1: a flush has failed
//!            508  u32 CRC-32C, seeded
//! others:    0  [508] bits, LSB first   508  u32 CRC-32C, seeded
//! ```
//! A checksum is seeded with the number of its sector. A sector of nothing but zeroes has no bits. Each is written as a
//! whole, so that after a loss of power it is the old one or the new one, and checks either way.

use crate::store::{Store, StoreFile};
use batch::is_zero;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use types::limits::SECTOR_BYTES;
use types::{ByteRange, sum_matches};

const SECTOR: usize = SECTOR_BYTES as usize;
/// Bytes of a sector that the checksum covers.
const SUMMED: usize = SECTOR - 4;
/// Bits of one sector.
pub(super) const SECTOR_BITS: u64 = SUMMED as u64 * 8;
pub(super) const MAGIC: [u8; 4] = *b"HFOV";
/// 2: sectors that check, in files of other names. 1: see `version_1.rs`.
const VERSION: u32 = 2;
/// Sectors read or written at once.
const SECTORS_AT_ONCE: usize = 2048;
const LOOKED_AT_BYTES: u64 = (SECTORS_AT_ONCE * SECTOR) as u64;

/// What a map file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) blocks: u64,
    pub(super) boot_id: [u8; 16],
    pub(super) has_failed: bool,
}

/// So many bytes of bits, and the sector of the file that they begin in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    pub(super) first: usize,
    pub(super) bytes: usize,
}

/// Bits as a file has them; those of rotten sectors are not set.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) bits: Vec<u8>,
    /// Sectors of the section that do not check.
    pub(super) rotten: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct MapFile {
    pub(super) name: String,
    file: Arc<dyn StoreFile>,
}

impl Section {
    /// Of as many bits, behind `before`.
    pub(super) fn of_bits(bits: u64, before: Option<Section>) -> Self {
        let first = before.map_or(1, |before| before.first + before.sectors());
        Self { first, bytes: bits.div_ceil(8) as usize }
    }

    pub(super) fn sectors(&self) -> usize {
        self.bytes.div_ceil(SUMMED)
    }

    /// The sectors that hold these bits.
    pub(super) fn sectors_of(bits: &Range<u64>) -> Range<usize> {
        match bits.is_empty() {
            true => 0..0,
            false => (bits.start / SECTOR_BITS) as usize..((bits.end - 1) / SECTOR_BITS + 1) as usize,
        }
    }

    /// Where a sector lies in the file.
    pub(super) fn at(&self, sector: usize) -> u64 {
        ((self.first + sector) * SECTOR) as u64
    }

    /// Bytes of a file that ends with it.
    pub(super) fn end(&self) -> u64 {
        self.at(self.sectors())
    }

    /// Which bytes of the bits stand in a sector.
    pub(super) fn bytes_of(&self, sector: usize) -> Range<usize> {
        sector * SUMMED..self.bytes.min((sector + 1) * SUMMED)
    }
}

impl MapFile {
    pub(super) fn open(store: &dyn Store, name: String) -> io::Result<Self> {
        let file = store.open(&name, true)?;
        Ok(Self { name, file })
    }

    /// The same file, past whatever memory has of it.
    pub(super) fn on_disk(&self, store: &dyn Store) -> io::Result<Self> {
        Ok(Self { name: self.name.clone(), file: store.open_direct(&self.name, false)? })
    }

    /// None where there is none yet, or none that checks.
    pub(super) fn header(&self) -> io::Result<Option<Header>> {
        if self.file.len()? < SECTOR_BYTES {
            return Ok(None);
        }
        let mut sector = [0; SECTOR];
        self.file.read_at(0, &mut sector)?;
        let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes"));
        let is_ours = is_sealed(&sector, 0) && sector[..4] == MAGIC && sector[4..8] == VERSION.to_le_bytes();
        Ok(is_ours.then(|| Header {
            blocks: word(8),
            boot_id: sector[16..32].try_into().expect("sixteen bytes"),
            has_failed: sector[32] == 1,
        }))
    }

    pub(super) fn write_header(&self, header: &Header) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        sector[..4].copy_from_slice(&MAGIC);
        sector[4..8].copy_from_slice(&VERSION.to_le_bytes());
        sector[8..16].copy_from_slice(&header.blocks.to_le_bytes());
        sector[16..32].copy_from_slice(&header.boot_id);
        sector[32] = u8::from(header.has_failed);
        seal(&mut sector, 0);
        self.file.write_at(0, &sector)
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Whether something stands anywhere in it.
    pub(super) fn holds_anything(&self) -> io::Result<bool> {
        for part in ByteRange::new(0, self.len()?).split_at_multiples(LOOKED_AT_BYTES) {
            let mut bytes = vec![0; part.len as usize];
            self.file.read_at(part.start, &mut bytes)?;
            if !is_zero(&bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes it empty, and of this length.
    pub(super) fn clear(&self, len: u64) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(len)
    }

    /// The bits of a section.
    pub(super) fn load(&self, section: Section) -> io::Result<Loaded> {
        let mut loaded = Loaded { bits: Vec::with_capacity(section.bytes), rotten: Vec::new() };
        for first in (0..section.sectors()).step_by(SECTORS_AT_ONCE) {
            let part = first..section.sectors().min(first + SECTORS_AT_ONCE);
            self.each(section, part, |sector, bits| {
                if bits.is_none() {
                    loaded.rotten.push(sector);
                }
                let bytes = bits.unwrap_or(&[0; SUMMED]);
                loaded.bits.extend_from_slice(&bytes[..section.bytes_of(sector).len()]);
            })?;
        }
        Ok(loaded)
    }

    /// Sectors of a section that do not check.
    pub(super) fn rotten(&self, section: Section, sectors: Range<usize>) -> io::Result<Vec<usize>> {
        let mut rotten = Vec::new();
        self.each(section, sectors, |sector, bits| rotten.extend(bits.is_none().then_some(sector)))?;
        Ok(rotten)
    }

    /// Tells of each sector its bits; none where it does not check.
    fn each(
        &self,
        section: Section,
        sectors: Range<usize>,
        mut tell: impl FnMut(usize, Option<&[u8]>),
    ) -> io::Result<()> {
        let mut read = vec![0; sectors.len() * SECTOR];
        self.file.read_at(section.at(sectors.start), &mut read)?;
        for (sector, bytes) in sectors.zip(read.chunks_exact(SECTOR)) {
            let is_whole = is_sealed(bytes, section.first + sector) || batch::is_zero(bytes);
            tell(sector, is_whole.then_some(&bytes[..SUMMED]));
        }
        Ok(())
    }

    /// Writes some sectors of a section, whose bits are `bits`.
    pub(super) fn put(&self, section: Section, bits: &[u8], sectors: Range<usize>) -> io::Result<()> {
        for first in sectors.clone().step_by(SECTORS_AT_ONCE) {
            let part = first..sectors.end.min(first + SECTORS_AT_ONCE);
            let mut written = vec![0; part.len() * SECTOR];
            for (sector, bytes) in part.zip(written.chunks_exact_mut(SECTOR)) {
                let own = &bits[section.bytes_of(sector)];
                bytes[..own.len()].copy_from_slice(own);
                seal(bytes, section.first + sector);
            }
            self.file.write_at(section.at(first), &written)?;
        }
        Ok(())
    }

    /// Has a sector never check: what it told of is not known any more.
    pub(super) fn spoil(&self, section: Section, sector: usize) -> io::Result<()> {
        let mut bytes = [0; SECTOR];
        seal(&mut bytes, section.first + sector);
        bytes[SUMMED] ^= 1;
        self.file.write_at(section.at(sector), &bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn seal(sector: &mut [u8], number: usize) {
    let sum = crc32c::crc32c_append(number as u32, &sector[..SUMMED]);
    sector[SUMMED..].copy_from_slice(&sum.to_le_bytes());
}

fn is_sealed(sector: &[u8], number: usize) -> bool {
    let sum = u32::from_le_bytes(sector[SUMMED..].try_into().expect("four bytes"));
    sum_matches(crc32c::crc32c_append(number as u32, &sector[..SUMMED]), sum)
}
