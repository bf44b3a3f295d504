//! The dirty-region log: which 16 MiB regions of the disks may differ after the host has gone down.
//!
//! The dirty map lies in the page cache and goes with it. A region's bit is set here, on the disk itself,
//! before the first write to a cold region is submitted, and cleared some time after, once everything
//! written to the region is durable at the recovery side and a later flush of the local disk has completed:
//! until both are so, either side may have what the other has lost. After a crash of the host the set bits
//! are compared, block by block, and nothing else is read.
//!
//! It is believed where the disks have the very times they were noted with. After a clean stop, which is noted durably,
//! that is all: whatever was written then, before the host went down or after, was not written by the agent. Where the
//! host went down without one, times are explained by the agent's own writes, each of whose regions is set, if they lie
//! between those that were durable with the last note and the moment the host came up again, and not so long after the
//! note that the agent would have made another: whoever has written later has left a later one. That is a bound and no
//! proof: what somebody wrote right after the agent was killed, before the host went down too, is taken for its own.
//! Its file has the dirty map's layout, with the magic `HFRL` and one bit for each region (`docs/formats/dirty-map.md`).

use crate::bits;
use crate::dirty_map::MapStore;
use crate::identity::{DiskIdentity, Noted};
use crate::kept_header::{Boot, FileKind, Header, Keeping, Kept, KeptFile, noted, places, refused};
use std::io;
use std::ops::Range;
use types::{ByteRange, DiskIndex, Incarnation, VmId, WallTime, WriteSeq};

/// A run of regions of a disk, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Regions {
    pub(crate) disk: DiskIndex,
    pub(crate) run: Range<u64>,
}

impl Regions {
    /// The bytes of it that a disk of this size has, with regions of so many bytes.
    pub(crate) fn range(&self, bytes: u64, size_bytes: u64) -> ByteRange {
        let start = (self.run.start * bytes).min(size_bytes);
        ByteRange::new(start, (self.run.end * bytes).min(size_bytes) - start)
    }
}

/// The log of one VM.
#[derive(Debug)]
pub struct RegionLog {
    store: Box<dyn MapStore>,
    header: Header,
    region_bytes: u64,
    bits: Vec<u8>,
    disks: Vec<usize>,
    /// Whether what it says can be believed, as it was opened.
    believed: bool,
    noted: Vec<Noted>,
    keeping: Keeping,
}

impl RegionLog {
    /// Opens the log of a VM, empty where the one that is kept cannot be believed. `region_bytes` is
    /// [`types::limits::REGION_LOG_BYTES`], or whole blocks of another number in a simulation.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(
        store: Box<dyn MapStore>,
        vm: VmId,
        disks: &[(u64, Option<DiskIdentity>)],
        region_bytes: u64,
        boot: Boot,
    ) -> io::Result<Self> {
        let (places, len) = places(disks, region_bytes);
        let (kept, now) = (store.load()?, noted(disks));
        let kept = KeptFile::of(FileKind::Regions, &kept, vm, disks, len)
            .filter(|file| file.is_untouched(&now) || file.is_untouched_but_by_the_agent(&now, boot));
        let believed = kept.is_some();
        let (mut header, bits) = match kept {
            Some(file) => (file.header, file.bits),
            None => {
                store.discard()?;
                store.write_at(Header::BYTES as u64, &vec![0; len])?;
                (Header::empty(vm, boot.id, disks.len()), vec![0; len])
            }
        };
        header.boot_id = boot.id;
        header.go_on();
        let keeping = Keeping::Kept;
        let log = Self { store, header, region_bytes, bits, disks: places, believed, noted: now, keeping };
        log.write_notes()?;
        log.write_header()?;
        Ok(log)
    }

    /// The streams that can be continued by comparing the marked regions; none where it is not believed.
    pub fn kept(&self) -> Vec<Kept> {
        if self.believed { self.header.kept() } else { Vec::new() }
    }

    pub(crate) fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// The regions whose bits are set.
    pub(crate) fn marked(&self) -> Vec<Regions> {
        let mut regions = Vec::new();
        for (at, &start) in self.disks.iter().enumerate() {
            let end = self.disks.get(at + 1).copied().unwrap_or(self.bits.len());
            let disk = DiskIndex(at as u16);
            regions.extend(bits::set_runs(&self.bits[start..end]).map(|run| Regions { disk, run }));
        }
        regions
    }

    /// Sets the bits of regions, on the disk; where that fails, the log is given up.
    ///
    /// # Errors
    /// Where it cannot be given up either: then nothing must be written to them.
    pub(crate) fn set(&mut self, regions: &[Regions]) -> io::Result<()> {
        if self.keeping == Keeping::Stuck {
            self.discard().map_err(|_| refused(Keeping::Stuck))?;
        }
        self.put(regions, true).or_else(|error| self.give_up(&error))
    }

    /// Clears the bits of regions that are equal on both sides, whatever happens, with the stream
    /// acknowledged up to `acked`.
    ///
    /// # Errors
    /// As the disk says: then the bits may be set or not.
    pub(crate) fn clear(&mut self, regions: &[Regions], acked: WriteSeq) -> io::Result<()> {
        self.header.acknowledged(acked);
        self.write_header()?;
        self.put(regions, false)
    }

    fn put(&mut self, regions: &[Regions], set: bool) -> io::Result<()> {
        if self.keeping != Keeping::Kept {
            return Ok(());
        }
        let mut changed = false;
        for Regions { disk, run } in regions {
            let start = self.disks[usize::from(disk.0)];
            if bits::are(&self.bits[start..], run, set) {
                continue;
            }
            let bytes = bits::bytes_of(run);
            let place = start + bytes.start..start + bytes.end;
            let mut wanted = self.bits[place.clone()].to_vec();
            bits::put(&mut wanted, bytes.start, run, set);
            self.store.write_at((Header::BYTES + place.start) as u64, &wanted)?;
            self.bits[place].copy_from_slice(&wanted);
            changed = true;
        }
        if changed { self.store.sync() } else { Ok(()) }
    }

    /// A new stream begins above `floor`; the regions of every block that may differ are set.
    ///
    /// # Errors
    /// As [`RegionLog::set`].
    pub(crate) fn begin(&mut self, incarnation: Incarnation, floor: WriteSeq) -> io::Result<()> {
        self.header.begin(incarnation, floor);
        self.write_header().or_else(|error| self.give_up(&error))
    }

    /// The agent is there, whatever is written goes through it, and this is what the disks were seen as before their
    /// files were last synced, times and all.
    ///
    /// # Errors
    /// As the disk says: then what was noted before may be what is kept.
    pub(crate) fn note_alive(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) -> io::Result<()> {
        debug_assert_eq!(seen.len(), self.noted.len());
        for (noted, identity) in self.noted.iter_mut().zip(seen) {
            *noted = noted.seen_as(*identity);
        }
        self.write_notes()?;
        self.header.seen_at = now;
        self.write_header()
    }

    /// Says durably that the agent writes nothing more, and as what the disks are seen. Who writes nevertheless is
    /// refused by the dirty map, which is closed first.
    pub(crate) fn close(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.header.stop(&self.bits);
        if let Err(error) = self.note_alive(now, seen) {
            // What it said before may be what is kept: that would be believed of times that are not the agent's.
            let _ = self.give_up(&error);
        }
        self.keeping = Keeping::Closed;
    }

    fn write_notes(&self) -> io::Result<()> {
        if self.keeping != Keeping::Kept {
            return Ok(());
        }
        let bytes: Vec<u8> = self.noted.iter().flat_map(Noted::encode).collect();
        self.store.write_at((Header::BYTES + self.bits.len()) as u64, &bytes)
    }

    fn write_header(&self) -> io::Result<()> {
        if self.keeping != Keeping::Kept {
            return Ok(());
        }
        self.store.write_at(0, &self.header.encode(FileKind::Regions))?;
        self.store.sync()
    }

    fn give_up(&mut self, cause: &io::Error) -> io::Result<()> {
        tracing::error!(%cause, "the dirty-region log is given up; after a crash of the host everything is compared");
        self.keeping = Keeping::Stuck;
        self.discard()
    }

    fn discard(&mut self) -> io::Result<()> {
        self.store.discard().and_then(|()| self.store.sync())?;
        self.keeping = Keeping::GivenUp;
        Ok(())
    }
}
