//! Operations as their clients see them: begun once, waited for or not, listed, cancelled, and none the worse for whoever
//! goes away meanwhile.

use crate::stage::{SOON, Stage, failed, refused};
use lab::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;

/// Bytes a second: the image takes half a minute.
const SLOW: u64 = 1_000_000;

/// What the agent has answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    location: Option<String>,
    body: Value,
}

/// One request to the recovery side's agent, as any client makes it.
fn request(stage: &Stage, method: &str, path: &str, key: Option<&str>, body: &Value) -> Answer {
    let (body, mut stream) = (body.to_string(), UnixStream::connect(stage.b.api_socket()).unwrap());
    let key = key.map_or_else(String::new, |key| format!("idempotency-key: {key}\r\n"));
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{key}content-length: {len}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    let location = head.lines().find_map(|line| line.strip_prefix("location: ").map(str::to_owned));
    Answer { status, location, body: serde_json::from_str(body).unwrap_or_default() }
}

fn promote(stage: &Stage, query: &str, key: Option<&str>, image: &str, rate: u64) -> Answer {
    let path = format!("/v1/images/{image}/promote{query}");
    request(stage, "POST", &path, key, &json!({ "bytes_per_second": rate }))
}

/// Two sites with a journal at the second one, and a writable image of it.
fn with_image() -> (Stage, String) {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 32 << 20);
    stage.protect("web", "web", &disk);
    stage.tag("web", "web", "then");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "then", "--writable"]).unwrap();
    let id = image["id"].as_str().unwrap().to_owned();
    (stage, id)
}

fn id_of(operation: &Value) -> String {
    operation["id"].as_str().unwrap_or_else(|| panic!("no operation: {operation}")).to_owned()
}

fn state(stage: &Stage, id: &str) -> String {
    stage.b.ask(&["operation", "show", id]).unwrap()["state"].as_str().unwrap().to_owned()
}

#[test]
fn what_takes_long_is_answered_with_its_operation_and_waited_for_by_whoever_asks_for_that() {
    let (stage, image) = with_image();
    let begun = promote(&stage, "", None, &image, SLOW);
    let id = id_of(&begun.body);
    assert_eq!((begun.status, begun.location.as_deref()), (202, Some(&*format!("/v1/operations/{id}"))));
    assert_eq!((&begun.body["kind"], &begun.body["state"]), (&json!("promote"), &json!("going")));
    let shown = request(&stage, "GET", begun.location.as_deref().unwrap(), None, &json!(null));
    assert_eq!((shown.status, &shown.body["id"]), (200, &json!(id)));
    assert_eq!(shown.body["steps"].as_array().unwrap().len(), 3);
    // Whoever asks for the same finds it under way, and waits for it as long as he likes.
    let joined = promote(&stage, "?wait=1", None, &image, SLOW);
    assert_eq!(
        (joined.status, id_of(&joined.body), &joined.body["state"]),
        (202, id.clone(), &json!("going"))
    );
    let cancelled =
        request(&stage, "POST", &format!("/v1/operations/{id}/cancel?wait=60"), None, &json!(null));
    assert_eq!((cancelled.status, &cancelled.body["state"]), (200, &json!("taken-back")), "{cancelled:?}");
    let late = request(&stage, "POST", &format!("/v1/operations/{id}/cancel"), None, &json!(null));
    assert_eq!(late.status, 409, "{late:?}");
    assert_eq!(
        request(&stage, "POST", &format!("/v1/operations/{id}/leave"), None, &json!(null)).status,
        409
    );

    let done = promote(&stage, "?wait=600", None, &image, 0);
    assert_eq!((done.status, &done.body["promotion"]["state"]), (200, &json!("done")), "{done:?}");
    for (path, status) in [
        ("/v1/groups/nobody/failover/commit?wait=60", 404),
        ("/v1/groups/web/failover/commit", 404),
        ("/v1/groups/web/failover/commit?wait=999999", 422),
        ("/v1/groups/web/failover/commit?wiat=1", 422),
        ("/v1/operations/nonsense/cancel", 404),
    ] {
        let refused = request(&stage, "POST", path, None, &json!(null));
        assert_eq!(
            (refused.status, &refused.body["status"]),
            (status, &json!(status)),
            "{path}: {refused:?}"
        );
    }
}

#[test]
fn the_same_request_with_the_same_key_begins_one_operation_also_after_kill_9_of_the_agent() {
    let (mut stage, image) = with_image();
    let id = id_of(&promote(&stage, "", Some("copy-1"), &image, SLOW).body);
    let check_same = |stage: &Stage| {
        let again = promote(stage, "", Some("copy-1"), &image, SLOW);
        assert_eq!((again.status, id_of(&again.body)), (202, id.clone()));
        let rate = SLOW.to_string();
        let by_command =
            ["image", "promote", &image, "--rate", &rate, "--no-wait", "--idempotency-key", "copy-2"];
        let joined = stage.b.ask(&by_command).unwrap();
        assert_eq!(id_of(&joined), id, "another request finds it under way");
        let other = promote(stage, "", Some("copy-1"), &image, SLOW + 1);
        let detail = other.body["detail"].as_str().unwrap_or_default();
        assert!(other.status == 422 && detail.contains("was used for another request"), "{other:?}");
        for key in ["copy-1", "copy-2"] {
            let rows = stage.b.ask(&["operation", "list", "--idempotency-key", key]).unwrap();
            let rows = rows["operations"].as_array().unwrap().clone();
            assert!(rows.len() == 1 && id_of(&rows[0]) == id, "{key}: {rows:?}");
        }
    };
    check_same(&stage);
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    check_same(&stage);
    assert_eq!(stage.b.ask(&["operation", "cancel", &id]).unwrap()["state"], "taken-back");
    // It has ended: nothing begins anew.
    let again = promote(&stage, "?wait=60", Some("copy-1"), &image, SLOW);
    let detail = again.body["detail"].as_str().unwrap_or_default();
    assert!(again.status == 409 && detail.contains("taken back"), "{again:?}");
    assert_eq!(id_of(&promote(&stage, "", Some("copy-1"), &image, SLOW).body), id);
    for key in ["", &"k".repeat(129)] {
        assert_eq!(promote(&stage, "", Some(key), &image, SLOW).status, 422, "{key}");
    }
    // What nobody else has asked for is another operation.
    let fresh = promote(&stage, "?wait=600", Some("copy-3"), &image, 0);
    assert_eq!((fresh.status, &fresh.body["promotion"]["state"]), (200, &json!("done")), "{fresh:?}");
    let repeated = promote(&stage, "?wait=60", Some("copy-3"), &image, 0);
    assert_eq!((repeated.status, &repeated.body), (200, &fresh.body), "its answer is the same");
}

#[test]
fn operations_of_both_sides_are_listed_in_pages_and_by_what_is_wanted() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.protect("web", "shop", &disk);
    stage.drained("web");
    for round in 0..3 {
        let to = stage.path(&format!("elsewhere/{round}")).display().to_string();
        stage.b.ask(&["journal", "move", "web", "--to", &to]).unwrap();
    }
    // The recovery side of one is the protected side of another.
    let other = stage.disk("other.raw", 1 << 20);
    let (disk, peer) = (format!("vda={}", other.display()), stage.a.peer());
    stage.b.ask(&["vm", "protect", "mail", "--disk", &disk, "--peer", &peer]).unwrap();
    let list = |more: &[&str]| {
        let page = stage.b.ask(&[&["operation", "list"], more].concat()).unwrap();
        let ids: Vec<_> = page["operations"].as_array().unwrap().iter().map(id_of).collect();
        (ids, page["next"].as_str().map(str::to_owned))
    };
    let (all, next) = list(&[]);
    assert_eq!((all.len(), next), (4, None));
    let (mut paged, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut more = vec!["--limit", "1"];
        more.extend(cursor.iter().flat_map(|cursor| ["--cursor", cursor]));
        let (ids, next) = list(&more);
        paged.extend(ids);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, all, "each of them once, in their order");
    for (wanted, count) in [
        (["--kind", "move"], 3),
        (["--kind", "protect"], 1),
        (["--vm", "web"], 3),
        (["--vm", "site-a/web"], 3),
        (["--vm", "mail"], 1),
        (["--group", "mail"], 1),
        (["--state", "done"], 4),
        (["--state", "taken-back"], 0),
    ] {
        assert_eq!(list(&wanted).0.len(), count, "{wanted:?}");
    }
    assert!(list(&["--running"]).0.is_empty());
    refused(stage.b.ask(&["operation", "list", "--state", "nonsense"]), 2, "going-back");
    refused(stage.b.ask(&["operation", "list", "--cursor", "nonsense"]), 2, "cursor");
    refused(stage.b.ask(&["operation", "show", &"0".repeat(32)]), 3, "no operation");
}

/// A command of the recovery side that goes on by itself; what it says goes to a file.
fn spawn(stage: &Stage, err: &str, arguments: &[&str]) -> Child {
    let mut command = stage.b.command();
    command.args(arguments).arg("--json").stdout(File::create(stage.path("out")).unwrap());
    command.stderr(File::create(stage.path(err)).unwrap()).spawn().unwrap()
}

fn said(stage: &Stage, err: &str, words: &str) -> String {
    wait_until(words, SOON, || {
        let text = std::fs::read_to_string(stage.path(err))?;
        Ok(text.contains(words).then_some(text))
    })
    .unwrap()
}

#[test]
fn a_command_that_goes_away_leaves_its_operation_going_and_says_so() {
    let (mut stage, image) = with_image();
    let slow = ["image", "promote", &image, "--rate", "200000"];
    let mut waiting = spawn(&stage, "err", &slow);
    // A line for each step.
    let told = said(&stage, "err", "copy what it reads from its journal (1 of 3)");
    assert!(told.contains(&format!("promoting image {image}")), "{told}");
    kill_process(Pid::from_raw(waiting.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    let rows = stage.b.ask(&["operation", "list", "--running"]).unwrap();
    let id = id_of(&rows["operations"][0]);
    let told = said(&stage, "err", "interrupted");
    assert!(told.contains(&format!("`holdfast operation show {id}`")), "{told}");
    assert_eq!(state(&stage, &id), "going");
    // Who waits for it no longer than so long.
    refused(stage.b.ask(&["operation", "wait", &id, "--timeout", "1"]), 9, &id);
    refused(stage.b.ask(&[&slow[..], &["--timeout", "1"]].concat()), 9, &id);
    // The agent goes away from who waits.
    let mut waiting = spawn(&stage, "lost", &slow);
    said(&stage, "lost", "copy what it reads");
    stage.b.kill_agent().unwrap();
    assert!(!waiting.wait().unwrap().success());
    said(&stage, "lost", &format!("operation {id} goes on once the agent is back"));
    stage.b.start_agent().unwrap();
    assert_eq!(state(&stage, &id), "going");
    assert_eq!(stage.b.ask(&["operation", "cancel", &id]).unwrap()["state"], "taken-back");
    let ended = stage.b.ask(&["operation", "wait", &id]).expect_err("it is not done");
    assert_eq!(failed(&ended).code, 4, "{ended}");
}

#[test]
fn a_failover_that_is_taken_back_is_an_alert_for_who_has_not_waited_and_an_answer_for_who_has() {
    let stage = Stage::set();
    let definition = stage.path("vm.toml");
    // More than any host of a test has: nothing but the start itself finds that out.
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 16777216\naccelerator = \"tcg\"\n").unwrap();
    let disk = stage.disk("disk.raw", 1 << 20);
    stage.try_protect("web", "web", &disk, &["--definition", &definition.display().to_string()]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.tag("web", "web", "then");
    let fail_over = |query: &str| {
        let path = format!("/v1/groups/web/failover{query}");
        request(&stage, "POST", &path, None, &json!({ "at": "latest" }))
    };
    let alerts = || {
        let alerts = stage.b.ask(&["alerts"]).unwrap();
        let texts = alerts.as_array().unwrap().iter().map(|alert| alert["text"].as_str().unwrap().to_owned());
        texts.filter(|text| text.contains("was taken back")).collect::<Vec<_>>()
    };
    let heard = fail_over("?wait=60");
    assert!(
        heard.status >= 400 && heard.body["detail"].as_str().unwrap().contains("start VM web"),
        "{heard:?}"
    );
    assert_eq!(alerts(), Vec::<String>::new());
    let begun = fail_over("");
    let id = id_of(&begun.body);
    assert_eq!(begun.status, 202);
    wait_until("the alert", SOON, || Ok((alerts().len() == 1).then_some(()))).unwrap();
    let ended = stage.b.ask(&["operation", "show", &id]).unwrap();
    assert_eq!(ended["state"], "taken-back");
    assert_eq!(alerts(), Vec::<String>::new(), "somebody has heard of it");
}
