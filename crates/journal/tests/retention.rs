//! What retention takes, and what it leaves.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{Journal, Mode, Settings};
use sim::SimStore;
use stream::{SMALL, Stream, append, compare, create, cuts, keep_up};
use types::WriteSeq;

/// Two checkpoints, then a sync that has brought over as much again, three times, and has not ended.
fn in_a_sync(settings: Settings) -> (Journal, Stream, WriteSeq) {
    let journal = create(&SimStore::new(), settings);
    let mut stream = Stream::begin();
    let mut last_good = WriteSeq::ZERO;
    for number in 0..2u64 {
        stream.write(number * 4096, &[number as u8 + 1; 30_000]);
        last_good = stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    stream.begin_sync();
    for number in 2..5u64 {
        stream.copy_all();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    (journal, stream, last_good)
}

#[test]
fn a_sync_under_way_leaves_the_last_good_checkpoint_whatever_is_due() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let settings = Settings { segment_bytes: 24 << 10, mode, ..SMALL };
        let (journal, mut stream, last_good) = in_a_sync(settings);
        // By size, then by age.
        journal.set(Settings { bytes_soft: 1, ..settings });
        keep_up(&journal, 10);
        journal.set(settings);
        keep_up(&journal, 1_000_000);
        assert_eq!(cuts(&journal).last(), Some(&last_good), "{mode:?}");
        compare(&journal, &stream.states);
        stream.end_sync();
        let after = stream.checkpoint();
        append(&journal, stream.batch(), 1_000_001, 6);
        keep_up(&journal, 2_000_000);
        assert!(!cuts(&journal).contains(&last_good), "{mode:?}: the sync has ended, and its time has come");
        stream.write(0, &[9; 30_000]);
        append(&journal, stream.batch(), 2_000_000, 7);
        assert!(journal.newest_consistent(WriteSeq::MAX) > Some(after), "{mode:?}");
    }
}

#[test]
fn it_gives_way_to_a_sync_that_the_hard_limit_would_stop() {
    let settings = Settings { segment_bytes: 24 << 10, ..SMALL };
    let (journal, mut stream, _) = in_a_sync(settings);
    journal.set(Settings { bytes_hard: 1, ..settings });
    keep_up(&journal, 10);
    assert_eq!(journal.newest_consistent(WriteSeq::MAX), None);
    journal.set(settings);
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 11, 6);
    assert_eq!(compare(&journal, &stream.states), 1);
}
