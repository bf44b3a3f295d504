//! What is on its way to the recovery side, by runs of blocks: a range costs as one record, however long it is.
//!
//! Runs do not overlap, and those of a disk are kept by their first block. Every boundary between two is one of
//! something that is under way or unacknowledged, so there are at most twice as many runs as there are of those.

use std::collections::BTreeMap;
use std::ops::Range;
use types::{DiskIndex, WriteSeq};

/// A run of blocks of a disk, by their numbers.
pub(crate) type Blocks = Range<u64>;

/// What is known of each block of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct State {
    /// Writes, copies and comparisons that are being made just now.
    under_way: u32,
    /// The last record of the block that is not yet acknowledged; zero where there is none.
    last: WriteSeq,
}

impl State {
    fn is_idle(self) -> bool {
        self == State::default()
    }
}

#[derive(Debug)]
struct Run {
    past: u64,
    state: State,
}

/// A place to go on from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    disk: usize,
    block: u64,
}

/// Everything of one VM that is on its way.
#[derive(Debug)]
pub(crate) struct OnTheWay {
    /// Of each disk its runs, by their first block. A run that is idle is not kept.
    disks: Vec<BTreeMap<u64, Run>>,
}

impl OnTheWay {
    pub(crate) fn new(disks: usize) -> Self {
        Self { disks: (0..disks).map(|_| BTreeMap::new()).collect() }
    }

    /// How many runs are kept: what the memory for it is counted by.
    pub(crate) fn runs(&self) -> usize {
        self.disks.iter().map(BTreeMap::len).sum()
    }

    /// Something that reads or writes these blocks begins.
    pub(crate) fn begin(&mut self, disk: DiskIndex, blocks: Blocks) {
        let runs = &mut self.disks[usize::from(disk.0)];
        split(runs, blocks.start);
        split(runs, blocks.end);
        let mut holes = Vec::new();
        let mut at = blocks.start;
        for (&first, run) in runs.range_mut(blocks.clone()) {
            run.state.under_way += 1;
            if at < first {
                holes.push(at..first);
            }
            at = run.past;
        }
        if at < blocks.end {
            holes.push(at..blocks.end);
        }
        let state = State { under_way: 1, last: WriteSeq::ZERO };
        runs.extend(holes.into_iter().map(|hole| (hole.start, Run { past: hole.end, state })));
        join(runs, blocks.end);
        join(runs, blocks.start);
    }

    /// What was begun is done; `in_stream` is the record that brings it over, if one does. The blocks that are not on
    /// their way any more.
    pub(crate) fn end(
        &mut self,
        disk: DiskIndex,
        blocks: Blocks,
        in_stream: Option<WriteSeq>,
    ) -> Vec<Blocks> {
        let mut ended = 0;
        let idle = self.update(disk, blocks.clone(), |run, state| {
            ended += run.end - run.start;
            state.under_way = state.under_way.checked_sub(1).expect("begun before it is ended");
            state.last = in_stream.unwrap_or(state.last);
        });
        assert_eq!(ended, blocks.end.saturating_sub(blocks.start), "begun before it is ended");
        idle
    }

    /// A record is acknowledged, and whatever these blocks had before it. The blocks that are not on their way any
    /// more.
    pub(crate) fn released(&mut self, disk: DiskIndex, blocks: Blocks, seq: WriteSeq) -> Vec<Blocks> {
        self.update(disk, blocks, |_, state| {
            if state.last <= seq {
                state.last = WriteSeq::ZERO;
            }
        })
    }

    /// Changes what is on its way of a run of blocks, joins what is the same now, and drops what is idle.
    fn update(
        &mut self,
        disk: DiskIndex,
        blocks: Blocks,
        mut change: impl FnMut(Blocks, &mut State),
    ) -> Vec<Blocks> {
        let runs = &mut self.disks[usize::from(disk.0)];
        split(runs, blocks.start);
        split(runs, blocks.end);
        let (mut idle, mut gone): (Vec<Blocks>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut before: Option<&mut Run> = None;
        for (&first, run) in runs.range_mut(blocks.clone()) {
            change(first..run.past, &mut run.state);
            if run.state.is_idle() {
                gone.push(first);
                match idle.last_mut() {
                    Some(last) if last.end == first => last.end = run.past,
                    _ => idle.push(first..run.past),
                }
                continue;
            }
            match before {
                Some(ref mut before) if before.past == first && before.state == run.state => {
                    before.past = run.past;
                    gone.push(first);
                }
                _ => before = Some(run),
            }
        }
        for first in gone {
            runs.remove(&first);
        }
        join(runs, blocks.end);
        join(runs, blocks.start);
        idle
    }

    /// Looks at as many runs as `most` from `from` on, and forgets records at or below `up_to`. The blocks that are not
    /// on their way any more, and where to go on.
    pub(crate) fn sweep(
        &mut self,
        up_to: WriteSeq,
        from: Place,
        most: usize,
    ) -> (Vec<(DiskIndex, Blocks)>, Option<Place>) {
        let mut idle = Vec::new();
        let mut looked_at = 0;
        for at in from.disk..self.disks.len() {
            let runs = &mut self.disks[at];
            let mut next = if at == from.disk { from.block } else { 0 };
            let mut gone = Vec::new();
            for (&first, run) in runs.range_mut(next..).take(most - looked_at) {
                looked_at += 1;
                next = run.past;
                if run.state.last <= up_to {
                    run.state.last = WriteSeq::ZERO;
                }
                if run.state.is_idle() {
                    gone.push(first);
                    idle.push((DiskIndex(at as u16), first..run.past));
                }
            }
            for first in gone {
                runs.remove(&first);
            }
            if looked_at == most {
                return (idle, Some(Place { disk: at, block: next }));
            }
        }
        (idle, None)
    }

    /// Records are forgotten without having been acknowledged: the blocks that had one.
    pub(crate) fn forget_records(&mut self) -> Vec<(DiskIndex, Blocks)> {
        let mut lost = Vec::new();
        for (at, runs) in self.disks.iter_mut().enumerate() {
            for (&first, run) in runs.iter_mut().filter(|(_, run)| run.state.last > WriteSeq::ZERO) {
                run.state.last = WriteSeq::ZERO;
                lost.push((DiskIndex(at as u16), first..run.past));
            }
            runs.retain(|_, run| !run.state.is_idle());
        }
        lost
    }

    /// As many runs as `most` from `from` on, and where to go on. A run that reaches over that place is among them.
    pub(crate) fn some(&self, from: Place, most: usize) -> (Vec<(DiskIndex, Blocks)>, Option<Place>) {
        let mut found = Vec::new();
        for at in from.disk..self.disks.len() {
            let disk = DiskIndex(at as u16);
            let first = if at == from.disk { from.block } else { 0 };
            let left = most - found.len();
            found.extend(self.within(disk, first..u64::MAX).take(left).map(|run| (disk, run)));
            if found.len() == most {
                let block = found.last().map_or(first, |(_, run)| run.end);
                return (found, Some(Place { disk: at, block }));
            }
        }
        (found, None)
    }

    /// The parts of a run of blocks that are on their way, in order.
    pub(crate) fn within(&self, disk: DiskIndex, blocks: Blocks) -> impl Iterator<Item = Blocks> {
        let runs = &self.disks[usize::from(disk.0)];
        let before = runs.range(..blocks.start).next_back().filter(|(_, run)| run.past > blocks.start);
        before
            .into_iter()
            .chain(runs.range(blocks.clone()))
            .map(move |(&first, run)| first.max(blocks.start)..run.past.min(blocks.end))
    }
}

/// Sees to it that no run reaches over a block's beginning.
fn split(runs: &mut BTreeMap<u64, Run>, at: u64) {
    let Some((_, run)) = runs.range_mut(..at).next_back() else { return };
    if run.past > at {
        let behind = Run { past: run.past, state: run.state };
        run.past = at;
        runs.insert(at, behind);
    }
}

/// Makes one of the two runs that meet at a block, where they are the same.
fn join(runs: &mut BTreeMap<u64, Run>, at: u64) {
    let Some(behind) = runs.get(&at) else { return };
    let (past, state) = (behind.past, behind.state);
    let before = runs.range_mut(..at).next_back().map(|(_, run)| run);
    if let Some(before) = before.filter(|run| run.past == at && run.state == state) {
        before.past = past;
        runs.remove(&at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskIndex = DiskIndex(0);

    fn seq(raw: u64) -> WriteSeq {
        WriteSeq::from_raw(raw)
    }

    #[test]
    fn a_long_range_is_one_run_from_its_begin_to_its_release() {
        let mut way = OnTheWay::new(1);
        let all = 0..1 << 30;
        way.begin(DISK, all.clone());
        assert!(way.end(DISK, all.clone(), Some(seq(1))).is_empty());
        assert_eq!(way.runs(), 1);
        assert_eq!(way.released(DISK, all.clone(), seq(1)), [all]);
        assert_eq!(way.runs(), 0);
    }

    #[test]
    fn what_a_range_is_written_over_becomes_one_run_again() {
        let mut way = OnTheWay::new(1);
        for block in (0..1000).step_by(2) {
            way.begin(DISK, block..block + 1);
            way.end(DISK, block..block + 1, Some(seq(block + 1)));
        }
        assert_eq!(way.runs(), 500);
        way.begin(DISK, 0..1000);
        way.end(DISK, 0..1000, Some(seq(2000)));
        assert_eq!(way.runs(), 1);
        assert!(way.released(DISK, 500..501, seq(501)).is_empty(), "a newer record is on its way");
        assert_eq!(
            way.released(DISK, 0..1000, seq(2000)).iter().map(|run| run.end - run.start).sum::<u64>(),
            1000
        );
    }

    #[test]
    fn sweeping_in_slices_finds_what_sweeping_at_once_does() {
        let mut way = OnTheWay::new(2);
        for block in 0..50 {
            let disk = DiskIndex((block % 2) as u16);
            way.begin(disk, block * 2..block * 2 + 1);
            way.end(disk, block * 2..block * 2 + 1, Some(seq(block + 1)));
        }
        let (mut from, mut swept) = (Place::default(), 0);
        loop {
            let (idle, next) = way.sweep(seq(30), from, 7);
            swept += idle.len();
            let Some(next) = next else { break };
            from = next;
        }
        assert_eq!((swept, way.runs()), (30, 20));
    }
}
