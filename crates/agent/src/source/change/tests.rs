//! Changes of protections: what holds at once, what is told before, and changes that are cut short wherever something is
//! written down.

use super::super::tests::{cut_short_everywhere, record, source, take_up, without_image};
use super::*;
use crate::error::ErrorKind;
use crate::policy::StreamMode;
use joint::membership::FirstSync;
use joint::promise::Standing;
use splitter::SyncState;
use std::path::Path;
use tokio::task::block_in_place;

fn protected(side: &Arc<Source>, folder: &Path, names: &[&str]) {
    for name in names {
        let record = record(folder, name, FirstSync::Done);
        save_record(&side.state, &record).unwrap();
        take_up(side, record);
    }
}

fn asks(settings: api::ProtectSettings) -> api::ChangeRequest {
    api::ChangeRequest { settings, ..api::ChangeRequest::default() }
}

fn rpo(seconds: u64) -> api::ProtectSettings {
    api::ProtectSettings { rpo_seconds: Some(seconds), ..api::ProtectSettings::default() }
}

fn of_all(settings: api::ProtectSettings) -> api::GroupChangeRequest {
    api::GroupChangeRequest { settings, dry_run: false }
}

fn rpo_of(side: &Source, name: &str) -> u64 {
    side.vm_to_api(name).unwrap().rpo_seconds
}

fn recorded(side: &Source, name: &str) -> ProtectionRecord {
    let id = side.vm_to_api(name).unwrap().id;
    side.state.load(&super::super::record::file_name(&id)).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_holds_at_once_and_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web"]);
    let settings = api::ProtectSettings {
        rpo_seconds: Some(30),
        mode: Some("sync".into()),
        buffer_bytes: Some(2 << 20),
        checkpoint_interval_seconds: Some(7),
        ..api::ProtectSettings::default()
    };
    let request = api::ChangeRequest {
        peer: Some("localhost:2".into()),
        peer_agent: Some("b2.rome".into()),
        ..asks(settings)
    };
    let before = recorded(&side, "web");
    let told = block_in_place(|| {
        side.change_vm("web", &api::ChangeRequest { dry_run: true, ..request.clone() }, &Asker::nobody())
    })
    .unwrap();
    assert!(!told.is_done && recorded(&side, "web") == before, "it was only asked");
    let names: Vec<_> = told.vms[0].settings.iter().map(|setting| setting.name.as_str()).collect();
    let expected =
        ["buffer_bytes", "checkpoint_interval_seconds", "mode", "peer", "peer_agent", "rpo_seconds"];
    assert_eq!(names, expected);
    let costs = told.vms[0].costs.join("\n");
    assert!(costs.contains("writes wait") && costs.contains("made anew"), "{costs}");
    let done = block_in_place(|| side.change_vm("web", &request, &Asker::nobody())).unwrap();
    assert!(done.is_done && done.vms == told.vms);
    let vm = side.vm("web").unwrap();
    assert_eq!(recorded(&side, "web"), vm.record());
    let status = vm.capture().status();
    assert_eq!((status.buffer_bytes_max, status.sync), (2 << 20, SyncState::Degraded));
    let row = vm.to_api();
    assert_eq!((row.rpo_seconds, row.checkpoint_interval_seconds), (30, 7));
    assert_eq!((row.peer.as_str(), vm.record().peer_agent.as_deref()), ("localhost:2", Some("b2.rome")));
    let again = block_in_place(|| side.change_vm("web", &request, &Asker::nobody())).unwrap();
    assert!(!again.is_done && again.vms[0].settings.is_empty(), "nothing is left to be changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web", "db"]);
    let before = recorded(&side, "web");
    let refused = |name: &str, request: &api::ChangeRequest| {
        block_in_place(|| side.change_vm(name, request, &Asker::nobody())).unwrap_err().kind
    };
    assert_eq!(refused("web", &asks(rpo(0))), ErrorKind::Invalid);
    assert_eq!(refused("nobody", &asks(rpo(5))), ErrorKind::NotFound);
    for peer in ["", "b", "b:0", ":1"] {
        let request = api::ChangeRequest { peer: Some(peer.into()), ..api::ChangeRequest::default() };
        assert_eq!(refused("web", &request), ErrorKind::Invalid, "{peer:?}");
    }
    for agent in ["", "b", "b.", ".rome", "b.ro.me", "../b.rome"] {
        let request = api::ChangeRequest { peer_agent: Some(agent.into()), ..api::ChangeRequest::default() };
        assert_eq!(refused("web", &request), ErrorKind::Invalid, "{agent:?}");
    }
    let of_group = api::ProtectSettings { priority: Some(9), ..api::ProtectSettings::default() };
    assert_eq!(refused("web", &asks(of_group.clone())), ErrorKind::Conflict, "it is the whole group's");
    assert_eq!(recorded(&side, "web"), before);
    let all =
        block_in_place(|| side.change_group("shop", &of_all(of_group.clone()), &Asker::nobody())).unwrap();
    assert_eq!(all.vms.len(), 2);
    assert!(["web", "db"].iter().all(|name| recorded(&side, name).policy.priority == 9));
}

/// Whoever answers is learned whenever that is, also while an operation waits for its turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_leaves_alone_what_has_become_another_since_it_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web"]);
    let vm = side.vm("web").unwrap();
    let change = side.change_of(&vm.record(), &asks(rpo(30))).unwrap();
    let plan = ChangePlan { group: "shop".into(), changes: vec![change] };
    vm.note_peer_agent(&side.state, "b1.rome").unwrap();
    assert!(!side.is_changed(&plan, 0).unwrap());
    side.run_change(&plan, 0).unwrap();
    assert!(side.is_changed(&plan, 0).unwrap() && rpo_of(&side, "web") == 30);
    assert_eq!(recorded(&side, "web").peer_agent.as_deref(), Some("b1.rome"));
    side.undo_change(&plan, 0).unwrap();
    assert_eq!(rpo_of(&side, "web"), 60);
    assert_eq!(recorded(&side, "web").peer_agent.as_deref(), Some("b1.rome"));
}

/// Its connection stands until it hears of it, and may come to a sync meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_an_operator_has_named_is_not_replaced_by_the_one_that_answers_still() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web"]);
    let vm = side.vm("web").unwrap();
    vm.note_peer_agent(&side.state, "b1.rome").unwrap();
    let request = api::ChangeRequest { peer_agent: Some("b2.rome".into()), ..api::ChangeRequest::default() };
    block_in_place(|| side.change_vm("web", &request, &Asker::nobody())).unwrap();
    vm.note_peer_agent(&side.state, "b1.rome").unwrap();
    assert_eq!(vm.record().peer_agent.as_deref(), Some("b2.rome"));
    assert_eq!(recorded(&side, "web"), vm.record());
}

/// The first has made the group, and its interval is the group's.
#[tokio::test(flavor = "multi_thread")]
async fn who_changes_something_else_of_a_vm_leaves_the_interval_of_its_group() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web"]);
    let mut other = record(folder.path(), "db", FirstSync::Done);
    other.policy.checkpoint_interval_seconds = 60;
    save_record(&side.state, &other).unwrap();
    let group = take_up(&side, other).group().clone();
    let before = group.interval();
    block_in_place(|| side.change_vm("db", &asks(rpo(30)), &Asker::nobody())).unwrap();
    assert_eq!((group.interval(), rpo_of(&side, "db")), (before, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_waits_to_be_taken_up_is_taken_up_as_it_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    let gone = without_image(folder.path(), "gone");
    let image = gone.disks[0].path.clone();
    save_record(&side.state, &gone).unwrap();
    side.resume_all().await.unwrap();
    block_in_place(|| side.change_vm("gone", &asks(rpo(30)), &Asker::nobody())).unwrap();
    assert_eq!((rpo_of(&side, "gone"), recorded(&side, "gone").policy.rpo_seconds), (30, 30));
    std::fs::File::create(image).unwrap().set_len(1 << 20).unwrap();
    side.resume_all().await.unwrap();
    assert_eq!(side.vm("gone").unwrap().policy().rpo_seconds, 30);
}

/// What the first is promised rests on the other, of which nobody knows how far it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_becomes_synchronous_promises_nothing_before_the_others_have_said_how_far_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let side = source(folder.path());
    protected(&side, folder.path(), &["web", "db"]);
    let (web, db) = (side.vm("web").unwrap(), side.vm("db").unwrap());
    for vm in [&web, &db] {
        vm.capture().leave_tracking();
        assert!(vm.capture().close_sync());
    }
    let mode = |mode: &str| {
        asks(api::ProtectSettings { mode: Some(mode.into()), ..api::ProtectSettings::default() })
    };
    block_in_place(|| side.change_vm("web", &mode("sync"), &Asker::nobody())).unwrap();
    assert!(web.policy().mode == StreamMode::Sync && web.is_synchronous());
    assert!(!web.capture().return_to_sync(), "of the other nothing is known");
    let standing = Standing { missing: false, caught_up: true, up_to: types::WriteSeq::MAX };
    web.group().note_standing(db.id(), Some(standing), || false);
    assert!(web.capture().return_to_sync());
    block_in_place(|| side.change_vm("web", &mode("async"), &Asker::nobody())).unwrap();
    assert_eq!(web.capture().status().sync, SyncState::Asynchronous);
    // Who comes back finds what has changed meanwhile.
    web.group().note_standing(db.id(), Some(Standing::UNKNOWN), || false);
    block_in_place(|| side.change_vm("web", &mode("sync"), &Asker::nobody())).unwrap();
    assert!(!web.capture().return_to_sync());
}

#[test]
fn a_change_of_a_group_that_is_cut_short_anywhere_is_that_of_all_or_of_none() {
    cut_short_everywhere(
        |side, folder| protected(side, folder, &["web", "db"]),
        |side, _| drop(side.change_group("shop", &of_all(rpo(30)), &Asker::nobody()).unwrap()),
        |side, _, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            let both =
                ["web", "db"].map(|name| (rpo_of(side, name), recorded(side, name).policy.rpo_seconds));
            assert!(both == [(30, 30); 2] || both == [(60, 60); 2], "{how}: {both:?}");
        },
    );
}

#[test]
fn a_change_that_one_vm_of_a_group_cannot_take_is_taken_back_from_the_others() {
    cut_short_everywhere(
        |side, folder| {
            protected(side, folder, &["web", "db"]);
            let last = side.live_and_stalled().pop().unwrap();
            let partial = side.state.path(&last.file_name()).with_extension("partial");
            std::fs::create_dir_all(partial).unwrap();
        },
        |side, _| drop(side.change_group("shop", &of_all(rpo(30)), &Asker::nobody()).unwrap_err()),
        |side, _, how| {
            assert!(side.operations.unended().is_empty(), "{how}: {:?}", side.alerts.list());
            let both =
                ["web", "db"].map(|name| (rpo_of(side, name), recorded(side, name).policy.rpo_seconds));
            assert_eq!(both, [(60, 60); 2], "{how}");
        },
    );
}
