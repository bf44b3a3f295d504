//! Damage that was made good by its source: what rots behind it, and whether retention, folds and indexes get past it.

use crate::pieces::damaged;
use crate::stream::{Stream, append, compare, create, keep_up};
use crate::{
    BATCHES_AT, IN_A_BATCH, SEGMENTS, WITH_LARGE, WITH_SMALL, found_and_made_good, good_or_refused,
    made_good, make_good, open, scrub_all,
};
use journal::{Journal, Manifest, Mode, Settings, Store, Upkeep, verify};
use sim::SimStore;
use std::sync::Arc;
use types::WallTime;

/// Every page of a segment's footer.
pub(crate) fn rot_index(store: &SimStore, name: &str) {
    let manifest = Manifest::load(store).unwrap();
    let segment = manifest.redo.segments.iter().find(|segment| name.ends_with(&segment.number.to_string()));
    let footer = segment.unwrap().sealed.clone().unwrap().footer.unwrap();
    assert_eq!(footer.file, None);
    (0..footer.bytes).step_by(4096).for_each(|at| assert!(store.rot(name, footer.at + at + 20)));
}

#[test]
fn what_rots_behind_damage_that_was_made_good_is_found_too() {
    for (first, second) in IN_A_BATCH.iter().flat_map(|first| IN_A_BATCH.map(|second| (first, second))) {
        for behind in &BATCHES_AT[1..] {
            let (store, mut stream, journal, kept) = made_good(|store| {
                assert!(store.rot(WITH_SMALL, BATCHES_AT[0] + first));
            });
            assert_eq!(
                verify(&store, true, |_| {}).unwrap().checkpoints.len(),
                kept,
                "what was made good is good"
            );
            assert!(store.rot(WITH_SMALL, behind + second));
            let told = verify(&store, true, |_| {}).unwrap().checkpoints;
            let found = scrub_all(&journal).damage;
            assert!(!found.is_empty(), "bytes {first} and {second}");
            let left = compare(&journal, &stream.states);
            assert!(left < kept);
            assert!(told.len() <= left, "what is not contained yet may cost all that is newer");
            make_good(&journal, &mut stream, 200);
            drop(journal);
            compare(&open(&store), &stream.states);
        }
    }
}

/// Writes on after damage was made good, so that it is not all at the end.
fn written_on(name: &str, byte: u64) -> (SimStore, Stream, Journal) {
    let (store, mut stream, journal, _) = made_good(|store| assert!(store.rot(name, BATCHES_AT[0] + byte)));
    for number in 0..8 {
        stream.write((3 + number) << 16, &[99; 5000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 200 + number, number as u8);
    }
    keep_up(&journal, 300);
    compare(&journal, &stream.states);
    (store, stream, journal)
}

fn damaged_places() -> impl Iterator<Item = (&'static str, u64)> {
    IN_A_BATCH.into_iter().map(|byte| (WITH_SMALL, byte)).chain([(WITH_LARGE, 5000), (WITH_LARGE, 70 << 10)])
}

#[test]
fn retention_goes_past_damage_that_was_made_good() {
    for (name, byte) in damaged_places() {
        let (store, stream, journal) = written_on(name, byte);
        // One segment after the other grows old, those that miss writes among them.
        let mut left = usize::MAX;
        for old in 0..=300 {
            keep_up(&journal, SEGMENTS.history.as_secs() + old);
            let now = compare(&journal, &stream.states);
            assert!(0 < now && now <= left);
            left = now;
        }
        let manifest = Manifest::load(&store).unwrap();
        assert!(manifest.damage.is_empty() && manifest.redo.segments.len() < 4, "{manifest:?}");
    }
}

#[test]
fn the_replica_is_brought_past_damage_that_was_made_good() {
    for (name, byte) in damaged_places() {
        let (store, stream, journal) = written_on(name, byte);
        let before = compare(&journal, &stream.states);
        journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
        keep_up(&journal, 300);
        assert_eq!(journal.status().applied, journal.status().last_seq);
        assert_eq!(compare(&journal, &stream.states), before, "older cuts have their before-images");
        drop(journal);
        assert_eq!(compare(&open(&store), &stream.states), before);
    }
}

#[test]
fn a_fold_stops_at_damage_that_was_not_made_good() {
    for (name, byte) in damaged_places() {
        let (store, stream, journal) = written_on("segment-00000001", 200);
        assert!(store.rot(name, BATCHES_AT[0] + byte));
        drop(journal);
        let journal = open(&store);
        let now = WallTime((SEGMENTS.history.as_secs() as i64 + 300) * 1_000_000);
        for mode in [Mode::RollForward, Mode::Rollback] {
            journal.set(Settings { mode, ..SEGMENTS });
            for _ in 0..20 {
                let _ = journal.keep_up(&Upkeep::plain(now, [9; 16]));
            }
            good_or_refused(&journal, &stream);
        }
    }
}

/// The first batch's write is overwritten by the fourth, which lies in the gap that the second one left. Cuts from before
/// the gap need it.
#[test]
fn a_before_image_that_older_cuts_need_is_not_left_out() {
    for byte in IN_A_BATCH {
        let (store, stream, journal, _) =
            made_good(|store| assert!(store.rot(WITH_SMALL, BATCHES_AT[1] + 200)));
        drop(journal);
        assert!(store.rot(WITH_SMALL, BATCHES_AT[0] + byte));
        let journal = open(&store);
        journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
        for _ in 0..20 {
            let _ = journal.keep_up(&Upkeep::plain(WallTime(0), [9; 16]));
        }
        good_or_refused(&journal, &stream);
    }
}

/// Pages that were cut off a torn end may come back where the write over them was lost.
#[test]
fn an_envelope_within_a_damaged_batch_is_not_taken_for_the_next_one() {
    let (.., found) = found_and_made_good(|store| {
        let file = Store::open(store, WITH_SMALL, false).unwrap();
        let mut page = vec![0; 4096];
        file.read_at(BATCHES_AT[1], &mut page).unwrap();
        file.write_at(BATCHES_AT[0] + 4096, &page).unwrap();
        assert!(store.rot(WITH_SMALL, BATCHES_AT[0] + 20));
    });
    assert_eq!(found.len(), 1, "{found:?}");
}

/// What of a damaged batch could still be read was not sent again.
#[test]
fn what_rots_in_a_batch_that_was_damaged_before_is_found_too() {
    for (first, second) in [(70 << 10, 5000), (5000, 70 << 10), (5000, 9200)] {
        let (store, mut stream, journal, kept) =
            made_good(|store| assert!(store.rot(WITH_LARGE, BATCHES_AT[0] + first)));
        assert!(store.rot(WITH_LARGE, BATCHES_AT[0] + second));
        let before: u64 = damaged(&journal).iter().sum();
        assert_eq!(scrub_all(&journal).damage.len(), 1, "bytes {first} and {second}");
        assert!(compare(&journal, &stream.states) <= kept);
        assert!(damaged(&journal).iter().sum::<u64>() > before);
        make_good(&journal, &mut stream, 200);
        drop(journal);
        compare(&open(&store), &stream.states);
    }
}

/// What of it cannot is lost with it (`indexes.rs`).
#[test]
fn the_index_of_a_damaged_segment_is_made_again_out_of_what_can_be_read() {
    let small = (WITH_SMALL, vec![BATCHES_AT[0] + 3000]);
    let two = (WITH_SMALL, vec![BATCHES_AT[0] + 3000, BATCHES_AT[1] + 3000]);
    let large = (WITH_LARGE, vec![BATCHES_AT[0] + (70 << 10)]);
    for (name, places) in [small, two, large] {
        let (store, stream, journal, kept) = made_good(|store| {
            places.iter().for_each(|at| assert!(store.rot(name, *at)));
        });
        rot_index(&store, name);
        drop(journal);
        let journal = open(&store);
        let found = scrub_all(&journal);
        assert_eq!((found.damage, found.rebuilt), (Vec::new(), 1), "{places:?}: nothing new");
        assert_eq!(compare(&journal, &stream.states), kept, "{places:?}");
        drop(journal);
        assert_eq!(compare(&open(&store), &stream.states), kept, "{places:?}");
    }
}

/// A crash before the footers were written, and a segment that is gone, or damaged in its header or first batch: sealed
/// or still written to.
#[test]
fn segments_that_cannot_be_read_before_they_have_their_index_are_let_go_in_time() {
    let both_headers = [20, 4096 + 20];
    for (mode, undo_sealed) in [(Mode::RollForward, false), (Mode::Rollback, false), (Mode::Rollback, true)] {
        for rotten in [&[][..], &both_headers, &[8192 + 100]] {
            let store = SimStore::new();
            let settings = Settings { mode, ..SEGMENTS };
            let journal = create(&store, settings);
            let mut stream = Stream::begin();
            for number in 0..20 {
                stream.write(number * 512, &[number as u8 + 1; 6000]);
                stream.checkpoint();
                append(&journal, stream.batch(), number, number as u8 + 1);
                if mode == Mode::Rollback {
                    journal.keep_up(&Upkeep::plain(WallTime(0), [number as u8 + 1; 16])).unwrap();
                }
                let undo = Manifest::load(&store).unwrap().undo.segments;
                let is_sealed = undo.first().is_some_and(|first| first.sealed.is_some());
                if mode == Mode::Rollback && number >= 4 && is_sealed == undo_sealed {
                    break;
                }
            }
            drop(journal);
            let manifest = Manifest::load(&store).unwrap();
            let (name, info) = match mode {
                Mode::RollForward => ("segment-00000002", &manifest.redo.segments[1]),
                Mode::Rollback => ("undo-00000001", &manifest.undo.segments[0]),
            };
            assert!(info.sealed.as_ref().map_or(!undo_sealed, |sealed| sealed.footer.is_none()));
            match rotten {
                [] => Store::remove(&store, name).unwrap(),
                places => places.iter().for_each(|at| assert!(store.rot(name, *at))),
            }
            let opened = Journal::open(Arc::new(store.clone()), settings).unwrap();
            assert!(!opened.damage.is_empty());
            let journal = opened.journal;
            compare(&journal, &stream.states);
            make_good(&journal, &mut stream, 100);
            journal.set(Settings { bytes_soft: 1, ..SEGMENTS });
            keep_up(&journal, 200);
            compare(&journal, &stream.states);
            let manifest = Manifest::load(&store).unwrap();
            let left = manifest.redo.segments.iter().chain(&manifest.undo.segments);
            assert!(
                left.clone().count() == 1 && left.clone().all(|info| info.sealed.is_none()),
                "{manifest:?}"
            );
        }
    }
}
