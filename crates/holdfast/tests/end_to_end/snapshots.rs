//! A node that an external snapshot puts above a disk of ours: QEMU refuses it under the tap; on our socket it is told of.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, same_bytes};
use crate::tap::{ask, monitors, protect, traces, try_to_ask};
use crate::tap_changes::wait_until_no_alerts;
use crate::tap_identity::{Unbooted, wait_for_alert};
use lab::{GuestDisk, Ticks, Work, check_file_system, make_disk, read_file, wait_until};
use serde_json::{Value, json};

/// Has the VM write to an image above a node from here on, where QEMU does not refuse it.
fn snapshot(stage: &Stage, node: &str) -> Result<Value, Value> {
    let arguments = json!({
        "node-name": node, "snapshot-file": stage.path("above.qcow2"), "format": "qcow2", "snapshot-node-name": "above"
    });
    try_to_ask(&stage.path("own.qmp"), "blockdev-snapshot-sync", &arguments)
}

/// Merges it back: the VM writes to the node below again.
fn merge(stage: &Stage) {
    ask(stage, "block-commit", &json!({ "job-id": "merge", "device": "above" }));
    let jobs = || ask(stage, "query-block-jobs", &json!({}));
    wait_until("all to be merged", SOON, || Ok((jobs()[0]["ready"] == true).then_some(()))).unwrap();
    ask(stage, "block-job-complete", &json!({ "device": "merge" }));
    wait_until("the end of the merge", SOON, || Ok((jobs() == json!([])).then_some(()))).unwrap();
}

#[test]
fn a_snapshot_above_a_disk_on_our_socket_is_told_of_until_it_is_merged_back() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut guest = stage.guest(Work::Load, GuestDisk::nbd(&socket, "vda"), &monitors(&stage));
    more_ticks(&mut guest, 5);
    snapshot(&stage, "disk").unwrap();
    wait_for_alert(&stage, &stage.path("above.qcow2").display().to_string());
    let row = stage.a.wait_for_state("web", "failed", SOON).unwrap();
    assert_eq!(row["rpo_exceeded"], true, "what the guest writes now is nowhere but in the image above");
    more_ticks(&mut guest, 5);
    merge(&stage);
    wait_until_no_alerts(&stage);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    more_ticks(&mut guest, 5);
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    guest.kill().unwrap();
    stage.left_and_drained("web");
    let copy = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&copy, &disk) && check_file_system(&copy).unwrap());
    let ticks = Ticks::parse(&read_file(&copy, "/ticks").unwrap());
    assert!(ticks.violations == 0 && ticks.last >= reported, "{ticks:?}, {reported} was reported");
    let known = ["above.qcow2", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_snapshot_under_the_tap_is_refused_and_one_that_was_made_meanwhile_is_another_disk() {
    let mut stage = Stage::set();
    let web = stage.disk("web.raw", 16 << 20);
    let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "own")], &[]);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let said = snapshot(&stage, "own").expect_err("the tap is in its way").to_string();
    assert!(said.contains("block device is in use by block job: mirror"), "{said}");
    stage.drained("web");
    // While no agent is there nothing keeps QEMU from it.
    stage.a.stop_agent().unwrap();
    snapshot(&stage, "own").unwrap();
    stage.a.start_agent().unwrap();
    wait_for_alert(&stage, "device virtio-disk0 has image");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "failed");
    assert!(!traces(&stage)["jobs"].to_string().contains("holdfast-"), "it is left alone");
    merge(&stage);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until_no_alerts(&stage);
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &web));
}
