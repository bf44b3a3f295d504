//! What is recorded of changes, whoever asks for them, and what happens where nothing can be recorded.

use crate::calling::{Connection, issue};
use crate::refusals::{SmallFileSystem, as_root};
use crate::rights::with_api_on_tcp;
use crate::stage::{SOON, Stage, refused};
use lab::wait_until;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn recorded(stage: &Stage) -> Vec<Value> {
    let page = stage.a.ask(&["audit", "list"]).unwrap();
    page["entries"].as_array().unwrap().clone()
}

#[test]
fn every_change_at_either_door_is_recorded_and_what_only_looks_or_may_not_is_not() {
    let (mut stage, port) = with_api_on_tcp();
    for role in ["viewer", "operator"] {
        issue(&stage.a, &["--operator", role, "--role", role]);
    }
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    let mut operator = Connection::open(&stage.a, "operator", port);
    assert_eq!(operator.ask("POST", "/v1/vms/web/pause", "").unwrap().status, 200);
    assert_eq!(operator.ask("POST", "/v1/vms/nobody/pause", "").unwrap().status, 404);
    assert_eq!(operator.ask("GET", "/v1/status", "").unwrap().status, 200);
    let mut viewer = Connection::open(&stage.a, "viewer", port);
    assert_eq!(viewer.ask("POST", "/v1/vms/web/resume", "").unwrap().status, 403);
    stage.a.ask(&["vm", "resume", "web"]).unwrap();
    let entries = wait_until("the ends of all", SOON, || {
        let entries = recorded(&stage);
        Ok(entries.iter().all(|entry| entry["outcome"] != "unknown").then_some(entries))
    })
    .unwrap();
    let rows: Vec<_> =
        entries.iter().map(|entry| [&entry["who"], &entry["path"], &entry["outcome"]]).collect();
    let root = &Value::from(format!("uid {}", rustix::process::geteuid().as_raw()));
    let anna = &Value::from("operator.site-a");
    let text = [
        "/v1/vms/web/resume",
        "/v1/vms/nobody/pause",
        "/v1/vms/web/pause",
        "/v1/vms?wait=3600",
        "done",
        "refused",
    ];
    let [resume, nobody, pause, vms, done, refused] = &text.map(Value::from);
    assert_eq!(rows, [[root, resume, done], [anna, nobody, refused], [anna, pause, done], [root, vms, done]]);
    let (tcp, local) = (&entries[2], &entries[3]);
    assert!(
        tcp["door"] == "tcp"
            && tcp["role"] == "operator"
            && tcp["from"].as_str().unwrap().starts_with("127.0.0.1:")
    );
    assert_eq!(tcp["fingerprint"].as_str().unwrap().len(), 95, "SHA-256 as openssl shows it");
    assert!(
        local["door"] == "socket" && local["from"].as_str().unwrap().starts_with("process "),
        "{local:#}"
    );
    // It outlives the agent, however that ends.
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    assert_eq!(recorded(&stage), entries);
    let last = entries[0]["at"].as_str().unwrap();
    let since = stage.a.ask(&["audit", "list", "--since", last]).unwrap();
    assert_eq!(since["entries"].as_array().unwrap().len(), 1);
    crate::stage::refused(stage.a.ask(&["audit", "list", "--since", "yesterday"]), 2, "RFC 3339");
}

/// A stage whose site A has a file system of its own for the audit record, which is full when the agent starts or not.
fn with_a_disk_of_its_own(full: bool) -> (Stage, SmallFileSystem, PathBuf) {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.a.stop_agent().unwrap();
    let place = stage.a.folder.join("state/audit");
    let mounted = SmallFileSystem::mount(&stage.path("fs.img"), &place, 64 << 20);
    let mounted =
        mounted.expect("a small file system is mounted on a loop device for this, which needs root");
    if full {
        let ballast = std::fs::File::create(place.join("ballast")).unwrap();
        let filled = std::io::copy(&mut std::io::repeat(0), &mut &ballast);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }
    stage.a.start_agent().unwrap();
    (stage, mounted, place)
}

fn alerts(stage: &Stage) -> String {
    stage.a.ask(&["status"]).unwrap()["alerts"].to_string()
}

#[test]
fn a_full_disk_under_the_audit_record_refuses_changes_and_costs_the_guest_nothing() {
    let (stage, _mounted, place) = with_a_disk_of_its_own(true);
    refused(stage.a.ask(&["vm", "pause", "web"]), 5, "cannot be recorded");
    assert!(alerts(&stage).contains("changes are refused"), "{}", alerts(&stage));
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    std::fs::remove_file(place.join("ballast")).unwrap();
    stage.a.ask(&["vm", "pause", "web"]).unwrap();
    assert!(!alerts(&stage).contains("changes are refused"), "{}", alerts(&stage));
    assert_eq!(recorded(&stage)[0]["path"], "/v1/vms/web/pause");
}

#[test]
fn a_disk_that_becomes_full_leaves_room_for_the_record_of_what_makes_it_emptier() {
    let (stage, _mounted, place) = with_a_disk_of_its_own(false);
    wait_until("the record's file", SOON, || Ok(place.join("000000000001.jsonl").exists().then_some(())))
        .unwrap();
    let ballast = std::fs::File::create(place.join("ballast")).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(0), &mut &ballast);
    assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    stage.a.ask(&["vm", "pause", "web"]).unwrap();
    stage.a.ask(&["vm", "resume", "web"]).unwrap();
    assert_eq!(recorded(&stage).len(), 2);
}

/// Frozen until it is dropped: who writes there waits.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn freeze(at: &'a Path) -> Self {
        assert!(as_root("fsfreeze").arg("-f").arg(at).status().unwrap().success());
        Self(at)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = as_root("fsfreeze").arg("-u").arg(self.0).status();
    }
}

#[test]
fn a_disk_that_hangs_under_the_audit_record_refuses_changes_and_stops_nothing_else() {
    let (stage, _mounted, place) = with_a_disk_of_its_own(false);
    stage.a.ask(&["vm", "pause", "web"]).unwrap();
    let frozen = Frozen::freeze(&place);
    refused(stage.a.ask(&["vm", "resume", "web"]), 5, "does not answer");
    assert!(alerts(&stage).contains("changes are refused"), "{}", alerts(&stage));
    assert_eq!(stage.a.protected("web").unwrap()["state"], "paused");
    drop(frozen);
    stage.a.ask(&["vm", "resume", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    assert!(!alerts(&stage).contains("changes are refused"), "{}", alerts(&stage));
    wait_until("what became of each", SOON, || {
        let outcomes: Vec<_> = recorded(&stage).iter().map(|entry| entry["status"].clone()).collect();
        Ok((outcomes == [200, 503, 200]).then_some(()))
    })
    .unwrap();
}
