//! What is not known to be well is an alert, on both sides, and a restart makes nothing look fresh.

use crate::stage::{HOLDFAST, SOON, Stage};
use lab::{Site, free_port, wait_until};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;

/// Waits for an alert of a kind about a VM.
pub(crate) fn wait_for_alert(site: &Site, kind: &str, subject: &str) -> Value {
    wait_until(&format!("alert {kind} of {subject}"), SOON, || {
        let alerts = site.ask(&["alerts"])?;
        let alerts = alerts.as_array().unwrap();
        Ok(alerts.iter().find(|alert| alert["kind"] == kind && alert["subject"] == subject).cloned())
    })
    .unwrap()
}

pub(crate) fn wait_until_gone(site: &Site, kind: &str) {
    wait_until(&format!("no alert {kind}"), SOON, || {
        let alerts = site.ask(&["alerts"])?;
        Ok(alerts.as_array().unwrap().iter().all(|alert| alert["kind"] != kind).then_some(()))
    })
    .unwrap();
}

#[test]
fn an_age_goes_on_and_alerts_stand_over_a_restart() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    stage.try_protect("web", "web", &disk, &["--rpo", "1"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until("a complete checkpoint", SOON, || {
        let row = stage.a.protected("web")?;
        Ok((row["rpo_exceeded"] == false && row["rpo_now_seconds"].is_f64()).then_some(()))
    })
    .unwrap();

    stage.b.kill_agent().unwrap();
    let first = wait_for_alert(&stage.a, "rpo", "web");
    wait_for_alert(&stage.a, "link-down", "web");
    let before = stage.a.protected("web").unwrap()["rpo_now_seconds"].as_f64().unwrap();
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    let row = stage.a.protected("web").unwrap();
    assert_eq!(row["rpo_exceeded"], true, "no fresh copy is proven: {row:#}");
    assert!(row["rpo_now_seconds"].as_f64().unwrap() >= before, "{before} s before: {row:#}");
    let again = wait_for_alert(&stage.a, "rpo", "web");
    assert_eq!(again["since"], first["since"]);
    assert_ne!(again["to_do"], "");
    wait_for_alert(&stage.a, "link-down", "web");

    // Never reached at all is no better.
    let nobody = format!("127.0.0.1:{}", free_port().unwrap());
    let other = stage.disk("other.raw", 2 << 20);
    let other = format!("vda={}", other.display());
    let protect = ["vm", "protect", "new", "--disk", &other, "--peer", &nobody, "--rpo", "1"];
    assert_eq!(stage.a.ask(&protect).unwrap()["state"], "tracking", "the state is known at once");
    wait_for_alert(&stage.a, "never-copied", "new");
    let row = stage.a.protected("new").unwrap();
    assert_eq!((&row["rpo_now_seconds"], &row["rpo_exceeded"]), (&Value::Null, &Value::Bool(true)));
    stage.a.ask(&["vm", "unprotect", "new"]).unwrap();
    wait_until_gone(&stage.a, "never-copied");

    stage.b.start_agent().unwrap();
    wait_until_gone(&stage.a, "rpo");
    wait_until_gone(&stage.a, "link-down");

    // The recovery side says so too, where the protected side has gone.
    let id = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    stage.a.kill_agent().unwrap();
    let told = wait_for_alert(&stage.b, "source-silent", &id);
    assert!(told["text"].as_str().unwrap().contains("site-a/web"), "{told}");
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    wait_for_alert(&stage.b, "source-silent", &id);
    stage.a.start_agent().unwrap();
    wait_until_gone(&stage.b, "source-silent");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    assert_eq!(stage.b.recovered("web").unwrap()["state"], "left", "nobody waits for it any more");
}

#[test]
fn a_fenced_side_knows_it_over_a_restart_and_a_refusal_is_an_alert() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let failover = stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    let notes = failover["notes"].to_string();
    assert!(notes.contains("still connected") && notes.contains("site-a"), "{notes}");
    wait_for_alert(&stage.a, "fenced", "web");

    stage.b.kill_agent().unwrap();
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    assert_eq!(stage.a.protected("web").unwrap()["state"], "fenced", "nobody has given it back");
    wait_for_alert(&stage.a, "fenced", "web");

    stage.b.start_agent().unwrap();
    stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until_gone(&stage.a, "fenced");
}

/// Waits for an alert whose text holds these words.
fn wait_for_words(site: &Site, kind: &str, subject: &str, words: &str) -> Value {
    wait_until(&format!("alert {kind} of {subject} with {words:?}"), SOON, || {
        let alert = wait_for_alert(site, kind, subject);
        Ok(alert["text"].as_str().unwrap().contains(words).then_some(alert))
    })
    .unwrap()
}

#[test]
fn a_site_that_is_trusted_no_more_is_an_alert_at_once_until_it_is_again() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let elsewhere = Site::make(Path::new(HOLDFAST), &stage.path("elsewhere"), "site-z").unwrap();
    stage.b.trust(&elsewhere).unwrap();
    std::fs::remove_file(stage.b.pki().join("trust/site-a.pem")).unwrap();
    // Long before its bound of 60 s: who refuses has been reached, and does not change his mind by himself.
    let alert = wait_for_words(&stage.a, "failed", "web", "certificate");
    assert!(alert["to_do"].as_str().unwrap().contains("vm show"), "{alert:#}");
    let alerts = stage.a.ask(&["alerts"]).unwrap().to_string();
    assert!(!alerts.contains("link-down"), "{alerts}");
    stage.b.trust(&stage.a).unwrap();
    wait_until_gone(&stage.a, "failed");
    stage.drained("web");
}

#[test]
fn a_vm_that_is_refused_is_an_alert_with_the_cure_and_so_are_other_disks() {
    let mut stage = Stage::set();
    let (disk, other) = (stage.disk("disk.raw", 1 << 20), stage.disk("other.raw", 1 << 20));
    stage.protect("web", "web", &disk);
    stage.protect("db", "db", &other);
    stage.drained("db");
    // The host was set up anew: nothing is known there of "web", and of "db" nothing of what its disk was.
    stage.a.stop_agent().unwrap();
    let state = stage.a.folder.join("state");
    for record in std::fs::read_dir(state.join("protected")).unwrap().map(|row| row.unwrap().path()) {
        let mut known: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        if known["name"] == "web" {
            std::fs::remove_file(&record).unwrap();
            continue;
        }
        known["disks"][0].as_object_mut().unwrap().remove("file");
        std::fs::write(&record, known.to_string()).unwrap();
    }
    std::fs::remove_dir_all(state.join("tracking")).unwrap();
    std::fs::File::options().write(true).open(&other).unwrap().set_len(2 << 20).unwrap();
    stage.a.start_agent().unwrap();
    wait_for_words(
        &stage.a,
        "failed",
        "db",
        "the journal holds vda of 1048576 bytes, the VM has vda of 2097152",
    );
    stage.try_protect("web", "again", &disk, &[]).unwrap();
    let alert = wait_for_words(&stage.a, "failed", "web", "already keeps a VM named web");
    assert_eq!(alert["severity"], "critical");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "failed");

    // Each cure is the one that was told.
    let old = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    assert!(alert["text"].as_str().unwrap().contains(&format!("holdfast vm forget {old}")), "{alert:#}");
    stage.b.ask(&["vm", "forget", &old]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.a.ask(&["vm", "unprotect", "db"]).unwrap();
    stage.protect("db", "db", &other);
    wait_until_gone(&stage.a, "failed");
}

#[test]
fn a_reader_that_has_had_enough_is_no_fault() {
    let stage = Stage::set();
    let mut command = stage.a.command();
    let mut child = command.args(["status"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}
