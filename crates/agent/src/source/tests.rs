//! The protected side by itself: no stream begins here, for a VM's driver has its turn only where a test waits for
//! something.

use super::protecting::changed_by;
use super::record::DiskRecord;
use super::*;
use crate::ledger::Asker;
use crate::policy::StreamMode;
use crate::sockets::SocketAccess;
use crate::state::{death, open_in_test, random};
use api::ProtectRequest;
use group::Here;
use joint::cut::Part;
use joint::membership::FirstSync;
use joint::promise::Standing;
use splitter::SyncState;
use std::path::Path;
use std::sync::{Weak, mpsc};
use std::thread;
use tokio::runtime::{Builder, Handle};
use types::{Checkpoint, CheckpointId, WallTime, WriteSeq};

pub(super) fn source(folder: &Path) -> Arc<Source> {
    let text = "site = \"paris\"\nagent = \"agent-1\"\nstate_dir = \"state\"\nrun_dir = \"run\"\n\
                pki_dir = \"pki\"\n";
    let config = Config::parse(text, &folder.join("agent.toml")).unwrap();
    let state = Arc::new(open_in_test(&config.state_dir));
    let run_dir = RunDir::make(&config.run_dir, SocketAccess::new(None, 0o600).unwrap()).unwrap();
    let artifacts = Arc::new(Artifacts::open(state.path("files")).unwrap());
    let alerts = Arc::new(Alerts::remembered_in(state.clone()));
    let run = state.next_run().unwrap();
    Source::new(&config, run_dir, state, artifacts, run, [7; 16], alerts)
}

/// A VM of the group `shop`, with its image.
pub(super) fn record(folder: &Path, name: &str, first_sync: FirstSync) -> ProtectionRecord {
    let path = folder.join(format!("{name}.raw"));
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    ProtectionRecord {
        vm: VmId::from_bytes(random()).to_string(),
        name: name.into(),
        group_id: GroupId::from_bytes([1; 16]).to_string(),
        group: "shop".into(),
        epoch: 1,
        peer: "127.0.0.1:1".into(),
        peer_agent: None,
        disks: vec![DiskRecord { name: "vda".into(), path, tapped: None, file: None }],
        definition: String::new(),
        files: Vec::new(),
        policy: Policy { spill_bytes: 0, ..Policy::default() },
        paused: false,
        coordinator: None,
        qmp: None,
        left_out: Vec::new(),
        shared: false,
        let_go: false,
        ublk: Vec::new(),
        first_sync,
        fenced: None,
        fenced_at: None,
        had_by: Vec::new(),
        stands_still: false,
    }
}

fn synchronous(record: ProtectionRecord) -> ProtectionRecord {
    let policy = Policy { mode: StreamMode::Sync, ..record.policy.clone() };
    ProtectionRecord { policy, ..record }
}

pub(super) fn take_up(source: &Arc<Source>, record: ProtectionRecord) -> Arc<ProtectedVm> {
    let name = record.name.clone();
    source.take_up(record);
    source.vm(&name).unwrap()
}

/// Plays a stream that has brought all there is.
fn end_sync(vm: &ProtectedVm) {
    vm.capture().leave_tracking();
    assert!(vm.capture().close_sync());
}

#[tokio::test]
async fn a_vm_counts_from_when_it_is_taken_up_where_its_first_sync_may_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let web = take_up(&source, synchronous(record(folder.path(), "web", FirstSync::Done)));
    end_sync(&web);
    assert!(web.capture().return_to_sync(), "nobody else is of the group");
    take_up(&source, record(folder.path(), "coming", FirstSync::Running));
    assert_eq!(web.capture().status().sync, SyncState::Synchronous, "no image has it");
    for (name, how_far) in [("unheard", FirstSync::Closing), ("quiet", FirstSync::Done)] {
        let vm = take_up(&source, record(folder.path(), name, how_far));
        assert_eq!(web.capture().status().sync, SyncState::Degraded, "{name} may be in an image");
        assert!(!web.capture().return_to_sync());
        web.group().leave(vm.id(), || false);
        assert!(web.capture().return_to_sync());
    }
}

#[tokio::test]
async fn what_is_known_first_of_a_group_that_lacks_a_vm_is_told_first() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let web = take_up(&source, synchronous(record(folder.path(), "web", FirstSync::Done)));
    end_sync(&web);
    let (told, second) = mpsc::channel();
    std::thread::scope(|scope| {
        let web = &web;
        web.group().note_standing(web.id(), Some(Standing::UNKNOWN), || {
            scope.spawn(move || {
                web.group().note_standing(web.id(), Some(Standing::UNKNOWN), || true);
                let _ = told.send(());
            });
            // The second has said that a VM is lacking, and would be done by now if it did not have to wait.
            let _ = second.recv_timeout(Duration::from_millis(200));
            false
        });
    });
    assert!(!web.capture().return_to_sync(), "what was found out before is believed after");
}

#[tokio::test]
async fn a_cut_across_hosts_is_marked_in_the_streams_that_it_counts_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let web = take_up(&source, record(folder.path(), "web", FirstSync::Done));
    let db = take_up(&source, record(folder.path(), "db", FirstSync::Closing));
    let group = web.group();
    [&web, &db].into_iter().for_each(|vm| end_sync(vm));
    assert_eq!(group.count(group.checkpointed_ids()), 1);
    let cut = WriteSeq::from_raw(group.counter().last().raw() + 100);
    Here(group).draw(cut).unwrap();
    // Just now the other side is heard to have all of it.
    db.lock_record().first_sync = FirstSync::Done;
    let (kind, taken_at, tag) = (CheckpointKind::Automatic, WallTime::default(), String::new());
    let checkpoint = Checkpoint { id: CheckpointId(cut), cut, kind, taken_at, members: 1, tag };
    Here(group).mark(&checkpoint, &[]).unwrap();
    assert!(web.capture().status().last > cut && db.capture().status().last < cut);

    group.leave(web.id(), || false);
    assert!(Here(group).draw(WriteSeq::from_raw(cut.raw() + 100)).is_err(), "who is counted has left");
    assert!(Here(group).mark(&checkpoint, &[]).is_err());
}

/// A VM whose image is missing.
pub(super) fn without_image(folder: &Path, name: &str) -> ProtectionRecord {
    let record = record(folder, name, FirstSync::Done);
    std::fs::remove_file(&record.disks[0].path).unwrap();
    record
}

pub(super) fn request(folder: &Path, name: &str, group: &str) -> ProtectRequest {
    let image = record(folder, name, FirstSync::NotBegun).disks.remove(0);
    ProtectRequest {
        name: name.into(),
        group: Some(group.into()),
        coordinator: None,
        qmp: None,
        format: None,
        shared: false,
        ublk: false,
        disks: vec![api::ProtectDisk { name: "vda".into(), path: image.path.display().to_string() }],
        peer: "127.0.0.1:1".into(),
        definition: None,
        settings: api::ProtectSettings::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_a_group_that_nobody_of_was_taken_up_is_of_that_group() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let gone = without_image(folder.path(), "gone");
    save_record(&source.state, &gone).unwrap();
    source.resume_all().await.unwrap();
    assert!(source.vm("gone").is_err() && source.groups_here().is_empty());
    let counter = source.group_named("shop").unwrap().counter().clone();
    counter.draw();
    tokio::task::block_in_place(|| {
        let web = source.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        assert_eq!(web.record().group_id, gone.group_id);
        assert!(Arc::ptr_eq(web.group().counter(), &counter), "what was drawn is drawn again");
        source.unprotect("web", &Asker::default()).unwrap();
        assert!(source.group_named("shop").is_some());
        source.unprotect("gone", &Asker::default()).unwrap();
        assert!(source.group_named("shop").is_none());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_of_one_vm_holds_up_the_change_of_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let hangs = without_image(folder.path(), "hangs");
    save_record(&source.state, &hangs).unwrap();
    source.resume_all().await.unwrap();
    // As long as its disk keeps whoever takes it up.
    let turn = source.changing.try_take(vec![Changed::Vm("hangs".into())]).unwrap();
    tokio::task::block_in_place(|| {
        source.protect(&request(folder.path(), "web", "shop"), &Asker::default()).unwrap();
        source.unprotect("web", &Asker::default()).unwrap();
        assert!(source.changing.try_take(changed_by(&request(folder.path(), "hangs", "shop"))).is_none());
    });
    drop(turn);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_waits_to_be_taken_up_goes_on_waiting_where_it_cannot_be_unprotected() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let gone = without_image(folder.path(), "gone");
    save_record(&source.state, &gone).unwrap();
    source.resume_all().await.unwrap();
    let hinders = source.state.path("departures");
    std::fs::write(&hinders, "no folder").unwrap();
    let group = source.group_named("shop").unwrap();
    tokio::task::block_in_place(|| source.unprotect("gone", &Asker::default())).unwrap_err();
    assert_eq!(source.vm_to_api("gone").unwrap().state, "failed");
    assert!(source.lacks_vms_of(&group), "the others of its group promise without it");
    std::fs::remove_file(&hinders).unwrap();
    tokio::task::block_in_place(|| source.unprotect("gone", &Asker::default())).unwrap();
    assert!(source.vm_to_api("gone").is_err());
    assert!(source.lacks_vms_of(&group), "its recovery side does not know yet");
}

/// What an agent that begins anew does: it takes up what is recorded, and goes on with what was under way.
pub(super) fn begin_anew(side: &Arc<Source>) {
    Handle::current().block_on(side.resume_all()).unwrap();
    for (id, plan) in side.operations.unended() {
        side.go_on_by_itself(id, &plan);
    }
}

/// One life of this side, with a runtime of its own; whether it has died at the place that is this many ahead.
fn live(
    folder: &Path,
    prepare: impl FnOnce(&Arc<Source>),
    place: usize,
    work: impl FnOnce(&Arc<Source>),
) -> bool {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let entered = runtime.enter();
    let side = source(folder);
    prepare(&side);
    let died = death::at(place, || work(&side)).is_none();
    let vms: Vec<Weak<ProtectedVm>> = side.list().iter().map(Arc::downgrade).collect();
    let state = Arc::downgrade(&side.state);
    drop(entered);
    runtime.shutdown_background();
    drop(side);
    for _ in 0..10_000 {
        if state.strong_count() == 0 && vms.iter().all(|vm| vm.strong_count() == 0) {
            return died;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("something of it lives on");
}

/// What is done in one life of this side.
pub(super) fn in_a_life<T>(folder: &Path, work: impl FnOnce(&Arc<Source>) -> T) -> T {
    let mut done = None;
    live(folder, |_| (), usize::MAX, |side| done = Some(work(side)));
    done.expect("it has not died")
}

/// Has an operation die at every place in turn, and then the agent that goes on with it; `check` looks at what there is as
/// soon as it has gone on, and after another restart.
pub(super) fn cut_short_everywhere(
    prepare: impl Fn(&Arc<Source>, &Path),
    ask: impl Fn(&Arc<Source>, &Path),
    check: impl Fn(&Arc<Source>, &Path, &str),
) {
    let asked =
        |folder: &Path, place| live(folder, |side| prepare(side, folder), place, |side| ask(side, folder));
    let goes_on = |folder: &Path, place| {
        live(
            folder,
            |_| (),
            place,
            |side| {
                begin_anew(side);
                check(side, folder, "at once");
            },
        )
    };
    death::everywhere(asked, goes_on, |folder, how| {
        live(
            folder,
            |_| (),
            usize::MAX,
            |side| {
                begin_anew(side);
                check(side, folder, how);
            },
        );
    });
}
