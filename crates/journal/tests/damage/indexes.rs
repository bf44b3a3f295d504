//! Indexes that are made again where of a damaged batch nothing else knew what it held: it is lost with them, and said to be.

use crate::stream::{Stream, append, compare, create, create_in, keep_up, read_all};
use crate::unreadable::{Unread, Unreadable};
use crate::{BATCHES_AT, IN_A_BATCH, SEGMENTS, WITH_SMALL, make_good, open, scrub_all, try_scrub};
use batch::Kind;
use journal::{Journal, Manifest, Mode, Settings, Store, verify};
use sim::{Rng, SimStore};
use std::sync::Arc;
use types::{ByteRange, WriteSeq};

/// Writes with a checkpoint each. A batch of the third segment also discards what the first one wrote.
fn written_with_zeroes(journal: &Journal, count: u64) -> Stream {
    let mut stream = Stream::begin();
    for number in 0..count {
        if number == 9 {
            stream.zero(Kind::Discard, ByteRange::new(0, 4096));
        }
        stream.write((number % 16) << 16, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(journal, count);
    stream
}

/// Every page of the footer of a segment, wherever it lies.
fn rot_footer(store: &SimStore, segment: &str) {
    let manifest = Manifest::load(store).unwrap();
    let log = if segment.starts_with("undo-") { &manifest.undo } else { &manifest.redo };
    let number = segment.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    let info = log.segments.iter().find(|info| info.number == number).unwrap();
    let footer = info.sealed.clone().unwrap().footer.unwrap();
    let name = footer.file.map_or(segment.to_owned(), |number| format!("run-{number:08}"));
    (0..footer.bytes).step_by(4096).for_each(|at| assert!(store.rot(&name, footer.at + at + 20)));
}

/// The newest cut that can be opened reads as it was.
fn newest_is_right(journal: &Journal, stream: &Stream) {
    let newest = journal.newest_consistent(WriteSeq::MAX).unwrap();
    assert!(read_all(journal, newest).unwrap() == stream.states_at(newest));
}

/// What was found is compared, and right then.
fn is_made_good(store: &SimStore, journal: Journal, stream: &mut Stream) {
    compare(&journal, &stream.states);
    newest_is_right(&journal, stream);
    make_good(&journal, stream, 200);
    assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
    drop(journal);
    let journal = open(store);
    assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
    assert_eq!(scrub_all(&journal).damage, Vec::new(), "once is enough");
}

#[test]
fn zeroes_of_a_batch_whose_tables_rotted_outlive_its_index() {
    let store = SimStore::new();
    let stream = written_with_zeroes(&create(&store, SEGMENTS), 16);
    for (at, byte) in BATCHES_AT.into_iter().flat_map(|at| IN_A_BATCH.map(|byte| (at, byte))) {
        let (store, mut stream) = (store.fork(), stream.clone());
        let journal = open(&store);
        assert!(store.rot(WITH_SMALL, at + byte));
        scrub_all(&journal);
        make_good(&journal, &mut stream, 100);
        compare(&journal, &stream.states);
        rot_footer(&store, WITH_SMALL);
        let told = verify(&store, true, |_| {}).unwrap().checkpoints.len();
        let found = scrub_all(&journal);
        let has_tables = byte == 3000;
        assert_eq!((found.damage.is_empty(), found.rebuilt), (has_tables, 1), "{at} {byte}: {found:?}");
        assert_eq!(journal.status().must_resync.is_none(), has_tables, "{at} {byte}");
        assert_eq!(compare(&journal, &stream.states), told, "{at} {byte}");
        is_made_good(&store, journal, &mut stream);
    }
}

/// The same where the segment's index was merged: that run has what the footer had, and nothing is lost.
#[test]
fn a_footer_is_made_again_out_of_the_run_that_it_was_merged_into() {
    let store = SimStore::new();
    let stream = written_with_zeroes(&create(&store, SEGMENTS), 40);
    assert!(Manifest::load(&store).unwrap().redo.runs.iter().any(|run| run.level > 0));
    for (at, byte) in BATCHES_AT.into_iter().flat_map(|at| IN_A_BATCH.map(|byte| (at, byte))) {
        let (store, mut stream) = (store.fork(), stream.clone());
        let journal = open(&store);
        assert!(store.rot(WITH_SMALL, at + byte));
        scrub_all(&journal);
        let kept = make_good(&journal, &mut stream, 100);
        rot_footer(&store, WITH_SMALL);
        assert_eq!(verify(&store, true, |_| {}).unwrap().checkpoints.len(), kept);
        let found = scrub_all(&journal);
        assert_eq!((&found.damage[..], found.rebuilt), (&[][..], 1), "{at} {byte}");
        assert_eq!(compare(&journal, &stream.states), kept, "{at} {byte}");
        // What is brought to the replica goes by the footers.
        journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
        keep_up(&journal, 300);
        assert_eq!(compare(&journal, &stream.states), kept, "{at} {byte}");
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
    }
}

/// Before-images that are zeroes: without them older cuts would show what the replica has.
#[test]
fn before_images_that_are_zeroes_outlive_their_index() {
    let settings = Settings { mode: Mode::Rollback, ..SEGMENTS };
    let store = SimStore::new();
    let journal = create(&store, settings);
    let mut stream = Stream::begin();
    for number in 0..16u64 {
        stream.write(number << 16, &[number as u8 + 1; 6000]);
        stream.write(1 << 19, &[number as u8 + 1; 9000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    drop(journal);
    let manifest = Manifest::load(&store).unwrap();
    let sealed = manifest.undo.segments[0].sealed.clone().unwrap();
    assert!(sealed.footer.is_some());
    let (name, mut lost) = ("undo-00000001", 0);
    for at in (8192..sealed.bytes).step_by(4096) {
        let (store, mut stream) = (store.fork(), stream.clone());
        let journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
        assert!(store.rot(name, at + 20));
        scrub_all(&journal);
        make_good(&journal, &mut stream, 100);
        rot_footer(&store, name);
        lost += scrub_all(&journal).damage.len();
        compare(&journal, &stream.states);
        make_good(&journal, &mut stream, 200);
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
    }
    assert!(lost > 0);
}

/// A disk that does not give the index at one moment costs nothing, whatever rotted before.
#[test]
fn an_index_whose_file_gives_nothing_just_now_is_not_made_again_without_what_it_knows() {
    let (store, unread) = (SimStore::new(), Unread::default());
    let journal = create_in(Arc::new(Unreadable(store.clone(), unread.clone())), SEGMENTS);
    let mut stream = written_with_zeroes(&journal, 16);
    rot_footer(&store, WITH_SMALL);
    assert_eq!(scrub_all(&journal).rebuilt, 1);
    let at = BATCHES_AT[1];
    assert!(store.rot(WITH_SMALL, at + 200));
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    let kept = make_good(&journal, &mut stream, 100);
    *unread.lock().unwrap() = Some(("run-", 0..u64::MAX));
    assert!(try_scrub(&journal).is_err());
    *unread.lock().unwrap() = None;
    assert_eq!(scrub_all(&journal), scrub_all(&journal), "nothing was found, and nothing made again");
    assert_eq!(compare(&journal, &stream.states), kept);
    // One sector of it that is never given is damage.
    let name = store.names().into_iter().find(|name| name.starts_with("run-")).unwrap();
    *unread.lock().unwrap() = Some((name.leak(), 4096..4608));
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    *unread.lock().unwrap() = None;
    is_made_good(&store, journal, &mut stream);
}

/// A segment that is gone while its index lies in a file of its own: opening it knows what it held, and so does whoever compares.
#[test]
fn a_segment_that_is_gone_is_compared_anew_once_its_index_is_gone_too() {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = written_with_zeroes(&journal, 16);
    rot_footer(&store, WITH_SMALL);
    assert_eq!(scrub_all(&journal).rebuilt, 1);
    drop(journal);
    Store::remove(&store, WITH_SMALL).unwrap();
    let journal = open(&store);
    make_good(&journal, &mut stream, 100);
    rot_footer(&store, WITH_SMALL);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    is_made_good(&store, journal, &mut stream);
}

/// The process is killed at each change of the disk while an index is made again without what it knew; then the power goes,
/// or not. Some disk gives the old one again afterwards.
#[test]
fn an_index_goes_with_what_it_knew_whenever_that_is_cut_short() {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = written_with_zeroes(&journal, 16);
    assert!(store.rot(WITH_SMALL, BATCHES_AT[1] + 200));
    scrub_all(&journal);
    make_good(&journal, &mut stream, 100);
    drop(journal);
    let whole = store.fork();
    for changes in 0.. {
        let (store, mut stream) = (whole.fork(), stream.clone());
        let journal = open(&store);
        rot_footer(&store, WITH_SMALL);
        store.die_after(Some(changes));
        let _ = try_scrub(&journal); // It may be killed.
        let is_over = !store.is_dead();
        drop(journal);
        store.die_after(None);
        if changes % 2 == 1 {
            store.lose_power(&mut Rng::new(changes));
        }
        give_footer_again(&store);
        let journal = open(&store);
        make_good(&journal, &mut stream, 150);
        rot_footer(&store, WITH_SMALL);
        scrub_all(&journal);
        is_made_good(&store, journal, &mut stream);
        if is_over {
            assert!(changes > 2);
            break;
        }
    }
}

/// The segment's first footer is given again, where it is still the one: what has rotted twice is as it was.
fn give_footer_again(store: &SimStore) {
    let manifest = Manifest::load(store).unwrap();
    let info = manifest.redo.segments.iter().find(|info| info.number == 3).unwrap();
    if info.sealed.clone().unwrap().footer.unwrap().file.is_none() {
        rot_footer(store, WITH_SMALL);
    }
}

/// An opening reads a segment that has no index yet up to what is damaged, and what is equal without the rest is not sent. An
/// index that is made again shows nothing of the rest over that.
#[test]
fn an_index_that_is_made_again_has_no_more_than_it_had_when_the_sides_were_compared() {
    let whole = SimStore::new();
    let journal = create(&whole, SEGMENTS);
    let mut stream = Stream::begin();
    for number in 0..16u64 {
        match number {
            9 => stream.write(0, &[77; 6000]),
            // As it was before.
            10 => stream.write(0, &[1; 6000]),
            _ => stream.write(number << 16, &[number as u8 + 1; 6000]),
        }
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    drop(journal);
    for lost in [&BATCHES_AT[..1], &[BATCHES_AT[0], BATCHES_AT[2]]] {
        let (store, mut stream) = (whole.fork(), stream.clone());
        lost.iter().for_each(|at| assert!(store.rot(WITH_SMALL, at + 20)));
        let journal = open(&store);
        scrub_all(&journal);
        make_good(&journal, &mut stream, 100);
        rot_footer(&store, WITH_SMALL);
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        is_made_good(&store, journal, &mut stream);
    }
}

/// A journal with merged runs, and the names of those.
fn merged(mode: Mode) -> (SimStore, Journal, Stream, Vec<String>) {
    let store = SimStore::new();
    let journal = create(&store, Settings { mode, ..SEGMENTS });
    let mut stream = Stream::begin();
    for number in 0..64 {
        stream.write((number % 19) << 16, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    let names = store.names().into_iter().filter(|name| name.starts_with("run-")).collect();
    (store, journal, stream, names)
}

/// What is damaged is told by the index: one that costs nothing where it rots alone is made again before that.
#[test]
fn a_rotten_run_beside_a_rotten_block_or_batch_costs_what_that_does_alone() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let (store, journal, stream, runs) = merged(mode);
        let before = compare(&journal, &stream.states);
        let log = if mode == Mode::Rollback { "undo-00000002" } else { WITH_SMALL };
        let block = ("replica/vda.raw", (3 << 16) + 5);
        for place in [Some(block), Some((log, BATCHES_AT[0] + 20)), None] {
            let store = store.fork();
            let journal =
                Journal::open(Arc::new(store.clone()), Settings { mode, ..SEGMENTS }).unwrap().journal;
            for name in &runs {
                (0..store.len_of(name).unwrap())
                    .step_by(4096)
                    .for_each(|at| assert!(store.rot(name, at + 30)));
            }
            // A footer that no run has taken up yet does it no harm either.
            rot_footer(&store, if mode == Mode::Rollback { "undo-00000003" } else { "segment-00000004" });
            if let Some((name, at)) = place {
                assert!(store.rot(name, at));
            }
            let found = scrub_all(&journal);
            assert_eq!(found.damage.is_empty(), place.is_none(), "{mode:?} {place:?}: {found:?}");
            assert!(found.damage.iter().all(|damage| damage.pieces.is_some()), "{mode:?}: {found:?}");
            assert!(found.rebuilt >= runs.len());
            compare(&journal, &stream.states);
            assert_eq!(crate::stream::cuts(&journal).len(), before, "{mode:?} {place:?}");
            assert_eq!(scrub_all(&journal).damage, Vec::new(), "nothing new");
        }
    }
}

#[test]
fn a_run_that_cannot_be_read_for_a_moment_costs_no_history() {
    let (store, journal, stream, runs) = merged(Mode::RollForward);
    let before = compare(&journal, &stream.states);
    assert!(store.rot("replica/vda.raw", (3 << 16) + 5));
    store.cannot_read(Some(&runs[0]));
    let told = try_scrub(&journal).map(|found| found.damage.len()).unwrap_or(0);
    store.cannot_read(None);
    assert_eq!(told + scrub_all(&journal).damage.len(), 1);
    compare(&journal, &stream.states);
    assert_eq!(crate::stream::cuts(&journal).len(), before);
}

/// Both copies of it.
fn replace_manifest(store: &SimStore, manifest: &Manifest) {
    let body = serde_json::to_vec(manifest).unwrap();
    let mut bytes = b"HFJM".to_vec();
    bytes.extend_from_slice(&6_u32.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    for name in ["manifest", "manifest-2"] {
        let file = Store::open(store, name, false).unwrap();
        file.set_len(0).unwrap();
        file.write_at(0, &bytes).unwrap();
        file.sync_data().unwrap();
    }
}

/// What was once contained as cuts, by a version that knew no pieces, was made good as such; it is told anew once it rots again.
#[test]
fn what_was_contained_as_cuts_once_is_told_when_it_rots_again() {
    let (store, journal, mut stream, _) = merged(Mode::RollForward);
    let rots = || assert!(store.rot("replica/vda.raw", (3 << 16) + 5));
    rots();
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    make_good(&journal, &mut stream, 100);
    let settings = Settings { bytes_soft: 1, ..SEGMENTS };
    journal.set(settings);
    keep_up(&journal, 200);
    drop(journal);
    let mut manifest = Manifest::load(&store).unwrap();
    for entry in &mut manifest.damage {
        (entry.in_pieces, entry.indexed) = (false, true);
    }
    assert_eq!(manifest.damage.len(), 1);
    replace_manifest(&store, &manifest);
    let journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
    assert_eq!(scrub_all(&journal).damage, Vec::new());
    rots();
    assert!(read_all(&journal, WriteSeq::MAX).is_err(), "it is folded, and the newest state needs the block");
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    let asked: Vec<_> = journal.to_send_again().iter().map(|run| (run.first.0, run.blocks)).collect();
    assert_eq!(asked, [(3, 1)]);
    let status = journal.status();
    assert!(status.must_resync.is_none() && status.damaged_bytes == 4096 && status.damage.len() == 1);
    assert_eq!(scrub_all(&journal).damage, Vec::new(), "nothing new");
    make_good(&journal, &mut stream, 300);
    assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
}
