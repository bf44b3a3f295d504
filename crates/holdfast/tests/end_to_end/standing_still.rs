//! What becomes of a guest whose group has failed over, as its own site's operator has chosen.

use crate::one_writer::{qemu_io, said};
use crate::stage::{SOON, Stage, refused, same_bytes};
use crate::tap::{ask, protect};
use crate::tap_identity::{Unbooted, wait_for_alert};
use lab::{NbdClient, wait_until};
use serde_json::json;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

fn protected(stage: &Stage, disk: &Path, on_fenced: &str) -> String {
    let row = stage.try_protect("web", "web", disk, &["--on-fenced", on_fenced]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    row["socket"].as_str().unwrap().to_owned()
}

/// A write of a client that was there before; told when it is answered.
fn write_in_the_background(mut guest: NbdClient, byte: u8) -> Receiver<(NbdClient, anyhow::Result<()>)> {
    guest.set_patience(None).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let written = guest.write(0, &[byte; 4096]);
        let _ = tell.send((guest, written));
    });
    told
}

fn begins_with(disk: &Path, byte: u8) -> bool {
    std::fs::read(disk).unwrap()[..4096] == [byte; 4096]
}

#[test]
fn a_guest_that_is_to_stand_still_writes_nothing_until_the_other_site_has_given_back() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    let socket = protected(&stage, &disk, "pause");
    assert_eq!(stage.a.protected("web").unwrap()["on_fenced"], "pause");
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &[1; 4096]).unwrap();
    stage.drained("web");
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    wait_for_alert(&stage, "its guest stands still here until that is rolled back");
    let runs_twice = |stage: &Stage| {
        let alerts = stage.b.ask(&["alerts"]).unwrap();
        alerts.as_array().unwrap().iter().any(|alert| alert["kind"] == "runs-twice")
    };
    wait_until("the other site to be told too", SOON, || Ok(runs_twice(&stage).then_some(()))).unwrap();
    let answered = write_in_the_background(guest, 2);
    assert!(answered.recv_timeout(Duration::from_secs(2)).is_err(), "it is answered");
    assert!(begins_with(&disk, 1), "it is written");
    // It is so from the start of the next agent on, which has heard nothing from the other site yet.
    stage.b.kill_agent().unwrap();
    stage.a.kill_agent().unwrap();
    assert!(answered.recv().unwrap().1.is_err());
    stage.a.start_agent().unwrap();
    let guest = NbdClient::connect(&socket, "vda").expect("who was there may come back");
    let answered = write_in_the_background(guest, 3);
    assert!(answered.recv_timeout(Duration::from_secs(2)).is_err(), "it is answered");
    assert!(begins_with(&disk, 1), "it is written");
    stage.b.start_agent().unwrap();
    stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    answered.recv().unwrap().1.expect("it goes on");
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(begins_with(&disk, 3) && !runs_twice(&stage));
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

#[test]
fn requests_of_a_guest_that_is_to_stop_fail_until_its_operator_chooses_otherwise() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    let socket = protected(&stage, &disk, "go-on");
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &[1; 4096]).unwrap();
    stage.drained("web");
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    guest.write(0, &[2; 4096]).expect("nobody has chosen yet");
    stage.a.ask(&["group", "set", "--group", "web", "--on-fenced", "stop"]).unwrap();
    guest.write(0, &[3; 4096]).unwrap_err();
    guest.read(0, &mut [0; 4096]).unwrap_err();
    assert!(begins_with(&disk, 2));
    wait_for_alert(&stage, "its guest is stopped here");
    let newcomer = qemu_io(&socket, "read 0 4096");
    assert!(!newcomer.status.success() && said(&newcomer).contains("has failed over"), "{}", said(&newcomer));
    stage.a.ask(&["vm", "set", "web", "--on-fenced", "go-on"]).unwrap();
    guest.write(0, &[4; 4096]).unwrap();
    refused(stage.a.ask(&["vm", "set", "web", "--on-fenced", "explode"]), 2, "go-on, pause, stop");
}

#[test]
fn a_guest_on_its_own_image_stands_still_or_ends_as_its_operator_has_chosen() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    let mut guest = Unbooted::start(&stage, &[("system", &disk, "system")], &[]);
    let does = |stage: &Stage, what: &str| {
        wait_until(&format!("the guest to be {what}"), SOON, || {
            Ok((ask(stage, "query-status", &json!({}))["status"] == what).then_some(()))
        })
        .unwrap();
    };
    does(&stage, "running");
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.ask(&["vm", "set", "web", "--on-fenced", "pause"]).unwrap();
    stage.drained("web");
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    does(&stage, "paused");
    // It knows by whom also after its death.
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    assert_eq!(ask(&stage, "query-status", &json!({}))["status"], "paused");
    ask(&stage, "cont", &json!({}));
    does(&stage, "paused");
    stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    does(&stage, "running");
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    // Whoever has stopped it is not told otherwise.
    ask(&stage, "stop", &json!({}));
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    assert_eq!(ask(&stage, "query-status", &json!({}))["status"], "paused");
    stage.a.ask(&["vm", "set", "web", "--on-fenced", "stop"]).unwrap();
    stage.drained("web");
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    wait_until("the guest's end", SOON, || Ok(guest.0.try_wait()?)).unwrap();
}
