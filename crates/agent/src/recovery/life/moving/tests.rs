//! Moves that are cut short wherever something is written down, once and twice; two at once; cancelled ones.

use super::super::super::tests::{PEER, append_sync, begin_anew, end, go_on_with_all, hello, recovery};
use super::*;
use crate::error::ErrorKind;
use crate::state::death;
use types::{Epoch, WriteSeq};

/// More places to die at than a move has.
const PLACES_MAX: usize = 200;
/// Of a journal that has taken something since the move was cut short.
const LATER: Epoch = Epoch(7);

/// One kept VM with something in its journal.
fn kept(folder: &Path) -> Arc<Recovery> {
    let side = recovery(folder);
    append_sync(&side.admit(&hello(1), PEER).unwrap().1);
    side
}

fn target(folder: &Path) -> PathBuf {
    folder.join("elsewhere/web")
}

fn ask(side: &Recovery, folder: &Path) -> Result<api::Journal> {
    side.move_journal("vm-1", &target(folder).display().to_string())
}

/// Until a move waits for whoever uses the journal.
fn until_it_waits(vm: &RecoveredVm) {
    while !matches!(vm.life().state(), State::Closing(_)) {
        std::thread::yield_now();
    }
}

/// The journal is whole, in this folder, and in no other.
fn check_lies(side: &Recovery, at: &Path, not_at: &Path, how: &str) {
    let vm = side.vm("vm-1").unwrap();
    assert!(side.operations.unended().is_empty(), "{how}");
    assert_eq!(vm.folder(&side.journal_dir), at, "{how}");
    let journal = vm.journal().unwrap_or_else(|| panic!("{how}: it is not open: {:?}", vm.last_error()));
    assert!(journal.newest_consistent(WriteSeq::MAX).is_some(), "{how}");
    assert!(at.join("manifest").exists() && !not_at.exists(), "{how}");
    assert_eq!(side.vms_to_api()[0].state, "following", "{how}");
}

/// A move that dies at place `first`; the journal takes something before it goes on, and dies at `second`. Whether it has
/// died each time.
fn play(first: usize, second: usize) -> (bool, bool) {
    let folder = tempfile::tempdir().unwrap();
    let side = kept(folder.path());
    let source = side.vm("vm-1").unwrap().folder(&side.journal_dir);
    let died = death::at(first, || drop(ask(&side, folder.path()))).is_none();
    end(side);
    let side = recovery(folder.path());
    side.resume_all().unwrap();
    let has_begun = side.operations.book().all().count() > 0;
    side.vm("vm-1").unwrap().journal().unwrap().raise_epoch(LATER).unwrap();
    let died_again = death::at(second, || go_on_with_all(&side)).is_none();
    end(side);
    let side = recovery(folder.path());
    begin_anew(&side);
    let (how, target) = (format!("died at {first}, then at {second}"), target(folder.path()));
    let (at, not_at) = if has_begun { (&target, &source) } else { (&source, &target) };
    check_lies(&side, at, not_at, &how);
    assert_eq!(side.vm("vm-1").unwrap().journal().unwrap().status().epoch, LATER, "{how}: it is lost");
    (died, died_again)
}

#[test]
fn a_move_that_is_cut_short_anywhere_goes_on_and_loses_nothing_that_came_meanwhile() {
    for first in 0..PLACES_MAX {
        let mut second = first % 3;
        loop {
            let (died, died_again) = play(first, second);
            if !died {
                return;
            }
            if !died_again {
                break;
            }
            second += 3;
        }
    }
    panic!("there is no end to it");
}

#[test]
fn of_two_moves_of_one_journal_one_is_refused_at_once_and_it_is_shown_that_it_moves() {
    let folder = tempfile::tempdir().unwrap();
    let side = kept(folder.path());
    let vm = side.vm("vm-1").unwrap();
    let source = vm.folder(&side.journal_dir);
    // It waits for a scrub.
    let scrub = vm.lease(Use::Scrub).unwrap();
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| ask(&side, folder.path()));
        until_it_waits(&vm);
        let shown = side.vms_to_api().remove(0);
        assert_eq!((shown.state.as_str(), shown.moving.is_some()), ("moving", true));
        let other = folder.path().join("other");
        let refused = side.move_journal("vm-1", &other.display().to_string()).unwrap_err();
        assert!(
            refused.kind == ErrorKind::Conflict && refused.detail.contains("is being changed by operation"),
            "{}",
            refused.detail
        );
        assert!(side.forget("vm-1").is_err() && !other.exists());
        drop(scrub);
        moved.join().unwrap().unwrap();
    });
    check_lies(&side, &target(folder.path()), &source, "after the other");
}

#[test]
fn a_move_that_is_cancelled_leaves_the_journal_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let side = kept(folder.path());
    let vm = side.vm("vm-1").unwrap();
    let source = vm.folder(&side.journal_dir);
    let scrub = vm.lease(Use::Scrub).unwrap();
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| ask(&side, folder.path()));
        until_it_waits(&vm);
        let id = side.list_operations()[0].id.clone();
        side.cancel_operation(&id).unwrap();
        drop(scrub);
        assert!(moved.join().unwrap().is_err());
        assert_eq!(side.show_operation(&id).unwrap().state, "taken-back");
    });
    check_lies(&side, &source, &target(folder.path()), "cancelled");
}
