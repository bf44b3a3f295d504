//! What the recovery side may not have, block by block: marked to be copied, suspect, or on its way.
//!
//! A block is *marked* where only a copy brings it over, *suspect* where a comparison is to say whether it
//! has to be copied, and *on its way* from just before it is written, copied or compared until its last
//! write is acknowledged. In each case its bit in the [`DirtyMap`] is set: but for blocks that are only
//! verified, which count as equal until found otherwise.

use crate::bitmap::Bitmap;
use crate::dirty_map::DirtyMap;
use crate::region_log::{Region, RegionLog};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use types::limits::BLOCK_BYTES;
use types::{BlockIndex, ByteRange, DiskIndex, Incarnation, WallTime, WriteSeq};

#[derive(Debug)]
pub(crate) struct Dirty {
    bitmaps: Vec<Bitmap>,
    suspects: Vec<Bitmap>,
    /// Runs that are being compared, each with its length in blocks.
    comparing: BTreeMap<(DiskIndex, BlockIndex), u64>,
    on_the_way: HashMap<(DiskIndex, BlockIndex), OnTheWay>,
    map: DirtyMap,
    region_bytes: u64,
    /// Regions whose bits are set in the region log, and whether they were written to since it was last
    /// asked which could be cleared.
    hot: HashMap<Region, bool>,
}

#[derive(Debug, Clone, Copy, Default)]
struct OnTheWay {
    /// Writes, copies and comparisons that are being made just now.
    under_way: u32,
    /// The last record of the block that is not yet acknowledged; zero where there is none.
    last: WriteSeq,
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
        for (at, (bitmap, &size)) in kept.iter_mut().zip(disk_sizes).enumerate() {
            for block in map.marked(DiskIndex(at as u16)) {
                bitmap.mark(block.range(size));
            }
        }
        let hot = log.marked().into_iter().map(|region| (region, true)).collect();
        let mut dirty = Self {
            bitmaps,
            suspects,
            comparing: BTreeMap::new(),
            on_the_way: HashMap::new(),
            map,
            region_bytes: log.region_bytes(),
            hot,
        };
        if dirty.map.kept().is_empty() && !log.kept().is_empty() {
            for region in log.marked() {
                dirty.suspect(
                    region.disk,
                    region.range(log.region_bytes(), disk_sizes[usize::from(region.disk.0)]),
                );
            }
        }
        dirty
    }

    /// Regions of a range that the region log does not have.
    pub(crate) fn cold(&self, disk: DiskIndex, range: ByteRange) -> Vec<Region> {
        Region::of(disk, range, self.region_bytes).filter(|region| !self.hot.contains_key(region)).collect()
    }

    /// The region log has these now.
    pub(crate) fn heated(&mut self, regions: &[Region]) {
        self.hot.extend(regions.iter().map(|&region| (region, true)));
    }

    /// All regions with a block that the recovery side may not have.
    pub(crate) fn dirty_regions(&self) -> BTreeSet<Region> {
        let blocks = self.region_bytes / BLOCK_BYTES;
        let mut regions: BTreeSet<Region> = BTreeSet::new();
        for (at, (marked, suspect)) in self.bitmaps.iter().zip(&self.suspects).enumerate() {
            let disk = DiskIndex(at as u16);
            for map in [marked, suspect] {
                regions.extend(map.marked_units(blocks).into_iter().map(|index| Region { disk, index }));
            }
        }
        let on_the_way = self.on_the_way.keys();
        regions.extend(on_the_way.map(|(disk, block)| Region { disk: *disk, index: block.0 / blocks }));
        regions
    }

    /// Hot regions without such a block, each of which [`Dirty::cool`] may take if nobody writes to it
    /// meanwhile.
    pub(crate) fn begin_to_cool(&mut self) -> Vec<Region> {
        let dirty = self.dirty_regions();
        self.hot.values_mut().for_each(|touched| *touched = false);
        self.hot.keys().filter(|region| !dirty.contains(region)).copied().collect()
    }

    /// Those that nobody has written to since [`Dirty::begin_to_cool`], which are cold from now on.
    pub(crate) fn cool(&mut self, regions: Vec<Region>) -> Vec<Region> {
        let untouched = |region: &Region| self.hot.get(region) == Some(&false);
        let cooled: Vec<Region> = regions.into_iter().filter(untouched).collect();
        for region in &cooled {
            self.hot.remove(region);
        }
        cooled
    }

    /// Blocks that a comparison has yet to say something about.
    pub(crate) fn unsettled_blocks(&self) -> u64 {
        self.suspects.iter().map(Bitmap::count).sum::<u64>() + self.comparing.values().sum::<u64>()
    }

    /// Whether the recovery side may not have what a block holds.
    pub(crate) fn is_unsent(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.is_marked(disk, block)
            || self.on_the_way.contains_key(&(disk, block))
            || self.is_unsettled(disk, block)
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

    /// A range is about to be written. An error says that it must not be.
    pub(crate) fn begin_write(&mut self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        for region in Region::of(disk, range, self.region_bytes) {
            *self.hot.get_mut(&region).expect("heated before it is written to") = true;
        }
        self.map.set(disk, range)?;
        for block in range.blocks() {
            self.on_the_way.entry((disk, block)).or_default().under_way += 1;
        }
        Ok(())
    }

    /// What was begun is done, in whatever way; `in_stream` is the record that brings it over.
    pub(crate) fn end_write(&mut self, disk: DiskIndex, range: ByteRange, in_stream: Option<WriteSeq>) {
        if in_stream.is_none() {
            self.mark(disk, range);
        }
        for block in range.blocks() {
            let entry = self.on_the_way.get_mut(&(disk, block)).expect("begun before it is ended");
            entry.under_way -= 1;
            if let Some(seq) = in_stream {
                entry.last = seq;
            }
            self.settle(disk, block);
        }
    }

    /// A range is to be copied.
    pub(crate) fn mark(&mut self, disk: DiskIndex, range: ByteRange) {
        self.keep(disk, range);
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
        self.suspects[usize::from(disk.0)].clear_run(first, len);
        for block in (first.0..first.0 + len).map(BlockIndex) {
            self.on_the_way.entry((disk, block)).or_default().under_way += 1;
        }
        self.bitmaps[usize::from(disk.0)].clear_run(first, len);
    }

    /// A range is to be compared, because it may differ.
    pub(crate) fn suspect(&mut self, disk: DiskIndex, range: ByteRange) {
        self.map.note_suspects(true);
        self.keep(disk, range);
        self.verify(disk, range);
    }

    /// A range is to be compared, though it should be equal.
    pub(crate) fn verify(&mut self, disk: DiskIndex, range: ByteRange) {
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
        for block in (first.0..first.0 + len).map(BlockIndex) {
            self.on_the_way.entry((disk, block)).or_default().under_way += 1;
        }
        self.suspects[usize::from(disk.0)].clear_run(first, len);
        self.comparing.insert((disk, first), len);
    }

    /// The answer for the run that begins at `first`, a bit for each block that differs. Those are marked;
    /// how many.
    pub(crate) fn end_compare(&mut self, disk: DiskIndex, first: BlockIndex, differs: u64) -> u64 {
        let Some(len) = self.comparing.remove(&(disk, first)) else { return 0 };
        let mut differing = 0;
        for at in 0..len {
            let block = BlockIndex(first.0 + at);
            self.on_the_way.get_mut(&(disk, block)).expect("begun before it is ended").under_way -= 1;
            if differs & (1 << at) != 0 {
                self.mark(disk, block.range(u64::MAX));
                differing += 1;
            }
            self.settle(disk, block);
        }
        if self.unsettled_blocks() == 0 {
            self.map.note_suspects(false);
        }
        differing
    }

    /// No answers come any more: what was being compared is suspect again.
    pub(crate) fn forget_compares(&mut self) {
        while let Some(((disk, first), len)) = self.comparing.pop_first() {
            for block in (first.0..first.0 + len).map(BlockIndex) {
                self.on_the_way.get_mut(&(disk, block)).expect("begun before it is ended").under_way -= 1;
                self.suspects[usize::from(disk.0)].mark(block.range(u64::MAX));
                self.settle(disk, block);
            }
        }
    }

    /// Everything of the stream at or below is acknowledged.
    pub(crate) fn acknowledged(&mut self, up_to: WriteSeq) {
        self.map.note_acked(up_to);
    }

    /// An acknowledged record leaves the buffer.
    pub(crate) fn released(&mut self, disk: DiskIndex, range: ByteRange, seq: WriteSeq) {
        for block in range.blocks() {
            if let Some(entry) = self.on_the_way.get_mut(&(disk, block))
                && entry.last <= seq
            {
                entry.last = WriteSeq::ZERO;
                self.settle(disk, block);
            }
        }
    }

    /// Everything at or below is acknowledged, also what has left the buffer in another way.
    pub(crate) fn sweep(&mut self, up_to: WriteSeq) {
        let done: Vec<_> = self
            .on_the_way
            .iter()
            .filter(|(_, entry)| entry.last > WriteSeq::ZERO && entry.last <= up_to)
            .map(|(at, _)| *at)
            .collect();
        for (disk, block) in done {
            self.on_the_way.get_mut(&(disk, block)).expect("found just now").last = WriteSeq::ZERO;
            self.settle(disk, block);
        }
    }

    /// The buffer is forgotten: what was on its way has to be copied.
    pub(crate) fn forget_stream(&mut self) {
        let lost: Vec<_> = self
            .on_the_way
            .iter()
            .filter(|(_, entry)| entry.last > WriteSeq::ZERO)
            .map(|(at, _)| *at)
            .collect();
        for (disk, block) in lost {
            self.bitmaps[usize::from(disk.0)].mark(block.range(u64::MAX));
            self.on_the_way.get_mut(&(disk, block)).expect("found just now").last = WriteSeq::ZERO;
            self.settle(disk, block);
        }
    }

    /// A new stream begins above `floor`, with everything marked that may differ.
    pub(crate) fn begin_stream(&mut self, incarnation: Incarnation, floor: WriteSeq) {
        self.map.begin(incarnation, floor);
    }

    /// The agent is there.
    pub(crate) fn note_alive(&mut self, now: WallTime) {
        self.map.note_alive(now);
    }

    /// Nothing is written any more.
    pub(crate) fn close(&mut self, now: WallTime) {
        self.map.close(now);
    }

    /// Forgets a block that is not on its way any more.
    fn settle(&mut self, disk: DiskIndex, block: BlockIndex) {
        let entry = self.on_the_way[&(disk, block)];
        if entry.under_way == 0 && entry.last == WriteSeq::ZERO {
            self.on_the_way.remove(&(disk, block));
            if !self.is_marked(disk, block) && !self.suspects[usize::from(disk.0)].is_marked(block) {
                self.map.clear(disk, block);
            }
        }
    }
}

fn next_run(bitmaps: &[Bitmap], blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
    bitmaps.iter().enumerate().find_map(|(disk, bitmap)| {
        bitmap.next_run(blocks_max).map(|(first, len)| (DiskIndex(disk as u16), first, len))
    })
}
