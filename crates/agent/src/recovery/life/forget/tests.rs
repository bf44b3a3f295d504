//! Forgetting that is cut short wherever something is written down or deleted, once and twice.

use super::super::super::policy::JournalPolicy;
use super::super::super::tests::{
    PEER, append_sync, begin_anew, close, cut_short_everywhere, end, go_on_with_all, hello, recovery,
};
use super::*;
use std::path::PathBuf;
use types::WriteSeq;

/// Two kept VMs with something in their journals.
fn two_kept(folder: &Path) -> Arc<Recovery> {
    let side = recovery(folder);
    for vm in [1, 2] {
        append_sync(&side.admit(&hello(vm), PEER).unwrap().1);
    }
    // Something is set for it, which goes with it.
    let moved = folder.join("elsewhere").display().to_string();
    side.move_journal("vm-1", &moved, &Asker::default()).unwrap();
    side
}

fn check_whole(side: &Recovery, name: &str, how: &str) {
    let journal = side.vm(name).unwrap().journal().unwrap_or_else(|| panic!("{how}: {name} is not open"));
    assert!(journal.newest_consistent(WriteSeq::MAX).is_some(), "{how}: {name}");
}

fn asked(side: &Recovery) -> bool {
    side.list_operations().iter().any(|operation| operation.kind == "forget")
}

#[test]
fn forgetting_that_is_cut_short_anywhere_goes_on_and_leaves_nothing_of_it_and_all_of_others() {
    cut_short_everywhere(
        two_kept,
        |side| drop(side.forget("vm-1", &Asker::default())),
        |folder, how| {
            let side = recovery(folder);
            begin_anew(&side);
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            assert_eq!(side.alerts.list(), Vec::<String>::new(), "{how}");
            check_whole(&side, "vm-2", how);
            if !asked(&side) {
                return check_whole(&side, "vm-1", how);
            }
            let id = hello(1).vm;
            let state = |name: &str| side.state.path(&format!("{name}/{id}.json")).exists();
            assert!(!state("recovered") && !state("journals"), "{how}");
            assert!(!folder.join("elsewhere").exists() && side.vm("vm-1").is_err(), "{how}");
            // Whoever comes now is another, and stays over the next restart.
            append_sync(&side.admit(&hello(1), PEER).unwrap().1);
            end(side);
            let side = recovery(folder);
            begin_anew(&side);
            check_whole(&side, "vm-1", how);
        },
    );
}

/// An agent that has come to the last step dies, and the VM is sent anew before its forgetting goes on.
#[test]
fn one_that_has_come_anew_is_not_forgotten_with_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    side.forget("vm-1", &Asker::default()).unwrap();
    let id: operations::OperationId =
        side.list_operations().iter().find(|one| one.kind == "forget").unwrap().id.parse().unwrap();
    end(side);
    let record = folder.path().join(format!("state/operations/{id}.json"));
    let text = std::fs::read_to_string(&record).unwrap();
    let cut_short = text.replace("\"state\": \"done\"", "\"state\": \"forward\", \"next\": 2");
    assert_ne!(text, cut_short);
    std::fs::write(&record, cut_short).unwrap();
    let side = recovery(folder.path());
    side.resume_all().unwrap();
    append_sync(&side.admit(&hello(1), PEER).unwrap().1);
    begin_anew(&side);
    check_whole(&side, "vm-1", "anew");
    assert!(side.operations.unended().is_empty());
}

/// Its folder has the journal of another, as an agent of before has let it.
fn one_lies_in_the_other(folder: &Path) -> Arc<Recovery> {
    let side = two_kept(folder);
    let [one, two] = ["vm-1", "vm-2"].map(|name| side.vm(name).unwrap());
    let [of_one, of_two]: [PathBuf; 2] = [&one, &two].map(|vm| vm.folder(&side.journal_dir));
    close(&two);
    two.let_go_of_folder();
    let inner = of_one.join("inner");
    std::fs::rename(of_two, &inner).unwrap();
    let policy = JournalPolicy { folder: Some(inner), ..two.policy() };
    side.state.save(&file_name(&two.id().to_string()), &policy).unwrap();
    two.set_policy(policy);
    side
}

#[test]
fn forgetting_that_cannot_be_is_taken_back_wherever_it_is_cut_short() {
    cut_short_everywhere(
        one_lies_in_the_other,
        |side| {
            assert!(
                side.forget("vm-1", &Asker::default())
                    .unwrap_err()
                    .detail
                    .contains("would be removed with it")
            )
        },
        |folder, how| {
            let side = recovery(folder);
            begin_anew(&side);
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            check_whole(&side, "vm-1", how);
            check_whole(&side, "vm-2", how);
            assert!(!side.vm("vm-1").unwrap().is_forgotten(), "{how}");
        },
    );
}

#[test]
fn a_vm_that_is_being_forgotten_is_not_moved_and_one_that_is_moved_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    let plan = || Plan::Forget(plan_for(&side.vm("vm-1").unwrap()));
    let id = side.operations.begin(plan, &Asker::nobody()).unwrap().id;
    let target = folder.path().join("other").display().to_string();
    let refused = side.move_journal("vm-1", &target, &Asker::default()).unwrap_err();
    assert!(refused.detail.contains(&format!("is being changed by operation {id}")), "{}", refused.detail);
    side.forget("vm-1", &Asker::default()).unwrap();
    assert!(side.vm("vm-1").is_err());
}

/// Whoever looks for what agents of before have begun has seen it half forgotten, and comes to it once it is kept again.
#[test]
fn forgetting_that_was_taken_back_meanwhile_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    let vm = side.vm("vm-1").unwrap();
    assert!(vm.begin_forgetting(&side.state).unwrap());
    vm.keep_after_all(&side.state).unwrap();
    side.adopt_forgetting_of(&vm);
    go_on_with_all(&side);
    check_whole(&side, "vm-1", "it is kept");
    assert!(side.operations.unended().is_empty());
}

/// It goes on once the record is restored.
#[test]
fn a_vm_whose_record_cannot_be_read_is_not_told_as_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let side = two_kept(folder.path());
    let plan = || Plan::Forget(plan_for(&side.vm("vm-1").unwrap()));
    drop(side.operations.begin(plan, &Asker::nobody()).unwrap());
    end(side);
    let record = folder.path().join(format!("state/recovered/{}.json", hello(1).vm));
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "").unwrap();
    let side = recovery(folder.path());
    begin_anew(&side);
    assert_eq!(side.operations.unended().len(), 1, "{:?}", side.list_operations());
    end(side);
    std::fs::write(&record, whole).unwrap();
    let side = recovery(folder.path());
    begin_anew(&side);
    assert!(side.operations.unended().is_empty() && side.vm("vm-1").is_err());
    assert!(!folder.path().join("elsewhere").exists());
}

/// Somebody else comes to it once it has ended: he had seen it before.
#[test]
fn forgetting_that_was_heard_to_be_taken_back_is_not_told_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let side = one_lies_in_the_other(folder.path());
    side.forget("vm-1", &Asker::default()).unwrap_err();
    let ended: Vec<_> = side.operations.book().all().map(|(one, _)| (one.id, one.plan.clone())).collect();
    ended.iter().for_each(|(id, plan)| side.go_on_by_itself(*id, plan));
    assert_eq!(side.alerts.list(), Vec::<String>::new());
}
