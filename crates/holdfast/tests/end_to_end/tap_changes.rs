//! What happens to a VM under the tap beside its writes is said at once: it moves away, its disks come and go, its
//! monitor falls silent, somebody else wants its disks.

use crate::stage::{SOON, Stage, refused};
use crate::tap::{ask, protect, traces, try_to_ask};
use crate::tap_identity::{Unbooted, wait_for_alert};
use lab::wait_until;
use serde_json::json;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

const SCSI: &[&str] = &["-device", "virtio-scsi-pci,id=scsi0"];

fn plug(stage: &Stage, image: &Path, id: &str) {
    let file = json!({ "driver": "file", "filename": image });
    ask(stage, "blockdev-add", &json!({ "driver": "raw", "node-name": id, "file": file }));
    ask(stage, "device_add", &json!({ "driver": "scsi-hd", "drive": id, "bus": "scsi0.0", "id": id }));
}

/// As libvirt plugs in its second disk; newer versions have no node for the format of a raw image. The node that serves it.
fn plug_as_libvirt(stage: &Stage, image: &Path, has_format: bool) -> &'static str {
    ask(
        stage,
        "blockdev-add",
        &json!({ "driver": "file", "filename": image, "node-name": "libvirt-2-storage" }),
    );
    let served = if has_format { "libvirt-2-format" } else { "libvirt-2-storage" };
    if has_format {
        let format = json!({ "driver": "raw", "node-name": served, "file": "libvirt-2-storage" });
        ask(stage, "blockdev-add", &format);
    }
    ask(
        stage,
        "device_add",
        &json!({ "driver": "scsi-hd", "drive": served, "bus": "scsi0.0", "id": "scsi0-0-0-1" }),
    );
    served
}

#[test]
fn what_libvirt_cannot_remove_of_a_disk_because_of_the_tap_is_removed() {
    for has_format in [true, false] {
        let stage = Stage::set();
        let (web, second) = (stage.disk("web.raw", 16 << 20), stage.disk("second.raw", 8 << 20));
        let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], SCSI);
        let served = plug_as_libvirt(&stage, &second, has_format);
        protect(&stage, &stage.path("holdfast.qmp")).unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        ask(&stage, "device_del", &json!({ "id": "scsi0-0-0-1" }));
        // libvirt tries once, and the job is in the way, unless the agent was faster.
        let _ = try_to_ask(&stage.path("own.qmp"), "blockdev-del", &json!({ "node-name": served }));
        wait_for_alert(&stage, "disk vdb is not protected any more: the VM has it no more");
        assert!(!traces(&stage).to_string().contains("libvirt-2-"), "{:#}", traces(&stage));
        // Nobody has its image open: it can be plugged in again, and is taken in.
        plug_as_libvirt(&stage, &second, has_format);
        wait_until_no_alerts(&stage);
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        stage.drained("web");
    }
}

pub(crate) fn wait_until_no_alerts(stage: &Stage) {
    wait_until("no alerts", SOON, || Ok((stage.a.ask(&["status"])?["alerts"] == json!([])).then_some(())))
        .unwrap();
}

#[test]
fn disks_that_come_and_go_are_told_of_and_do_not_take_the_others_along() {
    let mut stage = Stage::set();
    let (web, second, third) = (
        stage.disk("web.raw", 16 << 20),
        stage.disk("second.raw", 8 << 20),
        stage.disk("third.raw", 8 << 20),
    );
    let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], SCSI);
    plug(&stage, &second, "second");
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    assert_eq!(stage.a.protected("web").unwrap()["disks"].as_array().unwrap().len(), 2);
    plug(&stage, &third, "third");
    wait_for_alert(&stage, "disk third (");
    ask(&stage, "device_del", &json!({ "id": "third" }));
    wait_until_no_alerts(&stage);
    ask(&stage, "device_del", &json!({ "id": "second" }));
    wait_for_alert(&stage, "disk vdb is not protected any more: the VM has it no more");
    assert!(!traces(&stage).to_string().contains("holdfast-vdb"), "nothing of its tap is left");
    ask(&stage, "blockdev-del", &json!({ "node-name": "second" }));
    let is_well = |stage: &Stage| {
        stage.drained("web");
        assert!(traces(stage).to_string().contains("holdfast-vda"));
    };
    is_well(&stage);
    // An agent that begins anew takes up what is there.
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    is_well(&stage);
    wait_for_alert(&stage, "disk vdb is not protected any more");
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    is_well(&stage);
    plug(&stage, &second, "second");
    wait_until("the tap of the disk that is back", SOON, || {
        Ok(traces(&stage).to_string().contains("holdfast-vdb").then_some(()))
    })
    .unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    is_well(&stage);
    wait_until_no_alerts(&stage);
    let known = [
        "has this disk no more",
        "disks of web",
        "disk vdb",
        "disk third",
        "is there again",
        "RPO",
        "link lost",
    ];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_vm_that_moves_away_or_falls_silent_is_not_journaling() {
    let stage = Stage::set();
    let web = stage.disk("web.raw", 16 << 20);
    let mut vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    let monitor = stage.path("holdfast.qmp");
    protect(&stage, &monitor).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    ask(&stage, "stop", &json!({}));
    wait_until("the guest's state", SOON, || {
        Ok((stage.a.protected("web")?["guest"] == "paused").then_some(()))
    })
    .unwrap();
    ask(&stage, "cont", &json!({}));
    // As a live migration and as a save to a file end it.
    ask(&stage, "migrate", &json!({ "uri": "exec:cat > /dev/null" }));
    wait_for_alert(&stage, "the VM was migrated or saved");
    stage.a.wait_for_state("web", "failed", SOON).unwrap();
    vm.kill();
    // It comes back, and then says nothing any more.
    let vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let pid = vm.0.id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    wait_for_alert(&stage, "QEMU's monitor says nothing for 5 seconds");
    stage.a.wait_for_state("web", "failed", SOON).unwrap();
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    assert!(stage.a.protected("web").is_err(), "it is not taken up again");
    assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
}

#[test]
fn a_tapped_disk_is_for_its_vm_only() {
    let stage = Stage::set();
    let web = stage.disk("web.raw", 16 << 20);
    let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    let monitor = stage.path("holdfast.qmp");
    // Somebody else holds the monitor.
    let held = UnixStream::connect(&monitor).unwrap();
    let mut greeting = String::new();
    BufReader::new(held.try_clone().unwrap()).read_line(&mut greeting).unwrap();
    refused(protect(&stage, &monitor), 5, "somebody else is connected to this monitor");
    drop(held);
    protect(&stage, &monitor).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let (path, peer) = (monitor.display().to_string(), stage.b.peer());
    let again = stage.a.ask(&["vm", "protect", "web2", "--qmp", &path, "--peer", &peer]);
    refused(again, 4, "is protected already, as web");
    let row = stage.a.protected("web").unwrap();
    assert_eq!((&row["socket"], &row["disks"][0]["vhost_user_socket"]), (&json!(""), &json!(null)));
    let folder = stage.a.folder.join("run/vms");
    let mut names = std::fs::read_dir(&folder).unwrap().map(|row| row.unwrap().file_name());
    assert!(names.all(|name| !name.to_string_lossy().ends_with(".vhost")), "there is no other way to it");
    let mut client = UnixStream::connect(folder.join("web.sock")).unwrap();
    assert!(matches!(client.read(&mut [0; 18]), Ok(0) | Err(_)), "nobody but the VM is greeted");
    // A tap that ends takes consistency along before any checkpoint is taken.
    ask(&stage, "block-job-cancel", &json!({ "device": "holdfast-vda", "force": true }));
    // QEMU hangs up a moment after it has said that it will; from then until the tap is back none is taken.
    let refused = || stage.a.ask(&["checkpoint", "tag", "--group", "web", "late"]).is_err();
    wait_until("a checkpoint that is refused", SOON, || Ok(refused().then_some(()))).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.tag("web", "web", "later");
}

#[test]
fn that_trim_has_no_effect_is_said_of_a_tapped_vm_and_of_no_other() {
    let stage = Stage::set();
    let (web, other) = (stage.disk("web.raw", 4 << 20), stage.disk("other.raw", 4 << 20));
    // It has an NBD and a vhost-user socket.
    stage.protect("other", "other", &other);
    let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let said_of = |vm: &str| {
        let output = stage.a.command().args(["vm", "show", vm]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let notes = stage.a.protected(vm).unwrap()["notes"].to_string();
        [text, notes].map(|said| said.contains("TRIM has no effect while tapped"))
    };
    assert_eq!((said_of("web"), said_of("other")), ([true; 2], [false; 2]));
    assert_eq!(stage.a.ask(&["status"]).unwrap()["alerts"], json!([]), "nothing is broken");
}
