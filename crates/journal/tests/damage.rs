//! Disks that lie: each kind of damage is found, named with its place, contained, and never given to a
//! reader as if it were good.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{
    AppendError, Damage, Journal, Manifest, Mode, Scrubbed, Settings, Store, StoreFile, Upkeep, verify,
};
use sim::SimStore;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use stream::{SMALL, Stream, append, compare, create, create_in, cuts, keep_up, read_all, try_append};
use types::{ByteRange, DiskIndex, WallTime, WriteSeq};

/// A few batches a segment, so that a short history has several of them.
const SEGMENTS: Settings = Settings { segment_bytes: 40 << 10, ..SMALL };

/// A journal of `count` writes with a checkpoint each, all footers written, and the disk it lies on.
fn sealed(count: u64) -> (SimStore, Stream) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = Stream::begin();
    for number in 0..count {
        stream.write(number * 512, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(&journal, count);
    (store, stream)
}

fn open(store: &SimStore) -> Journal {
    Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap().journal
}

/// Scrubs everything once.
fn scrub_all(journal: &Journal) -> Scrubbed {
    let mut all = Scrubbed::default();
    let mut place = None;
    loop {
        let step = journal.scrub(place, &Upkeep::plain(WallTime(0), [5; 16])).unwrap();
        all.damage.extend(step.damage);
        all.rebuilt += step.rebuilt;
        all.bytes += step.bytes;
        match step.place {
            Some(next) => place = Some(next),
            None => return all,
        }
    }
}

/// Every checkpoint either reads as it was, or its reading is refused. How many read well.
fn good_or_refused(journal: &Journal, stream: &Stream) -> usize {
    let mut good = 0;
    for cut in cuts(journal) {
        let (_, expected) = stream.states.iter().find(|(at, _)| *at == cut).unwrap();
        match read_all(journal, cut) {
            Ok(found) => {
                assert!(found == *expected, "checkpoint {cut} is given out wrong");
                good += 1;
            }
            Err(error) => assert!(error.to_string().contains("segment-"), "{error} names its place"),
        }
    }
    good
}

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
        let after = cuts(&journal).len();
        assert!(after < before && after >= 1, "what the damage touches is gone, what is older stays");
        assert_eq!(compare(&journal, &stream.states), after);
        assert_eq!(journal.status().incarnation, None, "the source is asked again");
        assert!(journal.status().damage[0].contains(name));
        // All of that is so after a restart as well.
        drop(journal);
        let journal = open(&rotten);
        assert_eq!(compare(&journal, &stream.states), after);
        assert_eq!(journal.status().incarnation, None);
    }
}

#[test]
fn a_sync_after_damage_brings_new_checkpoints_and_keeps_the_old() {
    let (store, mut stream) = sealed(20);
    assert!(store.rot("segment-00000002", 8192 + 200));
    let journal = open(&store);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    let old = cuts(&journal).len();
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

/// Bytes of writes whose batch has two frames, so that one may be good where the other is not.
const LARGE: u64 = 72 << 10;

/// Sixteen writes, to blocks of their own but for one, with a checkpoint each.
fn written(journal: &Journal) -> Stream {
    let mut stream = Stream::begin();
    for number in 0..16 {
        let len = if number == 4 { LARGE } else { 6000 };
        let block = if number == 8 { 5 } else { number };
        stream.write(block << 16, &vec![number as u8 + 1; len as usize]);
        stream.checkpoint();
        append(journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(journal, 20);
    stream
}

/// A journal of such writes, of which something rots; that is found, contained, and made good by a
/// sync of what differs. How many checkpoints there are then.
fn made_good(spoil: impl Fn(&SimStore)) -> (SimStore, Stream, Journal, usize) {
    let (store, stream, journal, kept, _) = found_and_made_good(spoil);
    (store, stream, journal, kept)
}

/// As [`made_good`], with what was found.
fn found_and_made_good(spoil: impl Fn(&SimStore)) -> (SimStore, Stream, Journal, usize, Vec<Damage>) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = written(&journal);
    // What is in memory since is good, and is not to be taken for what the disk has.
    compare(&journal, &stream.states);
    spoil(&store);
    let found = scrub_all(&journal).damage;
    assert!(!found.is_empty());
    let kept = make_good(&journal, &mut stream, 100);
    (store, stream, journal, kept, found)
}

fn make_good(journal: &Journal, stream: &mut Stream, at_seconds: u64) -> usize {
    stream.delta_sync(journal);
    stream.checkpoint();
    append(journal, stream.batch(), at_seconds, at_seconds as u8);
    keep_up(journal, at_seconds);
    assert_eq!(scrub_all(journal).damage, Vec::new(), "nothing new");
    compare(journal, &stream.states)
}
const WITH_LARGE: &str = "segment-00000002";
/// It has four batches.
const WITH_SMALL: &str = "segment-00000003";
const BATCHES_AT: [u64; 4] = [8192, 16384, 24576, 32768];
/// In an envelope, in the tables behind it, and in a frame.
const IN_A_BATCH: [u64; 3] = [20, 200, 3000];

/// Every page of a segment's footer.
fn rot_index(store: &SimStore, name: &str) {
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
            assert_eq!(told.len(), left, "verifying says the same");
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
        assert_eq!(scrub_all(&journal).damage.len(), 1, "bytes {first} and {second}");
        assert!(compare(&journal, &stream.states) < kept);
        make_good(&journal, &mut stream, 200);
        drop(journal);
        compare(&open(&store), &stream.states);
    }
}

#[test]
fn the_index_of_a_damaged_segment_is_made_again_out_of_what_can_be_read() {
    let small = IN_A_BATCH.map(|byte| (WITH_SMALL, vec![BATCHES_AT[0] + byte]));
    let two = (WITH_SMALL, vec![BATCHES_AT[0] + 20, BATCHES_AT[1] + 20]);
    let large = (WITH_LARGE, vec![BATCHES_AT[0] + (70 << 10)]);
    for (name, places) in small.into_iter().chain([two, large]) {
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

/// A journal in rollback mode, whose replica has all of twelve writes.
fn with_before_images() -> (SimStore, Stream, Settings) {
    let store = SimStore::new();
    let settings = Settings { mode: Mode::Rollback, ..SEGMENTS };
    let journal = create(&store, settings);
    let mut stream = Stream::begin();
    for number in 0..12u64 {
        stream.write(number * 512, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    assert_eq!(compare(&journal, &stream.states), 12);
    (store, stream, settings)
}

#[test]
fn rot_in_before_images_is_never_given_out() {
    let (store, stream, settings) = with_before_images();
    // The last of them is still written to.
    let names: Vec<String> = store.names().into_iter().filter(|name| name.starts_with("undo-")).collect();
    assert!(names.len() > 1, "{names:?}");
    for (name, at) in names
        .iter()
        .flat_map(|name| (8192..store.len_of(name).unwrap()).step_by(1013).map(move |at| (name, at)))
    {
        let rotten = store.fork();
        assert!(rotten.rot(name, at));
        let is_found = verify(&rotten, true, |_| {}).unwrap().damage.iter().any(|what| what.contains(name));
        let opened = Journal::open(Arc::new(rotten), settings).unwrap();
        // Sealed ones are not read on opening.
        let at_open = opened.damage.iter().any(|damage| damage.what.contains(name));
        assert_eq!(
            at_open,
            is_found && names.last() == Some(name),
            "byte {at} of {name}: {:?}",
            opened.damage
        );
        for cut in cuts(&opened.journal) {
            let (_, expected) = stream.states.iter().find(|(seen, _)| *seen == cut).unwrap();
            if let Ok(found) = read_all(&opened.journal, cut) {
                assert!(found == *expected, "byte {at} of {name}: checkpoint {cut} is given out wrong");
            }
        }
    }
}

/// A fold that retires cuts only in memory, because the manifest cannot be saved, takes no cut from what a crash brings
/// back: rot in before-images is contained for those too.
#[test]
fn rot_in_before_images_is_contained_for_cuts_that_a_crash_brings_back() {
    let (store, stream, settings) = with_before_images();
    let mut brought_back = 0;
    for syncs in 0..8 {
        let store = store.fork();
        let journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
        let before = cuts(&journal).len();
        journal.set(Settings { bytes_soft: 1, ..SEGMENTS });
        store.fail_sync_after(Some(syncs));
        let failed = journal.keep_up(&Upkeep::plain(WallTime(0), [6; 16])).is_err();
        store.fail_sync_after(None);
        let retired = before - cuts(&journal).len();
        assert!(store.rot("undo-00000001", 8192 + 3 * 4096 + 100));
        let found = scrub_all(&journal).damage;
        assert_eq!(found.len(), 1, "{found:?}");
        let not_saved = failed && Manifest::load(&store).unwrap().retired_below == 0;
        drop(journal);
        let journal = Journal::open(Arc::new(store), settings).unwrap().journal;
        compare(&journal, &stream.states);
        brought_back += usize::from(retired > 0 && not_saved);
    }
    assert!(brought_back > 0);
}

#[test]
fn a_damaged_manifest_is_named_and_nothing_is_touched() {
    let (store, _) = sealed(3);
    let len = store.len_of("manifest").unwrap();
    for at in (0..len).step_by(41) {
        let rotten = store.fork();
        rotten.rot("manifest", at);
        let refused = Journal::open(Arc::new(rotten.clone()), SEGMENTS).unwrap_err().to_string();
        assert!(refused.contains("manifest"), "{refused}");
        assert_eq!(rotten.names(), store.names());
    }
    let mut byte = [0; 1];
    assert!(open(&store).read_at(DiskIndex(0), WriteSeq::MAX, 0, &mut byte).is_ok());
}

/// What of which files cannot be read just now.
type Unread = Arc<Mutex<Option<(&'static str, Range<u64>)>>>;

/// A disk that does not give everything.
#[derive(Debug, Clone)]
struct Unreadable(SimStore, Unread);

#[derive(Debug)]
struct UnreadableFile(Arc<dyn StoreFile>, String, Unread);

impl Store for Unreadable {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(UnreadableFile(self.0.open(name, create)?, name.to_owned(), self.1.clone())))
    }
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.0.exists(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Store::names(&self.0)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.0.sync_folder()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl StoreFile for UnreadableFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let to = at + buf.len() as u64;
        match &*self.2.lock().unwrap() {
            Some((prefix, unread)) if self.1.starts_with(prefix) && at < unread.end && unread.start < to => {
                Err(io::Error::from_raw_os_error(5))
            }
            _ => self.0.read_at(at, buf),
        }
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(at, buf)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.0.zero(range)
    }
}

#[test]
fn a_disk_that_cannot_be_read_just_now_is_an_error_and_not_damage() {
    let (store, stream) = sealed(20);
    let unread = Unread::default();
    let unreadable = Arc::new(Unreadable(store, unread.clone()));
    let journal = Journal::open(unreadable.clone(), SEGMENTS).unwrap().journal;
    let total = cuts(&journal).len();
    *unread.lock().unwrap() = Some(("segment-", 0..u64::MAX));
    let cut = *cuts(&journal).last().unwrap();
    assert!(read_all(&journal, cut).unwrap_err().to_string().contains("segment-"));
    assert!(journal.scrub(None, &Upkeep::plain(WallTime(0), [5; 16])).is_err());
    assert!(matches!(Journal::open(unreadable, SEGMENTS), Err(journal::OpenError::Io(_))));
    *unread.lock().unwrap() = None;
    assert_eq!(journal.status().damage, Vec::<String>::new());
    assert_eq!(compare(&journal, &stream.states), total, "nothing is lost once it can be read again");
}

/// A disk fails sector by sector: one of them is damage, and costs what is in it.
#[test]
fn a_sector_that_cannot_be_read_is_damage() {
    for sector in [BATCHES_AT[1], BATCHES_AT[1] + 4096] {
        let store = SimStore::new();
        let unread = Unread::default();
        let unreadable = Arc::new(Unreadable(store.clone(), unread.clone()));
        let journal = create_in(unreadable.clone(), SEGMENTS);
        let mut stream = written(&journal);
        *unread.lock().unwrap() = Some((WITH_SMALL, sector..sector + 512));
        let found = scrub_all(&journal).damage;
        assert_eq!(found.len(), 1, "{found:?}");
        let place = format!("{WITH_SMALL} at byte {}: ", BATCHES_AT[1]);
        assert!(found[0].what.starts_with(&place) || sector > BATCHES_AT[1], "{found:?}");
        assert!(found[0].what.contains("cannot be read"), "{found:?}");
        make_good(&journal, &mut stream, 100);
        for old in 0..=200 {
            keep_up(&journal, SEGMENTS.history.as_secs() + old);
            assert!(compare(&journal, &stream.states) > 0);
        }
        let left = Manifest::load(&store).unwrap().redo.segments;
        assert!(left.iter().all(|info| info.number > 3), "{left:?}");
    }
}

#[test]
fn a_sector_of_the_open_segment_that_cannot_be_read_leaves_the_journal_to_be_opened() {
    let store = SimStore::new();
    let unread = Unread::default();
    let unreadable = Arc::new(Unreadable(store, unread.clone()));
    let settings = Settings { segment_bytes: 1 << 20, ..SEGMENTS };
    let journal = create_in(unreadable.clone(), settings);
    let stream = written(&journal);
    let name = "segment-00000001";
    drop(journal);
    *unread.lock().unwrap() = Some((name, BATCHES_AT[2]..BATCHES_AT[2] + 512));
    let opened = Journal::open(unreadable.clone(), settings).unwrap();
    assert!(opened.damage[0].what.contains("cannot be read"), "{:?}", opened.damage);
    assert_eq!(compare(&opened.journal, &stream.states), 2, "what lies before it");
    drop(opened);
    let opened = Journal::open(unreadable, settings).unwrap();
    assert_eq!(opened.damage, Vec::new());
    assert_eq!(compare(&opened.journal, &stream.states), 2);
}

#[test]
fn a_sector_of_an_index_that_cannot_be_read_costs_nothing() {
    let store = SimStore::new();
    let unread = Unread::default();
    let journal = create_in(Arc::new(Unreadable(store.clone(), unread.clone())), SEGMENTS);
    let stream = written(&journal);
    let total = compare(&journal, &stream.states);
    let manifest = Manifest::load(&store).unwrap();
    let footer = manifest.redo.segments[2].sealed.clone().unwrap().footer.unwrap();
    for at in (footer.at..footer.at + footer.bytes).step_by(4096) {
        *unread.lock().unwrap() = Some((WITH_SMALL, at..at + 512));
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        assert_eq!(compare(&journal, &stream.states), total);
    }
    let footer = Manifest::load(&store).unwrap().redo.segments[2].sealed.clone().unwrap().footer.unwrap();
    assert!(footer.file.is_some(), "it was made again");
}
