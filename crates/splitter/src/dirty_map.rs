//! The dirty map: which blocks the recovery side may not have, kept where the agent's death cannot lose it.
//!
//! A block's bit is set before a write to it is submitted to the local disk, and cleared once everything
//! written to it is acknowledged as durable. So after a `kill -9` the set bits cover every block that has
//! to be sent again, and no others but those that were just under way.
//!
//! It is believed only where nothing can have passed it by:
//!
//! - It lives in the page cache: within the boot it was kept in, or after a clean stop, which syncs it.
//! - The disks are the same files and have the very times they were last noted with: at a clean stop behind the last
//!   sync, and each second while the agent runs. A VM that was started on its plain image meanwhile has written what
//!   no bit tells of, and no distance between two times tells its writes from the agent's own last ones. So after a
//!   `kill -9` of a VM that wrote until then everything is compared. Block devices do not tell when they were
//!   changed, so theirs never are believed.
//! - The header names the stream whose acknowledgements cleared bits, and how far: a journal that knows
//!   less, or another stream, cannot be continued from it.
//!
//! Otherwise everything is compared. What the file looks like is in `kept_header.rs`.

use crate::bits;
use crate::identity::{DiskIdentity, Noted};
use crate::kept_header::{FileKind, Header, Keeping, Kept, KeptFile, noted, places, refused};
use crate::on_the_way::Blocks;
use std::fmt;
use std::io;
use types::limits::BLOCK_BYTES;
use types::{ByteRange, DiskIndex, Incarnation, VmId, WallTime, WriteSeq};

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

/// The map of one VM.
#[derive(Debug)]
pub struct DirtyMap {
    store: Box<dyn MapStore>,
    header: Header,
    bits: Vec<u8>,
    /// Where each disk's bits begin in `bits`.
    disks: Vec<usize>,
    /// What each disk was last noted as.
    noted: Vec<Noted>,
    keeping: Keeping,
}

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
        let (kept, now) = (store.load()?, noted(disks));
        let believed = KeptFile::of(FileKind::Blocks, &kept, vm, disks, len)
            .filter(|file| file.header.clean || file.header.boot_id == boot_id)
            .filter(|file| file.is_untouched(&now));
        let (mut header, bits) = match believed {
            Some(file) => (file.header, file.bits),
            None => {
                store.discard()?;
                store.write_at(Header::BYTES as u64, &vec![0; len])?;
                (Header::empty(vm, boot_id, disks.len()), vec![0; len])
            }
        };
        let was_clean = header.go_on();
        header.boot_id = boot_id;
        let map = Self { store, header, bits, disks: places, noted: now, keeping: Keeping::Kept };
        map.store.write_at(map.noted_at(0), &map.encoded_notes())?;
        map.store.write_at(0, &map.header.encode(FileKind::Blocks))?;
        if was_clean {
            // Before anything is written that only the page cache knows of, the clean stop is taken back.
            map.store.sync()?;
        }
        Ok(map)
    }

    fn noted_at(&self, disk: usize) -> u64 {
        (Header::BYTES + self.bits.len() + disk * Noted::BYTES) as u64
    }

    fn encoded_notes(&self) -> Vec<u8> {
        self.noted.iter().flat_map(Noted::encode).collect()
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
        if range.is_empty() {
            return Ok(());
        }
        let (start, blocks) = (self.disks[usize::from(disk.0)], range.units(BLOCK_BYTES));
        if bits::are(&self.bits[start..], &blocks, true) {
            return Ok(());
        }
        if self.keeping != Keeping::Kept {
            return self.check_open();
        }
        self.put(start, std::slice::from_ref(&blocks), true).or_else(|error| self.give_up(&error))
    }

    /// Whether blocks may be written at all.
    ///
    /// # Errors
    /// Once the map is closed, and while it can be neither kept nor given up.
    pub(crate) fn check_open(&mut self) -> io::Result<()> {
        match self.keeping {
            Keeping::Kept | Keeping::GivenUp => Ok(()),
            // Perhaps it can be given up by now.
            Keeping::Stuck => self.discard().map_err(|_| refused(Keeping::Stuck)),
            Keeping::Closed => Err(refused(Keeping::Closed)),
        }
    }

    /// What it says now is older than what will be written: it must not be believed. Until it is sure not to be,
    /// nothing may be written.
    fn give_up(&mut self, cause: &io::Error) -> io::Result<()> {
        tracing::error!(error = %cause, "the dirty map is given up; after a restart everything is compared");
        self.keeping = Keeping::Stuck;
        self.discard()
    }

    fn discard(&mut self) -> io::Result<()> {
        self.store.discard()?;
        self.keeping = Keeping::GivenUp;
        Ok(())
    }

    /// Clears the bits of runs of blocks, which ascend, with one write for those that lie near each other. A failure
    /// leaves them set, which is never wrong.
    pub(crate) fn clear(&mut self, disk: DiskIndex, runs: &[Blocks]) {
        let start = self.disks[usize::from(disk.0)];
        let is_near = |before: &Blocks, next: &Blocks| next.start - before.end < NEAR_BLOCKS;
        for near in runs.chunk_by(is_near) {
            if self.keeping != Keeping::Kept
                || near.iter().all(|run| bits::are(&self.bits[start..], run, false))
            {
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
        self.header.acknowledged(up_to);
        self.write_header();
    }

    fn write_header(&mut self) {
        if self.keeping != Keeping::Kept {
            return;
        }
        if let Err(error) = self.store.write_at(0, &self.header.encode(FileKind::Blocks)) {
            // Where that fails too, the next write is told.
            let _ = self.give_up(&error);
        }
    }

    /// The agent is there, whatever is written goes through it, and this is what the disks are seen as.
    pub(crate) fn note_alive(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.note_disks(seen);
        self.header.seen_at = now;
        self.write_header();
    }

    fn note_disks(&mut self, seen: &[Option<DiskIdentity>]) {
        debug_assert_eq!(seen.len(), self.noted.len());
        for (at, identity) in seen.iter().enumerate() {
            let noted = self.noted[at].seen_as(*identity);
            if self.keeping != Keeping::Kept || noted == self.noted[at] {
                continue;
            }
            match self.store.write_at(self.noted_at(at), &noted.encode()) {
                Ok(()) => self.noted[at] = noted,
                Err(error) => drop(self.give_up(&error)),
            }
        }
    }

    /// Keeps the map over a reboot: nothing is written to the disks any more, and this is what they are seen as.
    pub(crate) fn close(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.note_disks(seen);
        self.header.seen_at = now;
        self.header.stop(&self.bits);
        self.write_header();
        if self.keeping == Keeping::Kept
            && let Err(error) = self.store.sync()
        {
            let _ = self.give_up(&error);
        }
        self.keeping = Keeping::Closed;
    }
}
