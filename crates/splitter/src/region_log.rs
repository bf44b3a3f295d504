//! The dirty-region log: which 16 MiB regions of the disks may differ after the host has gone down.
//!
//! The dirty map lies in the page cache and goes with it. A region's bit is set here, on the disk itself,
//! before the first write to a cold region is submitted, and cleared some time after, once everything
//! written to the region is durable at the recovery side and a later flush of the local disk has completed:
//! until both are so, either side may have what the other has lost. After a crash of the host the set bits
//! are compared, block by block, and nothing else is read.
//!
//! It is believed under the same conditions as the dirty map but for the boot it was kept in; the agent says
//! every [`ALIVE_INTERVAL`] on the disk that it is there. Its file has the dirty map's layout, with the magic
//! `HFRL` and one bit for each region (`docs/formats/dirty-map.md`).

use crate::bits;
use crate::dirty_map::{DiskIdentity, Header, Kept, Kind, MapStore, places};
use std::io;
use std::ops::Range;
use std::time::Duration;
use types::{ByteRange, DiskIndex, Incarnation, VmId, WallTime, WriteSeq};

/// How often the log says on the disk that the agent is there.
pub(crate) const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long after its last sign of life the agent's own last write may have been.
const SLACK: Duration = Duration::from_secs(20);

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
    /// It could not be kept, and says nothing any more.
    given_up: bool,
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
    ) -> io::Result<Self> {
        let (places, len) = places(disks, region_bytes);
        let kept = store.load()?;
        let header = Header::believed(Kind::Regions, &kept, vm, disks, len, SLACK);
        let believed = header.is_some();
        let bits = match believed {
            true => kept[Header::BYTES..].to_vec(),
            false => {
                store.discard()?;
                store.write_at(Header::BYTES as u64, &vec![0; len])?;
                vec![0; len]
            }
        };
        let header = header.unwrap_or_else(|| Header::empty(vm, [0; 16], disks));
        let log = Self { store, header, region_bytes, bits, disks: places, believed, given_up: false };
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
        self.put(regions, true).or_else(|error| self.give_up(&error))
    }

    /// Clears the bits of regions that are equal on both sides, whatever happens, with the stream
    /// acknowledged up to `acked`.
    ///
    /// # Errors
    /// As the disk says: then the bits may be set or not.
    pub(crate) fn clear(&mut self, regions: &[Regions], acked: WriteSeq) -> io::Result<()> {
        self.header.current.acked = self.header.current.acked.max(acked);
        self.write_header()?;
        self.put(regions, false)
    }

    fn put(&mut self, regions: &[Regions], set: bool) -> io::Result<()> {
        if self.given_up {
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

    /// The agent is there, and whatever is written goes through it.
    pub(crate) fn note_alive(&mut self, now: WallTime) -> io::Result<()> {
        if now.since(self.header.seen_at) < ALIVE_INTERVAL {
            return Ok(());
        }
        self.header.seen_at = now;
        self.write_header()
    }

    fn write_header(&self) -> io::Result<()> {
        if self.given_up {
            return Ok(());
        }
        self.store.write_at(0, &self.header.encode(Kind::Regions))?;
        self.store.sync()
    }

    fn give_up(&mut self, cause: &io::Error) -> io::Result<()> {
        tracing::error!(%cause, "the dirty-region log is given up; after a crash of the host everything is compared");
        self.given_up = true;
        self.store.discard().and_then(|()| self.store.sync())
    }
}
