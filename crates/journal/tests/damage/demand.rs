//! What a journal asks of its source once acknowledged writes are lost, and that nothing but that undoes the demand.

use crate::stream::{append, compare, cuts, keep_up, try_append};
use crate::{SEGMENTS, open, scrub_all, sealed};
use journal::{AppendError, Journal, Store};
use sim::SimStore;
use std::sync::Arc;

#[test]
fn a_sync_after_damage_brings_new_checkpoints_and_keeps_the_old() {
    let (store, mut stream) = sealed(20);
    assert!(store.rot("segment-00000002", 8192 + 200));
    let journal = open(&store);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    assert_eq!(cuts(&journal).len(), 20, "damage takes none");
    let old = compare(&journal, &stream.states);
    journal.begin_stream();
    stream.resync();
    stream.checkpoint();
    append(&journal, stream.batch(), 100, 77);
    keep_up(&journal, 100);
    assert_eq!(compare(&journal, &stream.states), old + 1);
    assert_eq!(journal.status().damage, Vec::<String>::new(), "it was made good");
    drop(journal);
    assert_eq!(compare(&open(&store), &stream.states), old + 1);
}

#[test]
fn traffic_does_not_write_over_the_demand_for_a_resync() {
    let (store, mut stream) = sealed(20);
    assert!(store.rot("segment-00000002", 8192 + 200));
    let journal = open(&store);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    let old = cuts(&journal).len();
    // The source has not been told yet.
    let stands_at = journal.status().last_seq;
    stream.write(0, &[9; 512]);
    stream.checkpoint();
    let on_the_way = stream.batch();
    let refused = try_append(&journal, on_the_way.clone(), 30, 7);
    assert!(matches!(refused, Err(AppendError::MustBeginAnew { .. })), "{refused:?}");
    assert!(refused.unwrap_err().is_transient());
    // It is told, and does not begin anew all the same; here, and after a restart.
    let status = journal.begin_stream();
    assert!(status.incarnation.is_none() && status.must_resync.is_some() && status.last_seq == stands_at);
    assert!(matches!(
        try_append(&journal, on_the_way.clone(), 30, 7),
        Err(AppendError::MustBeginAnew { .. })
    ));
    drop(journal);
    let journal = open(&store);
    assert!(journal.status().must_resync.is_some());
    assert!(matches!(try_append(&journal, on_the_way, 30, 7), Err(AppendError::MustBeginAnew { .. })));
    assert_eq!(cuts(&journal).len(), old);
}

#[test]
fn a_stream_that_begins_anew_meets_the_demand_and_nothing_brings_it_back() {
    let (store, mut stream) = sealed(20);
    assert!(store.rot("segment-00000002", 8192 + 200));
    let journal = open(&store);
    scrub_all(&journal);
    stream.begin_sync();
    let begins = stream.batch();
    let refused = try_append(&journal, begins.clone(), 30, 7);
    assert!(matches!(refused, Err(AppendError::MustBeginAnew { .. })), "this connection was not told");
    journal.begin_stream();
    append(&journal, begins, 30, 7);
    assert_eq!(journal.status().must_resync, None);
    assert!(journal.status().incarnation.is_some() && journal.status().gap_open);
    drop(journal);
    let journal = open(&store);
    assert!(journal.status().incarnation.is_some(), "the source may resume its sync");
    stream.copy_all();
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 31, 8);
    keep_up(&journal, 31);
    assert_eq!(journal.status().damage, Vec::<String>::new());
}

#[test]
fn no_word_of_the_source_takes_older_checkpoints_away() {
    let (store, mut stream) = sealed(20);
    let journal = open(&store);
    let old = cuts(&journal).len();
    stream.mark_missing_from(0);
    append(&journal, stream.batch(), 30, 7);
    assert_eq!(cuts(&journal).len(), old, "what is durable here is not missing");
    assert_eq!(compare(&journal, &stream.states), old);
}

#[test]
fn damage_that_was_made_good_costs_nothing_when_it_is_found_again() {
    let rot = |store: &SimStore| assert!(store.rot("segment-00000002", 8192 + 200));
    let loss = |store: &SimStore| Store::remove(store, "segment-00000003").unwrap();
    for spoil in [&rot as &dyn Fn(&SimStore), &loss] {
        let (store, mut stream) = sealed(20);
        spoil(&store);
        let journal = open(&store);
        scrub_all(&journal);
        journal.begin_stream();
        stream.resync();
        stream.checkpoint();
        append(&journal, stream.batch(), 100, 77);
        keep_up(&journal, 100);
        let kept = compare(&journal, &stream.states);
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "nothing new");
        assert_eq!(compare(&journal, &stream.states), kept);
        drop(journal);
        let opened = Journal::open(Arc::new(store), SEGMENTS).unwrap();
        assert_eq!(opened.damage, Vec::new());
        assert_eq!(compare(&opened.journal, &stream.states), kept);
        assert!(opened.journal.status().incarnation.is_some(), "the source may resume");
    }
}
