//! Who is let in, who holds a journal, and what is left of whom.

use super::*;

#[test]
fn whoever_was_let_in_before_a_vm_is_forgotten_does_not_use_what_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    let files = vm.folder(&recovery.journal_dir);
    let shared = journal.shared().clone();
    thread::scope(|scope| {
        let forgotten = scope.spawn(|| recovery.forget("vm-1", &Asker::default()));
        while !vm.is_forgotten() {
            thread::yield_now();
        }
        assert!(hold(&vm).is_none(), "no stream of what is deleted");
        assert!(files.exists(), "who was let in is waited for");
        drop(journal);
        forgotten.join().unwrap().unwrap();
    });
    assert!(!files.exists());
    assert!(shared.is_closed(), "nothing is written there any more");
    assert!(recovery.open_journal(&vm, Use::Look).is_err());
    let terms = Terms { history_seconds: 3600, bytes_max: 0 };
    let accept = Accept { terms, asks_less: None };
    assert!(vm.follow(&recovery.state, (&hello(1), PEER), accept, &vm.record()).is_err());
    vm.leave(&recovery.state, WriteSeq::ZERO).unwrap();
    assert_eq!(recovery.state.load::<RecoveryRecord>(&vm.record().file_name()).unwrap(), None);
    assert!(!files.exists(), "nothing of it has come back");

    // Whoever comes then gets a journal of its own, which lasts.
    let (again, journal) = recovery.admit(&hello(1), PEER).unwrap();
    assert!(hold(&again).is_some() && !journal.is_closed() && files.join("manifest").exists());
}

#[test]
fn a_name_that_a_half_forgotten_vm_shares_with_a_kept_one_forgets_neither() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let old = recovery.admit(&hello(1), PEER).unwrap().0;
    // As where its folder could not be removed.
    old.begin_forgetting(&recovery.state).unwrap();
    let (new, journal) = recovery.admit(&Hello { vm_name: old.name(), ..hello(2) }, PEER).unwrap();
    for word in [old.name(), old.label()] {
        let refused = recovery.forget(&word, &Asker::default()).unwrap_err();
        for vm in [&old, &new] {
            assert!(refused.detail.contains(&vm.id().to_string()), "{}", refused.detail);
        }
    }
    assert!(!journal.is_closed() && new.folder(&recovery.journal_dir).exists());
    drop(journal);
    recovery.forget(&old.id().to_string(), &Asker::default()).unwrap();
    assert!(!old.folder(&recovery.journal_dir).exists() && new.folder(&recovery.journal_dir).exists());
    recovery.forget(&new.name(), &Asker::default()).unwrap();
    assert!(!new.folder(&recovery.journal_dir).exists());
}

#[test]
fn a_greeting_that_is_refused_changes_nothing_of_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    let (before, settings) = (vm.record(), journal.status().settings);
    let disks = vec![DiskSpec { name: "vda".into(), size_bytes: 2 * DISK_BYTES }];
    let evil = Hello { definition: "memory = 1".into(), vm_name: "other".into(), rpo_seconds: 1, ..hello(1) };
    let evil = Hello { history_seconds: 7200, spans_hosts: true, disks, ..evil };
    let refused = recovery.admit(&evil, PEER).unwrap_err();
    assert_eq!(refused.why, Refusal::DisksDiffer, "{}", refused.detail);
    assert_eq!(vm.record(), before);
    assert_eq!(recovery.state.load::<RecoveryRecord>(&before.file_name()).unwrap(), Some(before));
    assert_eq!(journal.status().settings, settings);
}

#[test]
fn who_may_come_takes_nothing_over_and_opens_nothing_before_he_has_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    drop(journal);
    close(&vm);
    let before = vm.record();
    let longer = Hello { history_seconds: 7200, definition: "memory = 1".into(), ..hello(1) };
    assert!(Arc::ptr_eq(&recovery.let_in(&longer, PEER).unwrap(), &vm));
    assert!(vm.journal().is_none() && vm.record() == before);
    recovery.admit(&longer, PEER).unwrap();
    assert_eq!(vm.record().history_seconds, 7200);
    // Nor does who would be refused by a journal that is open take the stream from anybody.
    let other = Hello { disks: Vec::new(), ..longer };
    assert_eq!(recovery.let_in(&other, PEER).unwrap_err().why, Refusal::DisksDiffer);
}

#[test]
fn history_that_is_here_is_shortened_by_an_operator_of_this_side_alone() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let long = Hello { history_seconds: 86_400, journal_bytes_max: 0, ..hello(1) };
    let short = Hello { history_seconds: 3600, journal_bytes_max: 1_000_000_000, ..hello(1) };
    let kept = |hello: &Hello| recovery.admit(hello, PEER).unwrap().1.status().settings;
    let before = kept(&long);
    assert_eq!(kept(&short), before, "history is shortened by a greeting");
    let said =
        |recovery: &Recovery| recovery.alerts.list().iter().any(|alert| alert.contains("--take-asked"));
    assert!(said(&recovery));
    let shown = recovery.show_journal("vm-1").unwrap();
    assert_eq!(
        shown.asked.map(|asked| (asked.history_seconds, asked.bytes_max)),
        Some((3600, 1_000_000_000))
    );
    // Who takes it back is heard, and so is who asks for more.
    assert_eq!(kept(&long), before);
    assert!(!said(&recovery) && recovery.show_journal("vm-1").unwrap().asked.is_none());

    kept(&short);
    let take = api::JournalSettings { take_asked: true, ..api::JournalSettings::default() };
    // What cannot be is refused before any of it is kept.
    let above = api::JournalSettings { bytes_soft: Some(2_000_000_000), ..take.clone() };
    let record = recovery.list()[0].record();
    assert!(recovery.set_journal("vm-1", &above).unwrap_err().detail.contains("soft limit"));
    assert_eq!(recovery.list()[0].record(), record);
    assert_eq!(recovery.state.load::<RecoveryRecord>(&record.file_name()).unwrap(), Some(record));
    assert!(said(&recovery) && kept(&short) == before);
    recovery.set_journal("vm-1", &take).unwrap();
    let now = kept(&short);
    assert_eq!((now.history.as_secs(), now.bytes_hard), (3600, 1_000_000_000));
    assert!(!said(&recovery));
}

#[test]
fn a_vm_whose_stream_is_let_in_is_not_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let vm = recovery.admit(&hello(1), PEER).unwrap().0;
    let held = hold(&vm).unwrap();
    let refused = recovery.forget("vm-1", &Asker::default()).unwrap_err();
    assert!(refused.detail.contains("is still being sent"), "{}", refused.detail);
    drop(held);
    recovery.forget("vm-1", &Asker::default()).unwrap();
}

#[test]
fn streams_are_handed_over_one_after_the_other_and_who_has_one_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, _) = recovery.admit(&hello(1), PEER).unwrap();
    let first = hold(&vm).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let held = runtime.block_on(async {
        let ask = || {
            let vm = vm.clone();
            tokio::spawn(async move { vm.hold_stream(farewell()).await })
        };
        let (second, third) = (ask(), ask());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(vm.is_streaming() && !second.is_finished() && !third.is_finished());
        drop(first);
        drop(second.await.unwrap().unwrap());
        third.await.unwrap().unwrap()
    });
    assert!(vm.is_streaming());
    drop(held);
    assert!(!vm.is_streaming());
}

#[test]
fn greetings_and_forgetting_at_once_leave_a_whole_journal_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let _ = recovery.forget("vm-1", &Asker::default());
            }
        });
        for _ in 0..100 {
            // As a connection does it: let in, take the stream, look again.
            let Ok(vm) = recovery.admit(&hello(1), PEER).map(|(vm, _)| vm) else { continue };
            let Some(_held) = hold(&vm) else { continue };
            let journal = recovery.admit(&hello(1), PEER).unwrap().1;
            journal.raise_epoch(Epoch::FIRST.next()).unwrap();
            assert!(vm.folder(&recovery.journal_dir).join("manifest").exists());
            assert!(recovery.list().iter().any(|kept| Arc::ptr_eq(kept, &vm)), "who streams is kept");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn forgetting_that_was_interrupted_goes_on_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let files = {
        let recovery = recovery(folder.path());
        let vm = recovery.admit(&hello(1), PEER).unwrap().0;
        recovery.admit(&hello(2), PEER).unwrap();
        vm.begin_forgetting(&recovery.state).unwrap();
        let greeted = recovery.admit(&hello(1), PEER).unwrap_err();
        assert_eq!(greeted.why, Refusal::Busy, "{}", greeted.detail);
        assert_eq!(recovery.list().len(), 1);
        vm.folder(&recovery.journal_dir)
    };
    // As if the agent had died when a part of it was gone.
    std::fs::remove_file(files.join("manifest")).unwrap();
    let recovery = recovery(folder.path());
    begin_anew(&recovery);
    assert!(!files.exists());
    assert_eq!(recovery.vms().len(), 1);
    assert!(recovery.list()[0].journal().is_some(), "the other one is kept");
}

#[test]
fn a_journal_that_could_not_be_opened_is_opened_once_its_disk_answers() {
    let folder = tempfile::tempdir().unwrap();
    let files = {
        let recovery = recovery(folder.path());
        recovery.admit(&hello(1), PEER).unwrap().0.folder(&recovery.journal_dir)
    };
    let aside = |name: &str| files.join(format!("aside-{name}"));
    let rename = |from: PathBuf, to: PathBuf| std::fs::rename(from, to).unwrap();
    journal::MANIFESTS.iter().for_each(|name| rename(files.join(name), aside(name)));
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    let vm = recovery.list()[0].clone();
    assert!(vm.journal().is_none() && vm.last_error().is_some());
    journal::MANIFESTS.iter().for_each(|name| rename(aside(name), files.join(name)));
    // Nobody comes for it.
    vm.with_reopening(|tries| tries.hurry());
    recovery.reopen(&vm);
    assert!(vm.journal().is_some());
    assert_eq!(vm.last_error(), None);
}

#[test]
fn what_stopped_a_journal_is_told_until_a_stream_begins() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    vm.set_error("no space left for the journal".into());
    drop(journal);
    close(&vm);
    assert!(vm.journal().is_none());
    recovery.reopen(&vm);
    assert!(vm.journal().is_some());
    assert_eq!(vm.last_error().as_deref(), Some("no space left for the journal"));
}

fn leave_of(hello: &Hello) -> Leave {
    Leave { vm: hello.vm, group: hello.group, epoch: hello.epoch, at: WriteSeq::ZERO }
}

#[test]
fn a_record_that_cannot_be_read_costs_only_what_it_was_of() {
    let folder = tempfile::tempdir().unwrap();
    let mail = hello_of_group(3, 3, "mail");
    let db = hello_of_group(2, 2, "db");
    let files = {
        let recovery = recovery(folder.path());
        for hello in [&hello(1), &db, &mail, &hello_of_group(4, 4, "moved")] {
            recovery.admit(hello, PEER).unwrap();
        }
        recovery.vms()[&hello(1).vm].folder(&recovery.journal_dir)
    };
    let state = folder.path().join("state");
    for name in
        [format!("failovers/{}", db.group), format!("recovered/{}", mail.vm), "images/0badf00d".into()]
    {
        let path = state.join(format!("{name}.json"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{").unwrap();
    }
    std::fs::create_dir_all(state.join("journals")).unwrap();
    std::fs::write(state.join(format!("journals/{}.json", hello(4).vm)), "{").unwrap();
    std::fs::create_dir(files.join("image-0badf00d")).unwrap();

    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    assert_eq!(recovery.alerts.list().len(), 4, "{:?}", recovery.alerts.list());
    recovery.admit(&hello(1), PEER).unwrap();
    let refused = |hello: &Hello| recovery.admit(hello, PEER).unwrap_err();
    // Nobody knows who has the authority over it.
    let fenced = refused(&db);
    assert!(fenced.why == Refusal::JournalFailed && fenced.detail.contains("failover"), "{}", fenced.detail);
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    for done in [
        recovery.failover("db", &request, &Asker::default()),
        recovery.commit("db", &Asker::default()),
        recovery.rollback("db", &Asker::default()),
    ] {
        let detail = done.unwrap_err().detail;
        assert!(detail.contains("cannot be read"), "{detail}");
    }
    // Nobody knows whose they are, or where they lie.
    for hello in [&mail, &hello_of_group(4, 4, "moved")] {
        let why = refused(hello);
        assert!(why.why == Refusal::JournalFailed && why.detail.contains("cannot be read"), "{}", why.detail);
    }
    // Nor can it be written down that they have left: who is told so asks no more, and they would be members for ever.
    for gone in [&mail, &hello_of_group(4, 4, "moved"), &db] {
        let Message::Refuse(why) = recovery.on_leave(&leave_of(gone), PEER) else {
            panic!("that is known nowhere")
        };
        assert!(why.why == Refusal::JournalFailed && why.detail.contains("cannot be read"), "{}", why.detail);
    }
    assert_eq!(
        recovery.on_leave(&leave_of(&hello(9)), PEER),
        Message::Left(hello(9).vm),
        "it is not kept here"
    );
    // Somebody may have written to it.
    let kept = recovery.forget("vm-1", &Asker::default()).unwrap_err();
    assert!(kept.detail.contains("images"), "{}", kept.detail);
    assert!(files.join("image-0badf00d").exists());
}

#[test]
fn a_seed_is_compared_also_where_the_agent_died_before_it_had_recorded_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    {
        let recovery = recovery(folder.path());
        let path = folder.path().join("carried.raw");
        std::fs::write(&path, vec![7; DISK_BYTES as usize]).unwrap();
        let disk = api::ProtectDisk { name: "vda".into(), path: path.display().to_string() };
        recovery.seed(&api::SeedRequest { vm: "vm-1".into(), disks: vec![disk] }).unwrap();
        let (vm, _) = recovery.admit(&hello(1), PEER).unwrap();
        assert!(vm.record().seeded);
        // As if it had died just before it saved that.
        recovery.state.remove(&vm.record().file_name()).unwrap();
    }
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    assert_eq!(journal.status().last_seq, WriteSeq::ZERO);
    assert!(vm.record().seeded, "what is zeroes at the source is something else here");
    let saved = recovery.state.load::<RecoveryRecord>(&vm.record().file_name()).unwrap();
    assert!(saved.is_some_and(|record| record.seeded));
}

#[test]
fn a_journal_that_is_being_moved_refuses_streams_at_once_and_never_goes_into_itself() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let vm = recovery.admit(&hello(1), PEER).unwrap().0;
    let files = vm.folder(&recovery.journal_dir);
    for target in [
        files.join("inside"),
        files.join("a/b"),
        files.join("../../journals").join(files.file_name().unwrap()).join("c"),
    ] {
        let refused =
            recovery.move_journal("vm-1", &target.display().to_string(), &Asker::default()).unwrap_err();
        assert!(refused.detail.contains("of a journal"), "{}", refused.detail);
        assert!(vm.journal().is_some() && files.join("manifest").exists() && !target.exists());
    }
    let _copying = vm.life().take_folder(Task::Move, Duration::ZERO).unwrap();
    let refused = recovery.admit(&hello(1), PEER).unwrap_err();
    assert!(refused.why == Refusal::Busy && refused.detail.contains("moved"), "{}", refused.detail);
    let refused = recovery.move_journal("vm-1", "/elsewhere", &Asker::default()).unwrap_err();
    assert!(refused.detail.contains("moved"), "{}", refused.detail);
}

#[test]
fn a_moved_journal_whose_vm_is_known_no_more_is_found_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    append_sync(&side.admit(&hello(1), PEER).unwrap().1);
    let target = folder.path().join("elsewhere");
    side.move_journal("vm-1", &target.display().to_string(), &Asker::default()).unwrap();
    // As an operator does whose record cannot be read, and has no backup of it.
    side.state.remove(&side.list()[0].record().file_name()).unwrap();
    end(side);
    let side = recovery(folder.path());
    side.resume_all().unwrap();
    let (vm, journal) = side.admit(&hello(1), PEER).unwrap();
    assert!(journal.newest_consistent(WriteSeq::MAX).is_some(), "its history is lost");
    assert_eq!(vm.folder(&side.journal_dir), target);
}

/// A second one that comes while the first deletes must not take back what the first has begun.
#[test]
fn one_that_is_being_forgotten_is_kept_by_nobody_who_asks_for_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| recovery.forget("vm-1", &Asker::default()));
        while !vm.is_forgotten() {
            thread::yield_now();
        }
        let (presence, asker) = Asker::present();
        assert_eq!(recovery.forget(&vm.id().to_string(), &asker).unwrap(), None, "the first does it");
        assert!(vm.is_forgotten());
        drop(journal);
        first.join().unwrap().unwrap();
        assert!(!presence.leave(), "the second is told of the end too");
    });
    // An agent of before has died with a part deleted, and the folder cannot be had just now.
    let vm = recovery.admit(&hello(1), PEER).unwrap().0;
    assert!(vm.begin_forgetting(&recovery.state).unwrap());
    let taken = vm.life().take_folder(Task::Delete, Duration::from_secs(5)).unwrap();
    assert!(recovery.forget(&vm.id().to_string(), &Asker::default()).is_err());
    assert!(vm.is_forgotten());
    drop(taken);
    recovery.forget(&vm.id().to_string(), &Asker::default()).unwrap();
}

/// Their disk answers once somebody reads from what stands for it.
#[test]
fn journals_whose_disk_hangs_hold_up_neither_the_start_nor_those_of_another_disk() {
    let folder = tempfile::tempdir().unwrap();
    let first = recovery(folder.path());
    for number in 1..=4 {
        let (_, journal) = first.admit(&hello(number), PEER).unwrap();
        append_sync(&journal);
    }
    first
        .move_journal("vm-4", &folder.path().join("elsewhere/vm-4").display().to_string(), &Asker::default())
        .unwrap();
    let request = |vm: &str| api::OpenImageRequest { vm: vm.into(), at: "latest".into(), writable: true };
    let images = ["vm-1", "vm-4"].map(|vm| first.open_image(&request(vm)).unwrap().id);
    let locks: Vec<_> = (1..=3)
        .map(|number| first.vm(&format!("vm-{number}")).unwrap().folder(&first.journal_dir).join("lock"))
        .collect();
    end(first);
    for lock in &locks {
        std::fs::remove_file(lock).unwrap();
        pipe(lock);
    }
    let recovery = recovery(folder.path());
    recovery.resume_records().unwrap();
    recovery.take_up_all(Duration::ZERO);
    while recovery.image(&images[1]).is_none() || alerts_of(&recovery, "image-unserved").len() != 1 {
        thread::yield_now();
    }
    let told = recovery.alerts.list();
    assert!(
        (1..=3)
            .all(|vm| told.iter().any(|text| text.contains(&format!("/vm-{vm}: its journal is not open")))),
        "{told:?}"
    );
    let state = |recovery: &Recovery, vm: usize| recovery.vms_to_api()[vm].state.clone();
    assert_eq!([state(&recovery, 0), state(&recovery, 3)], ["opening", "following"]);
    assert!(recovery.image(&images[0]).is_none());
    for lock in &locks {
        std::fs::File::open(lock).unwrap();
    }
    while (0..3).any(|vm| state(&recovery, vm) != "following") || recovery.image(&images[0]).is_none() {
        thread::yield_now();
    }
    recovery.list().iter().for_each(|vm| recovery.tell_damage(vm));
    assert_eq!(recovery.alerts.list(), Vec::<String>::new());
}

fn pipe(path: &Path) {
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap();
}

/// Whoever comes with his name, or for the same VM, meanwhile is told to come again.
#[test]
fn a_disk_that_hangs_while_a_journal_is_made_holds_up_no_other_vm_that_comes_for_the_first_time() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let lock = side.journal_dir.join(hello(1).vm.to_string()).join("lock");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    pipe(&lock);
    thread::scope(|scope| {
        let hangs = scope.spawn(|| side.admit(&hello(1), PEER).map(drop));
        while side.making.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let others = &side;
        scope.spawn(move || {
            let other = others.admit(&hello_of_group(2, 2, "db"), PEER).map(drop);
            let again = others.admit(&hello(1), PEER).map(drop);
            let of_its_group = others.admit(&hello_of_group(3, 1, "web"), "agent-1.oslo").map(drop);
            tell.send((other, again, of_its_group))
        });
        let answers = told.recv_timeout(Duration::from_secs(60));
        std::fs::File::open(&lock).unwrap();
        let (other, again, of_its_group) =
            answers.expect("whoever comes for the first time waits for its disk");
        assert!(other.is_ok(), "{other:?}");
        assert_eq!(again.unwrap_err().why, Refusal::Busy);
        assert_eq!(of_its_group.unwrap_err().why, Refusal::NotAccepted);
        hangs.join().unwrap().unwrap();
    });
    assert!(side.making.lock().unwrap().is_empty() && side.list().len() == 2);
}

/// A name is one site's: what another makes under it is another VM. Nor are all places one site's.
#[test]
fn what_one_site_has_made_under_a_name_keeps_no_other_site_from_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let locks: Vec<_> = (0..types::limits::JOURNALS_MADE_AT_ONCE_MAX as u8)
        .map(|number| {
            let lock = side.journal_dir.join(hello(100 + number).vm.to_string()).join("lock");
            std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
            pipe(&lock);
            lock
        })
        .collect();
    thread::scope(|scope| {
        for number in 0..locks.len() as u8 {
            let hello = Hello { vm_name: format!("web-{number}"), ..hello_of_group(100 + number, 9, "oslo") };
            let side = &side;
            scope.spawn(move || side.admit(&hello, "agent-1.oslo").map(drop));
        }
        while side.making.lock().unwrap().len() < locks.len() {
            thread::yield_now();
        }
        let of_its_name = Hello { vm_name: "web-0".into(), ..hello_of_group(1, 1, "web") };
        let came = side.admit(&of_its_name, PEER).map(drop);
        let more = Hello { vm_name: "more".into(), ..hello_of_group(90, 9, "oslo") };
        let refused = side.admit(&more, "agent-1.oslo").map(drop);
        locks.iter().for_each(|lock| drop(std::fs::File::open(lock).unwrap()));
        assert!(came.is_ok(), "{came:?}");
        assert_eq!(refused.unwrap_err().why, Refusal::Busy, "one site has so many places");
    });
}

#[test]
fn a_state_folder_that_hangs_holds_up_nobody_who_lists_vms_or_does_something_with_another() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    side.admit(&hello(1), PEER).unwrap();
    let hangs = side.state.path(&format!("recovered/{}.partial", hello(1).vm));
    pipe(&hangs);
    thread::scope(|scope| {
        let renamed = Hello { vm_name: "renamed".into(), ..hello(1) };
        let recorded = scope.spawn({
            let side = &side;
            move || side.admit(&renamed, PEER).is_ok()
        });
        let vm = side.vm("vm-1").unwrap();
        while !vm.is_being_changed() {
            thread::yield_now();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let others = &side;
        scope.spawn(move || {
            let made = others.admit(&hello_of_group(2, 2, "db"), PEER).is_ok();
            tell.send((made, others.vms_to_api().len(), others.groups().len()))
        });
        let told = told.recv_timeout(Duration::from_secs(60));
        std::fs::File::open(&hangs).unwrap();
        // A pipe cannot be synced.
        assert!(!recorded.join().unwrap());
        assert_eq!(told.expect("whoever lists waits for the state folder"), (true, 2, 2));
    });
    assert_eq!(side.vm("vm-1").unwrap().name(), "vm-1", "what is not written down is not so");
}

/// Two operators change something else each, at once.
#[test]
fn of_two_who_change_one_journals_settings_neither_takes_back_what_the_other_has_set() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    side.admit(&hello(1), PEER).unwrap();
    let set = |settings: api::JournalSettings| drop(side.set_journal("vm-1", &settings).unwrap());
    for round in 1..=50 {
        let all = api::JournalSettings { keep_all_seconds: Some(7200 + round), ..Default::default() };
        let tagged = api::JournalSettings { keep_tagged_seconds: Some(round), ..Default::default() };
        thread::scope(|scope| [all, tagged].map(|settings| scope.spawn(|| set(settings))).map(drop));
        let policy = side.vm("vm-1").unwrap().policy();
        assert_eq!((policy.keep_all_seconds, policy.keep_tagged_seconds), (Some(7200 + round), Some(round)));
        let saved: policy::JournalPolicy =
            side.state.load(&policy::file_name(&hello(1).vm.to_string())).unwrap().unwrap();
        assert_eq!(saved, policy);
    }
}

#[test]
fn no_stream_begins_while_that_its_vm_is_forgotten_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    side.admit(&hello(1), PEER).unwrap();
    let vm = side.vm("vm-1").unwrap();
    let hangs = side.state.path(&format!("recovered/{}.partial", hello(1).vm));
    pipe(&hangs);
    thread::scope(|scope| {
        let forgets = scope.spawn(|| vm.begin_forgetting(&side.state).is_ok());
        while !vm.is_about_to_be_forgotten() {
            thread::yield_now();
        }
        let began = hold(&vm).is_some();
        std::fs::File::open(&hangs).unwrap();
        // A pipe cannot be synced.
        assert!(!forgets.join().unwrap());
        assert!(!began);
    });
    assert!(hold(&vm).is_some(), "it was not forgotten");
}

/// They are of two sites, and have one name.
#[test]
fn a_whole_journal_clears_no_alert_of_its_namesake() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (damaged, _) = admit_named(&recovery, 1, "web", PEER);
    let (whole, _) = admit_named(&recovery, 2, "web", "agent-1.oslo");
    close(&damaged);
    let files = damaged.folder(&recovery.journal_dir);
    ["manifest", "manifest-2"].iter().for_each(|name| std::fs::write(files.join(name), "{").unwrap());
    recovery.reopen(&damaged);
    recovery.tell_damage(&whole);
    let told = recovery.alerts.list();
    assert!(told.len() == 1 && told[0].contains("cannot be opened"), "{told:?}");
}

/// The streams are refused here: that nothing comes says nothing of the site.
#[test]
fn a_site_that_is_refused_for_a_record_that_cannot_be_read_is_not_called_silent() {
    let folder = tempfile::tempdir().unwrap();
    recovery(folder.path()).admit(&hello(1), PEER).unwrap();
    let record = folder.path().join(format!("state/failovers/{}.json", hello(1).group));
    std::fs::create_dir_all(record.parent().unwrap()).unwrap();
    std::fs::write(record, "{").unwrap();
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    assert!(!recovery.is_expected(&recovery.list()[0]));
    assert_eq!(recovery.alerts.list().len(), 1, "{:?}", recovery.alerts.list());
}

/// What it cannot fold it keeps, and takes ever more room.
#[test]
fn a_journal_that_cannot_be_kept_up_is_an_alert_until_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    append_sync(&journal);
    assert!(journal.fence(Epoch::FIRST.next(), Duration::from_secs(60)).unwrap());
    journal.set(journal::Settings { bytes_soft: 1, ..journal.status().settings });
    let replica = vm.folder(&recovery.journal_dir).join("replica/vda.raw");
    let aside = replica.with_extension("aside");
    let mut turns = turns::Turns::default();
    turns.ask(vm.id(), vm.disk(&recovery.journal_dir));
    let (_, progress) = turns.next(clock::now()).unwrap();
    let turn = || recovery.take_turn(&vm, &crate::pace::Pace::new(0), &progress, false);
    std::fs::rename(&replica, &aside).unwrap();
    turn();
    assert!(recovery.alerts.list()[0].contains("cannot be kept up"), "{:?}", recovery.alerts.list());
    std::fs::rename(&aside, &replica).unwrap();
    turn();
    assert_eq!(recovery.alerts.list(), Vec::<String>::new());
    assert_eq!(journal.status().applied, journal.status().last_seq);
}

#[test]
fn a_kept_vm_shows_its_replicas_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let vm = recovery.admit(&hello(1), PEER).unwrap().0;
    let elsewhere = folder.path().join("elsewhere");
    vm.set_policy(policy::JournalPolicy { replica_folder: Some(elsewhere.clone()), ..vm.policy() });
    assert_eq!(recovery.vms_to_api()[0].disks[0].path, elsewhere.join("vda.raw").display().to_string());
}
