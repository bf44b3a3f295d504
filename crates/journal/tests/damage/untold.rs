//! What was contained is told, whatever hinders whoever has come upon it from going on.

use crate::stream::hooked::{Access, Hooked};
use crate::stream::{append, create_in};
use crate::{BATCHES_AT, SEGMENTS, WITH_SMALL, written};
use journal::{Damage, Journal, Mode, Settings, Upkeep};
use sim::SimStore;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use types::WallTime;

/// Two batches of one segment rot, and the disk is full once the manifest was saved so often.
fn with_two_rotten_batches(left: &Arc<AtomicUsize>) -> Journal {
    let store = SimStore::new();
    let hook = {
        let left = left.clone();
        move |name: &str, access: Access| {
            let is_of_manifest = access == Access::Write && name.starts_with("manifest");
            let fewer = |left: usize| left.checked_sub(1);
            match is_of_manifest && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_err() {
                true => Err(io::Error::from_raw_os_error(28)),
                false => Ok(()),
            }
        }
    };
    left.store(usize::MAX, Ordering::SeqCst);
    let journal = create_in(Arc::new(Hooked::over(Arc::new(store.clone()), hook)), SEGMENTS);
    let mut stream = written(&journal);
    BATCHES_AT[1..3].iter().for_each(|at| assert!(store.rot(WITH_SMALL, at + 3000)));
    stream.write(1 << 20, &[99; 512]);
    append(&journal, stream.batch(), 50, 50);
    journal
}

/// The blocks of what was told to be lost of the newest state.
fn told(damage: &[Damage]) -> BTreeSet<u64> {
    let pieces = damage.iter().flat_map(|damage| damage.pieces.iter().flatten());
    pieces.filter(|piece| piece.until.is_none()).map(|piece| piece.range.start >> 16).collect()
}

fn asked(journal: &Journal) -> BTreeSet<u64> {
    journal.to_send_again().into_iter().flat_map(|run| run.first.0..run.end()).collect()
}

/// Keeps up until nothing is to be done, or it fails.
fn keep_up(journal: &Journal) -> Vec<Damage> {
    let mut damage = Vec::new();
    while let Ok(kept) = journal.keep_up(&Upkeep::plain(WallTime(60_000_000), [9; 16])) {
        damage.extend(kept.damage);
        if !kept.more {
            break;
        }
    }
    damage
}

/// Scrubs until the end, or it fails.
fn scrub(journal: &Journal) -> Vec<Damage> {
    let (mut damage, mut place) = (Vec::new(), None);
    while let Ok(step) = journal.scrub(place, &Upkeep::plain(WallTime(0), [5; 16])) {
        damage.extend(step.damage);
        place = step.place;
        if place.is_none() {
            break;
        }
    }
    damage
}

fn each_is_told(find: impl Fn(&Journal) -> Vec<Damage>) {
    let mut had_failed = 0;
    for saved in 0..100 {
        let left = Arc::new(AtomicUsize::new(0));
        let journal = with_two_rotten_batches(&left);
        left.store(saved, Ordering::SeqCst);
        let mut damage = find(&journal);
        let is_full = left.load(Ordering::SeqCst) == 0;
        left.store(usize::MAX, Ordering::SeqCst);
        damage.extend(keep_up(&journal));
        damage.extend(scrub(&journal));
        assert!(!asked(&journal).is_empty());
        assert_eq!(told(&damage), asked(&journal), "the disk was full after {saved}");
        match is_full {
            true => had_failed += 1,
            false => return assert!(had_failed > 1),
        }
    }
    panic!("there is no end to it");
}

#[test]
fn what_a_scrub_has_contained_before_it_failed_is_told() {
    each_is_told(scrub);
}

#[test]
fn what_upkeep_has_contained_before_it_failed_is_told() {
    each_is_told(|journal| {
        journal.set(Settings { mode: Mode::Rollback, ..journal.status().settings });
        keep_up(journal)
    });
}
