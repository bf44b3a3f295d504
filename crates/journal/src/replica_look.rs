//! Looking through a replica: what of it is not as its checksums say, and what has none yet.

use crate::extent::REGION_BYTES;
use crate::page::PageBuf;
use crate::replica::{Places, Replica};
use crate::sums::{SUMMED_BYTES, Word};
use std::collections::BTreeMap;
use std::io;
use types::ByteRange;

/// What was found of some blocks.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) rotten: Vec<ByteRange>,
    unread: Vec<ByteRange>,
    /// What blocks hold of which nothing was known.
    pub(crate) fresh: BTreeMap<u64, Word>,
}

impl Looked {
    /// Reads a part of one region.
    pub(crate) fn at(replica: &Replica, region: ByteRange, summed_below: u64) -> io::Result<Self> {
        let mut buf = PageBuf::zeroed(region.len as usize);
        let mut looked = Looked::default();
        let Err(error) = replica.data().read_at(region.start, buf.as_mut_slice()) else {
            looked.take(replica, region, buf.as_slice(), summed_below);
            return Ok(looked);
        };
        // A disk fails sector by sector.
        for block in region.split_at_multiples(SUMMED_BYTES) {
            let buf = &mut buf.as_mut_slice()[..block.len as usize];
            match replica.data().read_at(block.start, buf) {
                Ok(()) => looked.take(replica, block, buf, summed_below),
                Err(_) => looked.unread.push(block),
            }
        }
        let is_read_in_part = looked.unread.iter().map(|block| block.len).sum::<u64>() < region.len;
        match is_read_in_part || replica.answers() {
            true => Ok(looked),
            false => Err(error),
        }
    }

    fn take(&mut self, replica: &Replica, range: ByteRange, bytes: &[u8], summed_below: u64) {
        self.rotten.extend(replica.rotten(range.start, bytes, summed_below));
        self.fresh.extend(replica.fresh(range.start, bytes, summed_below));
    }

    pub(crate) fn is_damaged(&self) -> bool {
        !(self.rotten.is_empty() && self.unread.is_empty())
    }

    pub(crate) fn is_as_expected(&self) -> bool {
        !self.is_damaged() && self.fresh.is_empty()
    }

    /// What is damaged, and where.
    pub(crate) fn damage(self, replica: &Replica) -> Places {
        let rotten = joined(self.rotten).into_iter().map(|range| (range, replica.damaged(range).to_string()));
        let unread = joined(self.unread).into_iter().map(|range| (range, replica.unread(range)));
        rotten.chain(unread).collect()
    }
}

/// From byte `at` on, the next part of a region that is not a hole which is known to be one.
pub(crate) fn next_region(replica: &Replica, at: u64) -> io::Result<Option<ByteRange>> {
    let of_data = replica.data().next_data(at)?.map(|next| next / SUMMED_BYTES * SUMMED_BYTES);
    let of_sums = replica.sums().next_block(at / SUMMED_BYTES)?.map(|block| block * SUMMED_BYTES);
    let next = of_data.into_iter().chain(of_sums).min().map(|next| next.max(at));
    let region = |at: u64| (REGION_BYTES - at % REGION_BYTES).min(replica.size() - at);
    Ok(next.filter(|at| *at < replica.size()).map(|at| ByteRange::new(at, region(at))))
}

/// Ranges that follow each other as one.
fn joined(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| last.end() == range.start) {
            Some(last) => last.len += range.len,
            None => joined.push(range),
        }
    }
    joined
}
