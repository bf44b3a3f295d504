//! Guest writes that need not be sent: later ones overwrite all of them before the next checkpoint.
//!
//! Only intervals that a checkpoint of this VM has closed are looked at: the cuts of later checkpoints lie above them, so
//! that nobody can come to ask for a state in between, but as the tail of a stream that has ended there. A write that
//! is left out leaves a mark in its place, which says up to which cut only checkpoints are consistent; the write that
//! overwrites it lies below that cut.

use batch::{Kind, Record};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use types::{ByteRange, DiskIndex, WriteSeq};

/// What is known of the buffered writes of one VM.
#[derive(Debug)]
pub(crate) struct Superseded {
    /// Cuts of checkpoints whose marks are in the stream, above `examined`.
    cuts: VecDeque<WriteSeq>,
    /// Writes at or below have been looked at; no checkpoint may come to lie there any more.
    examined: WriteSeq,
    /// Writes that are overwritten, and the cut before which they are.
    found: BTreeMap<WriteSeq, WriteSeq>,
}

impl Superseded {
    pub(crate) fn above(floor: WriteSeq) -> Self {
        Self { cuts: VecDeque::new(), examined: floor, found: BTreeMap::new() }
    }

    /// A checkpoint's mark is about to be put behind everything at or below its cut. False where it comes too late.
    pub(crate) fn close_interval(&mut self, cut: WriteSeq) -> bool {
        if cut <= self.examined {
            return false;
        }
        let at = self.cuts.partition_point(|known| *known < cut);
        if self.cuts.get(at) != Some(&cut) {
            self.cuts.insert(at, cut);
        }
        true
    }

    /// Looks at what was closed since the last time; `buffer` ascends. How many bytes need not be sent.
    pub(crate) fn examine(&mut self, buffer: &VecDeque<Record>) -> u64 {
        let mut bytes = 0;
        while let Some(cut) = self.cuts.pop_front() {
            let from = buffer.partition_point(|record| record.seq <= self.examined);
            let to = buffer.partition_point(|record| record.seq <= cut);
            let mut covered = Covered::default();
            for record in buffer.range(from..to).rev() {
                if !record.kind.is_guest_write() {
                    // A sync says how a disk is at this place in the stream: nothing is left out across it.
                    if record.kind != Kind::Checkpoint {
                        covered = Covered::default();
                    }
                } else if covered.has(record.disk, record.range) {
                    bytes += record.payload.len() as u64;
                    self.found.insert(record.seq, cut);
                } else {
                    covered.add(record.disk, record.range);
                }
            }
            self.examined = cut;
        }
        bytes
    }

    /// The mark that stands for a write that is left out; none where it has to be sent.
    pub(crate) fn mark_for(&self, record: &Record) -> Option<Record> {
        let cut = self.found.get(&record.seq)?;
        let range = ByteRange::new(cut.raw(), 0);
        Some(Record { range, ..Record::mark(record.seq, Kind::LeftOut, Bytes::new()) })
    }

    /// Writes at or below have left the buffer.
    pub(crate) fn forget(&mut self, up_to: WriteSeq) {
        // Nothing of their intervals is there to be looked at.
        self.cuts.drain(..self.cuts.partition_point(|cut| *cut <= up_to));
        self.found = self.found.split_off(&up_to.next());
    }
}

/// Ranges of disks, those that touch joined.
#[derive(Debug, Default)]
struct Covered(HashMap<DiskIndex, BTreeMap<u64, u64>>);

impl Covered {
    fn has(&self, disk: DiskIndex, range: ByteRange) -> bool {
        let before = self.0.get(&disk).and_then(|ranges| ranges.range(..=range.start).next_back());
        before.is_some_and(|(_, end)| range.end() <= *end)
    }

    fn add(&mut self, disk: DiskIndex, range: ByteRange) {
        let ranges = self.0.entry(disk).or_default();
        let (mut start, mut end) = (range.start, range.end());
        // From the last one that begins at or below our end, as long as they touch.
        while let Some((&other, &other_end)) = ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            (start, end) = (start.min(other), end.max(other_end));
            ranges.remove(&other);
        }
        ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seq(at: u64) -> WriteSeq {
        WriteSeq::from_raw(at)
    }

    const DISK_BYTES: usize = 64;

    /// Writes of a few bytes, and where checkpoints are cut between them.
    fn load() -> impl Strategy<Value = Vec<Option<(u64, u64, u8)>>> {
        let write = (0..DISK_BYTES as u64 - 1, 1u64..20, 1u8..);
        proptest::collection::vec(proptest::option::weighted(0.85, write), 1..60)
    }

    proptest! {
        #[test]
        fn every_checkpoint_shows_the_same_with_what_is_left_out(load in load()) {
            let mut buffer = VecDeque::new();
            let mut superseded = Superseded::above(WriteSeq::ZERO);
            let (mut disk, mut states) = (vec![0; DISK_BYTES], Vec::new());
            for (at, step) in load.into_iter().enumerate() {
                let now = seq(at as u64 + 1);
                let Some((start, len, byte)) = step else {
                    prop_assert!(superseded.close_interval(now));
                    states.push((now, disk.clone()));
                    continue;
                };
                let range = ByteRange::new(start, len.min(DISK_BYTES as u64 - start));
                disk[range.start as usize..range.end() as usize].fill(byte);
                let payload = Bytes::from(vec![byte; range.len as usize]);
                buffer.push_back(Record { seq: now, kind: Kind::Write, disk: DiskIndex(0), range, payload });
            }
            superseded.examine(&buffer);
            for (cut, expected) in states {
                let mut found = vec![0; DISK_BYTES];
                let sent = buffer.iter().filter(|record| superseded.mark_for(record).is_none());
                for record in sent.filter(|record| record.seq <= cut) {
                    found[record.range.start as usize..record.range.end() as usize].fill(record.payload[0]);
                }
                prop_assert_eq!(found, expected);
            }
            for record in &buffer {
                if let Some(mark) = superseded.mark_for(record) {
                    prop_assert!(mark.seq == record.seq && mark.range.start > mark.seq.raw());
                }
            }
        }
    }

    #[test]
    fn intervals_that_have_left_the_buffer_are_forgotten() {
        let mut superseded = Superseded::above(seq(10));
        for cut in [20, 30, 40] {
            superseded.close_interval(seq(cut));
        }
        superseded.forget(seq(30));
        assert_eq!(superseded.cuts, [seq(40)]);
    }

    #[test]
    fn a_checkpoint_that_comes_too_late_is_refused() {
        let mut superseded = Superseded::above(seq(10));
        assert!(superseded.close_interval(seq(20)));
        assert!(superseded.close_interval(seq(15)), "it has not been looked at yet");
        assert_eq!(superseded.cuts, [seq(15), seq(20)]);
        superseded.examine(&VecDeque::new());
        assert!(!superseded.close_interval(seq(20)));
        assert!(superseded.close_interval(seq(21)));
    }
}
