//! What the recovery side may not have, block by block: marked to be copied, or on its way.
//!
//! A block is *marked* where only a copy brings it over, and *on its way* from just before it is written
//! until its last write is acknowledged. In either case its bit in the [`DirtyMap`] is set.

use crate::bitmap::Bitmap;
use crate::dirty_map::DirtyMap;
use std::collections::HashMap;
use std::io;
use types::{BlockIndex, ByteRange, DiskIndex, Incarnation, WallTime, WriteSeq};

#[derive(Debug)]
pub(crate) struct Dirty {
    bitmaps: Vec<Bitmap>,
    on_the_way: HashMap<(DiskIndex, BlockIndex), OnTheWay>,
    map: DirtyMap,
}

#[derive(Debug, Clone, Copy, Default)]
struct OnTheWay {
    /// Writes and copies that are being made just now.
    under_way: u32,
    /// The last record of the block that is not yet acknowledged; zero where there is none.
    last: WriteSeq,
}

impl Dirty {
    /// What was marked or on its way when the map was last kept is marked now.
    pub(crate) fn new(disk_sizes: &[u64], map: DirtyMap) -> Self {
        let mut bitmaps: Vec<Bitmap> = disk_sizes.iter().map(|&size| Bitmap::new(size)).collect();
        for (at, (bitmap, &size)) in bitmaps.iter_mut().zip(disk_sizes).enumerate() {
            for block in map.marked(DiskIndex(at as u16)) {
                bitmap.mark(block.range(size));
            }
        }
        Self { bitmaps, on_the_way: HashMap::new(), map }
    }

    pub(crate) fn marked_blocks(&self) -> u64 {
        self.bitmaps.iter().map(Bitmap::count).sum()
    }

    pub(crate) fn is_marked(&self, disk: DiskIndex, block: BlockIndex) -> bool {
        self.bitmaps[usize::from(disk.0)].is_marked(block)
    }

    /// A range is about to be written. An error says that it must not be.
    pub(crate) fn begin_write(&mut self, disk: DiskIndex, range: ByteRange) -> io::Result<()> {
        range.blocks().try_for_each(|block| self.map.set(disk, block))?;
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
        for block in range.blocks() {
            if let Err(error) = self.map.set(disk, block) {
                tracing::error!(%error, "the dirty map can neither be kept nor given up");
            }
        }
        self.bitmaps[usize::from(disk.0)].mark(range);
    }

    /// The next run of marked blocks, at most `blocks_max` long.
    pub(crate) fn next_run(&self, blocks_max: u64) -> Option<(DiskIndex, BlockIndex, u64)> {
        self.bitmaps.iter().enumerate().find_map(|(disk, bitmap)| {
            bitmap.next_run(blocks_max).map(|(first, len)| (DiskIndex(disk as u16), first, len))
        })
    }

    /// A marked run is about to be copied: it is on its way now. Ended by [`Dirty::end_write`].
    pub(crate) fn begin_copy(&mut self, disk: DiskIndex, first: BlockIndex, len: u64) {
        for block in (first.0..first.0 + len).map(BlockIndex) {
            self.on_the_way.entry((disk, block)).or_default().under_way += 1;
        }
        self.bitmaps[usize::from(disk.0)].clear_run(first, len);
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
            if !self.is_marked(disk, block) {
                self.map.clear(disk, block);
            }
        }
    }
}
