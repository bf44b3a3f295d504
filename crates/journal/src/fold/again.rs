//! What a step back had written in part before it was cut short, and the redo log does not tell of any more.
//!
//! A crash story: (1) a step back writes its before-images, and some of the replica; (2) the agent dies; (3) what the step was
//! bringing rots in a segment that has no index yet, so that the opening finds it lost as cuts; (4) the step is ended without
//! it, and the checksums of blocks that it had written are of before that, or of after: cuts below have no part in it, and
//! could not be read there. Its before-images tell which blocks those are, and they are summed as they are.

use super::{Contain, Fold, FoldError};
use crate::cover::LogKind;
use crate::extent::{REGION_BYTES, Width};
use crate::merge::Merge;
use crate::payload::ReadError;
use crate::replica::Replica;
use crate::sums::SUMMED_BYTES;
use crate::upkeep::Upkeep;
use types::{ByteRange, DiskIndex, WriteSeq};

impl Fold {
    /// Sums again the blocks that before-images above the first cut and at or below the second are of, and no write of the
    /// redo log.
    pub(super) fn sum_what_only_before_images_tell(
        &self,
        between: (WriteSeq, WriteSeq),
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<(), FoldError> {
        let (above, target) = between;
        for width in Width::BOTH {
            let mut merge = Merge::new(self.sources_between(LogKind::Undo, above, target, width)?)?;
            while let Some(extent) = merge.next()? {
                if extent.seq <= above || extent.seq > target {
                    continue;
                }
                for range in extent.range.split_at_multiples(REGION_BYTES) {
                    self.state.check_turn().map_err(FoldError::Replica)?;
                    self.sum_again(extent.disk, range, between, how, contain)?;
                }
            }
        }
        Ok(())
    }

    /// The same, of blocks of one region.
    fn sum_again(
        &self,
        disk: DiskIndex,
        range: ByteRange,
        between: (WriteSeq, WriteSeq),
        how: &Upkeep<'_>,
        contain: Contain<'_>,
    ) -> Result<(), FoldError> {
        let replica = self.reads.replica(disk).map_err(FoldError::Replica)?;
        let blocks = self.untold(disk, &replica, replica.around(range), between)?;
        if blocks.is_empty() {
            return Ok(());
        }
        let summed = self.state.read_shared().manifest.disks[usize::from(disk.0)].summed_below;
        let mut writing = replica.begin(summed, true);
        for block in blocks {
            (how.pace)(block.len);
            writing.leave_out(block, &[]).map_err(FoldError::Replica)?;
        }
        self.end_writing((disk, replica.around(range)), between.1, writing, contain)
    }

    /// Those of some blocks of which the redo log has no write.
    fn untold(
        &self,
        disk: DiskIndex,
        replica: &Replica,
        blocks: ByteRange,
        (above, target): (WriteSeq, WriteSeq),
    ) -> Result<Vec<ByteRange>, ReadError> {
        let unwritten = self.reads.unwritten_between(disk, blocks, above, target)?;
        let is_untold =
            |block: &ByteRange| unwritten.iter().any(|part| part.intersection(*block) == Some(*block));
        let all = blocks.units(SUMMED_BYTES).map(|block| replica.block(block));
        Ok(all.filter(is_untold).collect())
    }
}
