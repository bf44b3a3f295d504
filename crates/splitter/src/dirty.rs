//! What the recovery side may not have, block by block: marked to be copied, suspect, or on its way.
//!
//! A block is *marked* where only a copy brings it over, *suspect* where a comparison is to say whether it
//! has to be copied, and *on its way* from just before it is written, copied or compared until its last
//! write is acknowledged. In each case its bit in the [`DirtyMap`] is set: but for blocks that are only
//! verified, which count as equal until found otherwise.
//!
//! All of it is kept, and changed, by runs of blocks: what a guest does to a range costs as one record does.

use crate::bitmap::{self, Bitmap};
use crate::dirty_map::DirtyMap;
use crate::identity::DiskIdentity;
use crate::on_the_way::{Blocks, OnTheWay, Place};
use crate::region_log::{RegionLog, Regions};
use std::collections::BTreeMap;
use std::io;
use types::limits::{BLOCK_BYTES, ON_THE_WAY_RUNS_MAX, RUNS_A_TURN};
use types::{BlockIndex, ByteRange, DiskIndex, Incarnation, WallTime, WriteSeq};

#[derive(Debug)]
pub(crate) struct Dirty {
    bitmaps: Vec<Bitmap>,
    suspects: Vec<Bitmap>,
    /// Runs that are being compared, each with its length in blocks.
    comparing: BTreeMap<(DiskIndex, BlockIndex), u64>,
    on_the_way: OnTheWay,
    /// Blocks of which the local disk does not give all: what it gave has been sent, and the rest cannot be.
    unreadable: Vec<Bitmap>,
    map: DirtyMap,
    region_bytes: u64,
    hot: Vec<Hot>,
}

/// Regions of a disk, a bit each.
#[derive(Debug)]
struct Hot {
    /// Their bits are set in the region log.
    regions: Bitmap,
    /// Something of them has become dirty since it was last asked which could be cleared.
    touched: Bitmap,
}

impl Dirty {
    /// What was marked or on its way when the map was last kept is marked now; all of it is suspect where
    /// some of it was.
    ///
    /// Where the map has lost what it knew, and the log has not, the log's regions are suspect.
    pub(crate) fn new(disk_sizes: &[u64], map: DirtyMap, log: &RegionLog) -> Self {
        let empty = || disk_sizes.iter().map(|&size| Bitmap::new(size)).collect();
        let (mut bitmaps, mut suspects): (Vec<Bitmap>, Vec<Bitmap>) = (empty(), empty());
        let kept = if map.has_suspects() { &mut suspects } else { &mut bitmaps };
        for (at, bitmap) in kept.iter_mut().enumerate() {
            map.marked(DiskIndex(at as u16)).for_each(|run| bitmap.set(run));
        }
        let region_bytes = log.region_bytes();
        let regions = |&size: &u64| Bitmap::of_units(size.div_ceil(region_bytes));
        let hot = |size| Hot { regions: regions(size), touched: regions(size) };
        let mut dirty = Self {
            bitmaps,
            suspects,
            comparing: BTreeMap::new(),
            on_the_way: OnTheWay::new(disk_sizes.len()),
            unreadable: empty(),
            map,
            region_bytes,
            hot: disk_sizes.iter().map(hot).collect(),
        };
        dirty.heated(&log.marked());
        if dirty.map.kept().is_empty() && !log.kept().is_empty() {
            for regions in log.marked() {
                let size = disk_sizes[usize::from(regions.disk.0)];
                dirty.suspect(regions.disk, regions.range(region_bytes, size));
            }
        }
        dirty
    }

    /// The regions that a range touches.
    pub(crate) fn regions_of(&self, disk: DiskIndex, range: ByteRange) -> Regions {
        Regions { disk, run: range.units(self.region_bytes) }
    }

    /// Regions of a range that the region log does not have.
    pub(crate) fn cold(&self, disk: DiskIndex, range: ByteRange) -> Vec<Regions> {
        let hot = &self.hot[usize::from(disk.0)].regions;
        let runs = bitmap::runs(range.units(self.region_bytes), |at| hot.word(at));
        runs.filter(|(_, is_hot)| !is_hot).map(|(run, _)| Regions { disk, run }).collect()
    }

    /// The region log has these now.
    pub(crate) fn heated(&mut self, regions: &[Regions]) {
        for Regions { disk, run } in regions {
            let hot = &mut self.hot[usize::from(disk.0)];
            hot.regions.set(run.clone());
            hot.touched.set(run.clone());
        }
    }

    /// Something of these blocks may be dirty from here on.
    fn touch(&mut self, disk: DiskIndex, blocks: Blocks) {
        let unit = self.region_bytes / BLOCK_BYTES;
        self.hot[usize::from(disk.0)].touched.set(blocks.start / unit..blocks.end.div_ceil(unit));
    }

    /// All regions with a block that the recovery side may not have.
    pub(crate) fn dirty_regions(&self) -> Vec<Regions> {
        let mut dirty = self.marked_regions();
        let mut from = Some(Place::default());
        while let Some(place) = from {
            from = self.gather_on_the_way(&mut dirty, place, RUNS_A_TURN);
        }
        let runs = dirty.iter().enumerate().flat_map(|(at, regions)| {
            let set = bitmap::runs(0..regions.units(), |at| regions.word(at)).filter(|(_, is_set)| *is_set);
            set.map(move |(run, _)| Regions { disk: DiskIndex(at as u16), run })
        });
        runs.collect()
    }

    /// A map of regions for each disk, with those set that have a marked or suspect block.
    fn marked_regions(&self) -> Vec<Bitmap> {
        let blocks = self.region_bytes / BLOCK_BYTES;
        let all = self.hot.iter().zip(&self.bitmaps).zip(self.suspects.iter().zip(&self.unreadable));
        all.map(|((hot, marked), (suspect, unreadable))| {
            let mut regions = Bitmap::of_units(hot.regions.units());
            let suspect = suspect.marked_units(blocks).chain(unreadable.marked_units(blocks));
            for index in marked.marked_units(blocks).chain(suspect) {
                regions.set(index..index + 1);
            }
            regions
        })
        .collect()
    }

    /// Begins to look for regions that can be cleared: those with a marked or suspect block, to which
    /// [`Dirty::gather_on_the_way`] adds the others that cannot.
    pub(crate) fn begin_to_cool(&mut self) -> Vec<Bitmap> {
        self.hot.iter_mut().for_each(|hot| hot.touched.clear_all());
        self.marked_regions()
    }

    /// Sets the regions that have a block on its way, of as many runs as `most` from `from` on. Where to go on.
    pub(crate) fn gather_on_the_way(&self, into: &mut [Bitmap], from: Place, most: usize) -> Option<Place> {
        let unit = self.region_bytes / BLOCK_BYTES;
        let (runs, next) = self.on_the_way.some(from, most);
        for (disk, run) in runs {
            into[usize::from(disk.0)].set(run.start / unit..run.end.div_ceil(unit));
        }
        next
    }

    /// Hot regions that are not among the dirty ones, each of which [`Dirty::cool`] may take if nothing of it becomes
    /// dirty meanwhile.
    pub(crate) fn candidates(&self, dirty: &[Bitmap]) -> Vec<Regions> {
        let all = self.hot.iter().zip(dirty).enumerate();
        all.flat_map(|(at, (hot, dirty))| {
            let word = |at: usize| hot.regions.word(at) & !hot.touched.word(at) & !dirty.word(at);
            let runs = bitmap::runs(0..hot.regions.units(), word).filter(|(_, is_set)| *is_set);
            runs.map(move |(run, _)| Regions { disk: DiskIndex(at as u16), run }).collect::<Vec<_>>()
        })
        .collect()
    }

    /// Those of which nothing has become dirty since [`Dirty::begin_to_cool`]: they are cold from now on.
    pub(crate) fn cool(&mut self, candidates: Vec<Regions>) -> Vec<Regions> {
        let mut cooled = Vec::new();
        for Regions { disk, run } in candidates {
            let Hot { regions, touched } = &mut self.hot[usize::from(disk.0)];
            for (run, is_touched) in bitmap::runs(run, |at| touched.word(at)) {
                if !is_touched {
                    regions.clear(run.clone());
                    cooled.push(Regions { disk, run });
                }
            }
        }
        cooled
    }

    /// Blocks that a comparison has yet to say something about.
    pub(crate) fn unsettled_blocks(&self) -> u64 {
        self.suspects.iter().map(Bitmap::count).sum::<u64>() + self.comparing.values().sum::<u64>()
    }

    /// The parts of a run of blocks that the recovery side may not have, and those that it has, in order.
    pub(crate) fn unsent(&self, disk: DiskIndex, blocks: Blocks) -> Vec<(Blocks, bool)> {
        let at = usize::from(disk.0);
        let mut unsent = Bitmap::of_units(blocks.end - blocks.start);
        let marked = |at: usize| self.bitmaps[usize::from(disk.0)].word(at);
        let suspect = |word: usize| self.suspects[at].word(word) | self.unreadable[at].word(word);
        let bits = bitmap::runs(blocks.clone(), |at| marked(at) | suspect(at));
        let compared = self.comparing.iter().filter(|((other, _), _)| *other == disk);
        let compared = compared.map(|((_, first), len)| first.0..first.0 + len);
        let runs = bits.filter_map(|(run, is_set)| is_set.then_some(run));
        for run in runs.chain(self.on_the_way.within(disk, blocks.clone())).chain(compared) {
            let (start, end) = (run.start.max(blocks.start), run.end.min(blocks.end));
            unsent.set(start.saturating_sub(blocks.start)..end.saturating_sub(blocks.start));
        }
        let parts = bitmap::runs(0..unsent.units(), |at| unsent.word(at));
        parts.map(|(run, is_set)| (run.start + blocks.start..run.end + blocks.start, is_set)).collect()
    }

    pub(crate) fn is_unsettled(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        let compared = |(&(other, first), &len): (&(DiskIndex, BlockIndex), &u64)| {
            other == disk && (first.0..first.0 + len).contains(&block.0)
        };
        self.suspects[usize::from(disk.0)].is_marked(block) || self.comparing.iter().any(compared)
    }

    pub(crate) fn suspect_blocks(&self) -> u64 {
        self.suspects.iter().map(Bitmap::count).sum()
    }

    pub(crate) fn marked_blocks(&self) -> u64 {
        self.bitmaps.iter().map(Bitmap::count).sum()
    }

    pub(crate) fn is_marked(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.bitmaps[usize::from(disk.0)].is_marked(block)
    }

    /// Whether one more record may be on its way: what is kept of them has a bound of its own, for their bytes may
    /// have left the buffer.
    pub(crate) fn has_room(&self) -> bool {
        self.on_the_way.runs() < ON_THE_WAY_RUNS_MAX
    }

    #[cfg(test)]
    pub(crate) fn on_the_way_runs(&self) -> usize {
        self.on_the_way.runs()
    }

    /// A range is about to be written. An error says that it must not be.
    pub(crate) fn begin_write(&mut self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        self.map.check_open()?;
        debug_assert!(self.cold(disk, range).is_empty(), "heated before it is written to");
        let blocks = range.units(BLOCK_BYTES);
        self.touch(disk, blocks.clone());
        self.map.set(disk, range)?;
        self.on_the_way.begin(disk, blocks);
        Ok(())
    }

    /// What was begun is done, in whatever way; `in_stream` is the record that brings it over.
    pub(crate) fn end_write(&mut self, disk: DiskIndex, range: ByteRange, in_stream: Option<WriteSeq>) {
        match in_stream {
            None => self.mark(disk, range),
            // A block that is written as a whole needs not be read any more.
            Some(_) => {
                let whole = range.start.div_ceil(BLOCK_BYTES)..range.end() / BLOCK_BYTES;
                let unreadable = &mut self.unreadable[usize::from(disk.0)];
                if whole.start < whole.end && unreadable.count() > 0 {
                    unreadable.clear(whole);
                }
            }
        }
        let idle = self.on_the_way.end(disk, range.units(BLOCK_BYTES), in_stream);
        self.settle(disk, &idle);
    }

    /// What was begun has changed nothing.
    pub(crate) fn abandon_write(&mut self, disk: DiskIndex, range: ByteRange) {
        let idle = self.on_the_way.end(disk, range.units(BLOCK_BYTES), None);
        self.settle(disk, &idle);
    }

    /// A range is to be copied.
    pub(crate) fn mark(&mut self, disk: DiskIndex, range: ByteRange) {
        self.touch(disk, range.units(BLOCK_BYTES));
        self.keep(disk, range);
        self.unreadable[usize::from(disk.0)].clear(range.units(BLOCK_BYTES));
        self.bitmaps[usize::from(disk.0)].mark(range);
    }

    fn keep(&mut self, disk: DiskIndex, range: ByteRange) {
        if let Err(error) = self.map.set(disk, range) {
            tracing::error!(%error, "the dirty map can neither be kept nor given up");
        }
    }

    /// The next run of marked blocks, at most `blocks_max` long.
    pub(crate) fn next_run(&self, blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
        next_run(&self.bitmaps, blocks_max)
    }

    /// A marked run is about to be copied: it is on its way now, and need not be compared. Ended by
    /// [`Dirty::end_write`].
    pub(crate) fn begin_copy(&mut self, disk: DiskIndex, first: BlockIndex, len: u64) {
        let blocks = first.0..first.0 + len;
        self.touch(disk, blocks.clone());
        self.suspects[usize::from(disk.0)].clear_run(first, len);
        self.on_the_way.begin(disk, blocks);
        self.bitmaps[usize::from(disk.0)].clear_run(first, len);
    }

    /// A block whose copy was begun cannot be read as a whole. It is tried again from time to time, when the stream begins
    /// anew, and after the agent's restart; until then it stays as it is at the recovery side, where the guest does not write it as a whole.
    pub(crate) fn end_unreadable(&mut self, disk: DiskIndex, block: BlockIndex) {
        self.unreadable[usize::from(disk.0)].set(block.0..block.0 + 1);
        let idle = self.on_the_way.end(disk, block.0..block.0 + 1, None);
        self.settle(disk, &idle);
    }

    pub(crate) fn unreadable_blocks(&self) -> u64 {
        self.unreadable.iter().map(Bitmap::count).sum()
    }

    /// The first of them.
    pub(crate) fn first_unreadable(&self) -> Option<(DiskIndex, BlockIndex)> {
        next_run(&self.unreadable, 1).map(|(disk, block, _)| (disk, block))
    }

    /// All of them, in order.
    pub(crate) fn unreadable(&self) -> Vec<(DiskIndex, BlockIndex)> {
        let disks = self.unreadable.iter().enumerate().filter(|(_, blocks)| blocks.count() > 0);
        let of_one = |(disk, blocks): (usize, &Bitmap)| {
            let blocks: Vec<u64> = blocks.marked_units(1).collect();
            blocks.into_iter().map(move |block| (DiskIndex(disk as u16), BlockIndex(block)))
        };
        disks.flat_map(of_one).collect()
    }

    pub(crate) fn is_unreadable(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.unreadable[usize::from(disk.0)].is_marked(block)
    }

    /// The blocks of a disk that its VM has no more are neither copied nor compared: what is known of them stays.
    pub(crate) fn forget_run(&mut self, disk: DiskIndex, first: BlockIndex, len: u64) {
        self.begin_copy(disk, first, len);
        let idle = self.on_the_way.end(disk, first.0..first.0 + len, None);
        self.settle(disk, &idle);
        if self.unsettled_blocks() == 0 {
            self.map.note_suspects(false);
        }
    }

    /// A range is to be compared, because it may differ.
    pub(crate) fn suspect(&mut self, disk: DiskIndex, range: ByteRange) {
        self.map.note_suspects(true);
        self.keep(disk, range);
        self.verify(disk, range);
    }

    /// A range is to be compared, though it should be equal.
    pub(crate) fn verify(&mut self, disk: DiskIndex, range: ByteRange) {
        self.touch(disk, range.units(BLOCK_BYTES));
        self.suspects[usize::from(disk.0)].mark(range);
    }

    /// The next run of suspect blocks, at most `blocks_max` long; none while a comparison that is under way
    /// touches it.
    pub(crate) fn next_suspects(&self, blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
        let (disk, first, len) = next_run(&self.suspects, blocks_max)?;
        let overlaps = |(&(other, at), &other_len): (&(DiskIndex, BlockIndex), &u64)| {
            other == disk && at.0 < first.0 + len && first.0 < at.0 + other_len
        };
        (!self.comparing.iter().any(overlaps)).then_some((disk, first, len))
    }

    /// A run of suspect blocks is about to be compared; none may be compared already.
    pub(crate) fn begin_compare(&mut self, disk: DiskIndex, first: BlockIndex, len: u64) {
        let blocks = first.0..first.0 + len;
        self.touch(disk, blocks.clone());
        self.on_the_way.begin(disk, blocks);
        self.suspects[usize::from(disk.0)].clear_run(first, len);
        self.comparing.insert((disk, first), len);
    }

    /// Blocks of a run that is being compared are to be compared once more when it has been, a bit for each. What is kept
    /// of them stays as it is until then.
    pub(crate) fn compare_again(&mut self, disk: DiskIndex, first: BlockIndex, which: u64) {
        let blocks = self.compared_blocks(disk, first).unwrap_or(0).min(u64::from(u64::BITS));
        for at in (0..blocks).filter(|at| which & (1 << at) != 0) {
            let block = first.0 + at;
            self.touch(disk, block..block + 1);
            self.suspects[usize::from(disk.0)].set(block..block + 1);
        }
    }

    /// The length of the run that is being compared from `first` on, if one is.
    pub(crate) fn compared_blocks(&self, disk: DiskIndex, first: BlockIndex) -> Option<u64> {
        self.comparing.get(&(disk, first)).copied()
    }

    /// The answer for the run that begins at `first`, a bit for each block that differs. Those are marked;
    /// how many.
    pub(crate) fn end_compare(&mut self, disk: DiskIndex, first: BlockIndex, differs: u64) -> u64 {
        let Some(len) = self.comparing.remove(&(disk, first)) else { return 0 };
        let mut differing = 0;
        for at in (0..len).filter(|at| differs & (1 << at) != 0) {
            self.mark(disk, BlockIndex(first.0 + at).range(u64::MAX));
            differing += 1;
        }
        let idle = self.on_the_way.end(disk, first.0..first.0 + len, None);
        self.settle(disk, &idle);
        if self.unsettled_blocks() == 0 {
            self.map.note_suspects(false);
        }
        differing
    }

    /// No answers come any more: what was being compared is suspect again.
    pub(crate) fn forget_compares(&mut self) {
        while let Some(((disk, first), len)) = self.comparing.pop_first() {
            let blocks = first.0..first.0 + len;
            self.touch(disk, blocks.clone());
            self.suspects[usize::from(disk.0)].set(blocks.clone());
            let idle = self.on_the_way.end(disk, blocks, None);
            self.settle(disk, &idle);
        }
    }

    /// Everything of the stream at or below is acknowledged.
    pub(crate) fn acknowledged(&mut self, up_to: WriteSeq) {
        self.map.note_acked(up_to);
    }

    /// An acknowledged record leaves the buffer.
    pub(crate) fn released(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) {
        let idle = self.on_the_way.released(disk, range.units(BLOCK_BYTES), seq);
        self.settle(disk, &idle);
    }

    /// Everything at or below is acknowledged, also what has left the buffer in another way: finds it among as many runs
    /// as `most` from `from` on. Where to go on.
    pub(crate) fn sweep(&mut self, up_to: WriteSeq, from: Place, most: usize) -> Option<Place> {
        let (idle, next) = self.on_the_way.sweep(up_to, from, most);
        for of_one in idle.chunk_by(|(disk, _), (next, _)| disk == next) {
            let runs: Vec<Blocks> = of_one.iter().map(|(_, run)| run.clone()).collect();
            self.settle(of_one[0].0, &runs);
        }
        next
    }

    /// The buffer is forgotten: what was on its way has to be copied.
    pub(crate) fn forget_stream(&mut self) {
        // All of it is marked, so that no bit of the map is to be cleared.
        for (disk, blocks) in self.on_the_way.forget_records() {
            self.touch(disk, blocks.clone());
            self.bitmaps[usize::from(disk.0)].set(blocks);
        }
        while let Some((disk, block)) = self.first_unreadable() {
            self.unreadable[usize::from(disk.0)].clear(block.0..block.0 + 1);
            self.bitmaps[usize::from(disk.0)].set(block.0..block.0 + 1);
        }
    }

    /// A new stream begins above `floor`, with everything marked that may differ.
    pub(crate) fn begin_stream(&mut self, incarnation: Incarnation, floor: WriteSeq) {
        self.map.begin(incarnation, floor);
    }

    /// The agent is there.
    pub(crate) fn note_alive(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.map.note_alive(now, seen);
    }

    /// Nothing is written any more.
    pub(crate) fn close(&mut self, now: WallTime, seen: &[Option<DiskIdentity>]) {
        self.map.close(now, seen);
    }

    /// Clears the map's bits of blocks that are not on their way any more, but for those that are marked, suspect or
    /// unreadable.
    fn settle(&mut self, disk: DiskIndex, idle: &[Blocks]) {
        let at = usize::from(disk.0);
        let (marked, suspect, unreadable) = (&self.bitmaps[at], &self.suspects[at], &self.unreadable[at]);
        if marked.count() == 0 && suspect.count() == 0 && unreadable.count() == 0 {
            return self.map.clear(disk, idle);
        }
        let word = |at: usize| marked.word(at) | suspect.word(at) | unreadable.word(at);
        let runs = idle.iter().flat_map(|run| bitmap::runs(run.clone(), word));
        let clean: Vec<Blocks> = runs.filter(|(_, is_set)| !is_set).map(|(run, _)| run).collect();
        self.map.clear(disk, &clean);
    }
}

fn next_run(bitmaps: &[Bitmap], blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
    bitmaps.iter().enumerate().find_map(|(disk, bitmap)| {
        bitmap.next_run(blocks_max).map(|(first, len)| (DiskIndex(disk as u16), first, len))
    })
}

#[cfg(test)]
mod tests;
