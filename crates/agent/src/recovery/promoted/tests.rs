//! Promoted disks whose image is closed, cut short at any step, whatever becomes of its journal meanwhile.

use super::super::images::OpenImage;
use super::super::tests::{PEER, append_sync, close, end, hello, open_by_hand, recovery};
use super::*;
use crate::ledger::Asker;
use joint::life::Use;
use std::sync::Arc;
use std::thread;

#[test]
fn a_close_that_was_cut_short_at_any_step_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("image-1"), folder.path().join("disks-of-web-1"));
    std::fs::create_dir(&from).unwrap();
    for disk in ["vda", "vdb"] {
        std::fs::write(from.join(format!("{disk}.data")), disk).unwrap();
    }
    let names = || ["vda".to_owned(), "vdb".to_owned()].into_iter();
    let check = || {
        for kept in move_disks(&from, &to, names()).unwrap() {
            assert_eq!(std::fs::read(&kept).unwrap(), kept.file_stem().unwrap().as_encoded_bytes());
        }
    };
    std::fs::create_dir(&to).unwrap();
    std::fs::rename(from.join("vda.data"), to.join("vda.raw")).unwrap();
    check();
    check();
    std::fs::remove_dir_all(&from).unwrap();
    check();
}

/// A promoted image, the disk it has in its journal, and where that is to go.
fn promoted(recovery: &Arc<Recovery>) -> (Arc<OpenImage>, PathBuf, PathBuf) {
    let image = open_by_hand(recovery);
    let record = image.record();
    promote_and_wait(recovery, &record.id);
    let folder = recovery.list()[0].folder(&recovery.journal_dir);
    let place = place_for(&folder, &record).unwrap();
    (image, folder.join(record.overlay_folder()).join("vda.data"), place)
}

/// A VM's folder in the journals' is on another file system, where a link leads here; what is there.
fn elsewhere(folder: &Path) -> tempfile::TempDir {
    let there = tempfile::tempdir_in("/dev/shm").unwrap();
    let journals = folder.join("state/journals");
    std::fs::create_dir_all(&journals).unwrap();
    std::os::unix::fs::symlink(there.path(), journals.join(hello(1).vm.to_string())).unwrap();
    there
}

fn promote_and_wait(recovery: &Arc<Recovery>, id: &str) -> Arc<OpenImage> {
    let image = recovery.image(id).unwrap();
    recovery.promote_image(id, &api::PromoteRequest::default(), &Asker::default()).unwrap();
    while !image.is_promoted() {
        thread::yield_now();
    }
    image
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|row| row.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_rollback_with_promoted_disks_on_a_file_system_of_their_own_ends_and_they_outlive_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let there = elsewhere(folder.path());
    let side = recovery(folder.path());
    append_sync(&side.admit(&hello(1), PEER).unwrap().1);
    let request = api::FailoverRequest { at: "latest".into(), vms: Vec::new(), without: Vec::new() };
    let id = side.failover("web", &request, &Asker::default()).unwrap().vms[0].image.clone();
    drop(promote_and_wait(&side, &id));
    assert_eq!(side.rollback("web", &Asker::default()).unwrap().phase, "rolled-back");
    assert!(side.failover("web", &request, &Asker::default()).is_ok(), "the group is free");
    side.rollback("web", &Asker::default()).unwrap();
    side.forget("vm-1", &Asker::default()).unwrap();
    let kept = format!("disks-of-vm-1-{id}");
    assert_eq!(names(there.path()), [kept.as_str()]);
    assert_eq!(std::fs::read(there.path().join(kept).join("vda.raw")).unwrap()[0], 7);
}

/// It had begun to close the image, and a rename did not lead to the place that it had written down.
#[test]
fn disks_that_an_agent_of_before_could_not_move_to_another_file_system_go_where_they_can() {
    let folder = tempfile::tempdir().unwrap();
    let _there = elsewhere(folder.path());
    let side = recovery(folder.path());
    let (image, _, place) = promoted(&side);
    let record = image.record();
    drop(image);
    end(side);
    let before = folder.path().join(format!("state/journals/disks-of-vm-1-{}", record.id));
    std::fs::create_dir(&before).unwrap();
    let side = recovery(folder.path());
    let closing = Some(Closing { keep_in: Some(before.clone()) });
    side.state.save(&record.file_name(), &ImageRecord { closing, ..record }).unwrap();
    side.resume_all().unwrap();
    assert!(side.list_images().is_empty(), "{:?}", side.alerts.list());
    assert!(!before.exists());
    assert_eq!(std::fs::read(place.join("vda.raw")).unwrap()[0], 7);
}

#[test]
fn a_journal_that_moves_away_leaves_promoted_disks_where_they_were_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let there = elsewhere(folder.path());
    let side = recovery(folder.path());
    let id = open_by_hand(&side).record().id;
    drop(promote_and_wait(&side, &id));
    let kept = side.close_image(&id, false).unwrap().kept.remove(0);
    let target = folder.path().join("target");
    side.move_journal("vm-1", &target.display().to_string(), &Asker::default()).unwrap();
    assert_eq!(names(there.path()), [format!("disks-of-vm-1-{id}")]);
    assert_eq!(std::fs::read(kept).unwrap()[0], 7);
    assert!(!names(&target).iter().any(|name| name.starts_with("disks-of-")));
}

/// Its image is tried again as by itself, now that nothing is in the way: it is closed, and its disk is where it goes.
fn check_goes_on(recovery: &Recovery, disk: &Path, place: &Path) {
    recovery.open_journal(&recovery.list()[0], Use::Look).unwrap();
    let waiting: Vec<_> = recovery.waiting_images().values().map(|image| image.record.clone()).collect();
    waiting.into_iter().for_each(|record| recovery.serve_again(record));
    let kept = std::fs::read(place.join("vda.raw")).expect("the promoted disk is lost");
    assert_eq!(kept[0], 7);
    assert!(!disk.exists() && recovery.list_images().is_empty());
}

#[test]
fn promoted_disks_whose_close_was_cut_short_stay_whatever_becomes_of_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let recovery = recovery(folder.path());
    let (image, disk, place) = promoted(&recovery);
    let id = image.record().id;
    // As on a disk that is full or fails.
    std::fs::write(&place, "").unwrap();
    assert!(recovery.close_image(&id, false).is_err());
    close(&recovery.list()[0]);
    assert!(recovery.close_image(&id, false).is_err(), "they cannot be kept now, and are not given up");
    assert!(disk.exists());
    std::fs::remove_file(&place).unwrap();
    check_goes_on(&recovery, &disk, &place);
}

#[test]
fn promoted_disks_whose_close_was_cut_short_outlive_a_restart_with_a_journal_that_cannot_be_opened() {
    // What an agent of before wrote down says where they go, and not that they are promoted.
    for is_of_before in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (id, disk, place) = {
            let side = recovery(folder.path());
            let (image, disk, place) = promoted(&side);
            let id = image.record().id;
            drop(image);
            std::fs::write(&place, "").unwrap();
            assert!(side.close_image(&id, false).is_err());
            end(side);
            (id, disk, place)
        };
        let record = folder.path().join(format!("state/images/{id}.json"));
        let text = std::fs::read_to_string(&record).unwrap();
        let of_before = text.replace("\"promoted\": true", "\"promoted\": false");
        assert_ne!(of_before, text);
        std::fs::write(&record, if is_of_before { of_before } else { text }).unwrap();
        let files = disk.parent().and_then(Path::parent).unwrap();
        let aside = |name: &str| files.join(format!("aside-{name}"));
        journal::MANIFESTS.iter().for_each(|name| std::fs::rename(files.join(name), aside(name)).unwrap());
        let side = recovery(folder.path());
        side.resume_all().unwrap();
        assert!(side.close_image(&id, false).is_err(), "they cannot be kept now, and are not given up");
        journal::MANIFESTS.iter().for_each(|name| std::fs::rename(aside(name), files.join(name)).unwrap());
        std::fs::remove_file(&place).unwrap();
        check_goes_on(&side, &disk, &place);
    }
}

/// A disk that is gone already would be served as an empty one.
#[test]
fn an_image_that_waits_and_could_not_be_closed_is_not_served_again() {
    let folder = tempfile::tempdir().unwrap();
    let side = recovery(folder.path());
    let (image, disk, place) = promoted(&side);
    let id = image.record().id;
    drop(image);
    end(side);
    let side = recovery(folder.path());
    // Where its socket would be.
    let run = folder.path().join("run");
    std::fs::remove_dir_all(&run).unwrap();
    std::fs::write(&run, "").unwrap();
    side.resume_all().unwrap();
    std::fs::write(&place, "").unwrap();
    assert!(side.image(&id).is_none() && side.close_image(&id, false).is_err());
    std::fs::remove_file(&run).unwrap();
    std::fs::create_dir(&run).unwrap();
    let waiting = side.waiting_images()[&id].record.clone();
    side.serve_again(waiting);
    assert!(side.image(&id).is_none(), "it is being closed");
    std::fs::remove_file(&place).unwrap();
    check_goes_on(&side, &disk, &place);
}
