//! The tap harms no VM, however QEMU serves its disks and however the agent ends: while nothing is read there is no
//! export, server or connection of ours for reading in the VM's process, and where one could do harm there never is.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, refused, same_bytes, wait_for_listener};
use crate::tap::{ask, monitors, protect, traces, try_to_ask};
use lab::{Guest, GuestDisk, Qemu, Work, make_disk, wait_until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// A guest whose disk is served by QEMU's main loop.
fn guest(stage: &Stage, image: &Path) -> Guest {
    let device = "virtio-blk-pci,drive=own,discard=on,num-queues=2,id=disk0".to_owned();
    let image = image.display();
    let node = format!(
        "driver=raw,node-name=own,discard=unmap,file.driver=file,file.filename={image},file.discard=unmap"
    );
    let disk = vec!["-blockdev".to_owned(), node, "-device".to_owned(), device];
    stage.guest(Work::Load, GuestDisk::Arguments(disk), &monitors(stage))
}

/// Nothing of ours is open in the VM for reading: QEMU has no export, and its NBD server is free to be started.
pub(crate) fn nothing_is_open(stage: &Stage) -> bool {
    if ask(stage, "query-block-exports", &json!({})) != json!([]) {
        return false;
    }
    let address = json!({ "type": "unix", "data": { "path": stage.path("free.nbd") } });
    let is_free = try_to_ask(&stage.path("own.qmp"), "nbd-server-start", &json!({ "addr": address })).is_ok();
    if is_free {
        ask(stage, "nbd-server-stop", &json!({}));
    }
    is_free
}

pub(crate) fn wait_until_nothing_is_open(stage: &Stage) {
    wait_until("nothing of ours to be open", SOON, || Ok(nothing_is_open(stage).then_some(()))).unwrap();
}

fn names_of_ours(stage: &Stage, without_logs: bool) -> Vec<String> {
    let mut traces = traces(stage);
    if without_logs {
        for node in traces["nodes"].as_array_mut().unwrap() {
            node[2] = Value::Null;
        }
    }
    let text = traces.to_string();
    text.split('"').filter(|word| word.starts_with("holdfast-")).map(str::to_owned).collect()
}

fn is_harmless() {
    let mut stage = Stage::set();
    let image = stage.path("disk.raw");
    make_disk(&image, 96 << 20).unwrap();
    let mut guest = guest(&stage, &image);
    let before = traces(&stage);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    let journaling = |stage: &Stage| stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    journaling(&stage);
    // Idle: nothing is read.
    wait_until_nothing_is_open(&stage);
    more_ticks(&mut guest, 5);
    stage.a.kill_agent().unwrap();
    more_ticks(&mut guest, 10);
    assert!(nothing_is_open(&stage), "after the agent's death");
    stage.a.start_agent().unwrap();
    journaling(&stage);
    // While everything is read.
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    stage.a.wait_for_state("web", "delta-sync", SOON).unwrap();
    stage.a.kill_agent().unwrap();
    more_ticks(&mut guest, 10);
    stage.a.start_agent().unwrap();
    journaling(&stage);
    wait_until_nothing_is_open(&stage);
    // A clean stop, while everything is read: the change logs stay, and nothing else.
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    stage.a.wait_for_state("web", "delta-sync", SOON).unwrap();
    stage.a.stop_agent().unwrap();
    assert!(nothing_is_open(&stage), "after a clean stop");
    assert_eq!(names_of_ours(&stage, true), Vec::<String>::new(), "after a clean stop");
    assert!(!names_of_ours(&stage, false).is_empty(), "the change logs go on");
    more_ticks(&mut guest, 10);
    stage.a.start_agent().unwrap();
    journaling(&stage);
    more_ticks(&mut guest, 5);
    ask(&stage, "stop", &json!({}));
    stage.drained("web");
    let copy = stage.copy_image("web", "latest", "image.raw");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    assert_eq!(traces(&stage), before, "the VM is as it was");
    guest.kill().unwrap();
    assert!(same_bytes(&copy, &image), "the image at B is the disk of the VM");
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_vm_served_by_the_main_loop_survives_every_end_of_the_agent() {
    is_harmless();
}

#[test]
fn a_vm_that_cannot_be_read_without_danger_is_refused_with_a_sentence() {
    for format in ["qcow2", "raw"] {
        let stage = Stage::set();
        let (answer, left_as_it_was) = protect_with_an_io_thread(&stage, &Qemu::system(), format);
        refused(answer, 5, "QEMU 7 with I/O threads may end when an agent does");
        assert!(left_as_it_was, "nothing was begun");
    }
    let stage = Stage::set();
    protect_with_an_io_thread(&stage, &Qemu::ten().unwrap(), "qcow2").0.unwrap();
}

/// What is said, and whether the VM is as it was.
fn protect_with_an_io_thread(stage: &Stage, qemu: &Qemu, format: &str) -> (anyhow::Result<Value>, bool) {
    let image = stage.path("disk");
    let mut create = Command::new("qemu-img");
    assert!(create.args(["create", "-q", "-f", format]).arg(&image).arg("16M").status().unwrap().success());
    // Its disk is enough; it is not booted.
    let mut qemu = qemu.command("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", "tcg", "-S", "-nodefaults", "-display", "none"]);
    qemu.args(["-object", "iothread,id=io0", "-device", "virtio-blk-pci,drive=own,iothread=io0"]);
    qemu.arg("-blockdev")
        .arg(format!("driver={format},node-name=own,file.driver=file,file.filename={}", image.display()));
    let mut qemu = qemu.args(monitors(stage)).spawn().unwrap();
    wait_for_listener(&stage.path("own.qmp"));
    let before = traces(stage);
    let answer = protect(stage, &stage.path("holdfast.qmp"));
    let is_as_it_was = traces(stage) == before;
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    (answer, is_as_it_was)
}
