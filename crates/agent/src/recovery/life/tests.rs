//! Images, moves and deletions that meet while a journal's life ends.

use super::super::images::{ImageRecord, Zeroed};
use super::super::tests::{PEER, hello, recovery};
use super::super::{RecoveredVm, Recovery};
use super::moving::FOLDER_PATIENCE;
use super::*;
use crate::ledger::Asker;
use joint::life::Use;
use std::thread;
use types::WriteSeq;

fn record(vm: &RecoveredVm, id: &str) -> ImageRecord {
    ImageRecord {
        id: id.into(),
        vm: vm.id().to_string(),
        vm_name: vm.name(),
        cut: WriteSeq::ZERO.raw(),
        writable: true,
        failover: None,
        open_seconds: 0.0,
        promoted: false,
        closing: None,
        lost_as_zeroes: false,
        zeroed: Zeroed::default(),
    }
}

/// One kept VM with a consistent state to open.
fn kept(folder: &std::path::Path) -> (Arc<Recovery>, Arc<RecoveredVm>) {
    let recovery = recovery(folder);
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    super::super::tests::append_sync(&journal);
    drop(journal);
    (recovery, vm)
}

fn wait_until(mut there: impl FnMut() -> bool) {
    while !there() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_image_that_is_just_being_opened_reads_from_the_journals_next_life() {
    let folder = tempfile::tempdir().unwrap();
    let (recovery, vm) = kept(folder.path());
    let lease = vm.lease(Use::Image).unwrap();
    let image = recovery.serve_image(&vm, &lease, &at_newest(&vm, "0000000a")).unwrap();
    let failed = lease.shared().clone();
    thread::scope(|scope| {
        scope.spawn(|| vm.life().close_failed(&failed));
        wait_until(|| vm.life().state() == State::Closing(Reason::Failed));
        assert!(!failed.is_closed(), "who opens an image is waited for");
        recovery.have_it_stay(&vm, &lease, image).unwrap();
        drop(lease);
    });
    assert!(failed.is_closed());
    recovery.open_journal(&vm, Use::Look).unwrap();
    let image = recovery.image("0000000a").unwrap();
    assert!(!image.image().journal().is_closed(), "it reads from the life before");
    recovery.close_image("0000000a", false).unwrap();
    assert!(!recovery.has_images(&vm));
}

fn at_newest(vm: &RecoveredVm, id: &str) -> ImageRecord {
    let cut = vm.journal().unwrap().newest_consistent(WriteSeq::MAX).unwrap();
    ImageRecord { cut: cut.raw(), ..record(vm, id) }
}

#[test]
fn a_journal_is_not_moved_from_under_an_image_that_is_just_being_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (recovery, vm) = kept(folder.path());
    let target = folder.path().join("elsewhere");
    let lease = vm.lease(Use::Image).unwrap();
    let refused =
        recovery.move_journal("vm-1", &target.display().to_string(), &Asker::default()).unwrap_err();
    assert!(refused.detail.contains("images"), "{}", refused.detail);
    drop(lease);

    // It is begun while the move waits for another.
    let scrub = vm.lease(Use::Scrub).unwrap();
    thread::scope(|scope| {
        let moved =
            scope.spawn(|| recovery.move_journal("vm-1", &target.display().to_string(), &Asker::default()));
        wait_until(|| matches!(vm.life().state(), State::Closing(_)));
        let request = api::OpenImageRequest { vm: "vm-1".into(), at: "latest".into(), writable: true };
        let refused = recovery.open_image(&request).unwrap_err();
        assert!(refused.detail.contains("being moved"), "{}", refused.detail);
        drop(scrub);
        moved.join().unwrap().unwrap();
    });
    assert!(target.join("manifest").exists() && vm.journal().is_some());
    assert!(recovery.list_images().is_empty());
}

#[test]
fn whoever_wants_a_folder_says_who_uses_it_and_leaves_the_journal_as_it_was() {
    let life = Arc::new(JournalLife::default());
    let folder = tempfile::tempdir().unwrap();
    let (_recovery, vm) = kept(folder.path());
    let journal = vm.journal().unwrap().shared().clone();
    life.begin().unwrap().opened(journal.clone(), |_| true);
    let _fold = life.lease(Use::Upkeep).unwrap();
    let refused = life.take_folder(Task::Move, Duration::ZERO).unwrap_err();
    assert_eq!(refused, NotClosed::StillUsed(vec![Use::Upkeep]));
    let text = super::moving::not_taken(&vm, &refused).detail;
    assert!(text.contains("upkeep") && text.contains(&FOLDER_PATIENCE.as_secs().to_string()), "{text}");
    assert!(life.lease(Use::Look).is_ok() && !journal.gives_way(), "it goes on");
}

/// A scrub of a segment at its rate, or a fold of a gigabyte, takes minutes.
#[test]
fn whoever_waits_for_a_life_to_end_has_what_is_long_give_way() {
    let folder = tempfile::tempdir().unwrap();
    let (_recovery, vm) = kept(folder.path());
    let scrub = vm.lease(Use::Scrub).unwrap();
    let journal = scrub.shared().clone();
    thread::scope(|scope| {
        let taken = scope.spawn(|| vm.life().take_folder(Task::Move, Duration::from_secs(60)));
        wait_until(|| journal.gives_way());
        assert!(!journal.is_closed(), "who has begun is waited for");
        drop(scrub);
        drop(taken.join().unwrap().unwrap());
    });
    assert!(journal.is_closed());
}

#[test]
fn an_opening_that_fails_leaves_the_journal_to_the_next_who_tries() {
    let life = Arc::new(JournalLife::default());
    drop(life.begin().unwrap());
    assert!(life.begin().is_ok());
}
