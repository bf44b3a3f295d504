//! Locks on what is kept: set, shown, in force over `kill -9`, and what a locked journal without room does.

use crate::alerts::{wait_for_alert, wait_until_gone};
use crate::calling::{Connection, issue};
use crate::stage::{SOON, Stage, refused};
use lab::{free_port, wait_until};
use serde_json::Value;

#[test]
fn a_locked_history_is_kept_whatever_is_asked_at_either_side_also_over_kill_9() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "before");
    let lock = |more: &[&str]| stage.b.ask(&[&["journal", "lock", "web"], more].concat());
    refused(lock(&["--until", "soon"]), 2, "use 2027-01-31");
    refused(lock(&["--until", "2020-01-31"]), 2, "must come after now");
    refused(lock(&["--for", "11000d"]), 2, "within 3660 days");
    refused(stage.b.ask(&["journal", "lock", "nobody", "--for", "1d"]), 3, "no journal of a VM \"nobody\"");
    refused(
        stage.b.ask(&["journal", "lock", "--group", "nobody", "--for", "1d"]),
        3,
        "of a group \"nobody\"",
    );
    assert!(stage.b.ask(&["journal", "show", "web"]).unwrap()["lock"].is_null());
    let locked = lock(&["--for", "30d"]).unwrap();
    let until = locked["lock"]["until"].as_str().unwrap().to_owned();
    assert!(locked["lock"]["set_by"].as_str().unwrap().starts_with("uid "), "{locked:#}");
    let a_day_less = 29 * 86_400;
    assert!(locked["lock"]["seconds_left_min"].as_u64().unwrap() > a_day_less, "{locked:#}");
    refused(lock(&["--for", "29d"]), 4, "never shorter");

    let words = format!("is locked until {until}");
    stage.a.ask(&["vm", "set", "web", "--history", "1h"]).unwrap();
    wait_for_alert(&stage.b, "asked-less", stage.b.recovered("web").unwrap()["id"].as_str().unwrap());
    let set = |more: &[&str]| stage.b.ask(&[&["journal", "set", "web"], more].concat());
    refused(set(&["--take-asked"]), 4, &words);
    refused(set(&["--keep-all", "1h"]), 4, &words);
    refused(set(&["--soft", "1G"]), 4, &words);
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    wait_until("the farewell", SOON, || Ok((stage.b.recovered("web")?["state"] == "left").then_some(())))
        .unwrap();
    refused(stage.b.ask(&["vm", "forget", "web"]), 4, &words);
    let kept = stage.b.recovered("web").unwrap();
    assert_eq!(kept["locked_until"], Value::from(until.clone()), "{kept:#}");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "before"]).unwrap();
    stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    let locked = stage.b.ask(&["journal", "lock", "--group", "web", "--for", "31d"]).unwrap();
    assert!(locked[0]["lock"]["until"].as_str().unwrap() > until.as_str(), "{locked:#}");
    let shown = stage.b.command().args(["journal", "show", "web"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("  locked       until 2") && shown.contains("at the least, by uid "), "{shown}");
}

#[test]
fn a_journal_that_is_full_and_locked_stops_its_stream_and_says_so_at_both_sides() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "before");
    stage.b.ask(&["journal", "lock", "web", "--for", "30d"]).unwrap();
    let id = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    // More than any disk has.
    stage.b.stop_agent().unwrap();
    stage.b.configure("[journal]\nfree_bytes_min = 1000000000000000\n").unwrap();
    stage.b.start_agent().unwrap();
    let alert = wait_for_alert(&stage.b, "locked-full", &id);
    assert!(alert["text"].as_str().unwrap().contains("its history is locked until 20"), "{alert:#}");
    let alert = wait_for_alert(&stage.a, "failed", "web");
    assert!(alert["text"].as_str().unwrap().contains("full and locked"), "{alert:#}");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "before"]).unwrap();
    stage.b.ask(&["image", "close", image["id"].as_str().unwrap()]).unwrap();
    stage.b.stop_agent().unwrap();
    stage.b.configure("").unwrap();
    stage.b.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until_gone(&stage.a, "failed");
    wait_until_gone(&stage.b, "locked-full");
}

#[test]
fn two_persons_lift_a_lock_and_both_stand_in_the_record() {
    let mut stage = Stage::set();
    let port = free_port().unwrap();
    stage.b.stop_agent().unwrap();
    stage.b.configure(&format!("[api]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    stage.b.start_agent().unwrap();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "web", &disk);
    let [mut anna, mut bert] = ["anna", "bert"].map(|name| {
        issue(&stage.b, &["--operator", name, "--role", "admin"]);
        Connection::open(&stage.b, name, port)
    });
    let lift = "/v1/recovered/web/journal/lock/lift";
    assert_eq!(anna.ask("POST", lift, "").unwrap().status, 409, "it is not locked");
    let lock = r#"{"for_seconds": 86400}"#;
    assert_eq!(anna.ask("POST", "/v1/recovered/web/journal/lock", lock).unwrap().status, 200);
    assert_eq!(anna.ask("POST", lift, "").unwrap().status, 200);
    let id = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    wait_for_alert(&stage.b, "lift-asked", &id);
    let request = stage.b.ask(&["journal", "show", "web"]).unwrap()["lock"]["lift"].clone();
    assert_eq!(request["by"], "anna.site-b", "{request}");
    let confirm = format!("{lift}/{}", request["id"].as_str().unwrap());
    let alone = anna.ask("POST", &confirm, "").unwrap();
    assert!(alone.status == 409 && alone.detail().contains("are not two persons"), "{alone:?}");
    refused(stage.b.ask(&["vm", "forget", "web"]), 4, "is locked until");
    assert_eq!(bert.ask("POST", &confirm, "").unwrap().status, 200);
    assert!(stage.b.ask(&["journal", "show", "web"]).unwrap()["lock"].is_null());
    wait_until_gone(&stage.b, "lift-asked");
    wait_until("both in the record", SOON, || {
        let page = stage.b.ask(&["audit", "list"])?;
        let has = |who: &str, path: &str| {
            let is = |row: &Value| row["who"] == who && row["path"] == path && row["outcome"] == "done";
            page["entries"].as_array().is_some_and(|rows| rows.iter().any(is))
        };
        Ok((has("anna.site-b", lift) && has("bert.site-b", &confirm)).then_some(()))
    })
    .unwrap();
}
