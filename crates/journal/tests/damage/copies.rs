//! The two copies of the manifest: rot in one costs nothing, and no crash leaves less than one.

use crate::stream::{append, compare, cuts};
use crate::{SEGMENTS, open, scrub_all, sealed, try_scrub};
use journal::{Journal, Manifest, Store, verify};
use sim::{Rng, SimStore};
use std::sync::Arc;
use types::{DiskIndex, WriteSeq};

const COPIES: [&str; 2] = ["manifest", "manifest-2"];

/// All that is as it was, whichever copy is looked at.
fn both_are_whole(store: &SimStore) -> bool {
    COPIES.iter().all(|name| {
        let alone = store.fork();
        let other = COPIES.iter().find(|other| *other != name).unwrap();
        Store::remove(&alone, other).unwrap();
        Manifest::load(&alone).is_ok()
    })
}

#[test]
fn rot_anywhere_in_one_copy_is_told_costs_nothing_and_is_made_good() {
    let (store, stream) = sealed(3);
    for name in COPIES {
        let len = store.len_of(name).unwrap();
        for at in (0..16).chain((16..len).step_by(41)) {
            let rotten = store.fork();
            assert!(rotten.rot(name, at));
            let report = verify(&rotten, true, |_| {}).unwrap();
            assert!(
                report.damage.len() == 1 && report.damage[0].starts_with(&format!("{name}: ")),
                "{at}: {report:?}"
            );
            let opened = Journal::open(Arc::new(rotten.clone()), SEGMENTS).unwrap();
            assert!(opened.damage.is_empty(), "{:?}", opened.damage);
            assert!(opened.mended[0].starts_with(&format!("{name}: ")), "{:?}", opened.mended);
            assert_eq!(compare(&opened.journal, &stream.states), 3);
            assert!(both_are_whole(&rotten), "byte {at} of {name}");
            drop(opened);
            assert_eq!(Journal::open(Arc::new(rotten), SEGMENTS).unwrap().mended, Vec::<String>::new());
        }
    }
}

#[test]
fn a_copy_that_is_gone_or_cut_short_costs_nothing() {
    let (store, stream) = sealed(3);
    let gone = |store: &SimStore, name: &str| Store::remove(store, name).unwrap();
    let short = |store: &SimStore, name: &str| store.truncate(name, 7);
    let empty = |store: &SimStore, name: &str| store.truncate(name, 0);
    for spoil in [&gone as &dyn Fn(&SimStore, &str), &short, &empty] {
        for name in COPIES {
            let store = store.fork();
            spoil(&store, name);
            let opened = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap();
            assert!(opened.mended[0].starts_with(name), "{:?}", opened.mended);
            assert_eq!(compare(&opened.journal, &stream.states), 3);
            assert!(both_are_whole(&store));
        }
    }
}

#[test]
fn a_scrub_finds_rot_in_a_copy_and_makes_it_again() {
    let (store, mut stream) = sealed(3);
    let journal = open(&store);
    assert_eq!(scrub_all(&journal).mended, Vec::<String>::new());
    for rotten in [&COPIES[..1], &COPIES[1..], &COPIES[..]] {
        for name in rotten {
            assert!(store.rot(name, 300));
        }
        let found = scrub_all(&journal);
        assert!(!found.mended.is_empty() && found.damage.is_empty(), "{found:?}");
        assert!(both_are_whole(&store), "{rotten:?}");
        assert_eq!(scrub_all(&journal).mended, Vec::<String>::new());
    }
    stream.write(0, &[7; 512]);
    stream.checkpoint();
    append(&journal, stream.batch(), 9, 9);
    drop(journal);
    assert_eq!(compare(&open(&store), &stream.states), 4);
}

/// The disk fails in a save, at each of its syncs; then the power goes, or not; then one of the copies rots. What is
/// left of both is never older than what the save was to replace.
#[test]
fn a_save_that_is_cut_short_anywhere_leaves_one_copy_that_is_whole() {
    for syncs in 0..4 {
        for seed in 0..60 {
            let (store, stream) = sealed(3);
            let journal = open(&store);
            let before = Manifest::load(&store).unwrap();
            store.fail_sync_after(Some(syncs));
            let saved = journal.raise_epoch(types::Epoch(7)).is_ok();
            store.fail_sync_after(None);
            drop(journal);
            if seed > 0 {
                store.lose_power(&mut Rng::new(seed));
            }
            for rotten in [None, Some(COPIES[0]), Some(COPIES[1])] {
                let store = store.fork();
                if let Some(name) = rotten {
                    assert!(store.rot(name, 40));
                }
                let opened = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap();
                assert!(opened.mended.len() == usize::from(rotten.is_some()), "{:?}", opened.mended);
                assert_eq!(compare(&opened.journal, &stream.states), 3);
                let epoch = opened.journal.status().epoch.0;
                assert!(epoch == 7 || (!saved && epoch == before.epoch), "{epoch} after {syncs} syncs");
                assert!(both_are_whole(&store));
            }
        }
    }
}

/// The process is killed at each change of the disk in a save, and in making a copy again; then the power goes, or not; then
/// one of the copies rots, or is gone.
#[test]
fn a_save_that_is_cut_short_at_any_change_of_the_disk_leaves_both_copies_or_one_and_what_it_said_before_or_after()
 {
    for gone_before in [None, Some(COPIES[0]), Some(COPIES[1])] {
        for changes in 0.. {
            let (store, stream) = sealed(3);
            let journal = open(&store);
            gone_before.iter().for_each(|name| Store::remove(&store, name).unwrap());
            store.sync_folder().unwrap();
            store.die_after(Some(changes));
            let saved = match gone_before {
                None => journal.raise_epoch(types::Epoch(7)).is_ok(),
                Some(_) => try_scrub(&journal).is_ok(),
            };
            let is_over = !store.is_dead();
            drop(journal);
            store.die_after(None);
            for seed in 0..8 {
                let store = store.fork();
                if seed > 0 {
                    store.lose_power(&mut Rng::new(seed));
                }
                // Until it was made again there is only one.
                let may_rot = gone_before.is_none() || saved;
                let spoilt =
                    [None, Some(COPIES[0]), Some(COPIES[1])].into_iter().take(if may_rot { 3 } else { 1 });
                for (name, is_gone) in spoilt.flat_map(|name| [(name, false), (name, true)]) {
                    let store = store.fork();
                    match (name, is_gone) {
                        (Some(name), true) => Store::remove(&store, name).unwrap(),
                        (Some(name), false) => assert!(store.rot(name, 40)),
                        (None, _) => {}
                    }
                    let opened = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap();
                    assert_eq!(compare(&opened.journal, &stream.states), 3, "{changes} changes, seed {seed}");
                    let epoch = opened.journal.status().epoch.0;
                    assert!(epoch == 7 || !saved || gone_before.is_some(), "{epoch} after {changes} changes");
                    assert!(both_are_whole(&store));
                }
            }
            if is_over {
                assert!(saved && changes > 4, "{changes}");
                break;
            }
        }
    }
}

#[test]
fn two_damaged_copies_are_named_and_nothing_is_touched() {
    let (store, _) = sealed(3);
    let len = store.len_of("manifest").unwrap();
    for at in (0..len).step_by(41) {
        let rotten = store.fork();
        COPIES.iter().for_each(|name| assert!(rotten.rot(name, at)));
        let refused = Journal::open(Arc::new(rotten.clone()), SEGMENTS).unwrap_err().to_string();
        assert!(refused.contains("manifest"), "{refused}");
        assert_eq!(rotten.names(), store.names());
    }
    let mut byte = [0; 1];
    assert!(open(&store).read_at(DiskIndex(0), WriteSeq::MAX, 0, &mut byte).is_ok());
}

/// What an older version left has one copy; what it lists is what this one lists, and from the first change on there are
/// two.
#[test]
fn one_copy_of_an_older_version_is_enough() {
    let (store, mut stream) = sealed(3);
    let text = |store: &SimStore| {
        let file = Store::open(store, COPIES[0], false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        String::from_utf8(bytes[16..].to_vec()).unwrap()
    };
    let body = text(&store);
    let generation = body.find("\"generation\"").unwrap();
    let past = generation + body[generation..].find(',').unwrap() + 1;
    let body = [&body[..generation], &body[past..]].concat();
    let mut bytes = b"HFJM".to_vec();
    bytes.extend_from_slice(&3u32.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(body.as_bytes()).to_le_bytes());
    bytes.extend_from_slice(body.as_bytes());
    Store::remove(&store, COPIES[1]).unwrap();
    store.truncate(COPIES[0], 0);
    let file = Store::open(&store, COPIES[0], false).unwrap();
    file.write_at(0, &bytes).and_then(|()| file.sync_data()).unwrap();

    let opened = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap();
    assert_eq!(opened.mended, Vec::<String>::new());
    assert_eq!(compare(&opened.journal, &stream.states), 3);
    assert_eq!(scrub_all(&opened.journal).mended, Vec::<String>::new());
    stream.write(0, &[7; 512]);
    stream.checkpoint();
    append(&opened.journal, stream.batch(), 9, 9);
    opened.journal.raise_epoch(types::Epoch(9)).unwrap();
    assert!(both_are_whole(&store));
    assert_eq!(cuts(&open(&store)).len(), 4);
}
