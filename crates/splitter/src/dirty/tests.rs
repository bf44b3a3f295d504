//! Runs of blocks against the plain rules, block by block.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::dirty_map::MapStore;
use crate::kept_header::Header;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use types::VmId;

const DISK: DiskIndex = DiskIndex(0);
const BLOCKS: u64 = 37;
const REGION_BLOCKS: u64 = 4;

#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl MapStore for Memory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock().unwrap();
        let end = at as usize + bytes.len();
        let len = all.len().max(end);
        all.resize(len, 0);
        all[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Block {
    marked: bool,
    suspect: bool,
    compared: bool,
    under_way: u32,
    last: u64,
    in_map: bool,
}

impl Block {
    fn is_unsent(&self) -> bool {
        self.marked || self.suspect || self.compared || self.under_way > 0 || self.last > 0
    }

    /// Nothing is on its way any more: the map forgets it, unless it is to be looked at.
    fn settle(&mut self, was_on_its_way: bool) {
        let is_idle = self.under_way == 0 && self.last == 0;
        if was_on_its_way && is_idle && !self.marked && !self.suspect {
            self.in_map = false;
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Block)) {
        let was_on_its_way = self.under_way > 0 || self.last > 0;
        change(self);
        self.settle(was_on_its_way);
    }
}

/// The rules, block by block, beside the real thing.
struct Pair {
    dirty: Dirty,
    map: Memory,
    blocks: Vec<Block>,
    hot: Vec<bool>,
    seq: u64,
    /// Writes and copies that were begun.
    open: Vec<ByteRange>,
    /// Records that are buffered.
    buffer: VecDeque<(u64, ByteRange)>,
    /// Runs that are being compared.
    comparing: Vec<(u64, u64)>,
    cooling: Option<Vec<Bitmap>>,
    /// What was swept need not be joined while something longer is under way.
    is_swept: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Begin(ByteRange),
    End { which: usize, how: u8 },
    Copy(u64),
    Mark(ByteRange),
    Suspect(ByteRange),
    Verify(ByteRange),
    Compare(u64),
    Answer { which: usize, differs: u64 },
    ForgetCompares,
    Release(usize),
    Sweep(usize),
    ForgetStream,
    BeginToCool,
    Cool,
}

fn step() -> impl Strategy<Value = Step> {
    let size = BLOCKS * BLOCK_BYTES;
    let range =
        || (0..size, 1..12 * BLOCK_BYTES).prop_map(move |(at, len)| ByteRange::new(at, len.min(size - at)));
    prop_oneof![
        6 => range().prop_map(Step::Begin),
        6 => (0usize..8, 0u8..6).prop_map(|(which, how)| Step::End { which, how }),
        2 => (1u64..9).prop_map(Step::Copy),
        1 => range().prop_map(Step::Mark),
        1 => range().prop_map(Step::Suspect),
        1 => range().prop_map(Step::Verify),
        2 => (1u64..9).prop_map(Step::Compare),
        2 => (0usize..4, any::<u64>(), any::<u64>())
            .prop_map(|(which, a, b)| Step::Answer { which, differs: a & b }),
        1 => Just(Step::ForgetCompares),
        4 => (0usize..6).prop_map(Step::Release),
        1 => (0usize..6).prop_map(Step::Sweep),
        1 => Just(Step::ForgetStream),
        2 => Just(Step::BeginToCool),
        2 => Just(Step::Cool),
    ]
}

impl Pair {
    fn new() -> Self {
        let map = Memory::default();
        let disks = [(BLOCKS * BLOCK_BYTES, None)];
        let opened =
            DirtyMap::open(Box::new(map.clone()), VmId::from_bytes([1; 16]), &disks, [1; 16]).unwrap();
        let region_bytes = REGION_BLOCKS * BLOCK_BYTES;
        let log = RegionLog::open(
            Box::<Memory>::default(),
            VmId::from_bytes([1; 16]),
            &disks,
            region_bytes,
            crate::Boot { id: [1; 16], at: types::WallTime(0) },
        )
        .unwrap();
        Self {
            dirty: Dirty::new(&[BLOCKS * BLOCK_BYTES], opened, &log),
            map,
            blocks: vec![Block::default(); BLOCKS as usize],
            hot: vec![false; BLOCKS.div_ceil(REGION_BLOCKS) as usize],
            seq: 0,
            open: Vec::new(),
            buffer: VecDeque::new(),
            comparing: Vec::new(),
            cooling: None,
            is_swept: false,
        }
    }

    fn each(&mut self, blocks: Blocks, change: impl Fn(&mut Block)) {
        blocks.for_each(|block| change(&mut self.blocks[block as usize]));
    }

    fn of(&mut self, range: ByteRange, change: impl Fn(&mut Block)) {
        self.each(range.units(BLOCK_BYTES), change);
    }

    fn mark(&mut self, range: ByteRange) {
        self.of(range, |block| (block.marked, block.in_map) = (true, true));
    }

    fn step(&mut self, step: Step) {
        self.is_swept |= matches!(step, Step::Sweep(_) | Step::ForgetStream);
        match step {
            Step::Begin(range) => self.begin(range),
            Step::End { which, how } if which < self.open.len() => self.end(which, how),
            Step::Copy(most) => {
                let Some((_, BlockIndex(first), len)) = self.dirty.next_run(most) else { return };
                self.dirty.begin_copy(DISK, BlockIndex(first), len);
                self.each(first..first + len, |block| {
                    assert!(block.marked);
                    (block.marked, block.suspect) = (false, false);
                    block.under_way += 1;
                });
                self.open.push(ByteRange::new(first * BLOCK_BYTES, len * BLOCK_BYTES));
            }
            Step::Mark(range) => {
                self.dirty.mark(DISK, range);
                self.mark(range);
            }
            Step::Suspect(range) => {
                self.dirty.suspect(DISK, range);
                self.of(range, |block| (block.suspect, block.in_map) = (true, true));
            }
            Step::Verify(range) => {
                self.dirty.verify(DISK, range);
                self.of(range, |block| block.suspect = true);
            }
            Step::Compare(most) => {
                let Some((_, BlockIndex(first), len)) = self.dirty.next_suspects(most) else { return };
                self.dirty.begin_compare(DISK, BlockIndex(first), len);
                self.each(first..first + len, |block| {
                    assert!(block.suspect && !block.compared);
                    (block.suspect, block.compared) = (false, true);
                    block.under_way += 1;
                });
                self.comparing.push((first, len));
            }
            Step::Answer { which, differs } if which < self.comparing.len() => self.answer(which, differs),
            Step::ForgetCompares => {
                self.dirty.forget_compares();
                for (first, len) in std::mem::take(&mut self.comparing) {
                    self.each(first..first + len, |block| {
                        (block.suspect, block.compared) = (true, false);
                        block.change(|block| block.under_way -= 1);
                    });
                }
            }
            Step::Release(records) => self.release(records),
            Step::Sweep(records) => self.sweep(records),
            Step::ForgetStream => {
                self.dirty.forget_stream();
                self.buffer.clear();
                self.each(0..BLOCKS, |block| {
                    block.marked |= block.last > 0;
                    block.change(|block| block.last = 0);
                });
            }
            Step::BeginToCool => self.cooling = Some(self.dirty.begin_to_cool()),
            Step::Cool => self.cool(),
            Step::End { .. } | Step::Answer { .. } => {}
        }
    }

    fn begin(&mut self, range: ByteRange) {
        let cold = self.dirty.cold(DISK, range);
        self.dirty.heated(&cold);
        cold.into_iter().flat_map(|regions| regions.run).for_each(|region| {
            assert!(!std::mem::replace(&mut self.hot[region as usize], true));
        });
        self.dirty.begin_write(DISK, range).unwrap();
        self.of(range, |block| {
            block.in_map = true;
            block.under_way += 1;
        });
        self.open.push(range);
    }

    fn end(&mut self, which: usize, how: u8) {
        let range = self.open.swap_remove(which);
        match how {
            0 => {
                self.dirty.end_write(DISK, range, None);
                self.mark(range);
                self.of(range, |block| block.change(|block| block.under_way -= 1));
            }
            1 => {
                self.dirty.abandon_write(DISK, range);
                self.of(range, |block| block.change(|block| block.under_way -= 1));
            }
            _ => {
                self.seq += 1;
                let seq = self.seq;
                self.dirty.end_write(DISK, range, Some(WriteSeq::from_raw(seq)));
                self.of(range, |block| {
                    block.change(|block| {
                        block.under_way -= 1;
                        block.last = seq;
                    });
                });
                self.buffer.push_back((seq, range));
            }
        }
    }

    fn answer(&mut self, which: usize, differs: u64) {
        let (first, len) = self.comparing.swap_remove(which);
        let differing = self.dirty.end_compare(DISK, BlockIndex(first), differs);
        let is = |at: &u64| differs & (1 << at) != 0;
        assert_eq!(differing, (0..len).filter(is).count() as u64);
        for at in 0..len {
            self.blocks[(first + at) as usize].compared = false;
            if is(&at) {
                self.mark(ByteRange::new((first + at) * BLOCK_BYTES, BLOCK_BYTES));
            }
            self.blocks[(first + at) as usize].change(|block| block.under_way -= 1);
        }
    }

    fn release(&mut self, records: usize) {
        for _ in 0..records {
            let Some((seq, range)) = self.buffer.pop_front() else { return };
            self.dirty.released(DISK, range, WriteSeq::from_raw(seq));
            self.of(range, |block| {
                block.change(|block| block.last = if block.last <= seq { 0 } else { block.last });
            });
        }
    }

    fn sweep(&mut self, records: usize) {
        let up_to = self.buffer.iter().take(records).next_back().map_or(0, |(seq, _)| *seq);
        self.buffer.retain(|(seq, _)| *seq > up_to);
        let mut from = Some(Place::default());
        while let Some(place) = from {
            from = self.dirty.sweep(WriteSeq::from_raw(up_to), place, 2);
        }
        self.each(0..BLOCKS, |block| {
            block.change(|block| block.last = if block.last <= up_to { 0 } else { block.last });
        });
    }

    /// A region that is cooled has nothing dirty; one that has nothing dirty and where nothing has happened is cooled.
    fn cool(&mut self) {
        let is_at_once = self.cooling.is_none();
        let mut dirty = self.cooling.take().unwrap_or_else(|| self.dirty.begin_to_cool());
        let mut from = Some(Place::default());
        while let Some(place) = from {
            from = self.dirty.gather_on_the_way(&mut dirty, place, 2);
        }
        let candidates = self.dirty.candidates(&dirty);
        let cooled: Vec<u64> =
            self.dirty.cool(candidates).into_iter().flat_map(|regions| regions.run).collect();
        for region in 0..self.hot.len() as u64 {
            let within = region * REGION_BLOCKS..((region + 1) * REGION_BLOCKS).min(BLOCKS);
            let is_clean =
                !self.blocks[within.start as usize..within.end as usize].iter().any(Block::is_unsent);
            let is_cooled = cooled.contains(&region);
            assert!(!is_cooled || (is_clean && self.hot[region as usize]), "region {region}");
            assert!(is_cooled || !is_at_once || !is_clean || !self.hot[region as usize], "region {region}");
            self.hot[region as usize] &= !is_cooled;
        }
    }

    fn check(&self) {
        let unsent: Vec<bool> = self
            .dirty
            .unsent(DISK, 0..BLOCKS)
            .into_iter()
            .flat_map(|(run, is_unsent)| run.map(move |_| is_unsent))
            .collect();
        let bytes = self.map.0.lock().unwrap();
        for (at, block) in self.blocks.iter().enumerate() {
            let index = BlockIndex(at as u64);
            assert_eq!(self.dirty.is_marked(DISK, index), block.marked, "block {at} marked");
            assert_eq!(
                self.dirty.is_unsettled(DISK, index),
                block.suspect || block.compared,
                "block {at} suspect"
            );
            assert_eq!(unsent[at], block.is_unsent(), "block {at} unsent");
            let in_map = bytes[Header::BYTES + at / 8] & (1 << (at % 8)) != 0;
            assert_eq!(in_map, block.in_map, "block {at} in the map");
            let is_cold = !self.dirty.cold(DISK, index.range(u64::MAX)).is_empty();
            assert_eq!(is_cold, !self.hot[at / REGION_BLOCKS as usize], "block {at} cold");
        }
        assert_eq!(unsent.len() as u64, BLOCKS);
        let marked = self.blocks.iter().filter(|block| block.marked).count() as u64;
        assert_eq!(self.dirty.marked_blocks(), marked);
        let settling = |block: &Block| u64::from(block.suspect) + u64::from(block.compared);
        assert_eq!(self.dirty.unsettled_blocks(), self.blocks.iter().map(settling).sum::<u64>());
        let things = self.open.len() + self.buffer.len() + self.comparing.len();
        assert!(self.is_swept || self.dirty.on_the_way.runs() <= 2 * things, "{things} things");
    }
}

proptest! {
    #[test]
    fn ranges_keep_what_each_of_their_blocks_would(steps in proptest::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
            pair.check();
        }
    }
}
