//! Moves that are cut short wherever something is written down, once and twice; two at once; cancelled ones; what is
//! another's.

use super::super::super::tests::{
    PEER, append_sync, begin_anew, close, end, go_on_with_all, hello, recovery,
};
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
    side.move_journal("vm-1", &target(folder).display().to_string(), &Asker::default())
}

/// Until a move waits for whoever uses the journal.
fn until_it_waits(vm: &RecoveredVm) {
    while !matches!(vm.life().state(), State::Closing(_)) {
        std::thread::yield_now();
    }
}

/// Two kept VMs with something in their journals.
fn two_kept(folder: &Path) -> Arc<Recovery> {
    let side = kept(folder);
    append_sync(&side.admit(&hello(2), PEER).unwrap().1);
    side
}

/// A VM's journal is open, its own and whole.
fn check_whole(side: &Recovery, name: &str, how: &str) {
    let vm = side.vm(name).unwrap();
    let journal =
        side.open_journal(&vm, Use::Look).unwrap_or_else(|error| panic!("{how}: {name}: {}", error.detail));
    assert!(journal.newest_consistent(WriteSeq::MAX).is_some(), "{how}: {name}");
    let folder = vm.folder(&side.journal_dir);
    assert!(folder.join("manifest").exists(), "{how}: {name}");
    assert!(!has_journal_of_another(&folder, vm.id()), "{how}: the journal of {name} is another's");
}

/// The journal is whole, in this folder, and in no other.
fn check_lies(side: &Recovery, at: &Path, not_at: &Path, how: &str) {
    let vm = side.vm("vm-1").unwrap();
    assert!(side.operations.unended().is_empty(), "{how}");
    assert_eq!(vm.folder(&side.journal_dir), at, "{how}");
    let journal = vm.journal().unwrap_or_else(|| panic!("{how}: it is not open: {:?}", vm.last_error()));
    assert!(journal.newest_consistent(WriteSeq::MAX).is_some(), "{how}");
    assert!(at.join("manifest").exists() && !not_at.exists(), "{how}");
    assert!(!is_marked(at, vm.id()).unwrap(), "{how}: nobody else may ever lie there");
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
        let refused = side.move_journal("vm-1", &other.display().to_string(), &Asker::default()).unwrap_err();
        assert!(
            refused.kind == ErrorKind::Conflict && refused.detail.contains("is being changed by operation"),
            "{}",
            refused.detail
        );
        assert!(side.forget("vm-1", &Asker::default()).is_err() && !other.exists());
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
        let id = side.list_operations()[0].id.parse().unwrap();
        side.cancel_operation(id, &Asker::default()).unwrap();
        drop(scrub);
        assert!(moved.join().unwrap().is_err());
        assert_eq!(side.show_operation(id).unwrap().state, "taken-back");
    });
    check_lies(&side, &source, &target(folder.path()), "cancelled");
}

#[test]
fn of_two_journals_that_move_to_one_folder_or_one_into_the_other_none_is_lost() {
    for (round, inner) in (0..20).map(|round| (round, if round % 2 == 0 { "" } else { "inner" })) {
        let folder = tempfile::tempdir().unwrap();
        let side = two_kept(folder.path());
        let targets = [("vm-1", target(folder.path())), ("vm-2", target(folder.path()).join(inner))];
        let barrier = std::sync::Barrier::new(2);
        let moved: Vec<bool> = std::thread::scope(|scope| {
            let spawned = targets.each_ref().map(|(vm, target)| {
                let (side, barrier) = (&side, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    side.move_journal(vm, &target.display().to_string(), &Asker::default()).is_ok()
                })
            });
            spawned.into_iter().map(|one| one.join().unwrap()).collect()
        });
        go_on_with_all(&side);
        assert!(side.operations.unended().is_empty(), "{round}: {:?}", side.alerts.list());
        assert!(!moved[0] || !moved[1], "{round}: both lie there");
        for ((name, target), moved) in targets.iter().zip(moved) {
            check_whole(&side, name, &format!("round {round}"));
            let vm = side.vm(name).unwrap();
            assert_eq!(vm.folder(&side.journal_dir) == *target, moved, "{round}: {name}");
            assert!(!is_marked(&vm.folder(&side.journal_dir), vm.id()).unwrap(), "{round}: {name}");
        }
    }
}

/// The folder was made anew meanwhile, say, or another disk is mounted there.
#[test]
fn a_move_that_goes_on_takes_nothing_away_that_has_come_to_its_folders_meanwhile() {
    let (mut to_target, mut to_source) = (0, 0);
    for first in 0..PLACES_MAX {
        let folder = tempfile::tempdir().unwrap();
        let side = two_kept(folder.path());
        let source = folder.path().join("first");
        side.move_journal("vm-1", &source.display().to_string(), &Asker::default()).unwrap();
        let died = death::at(first, || drop(ask(&side, folder.path()))).is_none();
        end(side);
        let side = recovery(folder.path());
        side.resume_all().unwrap();
        let how = format!("died at {first}");
        let under_way = !side.operations.unended().is_empty();
        let lies_at = side.vm("vm-1").unwrap().folder(&side.journal_dir);
        let given_away = if lies_at == source { target(folder.path()) } else { source.clone() };
        if under_way {
            *(if lies_at == source { &mut to_target } else { &mut to_source }) += 1;
            let _ = std::fs::remove_dir_all(&given_away);
            side.move_journal("vm-2", &given_away.display().to_string(), &Asker::default()).unwrap();
        }
        go_on_with_all(&side);
        check_whole(&side, "vm-1", &how);
        check_whole(&side, "vm-2", &how);
        if under_way {
            assert_eq!(side.vm("vm-2").unwrap().folder(&side.journal_dir), given_away, "{how}");
        }
        if !died {
            assert!(to_target > 3 && to_source > 3, "{to_target}, {to_source}");
            return;
        }
    }
    panic!("there is no end to it");
}

#[test]
fn a_journal_goes_into_no_other_and_none_is_removed_with_what_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    let [one, two] = ["vm-1", "vm-2"].map(|name| side.vm(name).unwrap());
    let (of_one, of_two) = (one.folder(&side.journal_dir), two.folder(&side.journal_dir));
    for target in [of_one.join("inner"), of_one.join("a/b"), folder.path().join(hello(1).vm.to_string())] {
        let refused =
            side.move_journal("vm-2", &target.display().to_string(), &Asker::default()).unwrap_err();
        assert!(
            ["of a journal", "the id of another VM"].iter().any(|why| refused.detail.contains(why)),
            "{}",
            refused.detail
        );
        assert!(!target.exists());
    }
    check_whole(&side, "vm-1", "refused");
    check_whole(&side, "vm-2", "refused");
    // As an agent of before has let it.
    let inner = of_one.join("inner");
    close(&two);
    two.let_go_of_folder();
    std::fs::rename(&of_two, &inner).unwrap();
    two.set_policy(JournalPolicy { folder: Some(inner), ..two.policy() });
    assert!(side.forget("vm-1", &Asker::default()).unwrap_err().detail.contains("would be removed with it"));
    assert!(ask(&side, folder.path()).unwrap_err().detail.contains("would be removed with it"));
    assert!(!one.is_forgotten());
    check_whole(&side, "vm-1", "kept");
    check_whole(&side, "vm-2", "kept");
    side.move_journal("vm-2", &target(folder.path()).display().to_string(), &Asker::default()).unwrap();
    side.forget("vm-1", &Asker::default()).unwrap();
    check_whole(&side, "vm-2", "moved out");
}

#[test]
fn a_journal_of_another_vm_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    let [one, two] = ["vm-1", "vm-2"].map(|name| side.vm(name).unwrap());
    close(&one);
    close(&two);
    one.let_go_of_folder();
    two.let_go_of_folder();
    one.set_policy(JournalPolicy { folder: Some(two.folder(&side.journal_dir)), ..one.policy() });
    let refused = side.open_journal(&one, Use::Look).unwrap_err();
    assert!(refused.detail.contains("the journal of another VM"), "{}", refused.detail);
    one.let_go_of_folder();
    check_whole(&side, "vm-2", "left as it is");
}

/// A disk that is full is what a journal is moved away from.
#[test]
fn an_old_folder_without_room_for_a_mark_is_emptied_all_the_same() {
    for first in 0..PLACES_MAX {
        let folder = tempfile::tempdir().unwrap();
        let side = kept(folder.path());
        let (source, target) = (side.vm("vm-1").unwrap().folder(&side.journal_dir), target(folder.path()));
        assert!(
            death::at(first, || drop(ask(&side, folder.path()))).is_none(),
            "it never dies before the old folder goes"
        );
        end(side);
        let side = recovery(folder.path());
        side.resume_all().unwrap();
        if side.operations.unended().is_empty() || !side.lies_at(&side.vm("vm-1").unwrap(), &target) {
            continue;
        }
        // As if the mark could not be made.
        let in_the_way = source.join("moving");
        std::os::unix::fs::symlink("nobody", &in_the_way).unwrap();
        go_on_with_all(&side);
        let mut left: Vec<_> =
            std::fs::read_dir(&source).unwrap().map(|row| row.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["manifest", "manifest-2", "moving"]);
        assert_eq!(side.operations.unended().len(), 1, "it is tried again");
        std::fs::remove_file(&in_the_way).unwrap();
        go_on_with_all(&side);
        return check_lies(&side, &target, &source, "with room");
    }
    panic!("there is no end to it");
}

/// A record of before has no mark for what it has copied: nobody knows whose it is.
#[test]
fn a_move_of_before_that_was_cut_short_is_taken_back_and_leaves_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let side = kept(folder.path());
    let vm = side.vm("vm-1").unwrap();
    let (source, target) = (vm.folder(&side.journal_dir), target(folder.path()));
    std::fs::create_dir_all(&target).unwrap();
    std::fs::write(target.join("segment-1"), "half").unwrap();
    drop(vm);
    end(side);
    let text = format!(
        r#"{{"version": 1, "id": "{id}", "plan": {{"kind": "move", "vm": "{id}", "label": "paris/vm-1", "source": {source:?},
        "target": {target:?}, "copies": true, "switches": false}}, "state": "forward", "next": 0, "began_at": 5}}"#,
        id = hello(1).vm
    );
    std::fs::create_dir_all(folder.path().join("state/operations")).unwrap();
    std::fs::write(folder.path().join(format!("state/operations/{}.json", hello(1).vm)), text).unwrap();
    let side = recovery(folder.path());
    begin_anew(&side);
    assert_eq!(side.list_operations()[0].state, "taken-back", "{:?}", side.alerts.list());
    assert_eq!(std::fs::read(target.join("segment-1")).unwrap(), b"half");
    assert!(!is_marked(&target, hello(1).vm).unwrap());
    std::fs::remove_dir_all(&target).unwrap();
    check_lies(&side, &source, &target, "taken back");
}
