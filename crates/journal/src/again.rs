//! What the source is asked for again: the blocks in which something of the newest state is lost, and no others.
//!
//! Of too many runs those that lie nearest to one another become one: that costs more than was lost. Where most of the disks
//! would come again, they are compared instead.

use crate::lost::{Lost, LostPiece};
use types::limits::{BLOCK_BYTES, SEND_AGAIN_RUNS_MAX};
use types::{BlockIndex, BlockRun};

/// The blocks of what is lost of the newest state, at most [`SEND_AGAIN_RUNS_MAX`] runs.
pub(crate) fn runs(lost: &Lost) -> Vec<BlockRun> {
    let mut runs: Vec<BlockRun> = lost.newest().map(run_of).collect();
    runs.sort_unstable();
    let mut joined: Vec<BlockRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut().filter(|last| last.disk == run.disk && run.first.0 <= last.end()) {
            Some(last) => last.blocks = last.end().max(run.end()) - last.first.0,
            None => joined.push(run),
        }
    }
    bounded(joined, SEND_AGAIN_RUNS_MAX)
}

/// Whether that is more than half of disks of these sizes.
pub(crate) fn is_most(lost: &Lost, disk_sizes: impl Iterator<Item = u64>) -> bool {
    let all: u64 = disk_sizes.map(|size| size.div_ceil(BLOCK_BYTES)).sum();
    let asked: u64 = runs(lost).iter().map(|run| run.blocks).sum();
    asked > all / 2
}

fn run_of(piece: &LostPiece) -> BlockRun {
    let blocks = piece.range.units(BLOCK_BYTES);
    BlockRun { disk: piece.disk, first: BlockIndex(blocks.start), blocks: blocks.end - blocks.start }
}

/// At most so many: those with the fewest blocks between them become one. There is one of each disk at least.
fn bounded(runs: Vec<BlockRun>, most: usize) -> Vec<BlockRun> {
    let Some(excess) = runs.len().checked_sub(most).filter(|excess| *excess > 0) else { return runs };
    let mut between: Vec<(u64, usize)> = runs
        .windows(2)
        .enumerate()
        .filter(|(_, two)| two[0].disk == two[1].disk)
        .map(|(at, two)| (two[1].first.0 - two[0].end(), at + 1))
        .collect();
    between.sort_unstable();
    let mut is_joined = vec![false; runs.len()];
    between.iter().take(excess).for_each(|(_, at)| is_joined[*at] = true);
    let mut kept: Vec<BlockRun> = Vec::with_capacity(most);
    for (run, is_joined) in runs.into_iter().zip(is_joined) {
        match kept.last_mut().filter(|_| is_joined) {
            Some(last) => last.blocks = run.end() - last.first.0,
            None => kept.push(run),
        }
    }
    kept
}

#[cfg(test)]
mod tests;
