//! Answering comparisons: blocks as of a cut, hashed and compared with what the source says it has.

use batch::BlockHash;
use journal::Journal;
use replication::wire::{Compare, Compared};
use types::{BlockIndex, ByteRange};

/// Which blocks differ. One that cannot be read is as good as one that differs: the source sends it again.
pub(super) fn compare(journal: &Journal, asked: &Compare) -> Compared {
    let disks = journal.disks();
    let size = disks.get(usize::from(asked.disk.0)).map_or(0, |disk| disk.size_bytes);
    let last = BlockIndex(asked.first.0 + asked.hashes.len() as u64 - 1);
    let start = asked.first.range(size).start;
    let range = ByteRange::new(start, last.range(size).end() - start);
    let hashes = hashes_of(journal, asked, range)
        .map_or_else(|| each_hash(journal, asked, size), |hashes| hashes.into_iter().map(Some).collect());
    let mut differs = 0;
    for (at, (theirs, ours)) in asked.hashes.iter().zip(hashes).enumerate() {
        if ours != Some(*theirs) {
            differs |= 1 << at;
        }
    }
    Compared { disk: asked.disk, first: asked.first, differs }
}

fn hashes_of(journal: &Journal, asked: &Compare, range: ByteRange) -> Option<Vec<BlockHash>> {
    let mut bytes = vec![0; range.len as usize];
    journal.read_at(asked.disk, asked.at, range.start, &mut bytes).ok()?;
    Some(BlockHash::of_run(&bytes))
}

/// Block by block, where not all of them can be read.
fn each_hash(journal: &Journal, asked: &Compare, size: u64) -> Vec<Option<BlockHash>> {
    let blocks = (asked.first.0..asked.first.0 + asked.hashes.len() as u64).map(BlockIndex);
    blocks
        .map(|block| hashes_of(journal, asked, block.range(size)).and_then(|hashes| hashes.first().copied()))
        .collect()
}
