//! What a journal asks of its source once acknowledged writes are lost, and that nothing but that undoes the demand.

use crate::made_good::rot_index;
use crate::stream::{Stream, append, compare, create, cuts, keep_up, try_append, unread};
use crate::{BATCHES_AT, SEGMENTS, WITH_SMALL, open, scrub_all, sealed, written};
use journal::{AppendError, Journal, Mode, Settings, Store};
use sim::SimStore;
use std::sync::Arc;
use types::{ByteRange, WriteSeq};

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

/// A batch rots with its index: nobody knows which bytes it had.
fn with_a_gap() -> (SimStore, Stream, Journal) {
    let (store, stream) = sealed(20);
    assert!(store.rot(WITH_SMALL, BATCHES_AT[0] + 200));
    let journal = open(&store);
    rot_index(&store, WITH_SMALL);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    assert!(journal.to_send_again().is_empty(), "everything is to be compared");
    (store, stream, journal)
}

/// Two batches rot, and their index knows which bytes they had.
fn with_pieces() -> (SimStore, Stream, Journal) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let stream = written(&journal);
    BATCHES_AT[1..3].iter().for_each(|at| assert!(store.rot(WITH_SMALL, at + 200)));
    assert!(!scrub_all(&journal).damage.is_empty());
    (store, stream, journal)
}

fn copy(stream: &mut Stream, block: u64) {
    stream.copy(ByteRange::new(block << 16, 1 << 16));
}

/// The blocks that are asked for.
fn asked(journal: &Journal) -> Vec<u64> {
    journal.to_send_again().into_iter().flat_map(|run| run.first.0..run.end()).collect()
}

/// The blocks of which something cannot be read now.
fn lost(journal: &Journal, stream: &Stream) -> Vec<u64> {
    let mut blocks: Vec<u64> =
        unread(journal, WriteSeq::MAX, &stream.disk).into_iter().map(|byte| byte >> 16).collect();
    blocks.dedup();
    blocks
}

#[test]
fn blocks_that_are_lost_are_asked_for_until_something_lies_over_them_and_the_stream_goes_on() {
    let (store, mut stream, journal) = with_pieces();
    let blocks = lost(&journal, &stream);
    assert_eq!(blocks.len(), 2);
    assert_eq!(asked(&journal), blocks);
    let status = journal.begin_stream();
    assert!(status.must_resync.is_none() && status.incarnation.is_some(), "it may be resumed");
    // A gap of the source's own begins as a stream that is begun anew does, and meets nothing.
    for _ in 0..2 {
        stream.begin_sync();
        append(&journal, stream.batch(), 30, 1);
        stream.end_sync();
        stream.checkpoint();
        append(&journal, stream.batch(), 31, 2);
    }
    assert_eq!(asked(&journal), blocks);
    drop(journal);
    let journal = open(&store);
    assert_eq!(asked(&journal), blocks, "it is no word of a connection");
    keep_up(&journal, 40);
    stream.begin_sync();
    copy(&mut stream, blocks[0]);
    append(&journal, stream.batch(), 50, 3);
    assert_eq!(asked(&journal), blocks[1..]);
    blocks[1..].iter().for_each(|block| copy(&mut stream, *block));
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 51, 4);
    assert!(asked(&journal).is_empty());
    keep_up(&journal, 60);
    let status = journal.status();
    assert!(status.damage.is_empty() && status.damaged_bytes == 0);
    assert_eq!(journal.newest_checkpoint().unwrap().unwrap().checkpoint.cut, stream.states.last().unwrap().0);
    compare(&journal, &stream.states);
    drop(journal);
    assert!(asked(&open(&store)).is_empty());
}

#[test]
fn a_source_that_cannot_be_asked_for_blocks_compares_everything_once() {
    let (store, mut stream, journal) = with_pieces();
    let blocks = lost(&journal, &stream);
    // A gap of its own, before it is told.
    stream.begin_sync();
    append(&journal, stream.batch(), 30, 1);
    assert!(journal.compare_for_what_is_lost().unwrap());
    assert!(journal.status().must_resync.is_some() && asked(&journal).is_empty());
    let mut late = stream.clone();
    late.write(0, &[9; 512]);
    assert!(matches!(try_append(&journal, late.batch(), 31, 2), Err(AppendError::MustBeginAnew { .. })));
    drop(journal);
    let journal = open(&store);
    assert!(journal.begin_stream().must_resync.is_some(), "it outlives the agent");
    stream.begin_sync();
    append(&journal, stream.batch(), 40, 3);
    assert!(!journal.compare_for_what_is_lost().unwrap(), "it is doing that");
    assert_eq!(asked(&journal), blocks, "whoever can be asked is");
    drop(journal);
    let journal = open(&store);
    assert!(!journal.compare_for_what_is_lost().unwrap(), "the open segment says so");
    keep_up(&journal, 45);
    drop(journal);
    let journal = open(&store);
    if journal.compare_for_what_is_lost().unwrap() {
        journal.begin_stream(); // What it was doing is not known for ever.
    }
    stream.resync();
    stream.checkpoint();
    append(&journal, stream.batch(), 50, 4);
    assert!(!journal.compare_for_what_is_lost().unwrap());
    assert_eq!((asked(&journal), journal.status().damaged_bytes), (Vec::new(), 0));
    compare(&journal, &stream.states);
}

#[test]
fn where_most_of_the_disks_is_lost_everything_is_compared() {
    for lost in [9, 11] {
        let store = SimStore::new();
        let journal = create(&store, Settings { mode: Mode::Rollback, ..SEGMENTS });
        let mut stream = Stream::begin();
        for block in 0..lost {
            stream.write(block << 16, &[block as u8 + 1; 4096]);
        }
        stream.checkpoint();
        append(&journal, stream.batch(), 1, 1);
        keep_up(&journal, 2);
        assert_eq!(journal.status().applied, journal.status().last_seq);
        (0..lost).for_each(|block| assert!(store.rot("replica/vda.raw", (block << 16) + 5)));
        scrub_all(&journal);
        assert_eq!(journal.status().damaged_bytes, lost * 4096);
        let is_most = lost * 2 > (stream.disk.len() >> 16) as u64;
        assert_eq!(journal.status().must_resync.is_some(), is_most);
        assert_eq!(asked(&journal), if is_most { Vec::new() } else { (0..lost).collect() });
    }
}

#[test]
fn traffic_does_not_write_over_the_demand_for_a_resync() {
    let (store, mut stream, journal) = with_a_gap();
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
    let (store, mut stream, journal) = with_a_gap();
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
