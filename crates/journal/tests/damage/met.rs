//! Rot that upkeep itself comes upon, before any scrub does: it is contained at once, and what was under way goes on.

use crate::made_good::rot_index;
use crate::stream::{Stream, append, compare, create, read_all, unread};
use crate::{BATCHES_AT, IN_A_BATCH, SEGMENTS, WITH_SMALL, make_good, open, scrub_all, written};
use journal::{Damage, Journal, Manifest, Mode, Settings, Upkeep};
use sim::{Decay, SimStore};
use types::{WallTime, WriteSeq};

const BLOCK: u64 = 4096;
const REPLICA: &str = "replica/vda.raw";
const MODES: [Mode; 2] = [Mode::RollForward, Mode::Rollback];

/// Lets upkeep go on until it finds nothing to do; what it came upon.
fn keep_up(journal: &Journal, at_seconds: u64) -> Vec<Damage> {
    let now = WallTime(at_seconds as i64 * 1_000_000);
    let mut found = Vec::new();
    loop {
        let kept = journal.keep_up(&Upkeep::plain(now, [9; 16])).unwrap();
        found.extend(kept.damage);
        if !kept.more {
            return found;
        }
    }
}

/// A journal whose replica has thirty blocks, each written once.
fn replicated(mode: Mode) -> (SimStore, Journal, Stream) {
    let store = SimStore::new();
    let settings = Settings { bytes_soft: u64::from(mode == Mode::RollForward), mode, ..SEGMENTS };
    let (journal, mut stream) = (create(&store, settings), Stream::begin());
    for number in 0..30 {
        write(&journal, &mut stream, number * BLOCK, &[number as u8 + 1; BLOCK as usize]);
    }
    assert_eq!(keep_up(&journal, 30), Vec::new());
    assert!(journal.status().applied.raw() > 60);
    (store, journal, stream)
}

fn write(journal: &Journal, stream: &mut Stream, start: u64, bytes: &[u8]) {
    stream.write(start, bytes);
    stream.checkpoint();
    append(journal, stream.batch(), start, bytes[0]);
}

fn newest(stream: &Stream) -> (WriteSeq, Vec<u8>) {
    stream.states.last().unwrap().clone()
}

/// What was written over a part of a rotten block is there, and nothing else of the block.
#[test]
fn a_fold_or_a_step_back_that_comes_upon_rot_in_a_replica_contains_it_and_goes_on() {
    for mode in MODES {
        let (store, journal, mut stream) = replicated(mode);
        for block in [2, 7] {
            assert!(store.rot(REPLICA, block * BLOCK + 3000));
            write(&journal, &mut stream, block * BLOCK + 512, &[77; 512]);
        }
        for number in 40..60 {
            write(&journal, &mut stream, number * BLOCK, &[number as u8; BLOCK as usize]);
        }
        let before = journal.status().applied;
        let found = keep_up(&journal, 60);
        let places: Vec<_> = found.iter().map(|damage| damage.what.split(", ").next().unwrap()).collect();
        assert_eq!(
            places,
            ["replica of disk vda at byte 8192", "replica of disk vda at byte 28672"],
            "{mode:?}"
        );
        assert!(journal.status().applied.raw() > before.raw() + 40, "{mode:?}: it has gone on");
        assert!(!journal.to_send_again().is_empty() && journal.status().damage.len() == 2);
        let (cut, content) = newest(&stream);
        assert_eq!(unread(&journal, cut, &content).len() as u64, 2 * (BLOCK - 512), "{mode:?}");
        compare(&journal, &stream.states);
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "{mode:?}: nothing that was not known");
        make_good(&journal, &mut stream, 100);
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk, "{mode:?}");
        assert_eq!(keep_up(&journal, 200), Vec::new());
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk, "{mode:?}");
        drop(journal);
        compare(&open(&store), &stream.states);
    }
}

/// In what is brought to the replica itself: in its envelope, its tables and its bytes.
#[test]
fn a_fold_or_a_step_back_that_comes_upon_rot_in_the_log_contains_it_and_goes_on() {
    for (mode, byte) in MODES.into_iter().flat_map(|mode| IN_A_BATCH.map(|byte| (mode, byte))) {
        let store = SimStore::new();
        let journal = create(&store, SEGMENTS);
        let mut stream = written(&journal);
        compare(&journal, &stream.states);
        drop(journal);
        assert!(store.rot(WITH_SMALL, BATCHES_AT[1] + byte));
        let journal = open(&store);
        journal.set(Settings { mode, bytes_soft: u64::from(mode == Mode::RollForward), ..SEGMENTS });
        let found = keep_up(&journal, 60);
        assert!(found.len() == 1 && found[0].what.starts_with(WITH_SMALL), "{mode:?} {byte}: {found:?}");
        assert!(journal.status().applied.raw() > found[0].from.raw(), "{mode:?} {byte}: it has gone on");
        compare(&journal, &stream.states);
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "{mode:?} {byte}: nothing that was not known");
        make_good(&journal, &mut stream, 100);
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk, "{mode:?} {byte}");
    }
}

/// Of a footer and of a merged run: they are made again.
#[test]
fn upkeep_that_comes_upon_rot_in_an_index_makes_it_again_and_goes_on() {
    for mode in MODES {
        let store = SimStore::new();
        let journal = create(&store, SEGMENTS);
        let mut stream = Stream::begin();
        for number in 0..80 {
            write(&journal, &mut stream, number * BLOCK, &[number as u8 + 1; 6000]);
        }
        assert_eq!(keep_up(&journal, 80), Vec::new());
        let whole = compare(&journal, &stream.states);
        let manifest = Manifest::load(&store).unwrap();
        let merged = manifest.redo.runs.iter().find(|run| run.file.is_some()).expect("a merged run");
        let name = format!("run-{:08}", merged.file.unwrap());
        (0..merged.bytes).step_by(BLOCK as usize).for_each(|at| assert!(store.rot(&name, at + 20)));
        rot_index(&store, WITH_SMALL);
        drop(journal);
        let journal = open(&store);
        let bytes_soft = if mode == Mode::RollForward { 500 << 10 } else { 0 };
        journal.set(Settings { mode, bytes_soft, ..SEGMENTS });
        let before = journal.status().applied;
        assert_eq!(keep_up(&journal, 100), Vec::new());
        assert!(journal.status().applied > before, "{mode:?}");
        let left = compare(&journal, &stream.states);
        assert!(left > 0 && (left == whole || mode == Mode::RollForward), "{mode:?}: {left} of {whole}");
        let (cut, content) = newest(&stream);
        assert_eq!(unread(&journal, cut, &content), Vec::<u64>::new());
    }
}

/// Upkeep that finds no more than is known fails as before, and does not turn round on it.
#[test]
fn what_cannot_be_read_and_is_known_is_an_error_that_is_tried_again_later() {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let stream = written(&journal);
    drop(journal);
    // Nobody knows what the batch held.
    rot_index(&store, WITH_SMALL);
    assert!(store.rot(WITH_SMALL, BATCHES_AT[1] + 200));
    let journal = open(&store);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
    let mut turns = 0;
    while journal.keep_up(&Upkeep::plain(WallTime(60_000_000), [9; 16])).is_ok_and(|kept| kept.more) {
        turns += 1;
        assert!(turns < 100);
    }
    compare(&journal, &stream.states);
}

/// A fold has begun and failed, the mode is changed, and a step back comes upon what that has left half done.
fn half_folded(store: &SimStore, journal: &Journal, stream: &mut Stream) {
    for number in 0..20 {
        write(journal, stream, number * BLOCK + 512, &[number as u8 + 100; 5 * BLOCK as usize]);
    }
    store.cannot_read(Some(REPLICA));
    assert!(journal.keep_up(&Upkeep::plain(WallTime(60_000_000), [9; 16])).is_err());
    let manifest = Manifest::load(store).unwrap();
    assert!(manifest.retired_below > manifest.applied, "a fold is half done");
    store.cannot_read(None);
    journal.set(Settings { mode: Mode::Rollback, ..SEGMENTS });
}

#[test]
fn a_replica_that_cannot_be_read_just_now_is_no_damage_to_a_step_back_over_half_of_a_fold() {
    let (store, journal, mut stream) = replicated(Mode::RollForward);
    half_folded(&store, &journal, &mut stream);
    store.cannot_read(Some(REPLICA));
    for _ in 0..3 {
        assert!(journal.keep_up(&Upkeep::plain(WallTime(70_000_000), [9; 16])).is_err());
    }
    store.cannot_read(None);
    assert_eq!(keep_up(&journal, 80), Vec::new());
    assert!(journal.status().damage.is_empty() && journal.to_send_again().is_empty());
    assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk);
    assert!(compare(&journal, &stream.states) > 0);
}

#[test]
fn a_sector_that_a_step_back_cannot_read_over_half_of_a_fold_costs_its_block_alone() {
    let (store, journal, mut stream) = replicated(Mode::RollForward);
    half_folded(&store, &journal, &mut stream);
    assert!(store.decay(REPLICA, 3, &Decay::Unread));
    let found = keep_up(&journal, 80);
    let pieces: Vec<_> = found.iter().filter_map(|damage| damage.pieces.clone()).flatten().collect();
    assert!(!pieces.is_empty() && pieces.iter().all(|piece| piece.range.start / BLOCK == 3), "{found:?}");
    assert!(pieces.iter().all(|piece| (piece.range.end() - 1) / BLOCK == 3), "{found:?}");
    compare(&journal, &stream.states);
}

/// Wherever it is cut short: what could be read can be once a scrub has come by, too.
#[test]
fn rot_in_a_replica_costs_nothing_where_a_step_back_was_cut_short_behind_its_before_images() {
    let mut spared = 0;
    for left in 0..20 {
        let (store, journal, mut stream) = replicated(Mode::Rollback);
        let (cut, content) = newest(&stream);
        write(&journal, &mut stream, 3 * BLOCK, &[77; BLOCK as usize]);
        let before = journal.status().applied;
        store.fail_sync_after(Some(left));
        let _ = journal.keep_up(&Upkeep::plain(WallTime(60_000_000), [9; 16]));
        store.fail_sync_after(None);
        if journal.status().applied > before {
            break;
        }
        assert!(store.rot(REPLICA, 3 * BLOCK + 100));
        let unread_before = unread(&journal, cut, &content);
        scrub_all(&journal);
        assert_eq!(unread(&journal, cut, &content), unread_before, "{left}");
        compare(&journal, &stream.states);
        spared += u64::from(unread_before.is_empty());
    }
    assert!(spared > 0, "none was cut short there");
}

/// The disk gives a block as a whole or not at all; what is lost of it is known, before the fold or by it.
#[test]
fn what_was_written_to_a_block_that_the_disk_does_not_give_can_be_read_once_it_is_folded() {
    for (mode, is_scrubbed) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let (store, journal, mut stream) = replicated(mode);
        assert!(store.decay(REPLICA, 2, &Decay::Unread));
        if is_scrubbed {
            assert_eq!(scrub_all(&journal).damage.len(), 1);
        }
        write(&journal, &mut stream, 2 * BLOCK + 512, &[77; 512]);
        for number in 40..60 {
            write(&journal, &mut stream, number * BLOCK, &[number as u8; BLOCK as usize]);
        }
        let before = journal.status().applied;
        keep_up(&journal, 60);
        assert!(journal.status().applied.raw() > before.raw() + 40, "{mode:?}: it has gone on");
        let (cut, content) = newest(&stream);
        assert_eq!(unread(&journal, cut, &content).len() as u64, BLOCK - 512, "{mode:?} {is_scrubbed}");
        compare(&journal, &stream.states);
        assert_eq!(
            scrub_all(&journal).damage,
            Vec::new(),
            "{mode:?} {is_scrubbed}: nothing that was not known"
        );
        make_good(&journal, &mut stream, 100);
        assert!(read_all(&journal, WriteSeq::MAX).unwrap() == stream.disk, "{mode:?} {is_scrubbed}");
    }
}
