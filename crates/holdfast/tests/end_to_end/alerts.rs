//! What is not known to be well is an alert, on both sides, and a restart makes nothing look fresh.

use crate::stage::{SOON, Stage};
use lab::{Site, free_port, wait_until};
use serde_json::Value;
use std::process::Stdio;

/// Waits for an alert of a kind about a VM.
fn wait_for_alert(site: &Site, kind: &str, subject: &str) -> Value {
    wait_until(&format!("alert {kind} of {subject}"), SOON, || {
        let alerts = site.ask(&["alerts"])?;
        let alerts = alerts.as_array().unwrap();
        Ok(alerts.iter().find(|alert| alert["kind"] == kind && alert["subject"] == subject).cloned())
    })
    .unwrap()
}

fn wait_until_gone(site: &Site, kind: &str) {
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
    stage.a.kill_agent().unwrap();
    wait_for_alert(&stage.b, "source-silent", "site-a/web");
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    wait_for_alert(&stage.b, "source-silent", "site-a/web");
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
