//! Unprotecting that is cut short wherever something is written down or removed, once and twice.

use super::super::save_record;
use super::super::tests::{cut_short_everywhere, in_a_life, record, request, take_up};
use super::*;
use joint::membership::FirstSync;
use operations::Plan as _;
use std::path::Path;

/// Two VMs of a group, of which the recovery side has heard.
fn two_protected(side: &Arc<Source>, folder: &Path) {
    for name in ["web", "db"] {
        let record = record(folder, name, FirstSync::Done);
        save_record(&side.state, &record).unwrap();
        take_up(side, record);
    }
}

fn asked(side: &Source) -> Option<VmId> {
    let book = side.operations.book();
    let plan = book.all().map(|(record, _)| record.plan.clone()).next()?;
    let Plan::Unprotect(plan) = plan else { return None };
    Some(plan.vm)
}

fn trouble_with_operations(side: &Source) -> Vec<String> {
    side.alerts.list().into_iter().filter(|text| text.contains("operation")).collect()
}

fn check_gone(side: &Source, vm: VmId, how: &str) {
    assert!(side.vm_to_api("web").is_err(), "{how}");
    for left in
        [format!("protected/{vm}.json"), format!("tracking/{vm}.map"), format!("tracking/{vm}.regions")]
    {
        assert!(!side.state.path(&left).exists(), "{how}: {left}");
    }
    assert!(side.is_departure_recorded(vm), "{how}: its recovery side does not know yet");
    assert!(side.is_departure_told(vm), "{how}: nobody tells its recovery side");
    assert!(side.lacks_vms_of(side.vm("db").unwrap().group()), "{how}: the other promises without it");
}

#[test]
fn unprotecting_that_is_cut_short_anywhere_goes_on_and_its_recovery_side_is_told() {
    cut_short_everywhere(
        two_protected,
        |side, _| {
            let (_, held) = side.begin_unprotecting("web", &Asker::default()).unwrap();
            side.go_on(held, &Doing::asked_by(side, &Asker::default())).unwrap().done().unwrap();
        },
        |side, folder, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            assert_eq!(trouble_with_operations(side), Vec::<String>::new(), "{how}");
            assert!(side.vm("db").is_ok() && folder.join("web.raw").exists(), "{how}");
            match asked(side) {
                None => assert!(side.vm("web").is_ok(), "{how}"),
                Some(vm) => check_gone(side, vm, how),
            }
        },
    );
}

#[test]
fn unprotecting_that_cannot_be_is_taken_back_wherever_it_is_cut_short() {
    cut_short_everywhere(
        |side, folder| {
            two_protected(side, folder);
            // Where its departure is written before it gets its name.
            let partial = format!("departures/{}.partial", side.vm("web").unwrap().id());
            std::fs::create_dir_all(side.state.path(&partial)).unwrap();
        },
        |side, _| {
            let (_, held) = side.begin_unprotecting("web", &Asker::default()).unwrap();
            side.go_on(held, &Doing::asked_by(side, &Asker::default())).unwrap().done().unwrap_err();
        },
        |side, _, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            // The next try of whoever waits to be taken up.
            side.stalled()
                .values()
                .for_each(|stalled| assert!(!side.is_being_unprotected(&stalled.record.vm)));
            assert!(side.vm_to_api("web").is_ok() && side.vm("db").is_ok(), "{how}");
            let vm = asked(side);
            assert!(vm.is_none_or(|vm| side.is_recorded(&vm.to_string())), "{how}");
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_step_of_an_unprotection_may_be_done_and_undone_twice() {
    let folder = tempfile::tempdir().unwrap();
    let side = super::super::tests::source(folder.path());
    two_protected(&side, folder.path());
    tokio::task::block_in_place(|| {
        let plan = UnprotectPlan { vm: side.vm("web").unwrap().id(), name: "web".into() };
        for step in [UnprotectStep::Detach, UnprotectStep::Depart] {
            for _ in 0..2 {
                side.run_unprotect_step(&plan, step).unwrap();
            }
            for _ in 0..2 {
                side.undo_unprotect_step(&plan, step).unwrap();
            }
        }
        assert!(side.vm("web").is_ok() && !side.is_departure_recorded(plan.vm));
        for step in plan.steps() {
            for _ in 0..2 {
                side.run_unprotect_step(&plan, step).unwrap();
            }
            assert!(step < UnprotectStep::End || side.is_unprotect_step_done(&plan, step), "{step}");
        }
        check_gone(&side, plan.vm, "twice");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_which_nobody_has_heard_leaves_nothing_to_be_told() {
    let folder = tempfile::tempdir().unwrap();
    let side = super::super::tests::source(folder.path());
    tokio::task::block_in_place(|| {
        side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        let vm = side.vm("web").unwrap().id();
        side.unprotect("web", &Asker::default()).unwrap();
        assert!(!side.is_departure_recorded(vm) && !side.is_recorded(&vm.to_string()));
        let kinds: Vec<_> = side.list_operations().into_iter().map(|one| (one.kind, one.state)).collect();
        assert!(kinds.contains(&("protect".into(), "done".into())), "{kinds:?}");
        assert!(kinds.contains(&("unprotect".into(), "done".into())), "{kinds:?}");
    });
}

/// Its departure was written down by an agent before this one, of which nobody is told yet.
#[test]
fn the_others_of_a_group_promise_nothing_between_the_end_of_a_protection_and_its_telling() {
    let folder = tempfile::tempdir().unwrap();
    let begun = |side: &Arc<Source>| {
        two_protected(side, folder.path());
        drop(side.begin_unprotecting("web", &Asker::default()).unwrap());
        let plan = UnprotectPlan { vm: side.vm("web").unwrap().id(), name: "web".into() };
        side.run_unprotect_step(&plan, UnprotectStep::Depart).unwrap();
        plan
    };
    let plan = in_a_life(folder.path(), begun);
    in_a_life(folder.path(), |side| {
        tokio::runtime::Handle::current().block_on(side.resume_all()).unwrap();
        let lacks = || side.lacks_vms_of(side.vm("db").unwrap().group());
        assert!(lacks() && side.is_departure_recorded(plan.vm));
        side.run_unprotect_step(&plan, UnprotectStep::End).unwrap();
        assert!(lacks(), "its recovery side does not know yet");
    });
}

/// Its end cannot be written down just now, and somebody wants its name anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_protection_has_not_ended_yet_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let side = super::super::tests::source(folder.path());
    tokio::task::block_in_place(|| {
        side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        let vm = side.vm("web").unwrap().id();
        // As a file that cannot be removed.
        let hinders = side.state.path(&side.vm("web").unwrap().record().freshness_name());
        std::fs::remove_file(&hinders).ok();
        std::fs::create_dir_all(&hinders).unwrap();
        side.unprotect("web", &Asker::default()).unwrap_err();
        assert!(side.is_recorded(&vm.to_string()), "it is not ended");
        let refused = side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap_err();
        assert!(refused.detail.contains("unprotect"), "{refused}");
        std::fs::remove_dir(&hinders).unwrap();
        side.unprotect("web", &Asker::default()).unwrap();
        side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
    });
}

/// That of before is told yet by somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_unprotects_a_vm_means_the_one_that_has_the_name_now() {
    let folder = tempfile::tempdir().unwrap();
    let side = super::super::tests::source(folder.path());
    tokio::task::block_in_place(|| {
        let before = UnprotectPlan { vm: VmId::from_bytes([9; 16]), name: "web".into() };
        drop(side.operations.begin(|| Plan::Unprotect(before), &Asker::nobody()).unwrap());
        side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        side.unprotect("web", &Asker::default()).unwrap();
        assert!(side.vm("web").is_err(), "another is told as unprotected");
    });
}
