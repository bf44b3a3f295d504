//! Live migration from one QEMU to another on this host: a VM under the tap has left its protection, and is told of; one
//! on our socket is let in again as soon as the QEMU it comes from has gone.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, refused, same_bytes, wait_for_listener};
use crate::tap::{ask, ask_at, monitors, protect};
use crate::tap_changes::wait_until_no_alerts;
use crate::tap_identity::wait_for_alert;
use lab::{
    Guest, GuestDisk, GuestFiles, GuestOptions, Ticks, Work, check_file_system, make_disk, read_file,
    wait_until,
};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A VM on its way in from another QEMU, whose monitors are these.
fn incoming(stage: &Stage, disk: GuestDisk, monitors: &[&str]) -> Guest {
    let mut more = vec!["-incoming".to_owned(), format!("unix:{}", stage.path("moving").display())];
    for monitor in monitors {
        let path = stage.path(monitor);
        let _ = std::fs::remove_file(&path);
        more.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path.display())]);
    }
    let folder = stage.folder.path().to_path_buf();
    let files = GuestFiles::find().unwrap();
    let options = GuestOptions { files: &files, work: Work::Load, disk, folder, name: "moved", more: &more };
    let guest = Guest::start(&options).unwrap();
    monitors.iter().chain(&["moving"]).for_each(|socket| wait_for_listener(&stage.path(socket)));
    guest
}

/// Has the VM move there; returns once it runs there.
fn migrate(stage: &Stage, to: &Path) {
    ask(stage, "migrate", &json!({ "uri": format!("unix:{}", stage.path("moving").display()) }));
    let state = |monitor: &Path| ask_at(monitor, "query-status", &json!({}))["status"].clone();
    wait_until("the VM's arrival", SOON, || {
        let job = ask(stage, "query-migrate", &json!({}));
        assert_ne!(job["status"], "failed", "{job}");
        Ok((state(to) == "running").then_some(()))
    })
    .unwrap();
    assert_eq!(state(&stage.path("own.qmp")), "postmigrate");
}

/// What the guest has reported is in the VM's newest image, which is the disk.
fn has_all(stage: &Stage, guest: &mut Guest, disk: &Path) {
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    guest.kill().unwrap();
    let copy = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&copy, disk), "the image at B is the disk of the VM");
    assert!(check_file_system(&copy).unwrap(), "e2fsck finds something wrong");
    let ticks = Ticks::parse(&read_file(&copy, "/ticks").unwrap());
    assert!(ticks.violations == 0 && ticks.last >= reported, "{ticks:?}, {reported} was reported");
}

#[test]
fn a_tapped_vm_that_moves_to_another_qemu_is_told_of_and_taken_up_where_it_answers_again() {
    let stage = Stage::set();
    let image = stage.path("disk.raw");
    make_disk(&image, 96 << 20).unwrap();
    let disk = || GuestDisk::image(&image, "raw");
    let mut guest = stage.guest(Work::Load, disk(), &monitors(&stage));
    let monitor = stage.path("holdfast.qmp");
    protect(&stage, &monitor).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    more_ticks(&mut guest, 5);
    let mut moved = incoming(&stage, disk(), &["moved.qmp", "other.qmp"]);
    let (other, peer) = (stage.path("other.qmp").display().to_string(), stage.b.peer());
    let early = stage.a.ask(&["vm", "protect", "web2", "--qmp", &other, "--peer", &peer]);
    refused(early, 5, "still on its way in");
    migrate(&stage, &stage.path("moved.qmp"));
    wait_for_alert(&stage, "the VM was migrated or saved");
    stage.a.wait_for_state("web", "failed", SOON).unwrap();
    more_ticks(&mut moved, 5);
    // The QEMU that it has left ends, as libvirt has it do at once.
    guest.kill().unwrap();
    wait_for_alert(&stage, "cannot connect to QEMU's monitor");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "failed");
    // What runs on answers where the VM was protected.
    std::fs::rename(&other, &monitor).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until_no_alerts(&stage);
    more_ticks(&mut moved, 5);
    ask_at(&stage.path("moved.qmp"), "stop", &json!({}));
    stage.drained("web");
    has_all(&stage, &mut moved, &image);
}

#[test]
fn a_vm_on_our_socket_that_moves_to_another_qemu_writes_on_once_the_one_before_has_gone() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut guest = stage.guest(Work::Load, GuestDisk::nbd(&socket, "vda"), &monitors(&stage));
    more_ticks(&mut guest, 5);
    let mut moved = incoming(&stage, GuestDisk::nbd(&socket, "vda"), &["moved.qmp"]);
    migrate(&stage, &stage.path("moved.qmp"));
    // It writes by then, and waits for the one before to go.
    std::thread::sleep(Duration::from_millis(500));
    ask(&stage, "quit", &json!({}));
    more_ticks(&mut moved, 10);
    let first = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    let ticks = Ticks::reported(&mut moved.console).unwrap();
    assert!(ticks[0].number <= first + 1, "no record is missing between the two consoles");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "journaling");
    ask_at(&stage.path("moved.qmp"), "stop", &json!({}));
    stage.drained("web");
    has_all(&stage, &mut moved, &disk);
    assert_eq!(stage.a.unannounced(&["RPO exceeded"]).unwrap(), Vec::<String>::new());
}
