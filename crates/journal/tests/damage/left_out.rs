//! What cannot be read and was made good is left out of folds and steps back, but for what some cut needs.

use crate::stream::{Stream, append, compare, create, keep_up, read_all};
use crate::{BATCHES_AT, IN_A_BATCH, SEGMENTS, open};
use journal::{Mode, Settings, Upkeep};
use sim::SimStore;
use types::{ByteRange, WallTime, WriteSeq};

const BLOCK: ByteRange = ByteRange::new(0, 64 << 10);

/// Two writes to one place with a checkpoint behind each, then a sync that brings the place anew: a segment ends in the
/// middle of it, and so does a step back. The checkpoint behind the second write.
fn written_anew_in_a_sync() -> (SimStore, Stream, WriteSeq) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = Stream::begin();
    for number in 0..2 {
        stream.write(0, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8);
    }
    let needs_it = stream.states.last().unwrap().0;
    stream.begin_sync();
    stream.disk[..6000].fill(3);
    stream.copy(ByteRange::new(BLOCK.end(), 4096));
    append(&journal, stream.batch(), 2, 2);
    stream.copy(BLOCK);
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 3, 3);
    keep_up(&journal, 10);
    assert_eq!(compare(&journal, &stream.states), 3);
    (store, stream, needs_it)
}

/// A step back brings the replica into the gap. Cuts from before the gap have before-images of what was written since, and
/// read everything else there.
#[test]
fn a_write_that_cuts_before_a_gap_need_is_not_left_out_of_a_step_back() {
    for byte in IN_A_BATCH {
        let (store, stream, needs_it) = written_anew_in_a_sync();
        assert!(store.rot("segment-00000001", BATCHES_AT[1] + byte));
        let journal = open(&store);
        journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
        for number in 0..20 {
            journal.keep_up(&Upkeep::plain(WallTime(0), [number; 16])).unwrap();
        }
        assert_eq!(journal.status().applied, journal.status().last_seq);
        assert!(read_all(&journal, needs_it).is_err(), "byte {byte}: it cannot be read any more");
        assert_eq!(compare(&journal, &stream.states), 2, "byte {byte}");
        drop(journal);
        assert_eq!(compare(&open(&store), &stream.states), 2, "byte {byte}");
    }
}
