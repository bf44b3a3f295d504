//! What damage costs: the bytes it has damaged, as of the cuts that need them, and nothing else.

use crate::stream::{SMALL, Stream, append, compare, create, cuts, keep_up, unread};
use crate::{BATCHES_AT, IN_A_BATCH, SEGMENTS, WITH_LARGE, WITH_SMALL, open, scrub_all, try_scrub, written};
use journal::{CheckpointQuery, Image, Journal, Manifest, Mode, Settings};
use sim::{Rng, SimStore};
use std::sync::Arc;
use types::{DiskIndex, WallTime, WriteSeq};

/// How many bytes of each checkpoint are damaged, oldest first.
pub(crate) fn damaged(journal: &Journal) -> Vec<u64> {
    let query = CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() };
    journal.checkpoints(&query).rows.iter().map(|facts| facts.damaged_bytes).collect()
}

/// Sixteen writes to blocks of their own, and something of them rots.
fn rotten(name: &str, at: u64) -> (SimStore, Stream, Journal) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let stream = written(&journal);
    assert!(store.rot(name, at));
    (store, stream, journal)
}

#[test]
fn a_rotten_block_of_a_large_write_costs_that_block_alone() {
    let (store, mut stream, journal) = rotten(WITH_LARGE, BATCHES_AT[0] + (40 << 10));
    let found = scrub_all(&journal).damage;
    assert_eq!(found.len(), 1, "{found:?}");
    // The fifth write.
    let expected: Vec<u64> = (0..16).map(|number| if number < 4 { 0 } else { 4096 }).collect();
    assert_eq!(damaged(&journal), expected);
    assert_eq!(compare(&journal, &stream.states), 4);
    assert_eq!(journal.newest_consistent(WriteSeq::MAX).map(|cut| cut < stream.states[4].0), Some(true));
    assert_eq!(journal.newest_checkpoint().unwrap().unwrap().checkpoint.cut, stream.states[3].0);
    let at = WallTime(stream.states[9].0.raw() as i64);
    assert_eq!(journal.nearest_checkpoint(at).unwrap().unwrap().checkpoint.cut, stream.states[3].0);
    let damaged_one = journal.checkpoint(types::CheckpointId(stream.states[9].0)).unwrap().unwrap();
    assert_eq!(damaged_one.damaged_bytes, 4096, "its id finds it all the same");
    // What is written over it is there from then on, and the rest of it comes from the source.
    journal.begin_stream();
    stream.begin_sync();
    let lost = unread(&journal, stream.states[9].0, &stream.states[9].1);
    assert_eq!((lost.len(), lost[4095] - lost[0]), (4096, 4095));
    stream.write(lost[0], &[3; 1000]);
    append(&journal, stream.batch(), 100, 1);
    assert_eq!(journal.status().damaged_bytes, 3096);
    stream.write(lost[1000], &[4; 3096]);
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 101, 1);
    assert_eq!(journal.status().damaged_bytes, 0);
    drop(journal);
    let journal = open(&store);
    assert_eq!(damaged(&journal), [&expected[..], &[0]].concat(), "older ones stay as they are");
    compare(&journal, &stream.states);
    assert_eq!(journal.newest_checkpoint().unwrap().unwrap().checkpoint.cut, stream.states[16].0);
}

#[test]
fn an_image_of_a_damaged_checkpoint_is_promoted_only_past_what_is_told_as_lost_before() {
    let (_, stream, journal) = rotten(WITH_LARGE, BATCHES_AT[0] + (40 << 10));
    let journal = Arc::new(journal);
    scrub_all(&journal);
    let (cut, content) = &stream.states[9];
    let image = Image::open(journal.clone(), *cut, Some("image-1"), [1; 16]).unwrap();
    assert!(image.promote(|_| true).is_err_and(|error| error.is_loss()));
    let mut told = Vec::new();
    let promoted = image.promote_past(
        |_| true,
        |disk, lost| {
            let mut read = [0; 512];
            assert!(
                image.read_at(disk, lost[0].start, &mut read).is_err(),
                "nothing is zeroes before it is told"
            );
            told.extend_from_slice(lost);
            true
        },
    );
    assert!(promoted.unwrap().is_done());
    assert_eq!(told.iter().map(|range| range.len).sum::<u64>(), 4096);
    let mut expected = content.clone();
    for range in told {
        expected[range.start as usize..range.end() as usize].fill(0);
    }
    let mut read = vec![0; expected.len()];
    image.read_at(DiskIndex(0), 0, &mut read).unwrap();
    assert!(read == expected, "what is not lost is what it was");
}

#[test]
fn what_was_written_over_since_is_asked_of_nobody() {
    for byte in IN_A_BATCH {
        let store = SimStore::new();
        let journal = create(&store, SEGMENTS);
        let mut stream = written(&journal);
        // The seventh lies in the segment that rots, and so does the sixth, which the ninth is written over.
        stream.write(6 << 16, &[99; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 30, 30);
        keep_up(&journal, 30);
        let seventh = Manifest::load(&store).unwrap().redo.segments[2].clone();
        assert!(seventh.sealed.unwrap().footer.is_some());
        let (mut asked, mut touched) = (0, 0);
        for at in BATCHES_AT {
            let store = store.fork();
            let journal = open(&store);
            assert!(store.rot(WITH_SMALL, at + byte));
            assert!(!scrub_all(&journal).damage.is_empty());
            let status = journal.status();
            assert_eq!(!journal.to_send_again().is_empty(), status.damaged_bytes > 0);
            assert!(status.must_resync.is_none() && status.incarnation.is_some(), "nothing is compared");
            asked += usize::from(status.damaged_bytes > 0);
            touched += usize::from(damaged(&journal).iter().any(|bytes| *bytes > 0));
            compare(&journal, &stream.states);
            stream_goes_on(&journal, &stream);
        }
        assert_eq!((asked, touched), (2, 4), "byte {byte}");
    }
}

/// The stream that is there goes on.
fn stream_goes_on(journal: &Journal, stream: &Stream) {
    let mut stream = stream.clone();
    stream.write(0, &[5; 512]);
    stream.checkpoint();
    append(journal, stream.batch(), 40, 40);
}

#[test]
fn an_image_of_a_damaged_checkpoint_opens_and_fails_where_it_was_damaged_alone() {
    let (_, stream, journal) = rotten(WITH_SMALL, BATCHES_AT[1] + 3000);
    let journal = Arc::new(journal);
    scrub_all(&journal);
    for ((cut, content), bytes) in stream.states.iter().zip(damaged(&journal)) {
        let image = Image::open(journal.clone(), *cut, None, [1; 16]).unwrap();
        let mut failed = 0;
        for (at, expected) in content.chunks(512).enumerate() {
            let mut read = vec![0; 512];
            match image.read_at(DiskIndex(0), at as u64 * 512, &mut read) {
                Ok(()) => assert!(read == expected, "sector {at} at {cut}"),
                Err(error) => {
                    failed += 512;
                    assert!(error.to_string().starts_with("disk vda at byte "), "{error}");
                }
            }
        }
        assert_eq!(failed, bytes, "a block of a payload begins at a sector");
    }
}

/// Folds and steps of before-images go on past what is lost, in either mode and through a change of it; whatever becomes of
/// journal and replica, the same bytes of the same checkpoints cannot be read, and no others.
#[test]
fn folds_and_steps_leave_what_is_lost_out_and_go_on() {
    for modes in [[Mode::RollForward; 2], [Mode::Rollback; 2], [Mode::Rollback, Mode::RollForward]] {
        for (at, byte) in BATCHES_AT.into_iter().flat_map(|at| IN_A_BATCH.map(|byte| (at, byte))) {
            let (store, mut stream, journal) = rotten(WITH_SMALL, at + byte);
            scrub_all(&journal);
            let before = damaged(&journal);
            assert!(before.iter().any(|bytes| *bytes > 0));
            stream.delta_sync(&journal);
            stream.checkpoint();
            append(&journal, stream.batch(), 100, 100);
            for (number, mode) in modes.into_iter().enumerate() {
                journal.set(Settings { mode, ..SEGMENTS });
                for step in 0..4 {
                    keep_up(&journal, 100 + number as u64 * 10 + step);
                    stream.write(step << 16, &[step as u8 + 50; 3000]);
                    stream.checkpoint();
                    append(&journal, stream.batch(), 100, number as u8 * 10 + step as u8);
                }
                keep_up(&journal, 200);
                compare(&journal, &stream.states);
                assert_eq!(damaged(&journal)[..before.len()], before, "{modes:?} {at} {byte}");
            }
            drop(journal);
            let journal = Journal::open(Arc::new(store), SEGMENTS).unwrap().journal;
            compare(&journal, &stream.states);
            assert_eq!(damaged(&journal)[..before.len()], before);
            // All that is old goes, what is lost with it.
            journal.set(Settings { bytes_soft: 1, ..SEGMENTS });
            keep_up(&journal, 300);
            compare(&journal, &stream.states);
        }
    }
}

/// A fold goes up to a cut as of which something is lost, and the image of that cut reads through what it has left out.
#[test]
fn a_fold_to_where_something_is_lost_leaves_it_lost() {
    for byte in IN_A_BATCH {
        let (store, mut stream, journal) = rotten(WITH_SMALL, BATCHES_AT[1] + byte);
        scrub_all(&journal);
        let (all, lost) = (damaged(&journal), *damaged(&journal).last().unwrap());
        assert!(lost > 0);
        // The hard limit takes what nothing else may.
        let bytes = journal.status().journal_bytes;
        journal.set(Settings { bytes_soft: 1, bytes_hard: bytes, ..SEGMENTS });
        keep_up(&journal, 100);
        assert!(journal.status().applied > stream.states[9].0);
        let left = cuts(&journal).len();
        assert!(left < all.len());
        assert_eq!(damaged(&journal), all[all.len() - left..]);
        drop(journal);
        let journal = open(&store);
        compare(&journal, &stream.states);
        assert_eq!(damaged(&journal), all[all.len() - left..]);
        assert_eq!(journal.status().damaged_bytes, lost);
        stream.delta_sync(&journal);
        stream.checkpoint();
        append(&journal, stream.batch(), 200, 200);
        assert_eq!(journal.status().damaged_bytes, 0);
        assert_eq!(compare(&journal, &stream.states), 1);
        journal.set(Settings { bytes_soft: 1, ..SEGMENTS });
        keep_up(&journal, 300);
        assert_eq!(compare(&journal, &stream.states), 1);
        assert_eq!(scrub_all(&journal).damage, Vec::new());
    }
}

/// While something of the newest state is lost, history does not age past the newest checkpoint that is whole.
#[test]
fn retention_holds_the_newest_whole_checkpoint_while_something_is_lost() {
    let (_, mut stream, journal) = rotten(WITH_SMALL, BATCHES_AT[1] + 200);
    scrub_all(&journal);
    let newest = journal.newest_checkpoint().unwrap().unwrap().checkpoint.cut;
    let later = SEGMENTS.history.as_secs() * 3;
    for step in 0..5 {
        keep_up(&journal, later + step);
    }
    assert_eq!(journal.newest_checkpoint().unwrap().unwrap().checkpoint.cut, newest);
    stream.delta_sync(&journal);
    stream.checkpoint();
    append(&journal, stream.batch(), later, 100);
    keep_up(&journal, later + 10);
    keep_up(&journal, later * 2);
    assert!(!cuts(&journal).contains(&newest), "then it goes as all do");
}

/// Blocks of the replica, beside before-images of parts of them.
#[test]
fn a_block_of_the_replica_costs_the_cuts_that_read_it() {
    for at in [0, 4096, 8192, 12_288, 70_000] {
        let store = SimStore::new();
        let settings = Settings { mode: Mode::Rollback, ..SMALL };
        let journal = create(&store, settings);
        let mut stream = Stream::begin();
        let mut rng = Rng::new(at);
        for number in 0..20 {
            let (start, len) = (rng.below(16 << 10), 1 + rng.below(5000));
            stream.write(start, &vec![number as u8 + 1; len as usize]);
            stream.checkpoint();
            append(&journal, stream.batch(), number, 1);
            if number < 17 {
                keep_up(&journal, number);
            }
        }
        assert!(store.rot("replica/vda.raw", at + 5));
        assert_eq!(scrub_all(&journal).damage.len(), 1);
        compare(&journal, &stream.states);
        let before = damaged(&journal);
        assert!(
            before.iter().all(|bytes| *bytes <= 4096) && before.iter().any(|bytes| *bytes > 0),
            "{before:?}"
        );
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "nothing new");
        // Parts of it are written over, and brought to the replica beside what is lost.
        journal.begin_stream();
        stream.begin_sync();
        for number in 20..30 {
            let (start, len) = (at + rng.below(3000), 1 + rng.below(500));
            stream.write(start, &vec![number as u8; len as usize]);
            append(&journal, stream.batch(), number, 1);
            keep_up(&journal, number);
            let lost = unread(&journal, WriteSeq::MAX, &stream.disk);
            assert_eq!(lost.len() as u64, journal.status().damaged_bytes);
        }
        compare(&journal, &stream.states);
        assert_eq!(damaged(&journal)[..before.len()], before);
        drop(journal);
        let journal = Journal::open(Arc::new(store), settings).unwrap().journal;
        compare(&journal, &stream.states);
    }
}

/// The process is killed at each change of the disk while damage is contained that lies in a sealed segment, or in the
/// replica; then the power goes, or not.
#[test]
fn containing_what_can_be_told_in_pieces_may_be_cut_short_anywhere() {
    for replica in [false, true] {
        for changes in 0.. {
            let store = SimStore::new();
            let journal = create(&store, Settings { bytes_soft: u64::from(replica), ..SEGMENTS });
            let stream = written(&journal);
            let name = if replica { "replica/vda.raw" } else { WITH_SMALL };
            assert!(store.rot(name, BATCHES_AT[1] + 200));
            if replica {
                assert!(store.rot(name, (1 << 16) + 700));
            }
            store.die_after(Some(changes));
            let _ = try_scrub(&journal); // It may be killed.
            let is_over = !store.is_dead();
            drop(journal);
            store.die_after(None);
            for seed in 0..4 {
                let store = store.fork();
                if seed > 0 {
                    store.lose_power(&mut Rng::new(seed));
                }
                let opened = Journal::open(Arc::new(store), SEGMENTS).unwrap();
                assert_eq!(opened.damage, Vec::new());
                let journal = opened.journal;
                try_scrub(&journal).unwrap();
                compare(&journal, &stream.states);
                assert!(damaged(&journal).iter().any(|bytes| *bytes > 0), "{changes} changes, seed {seed}");
                assert!(!journal.status().gap_open && !journal.to_send_again().is_empty());
            }
            if is_over {
                assert!(changes > 2);
                break;
            }
        }
    }
}

/// Nobody can tell then what was written over it, and so it would cost all cuts from there on: but all may be well.
#[test]
fn damage_beside_an_index_that_is_not_given_just_now_waits() {
    let (store, stream, journal) = rotten(WITH_LARGE, BATCHES_AT[0] + (40 << 10));
    drop(journal);
    let journal = open(&store);
    store.cannot_read(Some(WITH_SMALL));
    assert!(try_scrub(&journal).is_err());
    assert_eq!(damaged(&journal), [0; 16], "nothing is contained yet, and no checkpoint is gone");
    store.cannot_read(None);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    assert_eq!(compare(&journal, &stream.states), 4);
}
