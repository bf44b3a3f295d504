//! Failovers that are cut short wherever anything is written down, once and twice, and what is found afterwards. VMs
//! without definitions: guests are started and killed in the end-to-end tests.

use super::super::tests::{
    PEER, append_sync, begin_anew, cut_short_everywhere, end, go_on_with_all, hello, recovery,
};
use super::*;
use crate::state::death;
use operations::{OperationId, Standing};
use replication::wire::Hello;
use std::collections::BTreeSet;
use std::path::Path;

/// More places to die at than a failover has, forward and back.
const PLACES_MAX: usize = 200;

/// A group of two VMs that can be failed over.
fn prepared(folder: &Path) -> Arc<Recovery> {
    prepared_with(folder, "")
}

/// The same, where the second VM has a definition.
fn prepared_with(folder: &Path, definition: &str) -> Arc<Recovery> {
    let recovery = recovery(folder);
    for (vm, definition) in [(1, ""), (2, definition)] {
        let hello = Hello { definition: definition.into(), ..hello(vm) };
        append_sync(&recovery.admit(&hello, PEER).unwrap().1);
    }
    recovery
}

fn ask(recovery: &Recovery) -> Result<api::Failover> {
    ask_for(recovery, &Asker::default())
}

fn ask_for(recovery: &Recovery, asker: &Asker) -> Result<api::Failover> {
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    recovery.failover("web", &request, asker)
}

/// What is there of images: in the records of this side, in its journals and on their disks.
fn images(recovery: &Recovery) -> BTreeSet<String> {
    let mut ids: BTreeSet<String> = recovery.list_images().into_iter().map(|image| image.id).collect();
    for vm in recovery.list() {
        let pins = vm.journal().unwrap().pins();
        ids.extend(pins.iter().map(|pin| pin.owner.trim_start_matches("image ").to_owned()));
        let rows = std::fs::read_dir(vm.folder(&recovery.journal_dir)).unwrap();
        let names = rows.map(|row| row.unwrap().file_name().into_string().unwrap());
        ids.extend(names.filter_map(|name| Some(name.strip_prefix("image-")?.to_owned())));
    }
    let recorded = std::fs::read_dir(recovery.state.path("images")).into_iter().flatten();
    let recorded = recorded.map(|row| row.unwrap().file_name().into_string().unwrap());
    ids.extend(recorded.map(|name| name.trim_end_matches(".json").to_owned()));
    ids
}

/// Either nobody ever asked, or the failover runs on exactly the images that are recorded, or nothing of it is left.
fn check_is_whole(recovery: &Recovery, runs: bool, how: &str) {
    assert!(recovery.operations.unended().is_empty(), "{how}");
    let failover = recovery.groups().remove(0).failover;
    let Some(failover) = failover.filter(|failover| failover.phase != "rolled-back") else {
        assert!(images(recovery).is_empty() && !runs, "{how}: {:?}", images(recovery));
        return;
    };
    assert!(runs, "{how}: {failover:?}");
    assert_eq!((failover.phase.as_str(), failover.vms.len()), ("running", 2), "{how}");
    let chosen: BTreeSet<String> = failover.vms.iter().map(|vm| vm.image.clone()).collect();
    assert_eq!(images(recovery), chosen, "{how}");
    assert!(failover.vms.iter().all(|vm| !vm.socket.is_empty()), "{how}: all are served");
}

/// The agent that comes after one that has died in `work`, at a place; and whether that one has.
fn next_agent(
    folder: &Path,
    side: Arc<Recovery>,
    place: usize,
    work: impl FnOnce(&Recovery),
) -> (Arc<Recovery>, bool) {
    let died = death::at(place, || work(&side)).is_none();
    end(side);
    (recovery(folder), died)
}

/// The agent that comes after one that has died in a failover; it has taken up what is recorded.
fn after_failover(folder: &Path, side: Arc<Recovery>, place: usize) -> (Arc<Recovery>, bool) {
    let (side, died) = next_agent(folder, side, place, |side| drop(ask(side)));
    side.resume_all().unwrap();
    (side, died)
}

/// Whether an operation was written down before the agent died.
fn has_begun(folder: &Path) -> bool {
    std::fs::read_dir(folder.join("state/operations")).is_ok_and(|mut rows| {
        rows.any(|row| row.unwrap().path().extension().is_some_and(|end| end == "json"))
    })
}

#[test]
fn a_failover_that_is_cut_short_anywhere_goes_on_and_is_committed_or_rolled_back_as_any_other() {
    let round = std::cell::Cell::new(0);
    cut_short_everywhere(
        prepared,
        |side| drop(ask(side)),
        |folder, how| {
            round.set(round.get() + 1);
            let runs = has_begun(folder);
            let side = recovery(folder);
            begin_anew(&side);
            check_is_whole(&side, runs, how);
            if runs && round.get() % 2 == 0 {
                assert_eq!(side.rollback("web", &Asker::default()).unwrap().phase, "rolled-back", "{how}");
                check_is_whole(&side, false, how);
            } else if runs {
                assert_eq!(side.commit("web", &Asker::default()).unwrap().phase, "committed", "{how}");
            } else {
                assert_eq!(ask(&side).unwrap().phase, "running", "{how}");
            }
        },
    );
}

#[test]
fn a_failover_that_fails_leaves_nothing_behind_wherever_it_is_cut_short_on_the_way_back() {
    let prepared_in_vain = |folder: &Path| {
        let side = prepared(folder);
        // Where the images' sockets would be.
        std::fs::write(folder.join("run/images"), "").unwrap();
        side
    };
    cut_short_everywhere(
        prepared_in_vain,
        |side| drop(ask(side)),
        |folder, how| {
            let side = recovery(folder);
            begin_anew(&side);
            // An image that was recorded and cannot be served again is waited for, until an operator says otherwise.
            if !side.operations.unended().is_empty() {
                side.rollback("web", &Asker::default()).unwrap();
            }
            check_is_whole(&side, false, how);
            hear_of_all(side, folder, how);
            let side = recovery(folder);
            begin_anew(&side);
            assert!(!tells_of_taken_back(&side), "{how}: it was heard");
            std::fs::remove_file(folder.join("run/images")).unwrap();
            assert_eq!(ask(&side).unwrap().phase, "running", "{how}: it can be asked for again");
        },
    );
}

#[test]
fn a_failover_that_was_cut_short_is_rolled_back_before_it_goes_on_or_refuses_another() {
    for first in 0..PLACES_MAX {
        let folder = tempfile::tempdir().unwrap();
        let (side, died) = after_failover(folder.path(), prepared(folder.path()), first);
        match phase(&side).as_deref() {
            Some("starting") => {
                assert!(
                    side.commit("web", &Asker::default()).unwrap_err().detail.contains("still being started")
                );
                assert_eq!(ask(&side).unwrap_err().kind, crate::error::ErrorKind::Conflict);
                side.rollback("web", &Asker::default()).unwrap();
                check_is_whole(&side, false, &format!("died at {first}"));
            }
            None if has_begun(folder.path()) => {
                let refused = ask(&side).unwrap_err();
                assert!(refused.detail.contains("is being changed by operation"), "{}", refused.detail);
            }
            _ => {}
        }
        if !died {
            return;
        }
    }
    panic!("there is no end to it");
}

fn phase(side: &Recovery) -> Option<String> {
    side.groups().remove(0).failover.map(|failover| failover.phase)
}

#[test]
fn a_failover_that_is_decided_before_its_operation_has_noticed_its_end_has_an_end() {
    let mut overtaken = 0;
    for (first, commits) in (0..PLACES_MAX).flat_map(|first| [(first, true), (first, false)]) {
        let folder = tempfile::tempdir().unwrap();
        let (side, died) = after_failover(folder.path(), prepared(folder.path()), first);
        if phase(&side).as_deref() == Some("running") && !side.operations.unended().is_empty() {
            overtaken += 1;
            let decided = if commits {
                side.commit("web", &Asker::default())
            } else {
                side.rollback("web", &Asker::default())
            };
            assert_eq!(decided.unwrap().phase, if commits { "committed" } else { "rolled-back" });
            go_on_with_all(&side);
            assert!(
                side.operations.unended().is_empty(),
                "it holds the group for ever: {:?}",
                side.alerts.list()
            );
            assert_eq!(side.alerts.list(), Vec::<String>::new());
        }
        if !died {
            assert!(overtaken >= 2, "the failover's record is durable before the operation's");
            return;
        }
    }
    panic!("there is no end to it");
}

/// A group that has failed over.
fn failed_over(folder: &Path) -> Arc<Recovery> {
    let side = prepared(folder);
    ask(&side).unwrap();
    side
}

/// Operations of this kind that were written down.
fn begun(side: &Recovery, kind: &str) -> usize {
    side.list_operations().iter().filter(|operation| operation.kind == kind).count()
}

#[test]
fn a_rollback_that_is_cut_short_anywhere_goes_on_by_itself_and_is_nothing_else_any_more() {
    cut_short_everywhere(
        failed_over,
        |side| drop(side.rollback("web", &Asker::default())),
        |folder, how| {
            let side = recovery(folder);
            side.resume_all().unwrap();
            let goes_back = begun(&side, "rollback") > 0;
            if goes_back {
                assert!(
                    side.commit("web", &Asker::default()).is_err(),
                    "{how}: what its VMs ran on may be gone"
                );
            }
            go_on_with_all(&side);
            check_is_whole(&side, !goes_back, how);
            assert_eq!(side.alerts.list(), Vec::<String>::new(), "{how}");
            assert_eq!(ask(&side).is_ok(), goes_back, "{how}: the group is free once nothing is left");
        },
    );
}

#[test]
fn a_commit_that_is_cut_short_anywhere_is_final_or_was_never_asked_for() {
    cut_short_everywhere(
        failed_over,
        |side| drop(side.commit("web", &Asker::default())),
        |folder, how| {
            let side = recovery(folder);
            side.resume_all().unwrap();
            let commits = begun(&side, "commit") > 0;
            go_on_with_all(&side);
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            assert_eq!(phase(&side).as_deref(), Some(if commits { "committed" } else { "running" }), "{how}");
            assert_eq!(
                (side.list_images().len(), side.rollback("web", &Asker::default()).is_ok()),
                (2, !commits),
                "{how}"
            );
            assert_eq!(side.alerts.list(), Vec::<String>::new(), "{how}");
        },
    );
}

/// Its record cannot be written: nobody is told that it is final, and it may go back.
#[test]
fn a_commit_that_fails_leaves_the_failover_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let side = failed_over(folder.path());
    let in_the_way = side.state.path(&format!("failovers/{}.partial", hello(1).group));
    std::fs::create_dir(&in_the_way).unwrap();
    side.commit("web", &Asker::default()).unwrap_err();
    assert_eq!(phase(&side).as_deref(), Some("running"));
    let image = side.list_images()[0].id.clone();
    assert!(side.close_image(&image, false).is_err());
    end(side);
    // It may be on the disk all the same.
    write_phase(folder.path(), "committed");
    std::fs::remove_dir(&in_the_way).unwrap();
    let side = recovery(folder.path());
    begin_anew(&side);
    assert!(side.operations.unended().is_empty(), "{:?}", side.alerts.list());
    assert_eq!(side.rollback("web", &Asker::default()).unwrap().phase, "rolled-back");
    check_is_whole(&side, false, "rolled back");
}

#[test]
fn of_a_commit_and_a_rollback_at_once_one_is_refused() {
    for round in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let side = failed_over(folder.path());
        let barrier = std::sync::Barrier::new(2);
        let (committed, rolled_back) = std::thread::scope(|scope| {
            let commits = scope.spawn(|| {
                barrier.wait();
                side.commit("web", &Asker::default()).is_ok()
            });
            barrier.wait();
            let rolled_back = side.rollback("web", &Asker::default()).is_ok();
            (commits.join().unwrap(), rolled_back)
        });
        assert!(committed != rolled_back, "round {round}");
        let now = if committed { "committed" } else { "rolled-back" };
        assert_eq!(phase(&side).as_deref(), Some(now), "round {round}");
    }
}

/// An agent of before wrote down that it goes back, and no operation.
#[test]
fn a_rollback_of_before_goes_on_as_an_operation() {
    let folder = tempfile::tempdir().unwrap();
    end(failed_over(folder.path()));
    write_phase(folder.path(), "rolling-back");
    let side = recovery(folder.path());
    begin_anew(&side);
    check_is_whole(&side, false, "of before");
    assert_eq!(begun(&side, "rollback"), 1);
}

fn write_phase(folder: &Path, phase: &str) {
    let record = folder.join(format!("state/failovers/{}.json", hello(1).group));
    let text = std::fs::read_to_string(&record).unwrap();
    let now = text
        .replace("\"running\"", &format!("\"{phase}\""))
        .replace("\"rolling-back\"", &format!("\"{phase}\""));
    std::fs::write(&record, now).unwrap();
}

/// An agent of before wrote nothing down when it began to roll back.
#[test]
fn a_rollback_of_before_that_was_cut_short_is_committed_only_where_all_images_are_there() {
    for first in 0..PLACES_MAX {
        let folder = tempfile::tempdir().unwrap();
        let side = failed_over(folder.path());
        let rolls_back = |side: &Recovery| drop(side.rollback("web", &Asker::default()));
        let (side, died) = next_agent(folder.path(), side, first, rolls_back);
        end(side);
        let _ = std::fs::remove_dir_all(folder.path().join("state/operations"));
        write_phase(folder.path(), "running");
        let side = recovery(folder.path());
        begin_anew(&side);
        let chosen = side.groups().remove(0).failover.unwrap().vms;
        match side.commit("web", &Asker::default()) {
            Ok(failover) => {
                assert!(failover.vms.iter().all(|vm| !vm.socket.is_empty()), "died at {first}: {failover:?}")
            }
            Err(refused) if phase(&side).as_deref() == Some("running") => {
                assert!(refused.detail.contains("is gone"), "died at {first}: {}", refused.detail);
                side.rollback("web", &Asker::default()).unwrap();
                check_is_whole(&side, false, &format!("died at {first}: {chosen:?}"));
            }
            Err(refused) => {
                assert!(refused.detail.contains("rolled-back"), "died at {first}: {}", refused.detail)
            }
        }
        if !died {
            return;
        }
    }
    panic!("there is no end to it");
}

/// Its disk is full, say, or its journal cannot be opened.
#[test]
fn a_rollback_that_fails_is_an_alert_until_it_is_done_and_frees_the_group_then() {
    let folder = tempfile::tempdir().unwrap();
    let side = prepared(folder.path());
    let image = ask(&side).unwrap().vms[1].image.clone();
    let in_the_way = side.state.path(&format!("images/{image}.partial"));
    std::fs::create_dir(&in_the_way).unwrap();
    side.rollback("web", &Asker::default()).unwrap_err();
    assert_eq!(phase(&side).as_deref(), Some("rolling-back"));
    assert!(
        side.alerts
            .list()
            .iter()
            .any(|alert| alert.contains("stays fenced until nothing of the failover is left")),
        "{:?}",
        side.alerts.list()
    );
    assert!(side.commit("web", &Asker::default()).unwrap_err().detail.contains("being rolled back"));
    std::fs::remove_dir(&in_the_way).unwrap();
    go_on_with_all(&side);
    check_is_whole(&side, false, "once nothing is in the way");
    assert_eq!(side.alerts.list(), Vec::<String>::new());
}

#[test]
fn a_failover_that_is_taken_back_once_its_command_has_gone_is_an_alert_until_somebody_has_heard() {
    for is_there in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let side = prepared(folder.path());
        // Where the images' sockets would be.
        std::fs::write(folder.path().join("run/images"), "").unwrap();
        let (presence, asker) = Asker::present();
        let presence = is_there.then_some(presence);
        ask_for(&side, &asker).unwrap_err();
        drop(presence);
        assert_eq!(tells_of_taken_back(&side), !is_there);
        end(side);
        let side = recovery(folder.path());
        begin_anew(&side);
        assert_eq!(tells_of_taken_back(&side), !is_there, "also after a restart");
        let id = side.list_operations()[0].id.parse().unwrap();
        side.show_operation(id).unwrap();
        assert!(!tells_of_taken_back(&side));
    }
}

fn tells_of_taken_back(side: &Recovery) -> bool {
    side.alerts.list().iter().any(|alert| alert.contains("was taken back"))
}

/// What nobody has heard the end of is an alert.
fn unheard(side: &Recovery, how: &str) -> Vec<OperationId> {
    let book = side.operations.book();
    let taken_back = book.all().filter(|(record, _)| matches!(record.standing, Standing::TakenBack { .. }));
    let ids: Vec<_> = taken_back.filter(|(record, _)| !record.heard).map(|(record, _)| record.id).collect();
    assert_eq!(tells_of_taken_back(side), !ids.is_empty(), "{how}: {:?}", side.alerts.list());
    ids
}

/// And stays one over a restart, until somebody asks.
fn hear_of_all(side: Arc<Recovery>, folder: &Path, how: &str) {
    let before = unheard(&side, how);
    end(side);
    let side = recovery(folder);
    begin_anew(&side);
    assert_eq!(unheard(&side, how), before, "{how}: again");
    for id in before {
        side.show_operation(id).unwrap();
    }
    assert!(!tells_of_taken_back(&side), "{how}: {:?}", side.alerts.list());
    end(side);
}

/// Its QEMU cannot be started; the other VM of the group may run, for hours by now.
#[test]
fn a_failover_that_goes_on_by_itself_and_cannot_start_a_vm_is_taken_back_by_nobody_but_an_operator() {
    let kernel_that_never_came = "vcpus = 1\nmemory_mib = 64\nkernel = \"vmlinuz\"\n";
    let (mut stood, mut taken_back) = (0, 0);
    for first in 0..PLACES_MAX {
        let (folder, how) = (tempfile::tempdir().unwrap(), format!("died at {first}"));
        let side = prepared_with(folder.path(), kernel_that_never_came);
        let (side, died) = after_failover(folder.path(), side, first);
        go_on_with_all(&side);
        if side.operations.unended().is_empty() {
            // Nobody has asked yet, or it was on its way back when the agent died.
            taken_back += usize::from(side.operations.book().all().count() > 0);
            check_is_whole(&side, false, &how);
            hear_of_all(side, folder.path(), &how);
        } else {
            stood += 1;
            go_on_with_all(&side);
            assert_eq!(phase(&side).as_deref(), Some("starting"), "{how}: what a guest wrote is thrown away");
            assert_eq!(side.list_images().len(), 2, "{how}");
            let told = side.alerts.list();
            assert!(told.len() == 1 && told[0].contains("has not arrived"), "{how}: {told:?}");
            assert_eq!(side.rollback("web", &Asker::default()).unwrap().phase, "rolled-back", "{how}");
            check_is_whole(&side, false, &how);
            assert_eq!(side.alerts.list(), Vec::<String>::new(), "{how}: an operator has done it");
        }
        if !died {
            assert!(stood > 5 && taken_back > 2, "{stood}, {taken_back}");
            return;
        }
    }
    panic!("there is no end to it");
}

#[test]
fn a_vm_that_does_not_start_keeps_no_other_of_its_group_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    for vm in [1, 2] {
        let definition = "vcpus = 1\nmemory_mib = 64\nkernel = \"vmlinuz\"\n".to_owned();
        append_sync(&side.admit(&Hello { definition, ..hello(vm) }, PEER).unwrap().1);
    }
    let failed = ask(&side).unwrap_err().detail;
    assert_eq!(failed.matches("kernel has not arrived").count(), 2, "{failed}");
    end(side);
}

/// Of a failover whose record cannot be read nobody knows what there is: it is not told that nothing is left of it.
#[test]
fn what_is_taken_back_waits_for_a_record_that_cannot_be_read() {
    let mut waited = 0;
    for first in 0..PLACES_MAX {
        let (folder, how) = (tempfile::tempdir().unwrap(), format!("died at {first}"));
        let side = prepared(folder.path());
        let died = death::at(first, || drop(ask(&side))).is_none();
        end(side);
        let record = folder.path().join(format!("state/failovers/{}.json", hello(1).group));
        let has_begun = has_begun(folder.path());
        if has_begun && record.exists() {
            let whole = std::fs::read(&record).unwrap();
            std::fs::write(&record, "").unwrap();
            let side = recovery(folder.path());
            begin_anew(&side);
            assert!(!tells_of_taken_back(&side), "{how}: {:?}", side.alerts.list());
            waited += side.operations.unended().len();
            end(side);
            assert!(std::fs::read(&record).unwrap().is_empty(), "{how}: it may say where guests run");
            std::fs::write(&record, whole).unwrap();
            let side = recovery(folder.path());
            begin_anew(&side);
            assert_eq!(phase(&side).as_deref(), Some("running"), "{how}: {:?}", side.alerts.list());
            check_is_whole(&side, true, &how);
        }
        if !died {
            assert!(waited > 3, "{waited}");
            return;
        }
    }
    panic!("there is no end to it");
}
