//! Scrubbing replicas: every block is compared with its checksum, and one that has none is given it.
//!
//! That is done beside folds, which write both. A region where something does not match, or is to be given its checksum, is
//! looked at once more while no fold is under way; what one has left in part has no say (`replica.rs`). What was read of a
//! disk that became a replica as it was is believed from then on: whether it had rotted before nobody can know.

use crate::damage::Damage;
use crate::fold::FoldError;
use crate::payload::ReadError;
use crate::read::Reads;
use crate::replica::{Places, Replica};
use crate::replica_look::{Looked, next_region};
use crate::state::State;
use crate::sums::Word;
use crate::turn::Turns;
use crate::upkeep::Upkeep;
use std::collections::BTreeMap;
use std::io;
use types::{ByteRange, DiskIndex};

/// Read of a replica in one step.
const STEP_BYTES: u64 = 64 << 20;

/// Who scrubs replicas.
#[derive(Clone, Copy)]
pub(crate) struct ScrubReplica<'a> {
    pub(crate) state: &'a State,
    pub(crate) reads: &'a Reads,
    pub(crate) turns: &'a Turns,
    /// Contains damage of places, while no turn is taken; what of it was not known.
    pub(crate) contain: &'a dyn Fn(Places) -> Result<Vec<Damage>, FoldError>,
}

/// What a step has read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) upto: u64,
    pub(crate) bytes: u64,
    /// What was found damaged now.
    pub(crate) damage: Vec<Damage>,
}

impl ScrubReplica<'_> {
    fn size_and_summed(&self, disk: DiskIndex) -> (u64, u64) {
        let shared = self.state.read_shared();
        let entry = &shared.manifest.disks[usize::from(disk.0)];
        (entry.size_bytes, entry.summed_below)
    }

    /// Reads some of a replica from byte `from` on. Holes that should be there cost nothing. What is damaged is contained
    /// together at the end: each time it is, the open segment ends and the manifest is written.
    pub(crate) fn step(&self, disk: DiskIndex, from: u64, how: &Upkeep<'_>) -> Result<Read, FoldError> {
        let replica = self.reads.replica(disk).map_err(ReadError::Replica)?;
        let (size, _) = self.size_and_summed(disk);
        let mut done = Read { upto: from, ..Read::default() };
        let mut doubted = Vec::new();
        while done.bytes < STEP_BYTES && done.upto < size {
            let Some(region) = next_region(&replica, done.upto).map_err(ReadError::Replica)? else {
                done.upto = size;
                break;
            };
            self.state.check_turn().map_err(ReadError::Replica)?;
            (how.pace)(region.len);
            let looked = self.look(disk, &replica, region)?;
            if looked.is_damaged() {
                doubted.push(region);
            } else if !looked.is_as_expected() {
                done.damage.extend(self.settle(disk, &replica, &[region])?);
            }
            done.bytes += region.len;
            done.upto = region.end();
        }
        done.damage.extend(self.settle(disk, &replica, &doubted)?);
        self.note_summed(disk, &replica, from, done.upto).map_err(ReadError::Replica)?;
        Ok(done)
    }

    /// Contains what is damaged of parts of regions, and sums what has no checksum.
    fn settle(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        regions: &[ByteRange],
    ) -> Result<Vec<Damage>, FoldError> {
        if regions.is_empty() {
            return Ok(Vec::new());
        }
        let _upkeep = self.turns.lock();
        self.state.check_life().map_err(ReadError::Replica)?;
        self.settle_in_turn(disk, replica, regions)
    }

    /// The same while no other turn is taken.
    ///
    /// Below what was summed nobody syncs the checksums later: after a loss of power a page that had rotted would be back, which
    /// says nothing, and what rots then would be believed. Where they could not be made durable nothing is known of the blocks,
    /// so that the next who looks does it again: a sync that has failed leaves what it gave up readable.
    pub(crate) fn settle_in_turn(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        regions: &[ByteRange],
    ) -> Result<Vec<Damage>, FoldError> {
        let mut summed = BTreeMap::new();
        let settled = self.settle_all(disk, replica, regions, &mut summed);
        if settled.is_err() && !summed.is_empty() {
            summed.values_mut().for_each(|word| *word = Word::UNKNOWN);
            replica.sums().set(&summed).map_err(ReadError::Replica)?;
        }
        let places = settled?;
        if places.is_empty() { Ok(Vec::new()) } else { (self.contain)(places) }
    }

    fn settle_all(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        regions: &[ByteRange],
        summed: &mut BTreeMap<u64, Word>,
    ) -> Result<Places, FoldError> {
        let mut places = Vec::new();
        for region in regions {
            self.state.check_turn().map_err(ReadError::Replica)?;
            places.extend(self.settle_region(disk, replica, *region, summed)?);
        }
        if !summed.is_empty() {
            replica.sums().sync().map_err(ReadError::Replica)?;
        }
        Ok(places)
    }

    /// What is damaged of a part of one region. What has no checksum is summed: which of it must be synced. What is being
    /// written has no say.
    fn settle_region(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        region: ByteRange,
        summed: &mut BTreeMap<u64, Word>,
    ) -> Result<Places, FoldError> {
        let mut looked = self.look(disk, replica, region)?;
        for (block, word) in &mut looked.fresh {
            if self.reads.is_being_written(disk, replica.block(*block))? {
                *word = Word::UNKNOWN;
            }
        }
        if region.start < self.size_and_summed(disk).1 {
            summed.extend(&looked.fresh);
        }
        replica.sums().set(&looked.fresh).map_err(ReadError::Replica)?;
        let mut rotten = Vec::new();
        for range in std::mem::take(&mut looked.rotten) {
            if !self.reads.is_being_written(disk, range)? {
                rotten.push(range);
            }
        }
        looked.rotten = rotten;
        Ok(looked.damage(replica))
    }

    fn look(&self, disk: DiskIndex, replica: &Replica, region: ByteRange) -> Result<Looked, ReadError> {
        let (_, summed_below) = self.size_and_summed(disk);
        Looked::at(replica, region, summed_below).map_err(ReadError::Replica)
    }

    /// Everything from `from` to `upto` was read, and what was not known before is in the file.
    fn note_summed(&self, disk: DiskIndex, replica: &Replica, from: u64, upto: u64) -> io::Result<()> {
        let (_, summed_below) = self.size_and_summed(disk);
        if from > summed_below || upto <= summed_below {
            return Ok(());
        }
        replica.sums().sync()?;
        self.state.change_manifest_alone(|manifest| manifest.disks[usize::from(disk.0)].summed_below = upto)
    }
}
