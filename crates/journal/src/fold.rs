//! Folding: the oldest segments move into the replica, and retention decides when.
//!
//! One crash story, told at the order of the steps: (1) cuts below the new `applied` are retired, durably,
//! so that no image can be opened there any more, also not after a crash in the middle of (2); images
//! that are open hold pins, and a pin below stops the fold; (2) the replica is written and synced: readers at or above the new `applied` do not see it,
//! for wherever it is written a journal entry they prefer stands; (3) the manifest with the new `applied`
//! is saved; (4) entries leave the index; (5) the files go. A crash before (3) repeats (2) with the same
//! bytes; a crash after it leaves files that no manifest names.

use crate::journal::{Journal, ReadError};
use crate::manifest::{SegmentInfo, StreamPoint};
use std::io;
use types::{WallTime, WriteSeq};

/// Why a fold stopped. It can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("cannot read what is to be folded")]
    Read(#[from] ReadError),
    #[error("cannot write the replica")]
    Replica(#[source] io::Error),
    #[error("cannot save the manifest")]
    Manifest(#[source] io::Error),
}

/// What a fold did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Folded {
    pub segments: usize,
    /// Bytes written to the replica.
    pub bytes: u64,
    pub applied: WriteSeq,
}

impl Journal {
    /// Folds every sealed segment that retention no longer wants and no pin holds.
    ///
    /// # Errors
    /// [`FoldError`]; nothing is lost.
    pub fn retain(&self, now: WallTime) -> Result<Folded, FoldError> {
        let due = self.due_segments(now);
        match due.last() {
            None => Ok(Folded { applied: self.read_shared().timeline.applied, ..Folded::default() }),
            Some(_) => self.fold(due.len()),
        }
    }

    /// The oldest sealed segments that are to go, by age and by size.
    fn due_segments(&self, now: WallTime) -> Vec<u64> {
        let shared = self.read_shared();
        let horizon = now.minus(shared.settings.history);
        let pinned = shared.pins.values().copied().min().unwrap_or(WriteSeq::MAX);
        let mut bytes = shared.journal_bytes();
        let mut due = Vec::new();
        for info in &shared.manifest.segments {
            let Some(sealed) = &info.sealed else { break };
            let too_old = WallTime(sealed.newest_at) < horizon;
            let too_much = shared.settings.bytes_max > 0 && bytes > shared.settings.bytes_max;
            if WriteSeq::from_raw(sealed.last_seq) > pinned || !(too_old || too_much) {
                break;
            }
            bytes -= sealed.bytes;
            due.push(info.number);
        }
        due
    }

    /// Folds the `count` oldest segments, all sealed.
    pub(crate) fn fold(&self, count: usize) -> Result<Folded, FoldError> {
        let _writer = self.lock_writer();
        let (mut manifest, applied) = {
            let shared = self.read_shared();
            let last = &shared.manifest.segments[count - 1];
            let sealed = last.sealed.as_ref().expect("only sealed segments are folded");
            (shared.manifest.clone(), WriteSeq::from_raw(sealed.last_seq))
        };
        // Nobody may pin below from here on; whoever did before holds the fold back.
        {
            let mut shared = self.write_shared();
            if shared.pins.values().any(|&cut| cut < applied) {
                return Ok(Folded { applied: shared.timeline.applied, ..Folded::default() });
            }
            shared.timeline.forget_below(applied);
            manifest.retired_below = shared.timeline.applied.raw();
        }
        manifest.save(&*self.store).map_err(FoldError::Manifest)?;
        self.write_shared().manifest.retired_below = manifest.retired_below;
        let bytes = self.write_replica(applied)?;
        let numbers: Vec<u64> = manifest.segments.drain(..count).map(|info| info.number).collect();
        {
            let shared = self.read_shared();
            let timeline = &shared.timeline;
            manifest.applied = applied.raw();
            manifest.gap_at_applied = timeline.is_gap_at(applied);
            manifest.folded = StreamPoint {
                last_seq: applied.raw(),
                watermark: applied.raw(),
                incarnation: timeline.incarnation.map(|incarnation| incarnation.to_string()),
            };
        }
        manifest.save(&*self.store).map_err(FoldError::Manifest)?;
        {
            let mut shared = self.write_shared();
            shared.index.forget(applied, &numbers);
            shared.segments.retain(|number, _| !numbers.contains(number));
            shared.oldest_at =
                shared.segments.values().next().map(|segment| segment.header.created_at).or(shared.newest_at);
            shared.manifest = manifest;
        }
        for number in &numbers {
            self.store.remove(&SegmentInfo::file_name(*number)).map_err(FoldError::Manifest)?;
        }
        Ok(Folded { segments: numbers.len(), bytes, applied })
    }

    /// Writes into the replicas what the journal has at or below `applied`, in the order of the disks.
    fn write_replica(&self, applied: WriteSeq) -> Result<u64, FoldError> {
        let (regions, replicas) = {
            let shared = self.read_shared();
            (shared.index.regions_to_fold(applied), shared.replicas.clone())
        };
        let mut written = 0;
        let mut buf = Vec::new();
        for (disk, region) in regions {
            let parts: Vec<_> = {
                let shared = self.read_shared();
                let size = shared.manifest.disks[usize::from(disk.0)].size_bytes;
                let range = types::ByteRange::new(region.start, region.len.min(size - region.start));
                let pieces = shared.index.look_up(disk, range, applied);
                pieces.into_iter().map(|piece| shared.part(disk, piece.range, piece.origin)).collect()
            };
            let replica = &replicas[usize::from(disk.0)];
            for part in parts.iter().filter(|part| !part.is_replica()) {
                if part.is_zero() {
                    replica.zero(part.range).map_err(FoldError::Replica)?;
                } else {
                    buf.resize(part.range.len as usize, 0);
                    part.read(&mut buf)?;
                    replica.write_at(part.range.start, &buf).map_err(FoldError::Replica)?;
                }
                written += part.range.len;
            }
        }
        for replica in &replicas {
            replica.sync_data().map_err(FoldError::Replica)?;
        }
        Ok(written)
    }
}
