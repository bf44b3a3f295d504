//! Protecting that is cut short wherever something is written down or removed, once and twice.

use super::super::tests::{cut_short_everywhere, request, source};
use super::*;
use crate::error::ErrorKind;

fn plan_of(side: &Source) -> Option<ProtectPlan> {
    let book = side.operations.book();
    let plan = book.all().map(|(record, _)| record.plan.clone()).next()?;
    let Plan::Protect(plan) = plan else { return None };
    Some(*plan)
}

fn check_nothing_is_left(side: &Source, how: &str) {
    assert!(side.vm_to_api("web").is_err(), "{how}");
    for folder in ["protected", "tracking", "freshness", "departures"] {
        let left = std::fs::read_dir(side.state.path(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{how}: {folder}");
    }
    assert!(side.group_named("shop").is_none(), "{how}");
}

#[test]
fn protecting_that_is_cut_short_anywhere_goes_on_and_is_protected_once() {
    cut_short_everywhere(
        |_, _| (),
        |side, folder| drop(side.protect(&request(folder, "web", "shop"), &Asker::default()).unwrap()),
        |side, _, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            let Some(plan) = plan_of(side) else { return check_nothing_is_left(side, how) };
            let vm = side.vm("web").unwrap_or_else(|error| panic!("{how}: {error}"));
            assert_eq!((vm.id(), side.list().len()), (plan.vm, 1), "{how}");
            assert!(side.is_recorded(&plan.vm.to_string()), "{how}");
        },
    );
}

#[test]
fn protecting_that_cannot_be_leaves_nothing_wherever_it_is_cut_short() {
    cut_short_everywhere(
        |_, _| (),
        |side, folder| {
            // It is looked at before, and gone when it is opened.
            let mut request = request(folder, "web", "shop");
            request.format = Some("raw".into());
            request.disks[0].path = folder.join("gone.raw").display().to_string();
            side.protect(&request, &Asker::default()).unwrap_err();
        },
        |side, _, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            check_nothing_is_left(side, how);
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_of_a_protection_may_be_done_and_undone_twice() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    tokio::task::block_in_place(|| {
        side.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        let plan = plan_of(&side).unwrap();
        side.run_protect_step(&plan, ProtectStep::Begin).unwrap();
        assert_eq!(side.list().len(), 1);
        for _ in 0..2 {
            side.undo_protect_step(&plan, ProtectStep::Begin).unwrap();
        }
        check_nothing_is_left(&side, "twice");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_being_protected_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    let request = request(folder.path(), "web", "shop");
    let vm = VmId::from_bytes([9; 16]);
    let record = ProtectionRecord { group: "shop".into(), ..record_for(vm, &request) };
    let plan = ProtectPlan { vm, record };
    let id = side.operations.begin(|| Plan::Protect(Box::new(plan)), &Asker::nobody()).unwrap().id;
    tokio::task::block_in_place(|| {
        let refused = side.protect(&request, &Asker::default()).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.detail.contains(&format!("being protected by operation {id}")), "{refused}");
    });
}
