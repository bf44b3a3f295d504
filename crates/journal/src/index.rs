//! Where the bytes of a disk are, as of any cut: entries per 1 MiB region in the order of the stream.
//!
//! The index holds only what is durable and not yet folded. A look-up walks a region's entries from the
//! newest at or below the cut towards older ones until the range is covered; what stays uncovered is
//! the replica's.

use batch::{Batch, FrameEntry};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use types::{ByteRange, DiskIndex, WriteSeq};

const REGION_BYTES: u64 = 1 << 20;

/// A batch's place in the journal.
#[derive(Debug, Clone)]
pub(crate) struct BatchPlace {
    pub(crate) segment: u64,
    /// Of the batch's first byte in the segment file.
    pub(crate) at: u64,
    pub(crate) frames: Arc<[FrameEntry]>,
}

/// Identifies a batch within this opening of the journal, ascending with the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchKey(pub(crate) u64);

/// Where bytes of a disk come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Replica,
    Zero,
    Journal { batch: BatchKey, payload_at: u32 },
}

/// A range of a disk and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: ByteRange,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    seq: WriteSeq,
    range: ByteRange,
    origin: Origin,
}

/// The entries of all disks of the VM.
#[derive(Debug, Default)]
pub(crate) struct Index {
    regions: HashMap<(DiskIndex, u64), Vec<Entry>>,
    batches: BTreeMap<BatchKey, BatchPlace>,
    next_key: u64,
    entries: usize,
}

impl Index {
    /// Takes up a durable batch that lies at `place`.
    pub(crate) fn insert(&mut self, batch: &Batch, segment: u64, at: u64) {
        let key = BatchKey(self.next_key);
        self.next_key += 1;
        let mut used = false;
        for entry in batch.entries().iter().filter(|entry| entry.kind.changes_disk()) {
            for range in entry.range.split_at_multiples(REGION_BYTES) {
                let origin = if entry.kind.has_payload() {
                    used = true;
                    let into = u32::try_from(range.start - entry.range.start).expect("within a record");
                    Origin::Journal { batch: key, payload_at: entry.payload_at + into }
                } else {
                    Origin::Zero
                };
                let region = self.regions.entry((entry.disk, range.start / REGION_BYTES)).or_default();
                region.push(Entry { seq: entry.seq, range, origin });
                self.entries += 1;
            }
        }
        if used {
            let frames = batch.frames().into();
            self.batches.insert(key, BatchPlace { segment, at, frames });
        }
    }

    /// Where the bytes of `range` are as of `cut`, in ascending order without holes.
    pub(crate) fn look_up(&self, disk: DiskIndex, range: ByteRange, cut: WriteSeq) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in range.split_at_multiples(REGION_BYTES) {
            let entries = self.regions.get(&(disk, part.start / REGION_BYTES)).map_or(&[][..], Vec::as_slice);
            let below = entries.partition_point(|entry| entry.seq <= cut);
            cover(part, &entries[..below], &mut pieces);
        }
        pieces.sort_unstable_by_key(|piece| piece.range.start);
        pieces
    }

    pub(crate) fn place(&self, key: BatchKey) -> Option<&BatchPlace> {
        self.batches.get(&key)
    }

    /// Regions with an entry at or below `cut`, in the order of the disks.
    pub(crate) fn regions_to_fold(&self, cut: WriteSeq) -> Vec<(DiskIndex, ByteRange)> {
        let mut found: Vec<_> = self
            .regions
            .iter()
            .filter(|(_, entries)| entries.first().is_some_and(|entry| entry.seq <= cut))
            .map(|(&(disk, region), _)| (disk, ByteRange::new(region * REGION_BYTES, REGION_BYTES)))
            .collect();
        found.sort_unstable();
        found
    }

    /// Forgets everything at or below `cut`: the replica has it.
    pub(crate) fn forget(&mut self, cut: WriteSeq, segments: &[u64]) {
        self.regions.retain(|_, entries| {
            let below = entries.partition_point(|entry| entry.seq <= cut);
            entries.drain(..below);
            !entries.is_empty()
        });
        self.entries = self.regions.values().map(Vec::len).sum();
        self.batches.retain(|_, place| !segments.contains(&place.segment));
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }
}

/// Covers `range` from the newest of `entries` to the oldest.
fn cover(range: ByteRange, entries: &[Entry], pieces: &mut Vec<Piece>) {
    let mut uncovered = vec![range];
    for entry in entries.iter().rev() {
        if uncovered.is_empty() {
            return;
        }
        let mut left = Vec::with_capacity(uncovered.len() + 1);
        for open in uncovered {
            let Some(hit) = open.intersection(entry.range) else {
                left.push(open);
                continue;
            };
            let into = (hit.start - entry.range.start) as u32;
            let origin = match entry.origin {
                Origin::Journal { batch, payload_at } => {
                    Origin::Journal { batch, payload_at: payload_at + into }
                }
                other => other,
            };
            pieces.push(Piece { range: hit, origin });
            if open.start < hit.start {
                left.push(ByteRange::new(open.start, hit.start - open.start));
            }
            if hit.end() < open.end() {
                left.push(ByteRange::new(hit.end(), open.end() - hit.end()));
            }
        }
        uncovered = left;
    }
    pieces.extend(uncovered.into_iter().map(|range| Piece { range, origin: Origin::Replica }));
}
