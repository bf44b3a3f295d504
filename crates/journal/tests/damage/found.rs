//! Damage that is found: by reading, by opening, or by a scrub. It is named with its place, and no reader gets it.

use crate::stream::{SMALL, Stream, append, compare, create, cuts, keep_up, unread};
use crate::{SEGMENTS, good_or_refused, open, scrub_all, sealed};
use journal::{Journal, Settings, Store, verify};
use sim::SimStore;
use std::sync::Arc;
use types::WriteSeq;
use types::limits::DAMAGE_TOLD_TOGETHER_MAX;

#[test]
fn rot_anywhere_in_a_sealed_segment_is_never_given_out_and_a_scrub_contains_it() {
    let (store, stream) = sealed(20);
    let name = "segment-00000002";
    let len = store.len_of(name).unwrap();
    for at in (0..len).step_by(97) {
        let rotten = store.fork();
        assert!(rotten.rot(name, at));
        let journal = open(&rotten);
        let before = cuts(&journal).len();
        good_or_refused(&journal, &stream);
        let found = scrub_all(&journal);
        let report = verify(&rotten, true, |_| {}).unwrap();
        if found.damage.is_empty() {
            // A byte of padding, of one header of two, or of the index, which was made again.
            assert_eq!(cuts(&journal).len(), before);
            assert_eq!(compare(&journal, &stream.states), before);
            continue;
        }
        assert!(found.damage[0].what.contains(name), "{:?}", found.damage);
        assert!(report.damage.iter().any(|damage| damage.contains(name)), "{:?}", report.damage);
        assert_eq!(cuts(&journal).len(), before, "none is gone");
        let after = compare(&journal, &stream.states);
        assert!(after < before && after >= 1, "what the damage touches says so, what is older is whole");
        let is_asked = journal.status().damaged_bytes > 0;
        assert_eq!(
            !journal.to_send_again().is_empty(),
            is_asked,
            "the source is asked for what is not there"
        );
        assert!(journal.status().incarnation.is_some(), "and for nothing else");
        let newest = journal.newest_consistent(WriteSeq::MAX).unwrap();
        assert!(unread(&journal, newest, &stream.states_at(newest)).is_empty());
        assert!(journal.status().damage[0].contains(name));
        // All of that is so after a restart as well.
        drop(journal);
        let journal = open(&rotten);
        assert_eq!(compare(&journal, &stream.states), after);
        assert_eq!(!journal.to_send_again().is_empty(), is_asked);
    }
}

#[test]
fn a_missing_segment_is_found_on_opening() {
    let (store, stream) = sealed(20);
    Store::remove(&store, "segment-00000003").unwrap();
    let opened = Journal::open(Arc::new(store), SEGMENTS).unwrap();
    assert!(opened.damage[0].what.contains("segment-00000003 is missing"), "{:?}", opened.damage);
    let kept = compare(&opened.journal, &stream.states);
    assert!((1..20).contains(&kept));
}

#[test]
fn swapped_segments_are_found_by_reading_and_by_scrubbing() {
    let (store, stream) = sealed(20);
    let rename = |from: &str, to: &str| Store::rename(&store, from, to).unwrap();
    rename("segment-00000002", "aside");
    rename("segment-00000003", "segment-00000002");
    rename("aside", "segment-00000003");
    let journal = open(&store);
    good_or_refused(&journal, &stream);
    let found = scrub_all(&journal);
    assert!(found.damage[0].what.contains("another segment stands in its place"), "{found:?}");
    let kept = compare(&journal, &stream.states);
    assert!((1..20).contains(&kept));
}

#[test]
fn a_write_that_went_to_another_place_is_not_believed() {
    let (store, stream) = sealed(20);
    let file = Store::open(&store, "segment-00000002", false).unwrap();
    // One batch with its envelope over another of the same segment: every checksum in it holds.
    let mut batch = vec![0; 8192];
    file.read_at(8192, &mut batch).unwrap();
    file.write_at(8192 + 8192, &batch).unwrap();
    let journal = open(&store);
    good_or_refused(&journal, &stream);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    compare(&journal, &stream.states);
}

#[test]
fn a_write_that_was_lost_is_not_believed() {
    let (store, stream) = sealed(20);
    let file = Store::open(&store, "segment-00000002", false).unwrap();
    file.write_at(8192, &[0; 8192]).unwrap();
    let journal = open(&store);
    good_or_refused(&journal, &stream);
    assert!(scrub_all(&journal).damage[0].what.contains("no batch stands here"));
    compare(&journal, &stream.states);
}

#[test]
fn a_file_that_ends_early_is_named() {
    let (store, stream) = sealed(20);
    store.truncate("segment-00000002", 9000);
    let journal = open(&store);
    good_or_refused(&journal, &stream);
    assert!(scrub_all(&journal).damage[0].what.contains("segment-00000002"));
    compare(&journal, &stream.states);
}

#[test]
fn a_damaged_index_costs_nothing_but_its_making() {
    let (store, stream) = sealed(40);
    let runs: Vec<String> = store.names().into_iter().filter(|name| name.starts_with("run-")).collect();
    assert!(!runs.is_empty(), "runs were merged");
    let total = compare(&open(&store), &stream.states);
    for name in &runs {
        for at in (0..store.len_of(name).unwrap()).step_by(331) {
            let rotten = store.fork();
            assert!(rotten.rot(name, at));
            let journal = open(&rotten);
            let found = scrub_all(&journal);
            assert!(found.damage.is_empty(), "{found:?}");
            assert_eq!(compare(&journal, &stream.states), total, "byte {at} of {name}");
            keep_up(&journal, 0);
            assert_eq!(compare(&journal, &stream.states), total, "byte {at} of {name}, merged again");
            drop(journal);
            assert_eq!(compare(&open(&rotten), &stream.states), total);
        }
    }
}

#[test]
fn a_recycled_file_full_of_old_records_holds_only_the_new_ones() {
    let (store, mut stream) = sealed(20);
    let journal = open(&store);
    journal.set(Settings { bytes_soft: 1, ..SEGMENTS });
    keep_up(&journal, 12);
    assert!(store.names().iter().any(|name| name.starts_with("spare-")), "old files are kept");
    journal.set(SEGMENTS);
    for number in 0..4u64 {
        stream.write(number * 700, &[99; 5000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 20 + number, 40 + number as u8);
        let before = cuts(&journal).len();
        let crashed = store.fork();
        let opened = Journal::open(Arc::new(crashed), SEGMENTS).unwrap();
        assert!(opened.damage.is_empty(), "{:?}", opened.damage);
        assert_eq!(compare(&opened.journal, &stream.states), before);
    }
}

/// Batches of a VM that is quiet, which have nothing but its checkpoints.
#[test]
fn damage_that_costs_no_bytes_is_told_once_however_many_places_it_has() {
    for places in [3, 4 * DAMAGE_TOLD_TOGETHER_MAX] {
        let (store, mut stream) = (SimStore::new(), Stream::begin());
        let journal = create(&store, Settings { segment_bytes: 1 << 20, ..SMALL });
        stream.write(0, &[7; 6000]);
        for number in 0..2 * places as u64 + 4 {
            stream.checkpoint();
            append(&journal, stream.batch(), number, 1);
        }
        keep_up(&journal, 100);
        let name = "segment-00000001";
        // The first batch has the write, and lies behind the headers.
        (0..places as u64).for_each(|place| assert!(store.rot(name, (6 + 2 * place) * 4096 + 100)));
        let found = scrub_all(&journal).damage;
        assert!(!found.is_empty() && found.len() <= DAMAGE_TOLD_TOGETHER_MAX, "{found:?}");
        assert!(found.iter().all(|damage| damage.lost_bytes() == Some(0)), "{found:?}");
        let told: Vec<_> = (0..3).map(|_| scrub_all(&journal).damage.len()).collect();
        assert_eq!(told, [0, 0, 0], "{places} places");
        let journal = Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal;
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        assert_eq!(compare(&journal, &stream.states), cuts(&journal).len());
    }
}
