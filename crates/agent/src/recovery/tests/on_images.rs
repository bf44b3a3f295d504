//! Images and the guests that run on them: served, not served, ended.

use super::*;

#[test]
fn an_image_that_cannot_be_served_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    append_sync(&journal);
    // Where its socket would be.
    let run = folder.path().join("run");
    std::fs::remove_dir_all(&run).unwrap();
    std::fs::write(&run, "").unwrap();
    let request = api::OpenImageRequest { vm: "vm-1".into(), at: "latest".into(), writable: true };
    assert!(recovery.open_image(&request).is_err());
    assert!(journal.pins().is_empty(), "history is held by nobody");
    let files = std::fs::read_dir(vm.folder(&recovery.journal_dir)).unwrap();
    let names: Vec<_> = files.map(|row| row.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with("image-")), "{names:?}");
    std::fs::remove_file(&run).unwrap();
    drop(journal);
    recovery.forget("vm-1", &Asker::default()).unwrap();
}

/// The journal is lost, and so is what its images read from.
#[test]
fn images_on_a_journal_that_cannot_be_opened_end_and_hold_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    for vm in [1, 2] {
        append_sync(&recovery.admit(&hello(vm), PEER).unwrap().1);
    }
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    recovery.failover("web", &request, &Asker::default()).unwrap();
    let open = api::OpenImageRequest { vm: "vm-1".into(), at: "latest".into(), writable: true };
    let by_hand = recovery.open_image(&open).unwrap().id;
    let vm = recovery.vm("vm-1").unwrap();
    close(&vm);
    for copy in journal::MANIFESTS {
        let _ = std::fs::remove_file(vm.folder(&recovery.journal_dir).join(copy));
    }
    assert!(recovery.open_journal(&vm, Use::Look).is_err(), "it is lost");
    recovery.close_image(&by_hand, false).unwrap();
    assert_eq!(recovery.rollback("web", &Asker::default()).unwrap().phase, "rolled-back");
    assert!(recovery.images().is_empty());
    recovery.forget("vm-1", &Asker::default()).unwrap();
    let waiting: Vec<_> = recovery.waiting_images().values().map(|image| image.record.clone()).collect();
    assert_eq!(waiting.len(), 2);
    waiting.into_iter().for_each(|record| recovery.serve_again(record));
    assert!(recovery.waiting_images().is_empty(), "they went with the journal");
    assert!(recovery.open_image(&api::OpenImageRequest { vm: "vm-2".into(), ..open }).is_ok());
}

/// What one that is only read shows lies in the journal alone, and may be a cut that is none any more once the source has sent
/// something else.
#[test]
fn an_image_that_is_only_read_is_pinned_over_restarts_as_any_other() {
    for writable in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let (_, journal) = recovery.admit(&hello(1), PEER).unwrap();
        append_sync(&journal);
        let request = api::OpenImageRequest { vm: "vm-1".into(), at: "latest".into(), writable };
        let opened = recovery.open_image(&request).unwrap();
        let owner = recovery.image(&opened.id).unwrap().record().pin_owner();
        assert_eq!(journal.pins().iter().map(|pin| &pin.owner).collect::<Vec<_>>(), [&owner], "{writable}");
        recovery.close_image(&opened.id, false).unwrap();
        assert!(journal.pins().is_empty());
    }
}

/// Whoever closes an image waits for its guest's flush, and a checkpoint's file may lie on a disk that hangs.
#[test]
fn who_lists_images_waits_for_no_disk_and_for_nobody_who_closes_one() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let image = open_by_hand(&recovery);
    let _closing = image.hold_server();
    for row in std::fs::read_dir(recovery.list()[0].folder(&recovery.journal_dir)).unwrap() {
        let path = row.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("checkpoints-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let shown = recovery.list_images();
    assert_eq!(shown.len(), 1);
    assert!(shown[0].disks[0].vhost_user_socket.is_some());
}

#[test]
fn an_image_that_is_not_served_is_an_alert_until_it_is_or_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let id = open_by_hand(&recovery(folder.path())).record().id;
    let run = folder.path().join("run");
    for is_closed in [false, true] {
        let recovery = recovery(folder.path());
        // Where its socket would be.
        std::fs::remove_dir_all(&run).unwrap();
        std::fs::write(&run, "").unwrap();
        recovery.resume_all().unwrap();
        let told = alerts_of(&recovery, "image-unserved");
        assert!(told.len() == 1 && told[0].contains(&id), "{told:?}");
        std::fs::remove_file(&run).unwrap();
        std::fs::create_dir(&run).unwrap();
        if is_closed {
            recovery.close_image(&id, false).unwrap();
        } else {
            let waiting = recovery.waiting_images()[&id].record.clone();
            recovery.serve_again(waiting);
            assert!(recovery.image(&id).is_some());
        }
        assert_eq!(alerts_of(&recovery, "image-unserved"), Vec::<String>::new(), "{is_closed}");
    }
}

#[test]
fn a_guest_that_has_ended_is_an_alert_as_long_as_its_failover_stands() {
    let folder = tempfile::tempdir().unwrap();
    let ours = recovery(folder.path());
    append_sync(&ours.admit(&hello(1), PEER).unwrap().1);
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    ours.failover("web", &request, &Asker::default()).unwrap();
    drop(ours);
    // As if it had a definition, and had ended since.
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let path = folder.path().join(format!("state/failovers/{}.json", hello(1).group));
    let text = std::fs::read_to_string(&path).unwrap();
    let now = text.replace("\"pid\": null", &format!("\"pid\": {}", ended.id()));
    assert_ne!(now, text);
    std::fs::write(&path, now).unwrap();
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    let mut known = BTreeMap::new();
    recovery.tell_ended(&mut known);
    let told = alerts_of(&recovery, "guest-ended");
    assert!(told.len() == 1 && told[0].contains("vm-1"), "{told:?}");
    recovery.rollback("web", &Asker::default()).unwrap();
    recovery.tell_ended(&mut known);
    assert_eq!(alerts_of(&recovery, "guest-ended"), Vec::<String>::new());
}

/// Its file fails: the operator is told to close it, and its disks are his.
#[test]
fn a_promoted_image_whose_flush_fails_is_closed_and_its_disks_stay() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
    append_sync(&journal);
    let record = images::ImageRecord {
        id: "0000000a".into(),
        vm: vm.id().to_string(),
        vm_name: vm.name(),
        cut: journal.newest_consistent(WriteSeq::MAX).unwrap().raw(),
        writable: true,
        failover: None,
        open_seconds: 0.0,
        promoted: false,
        closing: None,
        lost_as_zeroes: false,
        zeroed: images::Zeroed::default(),
    };
    recovery.state.save(&record.file_name(), &record).unwrap();
    // A map that can be sealed, so that writing it fails from then on.
    let map = rustix::fs::memfd_create("map", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    let files = vm.folder(&recovery.journal_dir).join(record.overlay_folder());
    std::fs::create_dir(&files).unwrap();
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&map));
    std::os::unix::fs::symlink(link, files.join("vda.now")).unwrap();
    let lease = vm.lease(Use::Image).unwrap();
    let image = recovery.serve_image(&vm, &lease, &record).unwrap();
    let image = recovery.have_it_stay(&vm, &lease, image).unwrap();
    drop((lease, journal));
    recovery.promote_image(&record.id, &api::PromoteRequest::default(), &Asker::default()).unwrap();
    while !image.is_promoted() {
        thread::yield_now();
    }
    image.image().write_at(DiskIndex(0), 4096, &[9; 4096]).unwrap();
    rustix::fs::fcntl_add_seals(&map, rustix::fs::SealFlags::WRITE).unwrap();
    let closed = recovery.close_image(&record.id, false).unwrap();
    assert!(closed.lost.is_some(), "the last writes are not known to be on the disk");
    let disk = std::fs::read(&closed.kept[0]).unwrap();
    assert_eq!((disk.len(), disk[0], disk[4096]), (DISK_BYTES as usize, 7, 9));
    assert!(recovery.images().is_empty() && recovery.waiting_images().is_empty() && !files.exists());
}

/// It may have come to stay just as the forgetting began, which was not taken back any more.
#[test]
fn a_vm_with_an_image_is_not_forgotten_when_the_agent_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let files = {
        let recovery = recovery(folder.path());
        open_by_hand(&recovery);
        let vm = recovery.list()[0].clone();
        vm.begin_forgetting(&recovery.state).unwrap();
        vm.folder(&recovery.journal_dir)
    };
    let recovery = recovery(folder.path());
    begin_anew(&recovery);
    assert!(files.join("manifest").exists(), "a guest may have written to the image");
    let id = recovery.list_images()[0].id.clone();
    recovery.close_image(&id, false).unwrap();
    recovery.forget(&hello(1).vm.to_string(), &Asker::default()).unwrap();
    assert!(!files.exists());
}

#[test]
fn what_is_left_of_an_image_that_nobody_knows_is_told_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (id, files) = {
        let recovery = recovery(folder.path());
        let image = open_by_hand(&recovery);
        let record = image.record();
        recovery.state.remove(&record.file_name()).unwrap();
        (record.id.clone(), recovery.list()[0].folder(&recovery.journal_dir).join(record.overlay_folder()))
    };
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    let told = recovery.alerts.list();
    assert!(told.len() == 1 && told[0].contains(&id), "{told:?}");
    assert!(files.exists());
}

/// A VM of it may run here by any name.
#[test]
fn a_guest_gets_a_name_of_its_own_beside_a_failover_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let unread = hello_of_group(2, 2, "db");
    {
        let recovery = recovery(folder.path());
        append_sync(&recovery.admit(&hello(1), PEER).unwrap().1);
        recovery.admit(&unread, PEER).unwrap();
    }
    let record = folder.path().join(format!("state/failovers/{}.json", unread.group));
    std::fs::create_dir_all(record.parent().unwrap()).unwrap();
    std::fs::write(record, "{").unwrap();
    let recovery = recovery(folder.path());
    recovery.resume_all().unwrap();
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    recovery.failover("web", &request, &Asker::default()).unwrap();
    assert_eq!(recovery.run_of("web", "vm-1").unwrap().0, hello(1).vm.to_string());
}

/// Its journal is closed, and the state folder takes nothing just now.
#[test]
fn an_image_that_could_not_be_given_up_can_be_promoted() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let image = open_by_hand(&side);
    let id = image.record().id;
    close(&side.vm("vm-1").unwrap());
    let in_the_way = side.state.path(&image.record().file_name()).with_extension("partial");
    std::fs::create_dir(&in_the_way).unwrap();
    side.close_image(&id, false).unwrap_err();
    std::fs::remove_dir(&in_the_way).unwrap();
    side.admit(&hello(1), PEER).unwrap();
    side.begin_promotion(&id, &api::PromoteRequest::default(), &Asker::default()).unwrap();
    go_on_with_all(&side);
    assert_eq!(side.list_images()[0].promotion.state, "done", "{:?}", side.alerts.list());
}
