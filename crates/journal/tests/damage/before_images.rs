//! Rot in the before-images of a journal in rollback mode.

use crate::stream::{Stream, append, compare, create, cuts, keep_up, read_all};
use crate::{SEGMENTS, scrub_all};
use journal::{Journal, Manifest, Mode, Settings, Upkeep, verify};
use sim::SimStore;
use std::sync::Arc;
use types::WallTime;

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

/// A step back is cut short behind its before-images, and those rot. Once they were told to be gone no cut that needs them can
/// be opened, wherever the log ends from then on.
#[test]
fn before_images_that_are_gone_are_told_once() {
    let mut told = 0;
    for left in 0..20 {
        let (store, mut stream, settings) = with_before_images();
        let open = || Journal::open(Arc::new(store.clone()), settings).unwrap();
        let journal = open().journal;
        stream.write(0, &[90; 6000]);
        append(&journal, stream.batch(), 20, 90);
        store.fail_sync_after(Some(left));
        let how = Upkeep::plain(WallTime(20_000_000), [9; 16]);
        let _ = journal.keep_up(&how);
        store.fail_sync_after(None);
        drop(journal);
        let manifest = Manifest::load(&store).unwrap();
        if manifest.before_images_upto == manifest.applied {
            continue;
        }
        let last = manifest.undo.segments.last().unwrap().number;
        assert!(store.rot(&format!("undo-{last:08}"), 8192 + 200));
        let opened = open();
        assert_eq!(opened.damage.len(), 1, "{left}");
        opened.journal.set(Settings { mode: Mode::RollForward, ..settings });
        opened.journal.keep_up(&how).unwrap();
        drop(opened);
        assert_eq!(open().damage, Vec::new(), "{left}");
        told += 1;
    }
    assert!(told > 0, "none was cut short there");
}

/// A step back is cut short anywhere, and what it brings rots before it has an index, so that the opening finds it lost as cuts.
/// Blocks that it has written a part of are read as of cuts below as before.
#[test]
fn what_a_step_back_left_half_written_costs_no_older_cut_though_the_redo_log_has_lost_it() {
    let mut cut_short = 0;
    for changes in 0..80 {
        let (store, mut stream, settings) = with_before_images();
        let open = || Journal::open(Arc::new(store.clone()), settings).unwrap();
        let journal = open().journal;
        for number in 0..2 {
            stream.write(300 * 512 + number * 9000, &[90; 6000]);
            append(&journal, stream.batch(), 20 + number, 90);
        }
        store.die_after(Some(changes));
        let how = Upkeep::plain(WallTime(20_000_000), [9; 16]);
        let _ = journal.keep_up(&how);
        store.die_after(None);
        drop(journal);
        let manifest = Manifest::load(&store).unwrap();
        if manifest.before_images_upto == manifest.applied {
            continue;
        }
        cut_short += 1;
        // They are all that the open segment has.
        let last = manifest.redo.segments.last().unwrap();
        assert_eq!((last.number, last.sealed.is_none()), (4, true), "{changes}");
        assert!(store.rot("segment-00000004", 8192 + 200));
        let opened = open();
        assert_eq!(opened.damage.len(), 1, "{changes}");
        let journal = opened.journal;
        assert_eq!(compare(&journal, &stream.states), 12, "{changes}");
        keep_up(&journal, 30);
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "{changes}");
        assert_eq!(compare(&journal, &stream.states), 12, "{changes}");
    }
    assert!(cut_short > 3, "{cut_short} were cut short there");
}
