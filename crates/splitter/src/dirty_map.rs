//! The dirty map: which blocks the recovery side may not have, kept where the agent's death cannot lose it.
//!
//! A block's bit is set before a write to it is submitted to the local disk, and cleared once everything
//! written to it is acknowledged as durable. So after a `kill -9` the set bits cover every block that has
//! to be sent again, and no others but those that were just under way.
//!
//! It is believed only where nothing can have passed it by:
//!
//! - It lives in the page cache: within the boot it was kept in, or after a clean stop, which syncs it.
//! - The disks are the same files, and have not been changed since the agent was last known to hold them:
//!   a VM that was started on its plain image meanwhile has written what no bit tells of. The agent says
//!   each second that it is there; a file changed more than [`SLACK`] after that is not believed. Block
//!   devices do not tell when they were changed, so theirs never are.
//! - The header names the stream whose acknowledgements cleared bits, and how far: a journal that knows
//!   less, or another stream, cannot be continued from it.
//!
//! Otherwise everything is sent.
//!
//! ```text
//! 0   [4]  magic "HFDM"     4   u32  version, 1      8   [16] VM          24  [16] boot id
//! 40  [16] incarnation      56  u64  acknowledged up to
//! 64  [16] the incarnation before   80  u64  acknowledged up to in that one
//! 88  u32  flags: 1 stopped cleanly, 2 some of the bits say no more than that a block is suspect
//! 92  u32  CRC-32C of the disks' identities
//! 96  i64  the agent was last there, microseconds since 1970      104 u32  reserved
//! 108 u32  CRC-32C of bytes 0-107
//! 112 ..   bits of each disk, one disk behind the other, each on whole bytes, least significant first
//! ```

use crate::bits;
use crate::on_the_way::Blocks;
use std::fmt;
use std::io;
use std::time::Duration;
use types::limits::BLOCK_BYTES;
use types::{ByteRange, DiskIndex, Incarnation, VmId, WallTime, WriteSeq};

/// 1: the first.
const VERSION: u32 = 1;
const FLAG_CLEAN: u32 = 1;
const FLAG_SUSPECTS: u32 = 2;
/// How long after the agent's last sign of life its own last write may have been.
const SLACK: Duration = Duration::from_secs(10);

/// Runs of blocks with fewer than so many between them are cleared by one write: a page of the file.
const NEAR_BLOCKS: u64 = 4096 * 8;

/// Where the map's bytes are kept: a file, or the simulator's memory.
pub trait MapStore: Send + Sync + fmt::Debug {
    /// Everything that is there; empty where there is nothing yet.
    ///
    /// # Errors
    /// As the file system says.
    fn load(&self) -> io::Result<Vec<u8>>;
    /// Writes at a place, making the file longer where it must be.
    ///
    /// # Errors
    /// As the file system says.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync(&self) -> io::Result<()>;
    /// Makes sure that nothing of it is ever believed again.
    ///
    /// # Errors
    /// As the file system says.
    fn discard(&self) -> io::Result<()>;
}

/// Which file a disk is, and when it was last changed by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIdentity {
    pub device: u64,
    pub inode: u64,
    pub changed_at: WallTime,
}

/// A stream that a kept map can be continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub incarnation: Incarnation,
    /// Bits were cleared for acknowledgements up to here: a journal must know at least as much.
    pub acked: WriteSeq,
}

/// The map of one VM.
#[derive(Debug)]
pub struct DirtyMap {
    store: Box<dyn MapStore>,
    header: Header,
    bits: Vec<u8>,
    /// Where each disk's bits begin in `bits`.
    disks: Vec<usize>,
    /// Nothing is kept any more: the store failed, or the map was closed.
    closed: bool,
}

/// What a file of bits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A dirty map.
    Blocks,
    /// A dirty-region log.
    Regions,
}

impl Kind {
    fn magic(self) -> [u8; 4] {
        match self {
            Kind::Blocks => *b"HFDM",
            Kind::Regions => *b"HFRL",
        }
    }
}

/// Where each disk's bits begin where one bit is for `unit` bytes, and how many bytes all have.
pub(crate) fn places(disks: &[(u64, Option<DiskIdentity>)], unit: u64) -> (Vec<usize>, usize) {
    let mut len = 0;
    let place = |(size, _): &(u64, Option<DiskIdentity>)| {
        let at = len;
        len += size.div_ceil(unit).div_ceil(8) as usize;
        at
    };
    let places = disks.iter().map(place).collect();
    (places, len)
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    vm: VmId,
    boot_id: [u8; 16],
    pub(crate) current: Kept,
    before: Kept,
    clean: bool,
    suspects: bool,
    disks_crc: u32,
    pub(crate) seen_at: WallTime,
}

const NOTHING: Kept = Kept { incarnation: Incarnation::from_bytes([0; 16]), acked: WriteSeq::MAX };

impl DirtyMap {
    /// Opens the map of a VM, empty where the one that is kept cannot be believed. Each disk is its size in
    /// bytes and what it is, if that is known.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(
        store: Box<dyn MapStore>,
        vm: VmId,
        disks: &[(u64, Option<DiskIdentity>)],
        boot_id: [u8; 16],
    ) -> io::Result<Self> {
        let (places, len) = places(disks, BLOCK_BYTES);
        let kept = store.load()?;
        let believed = Header::believed(Kind::Blocks, &kept, vm, disks, len, SLACK)
            .filter(|header| header.clean || header.boot_id == boot_id);
        let (mut header, bits) = match believed {
            Some(header) => (header, kept[Header::BYTES..].to_vec()),
            None => {
                store.discard()?;
                store.write_at(Header::BYTES as u64, &vec![0; len])?;
                (Header::empty(vm, boot_id, disks), vec![0; len])
            }
        };
        let was_clean = header.clean;
        header.clean = false;
        header.boot_id = boot_id;
        store.write_at(0, &header.encode(Kind::Blocks))?;
        if was_clean {
            // Before anything is written that only the page cache knows of, the clean stop is taken back.
            store.sync()?;
        }
        Ok(Self { store, header, bits, disks: places, closed: false })
    }

    /// The streams it can be continued from.
    pub fn kept(&self) -> Vec<Kept> {
        self.header.kept()
    }

    /// Runs of blocks of a disk whose bits are set.
    pub(crate) fn marked(&self, disk: DiskIndex) -> impl Iterator<Item = Blocks> {
        let at = usize::from(disk.0);
        let end = self.disks.get(at + 1).copied().unwrap_or(self.bits.len());
        bits::set_runs(&self.bits[self.disks[at]..end])
    }

    /// Whether some of the bits may say no more than that a block is to be compared.
    pub fn has_suspects(&self) -> bool {
        self.header.suspects
    }

    /// To be said before the first bit is set for a block that is only suspect, and once none is left.
    pub(crate) fn note_suspects(&mut self, some: bool) {
        if self.header.suspects != some {
            self.header.suspects = some;
            self.write_header();
        }
    }

    /// Sets the bits of all blocks of a range, in one write. To be done before they are written.
    ///
    /// # Errors
    /// Where the bits can be neither kept nor the map given up: then the blocks must not be written.
    pub(crate) fn set(&mut self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        if self.closed || range.is_empty() {
            return Ok(());
        }
        let (start, blocks) = (self.disks[usize::from(disk.0)], range.units(BLOCK_BYTES));
        if bits::are(&self.bits[start..], &blocks, true) {
            return Ok(());
        }
        match self.put(start, std::slice::from_ref(&blocks), true) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the dirty map is given up; after a restart everything is sent");
                self.closed = true;
                self.store.discard()
            }
        }
    }

    /// Clears the bits of runs of blocks, which ascend, with one write for those that lie near each other. A failure
    /// leaves them set, which is never wrong.
    pub(crate) fn clear(&mut self, disk: DiskIndex, runs: &[Blocks]) {
        let start = self.disks[usize::from(disk.0)];
        let is_near = |before: &Blocks, next: &Blocks| next.start - before.end < NEAR_BLOCKS;
        for near in runs.chunk_by(is_near) {
            if self.closed || near.iter().all(|run| bits::are(&self.bits[start..], run, false)) {
                continue;
            }
            if let Err(error) = self.put(start, near, false) {
                tracing::warn!(%error, "bits of the dirty map stay set");
            }
        }
    }

    /// Sets or clears runs of bits of the disk whose bits begin at `start`: in the file, then here.
    fn put(&mut self, start: usize, runs: &[Blocks], set: bool) -> io::Result<()> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let bytes = bits::bytes_of(&(first.start..last.end));
        let place = start + bytes.start..start + bytes.end;
        let mut wanted = self.bits[place.clone()].to_vec();
        runs.iter().for_each(|run| bits::put(&mut wanted, bytes.start, run, set));
        self.store.write_at((Header::BYTES + place.start) as u64, &wanted)?;
        self.bits[place].copy_from_slice(&wanted);
        Ok(())
    }

    /// A new stream begins above `floor`; every block that may differ from what the journal had is set.
    pub(crate) fn begin(&mut self, incarnation: Incarnation, floor: WriteSeq) {
        self.header.begin(incarnation, floor);
        self.write_header();
    }

    /// The stream is acknowledged up to here; to be said before bits are cleared for it.
    pub(crate) fn note_acked(&mut self, up_to: WriteSeq) {
        self.header.current.acked = up_to;
        self.write_header();
    }

    fn write_header(&mut self) {
        if self.closed {
            return;
        }
        if let Err(error) = self.store.write_at(0, &self.header.encode(Kind::Blocks)) {
            tracing::error!(%error, "the dirty map is given up; after a restart everything is sent");
            self.closed = true;
            // What it says now is older than what will be cleared: it must not be believed. Nothing is
            // cleared any more once it is closed, so a failure here only costs a larger sync.
            let _ = self.store.discard();
        }
    }

    /// The agent is there, and whatever is written goes through it.
    pub(crate) fn note_alive(&mut self, now: WallTime) {
        self.header.seen_at = now;
        self.write_header();
    }

    /// Keeps the map over a reboot: nothing is written to the disks any more.
    pub(crate) fn close(&mut self, now: WallTime) {
        if self.closed {
            return;
        }
        self.header.seen_at = now;
        self.header.clean = true;
        self.write_header();
        self.closed = true;
        if let Err(error) = self.store.sync() {
            tracing::warn!(%error, "the dirty map is not kept; after a reboot everything is sent");
            let _ = self.store.discard();
        }
    }
}

impl Header {
    pub(crate) const BYTES: usize = 112;

    /// Of a map that says nothing yet.
    pub(crate) fn empty(vm: VmId, boot_id: [u8; 16], disks: &[(u64, Option<DiskIdentity>)]) -> Self {
        Self {
            vm,
            boot_id,
            current: NOTHING,
            before: NOTHING,
            clean: false,
            suspects: false,
            disks_crc: crc_of(disks),
            seen_at: WallTime(0),
        }
    }

    /// The header of a map of these disks that nobody else has written to since.
    pub(crate) fn believed(
        kind: Kind,
        kept: &[u8],
        vm: VmId,
        disks: &[(u64, Option<DiskIdentity>)],
        len: usize,
        slack: Duration,
    ) -> Option<Self> {
        Header::decode(kind, kept)
            .filter(|header| header.vm == vm && header.disks_crc == crc_of(disks))
            .filter(|header| nobody_else_wrote(disks, header.seen_at, slack))
            .filter(|_| kept.len() == Header::BYTES + len)
    }

    /// The streams it can be continued from.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        let streams = [self.current, self.before].into_iter();
        streams.filter(|kept| kept.incarnation != NOTHING.incarnation).collect()
    }

    pub(crate) fn begin(&mut self, incarnation: Incarnation, floor: WriteSeq) {
        self.before = Kept { acked: floor, ..self.current };
        self.current = Kept { incarnation, acked: floor };
    }

    pub(crate) fn encode(&self, kind: Kind) -> [u8; Header::BYTES] {
        let mut bytes = [0; Header::BYTES];
        bytes[..4].copy_from_slice(&kind.magic());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.vm.to_bytes());
        bytes[24..40].copy_from_slice(&self.boot_id);
        for (at, kept) in [(40, self.current), (64, self.before)] {
            bytes[at..at + 16].copy_from_slice(&kept.incarnation.to_bytes());
            bytes[at + 16..at + 24].copy_from_slice(&kept.acked.raw().to_le_bytes());
        }
        let flags = if self.clean { FLAG_CLEAN } else { 0 } | if self.suspects { FLAG_SUSPECTS } else { 0 };
        bytes[88..92].copy_from_slice(&flags.to_le_bytes());
        bytes[92..96].copy_from_slice(&self.disks_crc.to_le_bytes());
        bytes[96..104].copy_from_slice(&self.seen_at.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..108]);
        bytes[108..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(kind: Kind, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..Header::BYTES)?;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sixteen = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes");
        let kept = |at: usize| Kept {
            incarnation: Incarnation::from_bytes(sixteen(at)),
            acked: WriteSeq::from_raw(u64::from_le_bytes(
                bytes[at + 16..at + 24].try_into().expect("eight bytes"),
            )),
        };
        let sound = bytes[..4] == kind.magic()
            && u32_at(4) == VERSION
            && u32_at(108) == crc32c::crc32c(&bytes[..108]);
        sound.then(|| Self {
            vm: VmId::from_bytes(sixteen(8)),
            boot_id: sixteen(24),
            current: kept(40),
            before: kept(64),
            clean: u32_at(88) & FLAG_CLEAN != 0,
            suspects: u32_at(88) & FLAG_SUSPECTS != 0,
            disks_crc: u32_at(92),
            seen_at: WallTime(i64::from_le_bytes(bytes[96..104].try_into().expect("eight bytes"))),
        })
    }
}

fn crc_of(disks: &[(u64, Option<DiskIdentity>)]) -> u32 {
    disks.iter().fold(0, |crc, (size, identity)| {
        let (device, inode) = identity.map_or((0, 0), |identity| (identity.device, identity.inode));
        [*size, device, inode].iter().fold(crc, |crc, part| crc32c::crc32c_append(crc, &part.to_le_bytes()))
    })
}

/// Whether every disk tells when it was changed, and none was after the agent had gone.
fn nobody_else_wrote(disks: &[(u64, Option<DiskIdentity>)], seen_at: WallTime, slack: Duration) -> bool {
    disks
        .iter()
        .all(|(_, identity)| identity.is_some_and(|identity| identity.changed_at.since(seen_at) <= slack))
}
