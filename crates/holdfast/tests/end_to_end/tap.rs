//! A VM that runs on its own image is protected without a restart, goes on without the agent, and is left without a
//! trace.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, failed, refused, same_bytes};
use lab::{Guest, GuestDisk, Ticks, Work, check_file_system, make_disk, read_file, wait_until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guest on its own image with two monitors, one of which is for Holdfast; that one's path.
fn running_guest(stage: &Stage, image: &Path, format: &str, second: Option<&Path>) -> (Guest, PathBuf) {
    let mut more = monitors(stage);
    if let Some(path) = second {
        let node = format!("driver=raw,node-name=second,file.driver=file,file.filename={}", path.display());
        more.extend(["-blockdev".to_owned(), node]);
        more.extend(["-device".to_owned(), "virtio-blk-pci,drive=second".to_owned()]);
    }
    (stage.guest(Work::Load, GuestDisk::image(image, format), &more), stage.path("holdfast.qmp"))
}

/// Two monitors: the one for Holdfast, and the administrator's own.
pub(crate) fn monitors(stage: &Stage) -> Vec<String> {
    let monitor = |name: &str| format!("unix:{},server=on,wait=off", stage.path(name).display());
    ["holdfast.qmp", "own.qmp"].iter().flat_map(|name| ["-qmp".to_owned(), monitor(name)]).collect()
}

/// What QEMU says to a command on the administrator's own monitor.
pub(crate) fn ask(stage: &Stage, command: &str, arguments: &Value) -> Value {
    ask_at(&stage.path("own.qmp"), command, arguments)
}

/// What QEMU says to a command on a monitor.
pub(crate) fn ask_at(monitor: &Path, command: &str, arguments: &Value) -> Value {
    let answer = try_to_ask(monitor, command, arguments);
    answer.unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// The same, where QEMU may refuse it.
pub(crate) fn try_to_ask(monitor: &Path, command: &str, arguments: &Value) -> Result<Value, Value> {
    let mut stream = UnixStream::connect(monitor).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    next();
    let mut answer = Value::Null;
    for line in
        [json!({ "execute": "qmp_capabilities" }), json!({ "execute": command, "arguments": arguments })]
    {
        writeln!(stream, "{line}").unwrap();
        answer = loop {
            let said = next();
            if said.get("event").is_none() {
                break said;
            }
        };
    }
    answer.get("error").map_or_else(|| Ok(answer["return"].clone()), |error| Err(error.clone()))
}

/// Everything in the VM that a tap could leave behind.
pub(crate) fn traces(stage: &Stage) -> Value {
    let nodes = ask(stage, "query-named-block-nodes", &json!({ "flat": true }));
    let named = nodes.as_array().unwrap().iter();
    let mut nodes: Vec<Value> =
        named.map(|node| json!([node["node-name"], node["drv"], node["dirty-bitmaps"]])).collect();
    nodes.sort_by_key(Value::to_string);
    json!({
        "nodes": nodes,
        "jobs": ask(stage, "query-block-jobs", &json!({})),
        "exports": ask(stage, "query-block-exports", &json!({})),
    })
}

pub(crate) fn protect(stage: &Stage, qmp: &Path) -> anyhow::Result<Value> {
    let (qmp, peer) = (qmp.display().to_string(), stage.b.peer());
    stage.a.ask(&["vm", "protect", "web", "--qmp", &qmp, "--peer", &peer, "--checkpoint-interval", "1"])
}

fn raw_copy(stage: &Stage, image: &Path, format: &str) -> PathBuf {
    let raw = stage.path("own.raw");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", format, "-O", "raw"]).arg(image).arg(&raw);
    assert!(convert.status().unwrap().success());
    raw
}

fn goes_on_without_the_agent(format: &str) {
    let mut stage = Stage::set();
    // So that it is begun anew a few times before it is needed.
    stage.a.stop_agent().unwrap();
    stage.a.configure("[qemu]\nchange_log_seconds = 1\n").unwrap();
    stage.a.start_agent().unwrap();
    let raw = stage.path("made.raw");
    make_disk(&raw, 96 << 20).unwrap();
    let image = stage.path("disk.img");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(&image);
    assert!(convert.status().unwrap().success());
    let (mut guest, qmp) = running_guest(&stage, &image, format, None);
    let before = traces(&stage);
    protect(&stage, &qmp).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    more_ticks(&mut guest, 5);
    stage.tag("web", "web", "early");
    for _ in 0..2 {
        more_ticks(&mut guest, 20);
        wait_until("a change log begun anew", SOON, || {
            let logs = traces(&stage).to_string();
            let numbered = (2..1000).any(|number| logs.contains(&format!("\"holdfast-{number}\"")));
            Ok((numbered && !logs.contains("\"holdfast-1\"")).then_some(()))
        })
        .unwrap();
        stage.a.kill_agent().unwrap();
        // Nobody tells the guest to wait.
        more_ticks(&mut guest, 20);
        stage.a.start_agent().unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    }
    let vm = stage.a.protected("web").unwrap();
    // Neither all of the disk was sent again, nor was everything taken for equal.
    let sent = vm["sent_bytes"].as_u64().unwrap();
    assert!(sent < 48 << 20, "{sent} bytes were sent after the agent came back");
    stage.tag("web", "web", "late");
    more_ticks(&mut guest, 5);
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    // At rest, so that both sides can be compared.
    ask(&stage, "stop", &json!({}));
    stage.drained("web");
    let copy = stage.copy_image("web", "latest", "image.raw");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    assert_eq!(traces(&stage), before, "the VM is as it was");
    guest.kill().unwrap();
    let own = raw_copy(&stage, &image, format);
    assert!(same_bytes(&copy, &own), "the image at B is the disk of the VM");
    for (name, path) in [
        ("latest", copy),
        ("early", stage.copy_image("web", "early", "early.raw")),
        ("late", stage.copy_image("web", "late", "late.raw")),
    ] {
        assert!(check_file_system(&path).unwrap(), "e2fsck finds something wrong at {name}");
        let ticks = Ticks::parse(&read_file(&path, "/ticks").unwrap());
        assert_eq!(ticks.violations, 0, "{name}");
        assert!(name != "latest" || ticks.last >= reported, "record {reported} was reported");
    }
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_running_vm_on_a_raw_image_goes_on_without_the_agent() {
    goes_on_without_the_agent("raw");
}

#[test]
fn a_running_vm_on_a_qcow2_image_goes_on_without_the_agent() {
    goes_on_without_the_agent("qcow2");
}

#[test]
fn a_tap_that_is_taken_away_is_attached_again_and_a_vm_that_cannot_be_tapped_is_told_of() {
    let stage = Stage::set();
    let image = stage.path("disk.raw");
    make_disk(&image, 96 << 20).unwrap();
    let second = stage.disk("second.raw", 16 << 20);
    let nothing = stage.path("nothing.qmp");
    refused(protect(&stage, &nothing), 5, "connect to the VM's control socket");
    let (mut guest, qmp) = running_guest(&stage, &image, "raw", Some(&second));
    let (qmp_text, peer) = (qmp.display().to_string(), stage.b.peer());
    let other = ["vm", "protect", "web", "--qmp", &qmp_text, "--peer", &peer, "--disk", "vda=floppy"];
    refused(stage.a.ask(&other), 5, "no disk \"floppy\"");
    let before = traces(&stage);
    protect(&stage, &qmp).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let again = ["vm", "protect", "web2", "--qmp", &qmp_text, "--peer", &peer];
    refused(stage.a.ask(&again), 4, "protected already, as web");
    // An administrator ends the job: what the guest writes until it is found out is found again.
    ask(&stage, "block-job-cancel", &json!({ "device": "holdfast-vda", "force": true }));
    while ask(&stage, "query-block-jobs", &json!({})).to_string().contains("holdfast-vda\"") {}
    // At once: what the guest writes from here on is not heard.
    let torn = stage.a.ask(&["checkpoint", "tag", "--group", "web", "torn"]);
    assert_eq!(failed(&torn.expect_err("no cut is consistent now")).code, 5);
    more_ticks(&mut guest, 3);
    wait_until("the loss to be noticed", SOON, || {
        Ok(std::fs::read_to_string(stage.a.log())?.contains("the tap is lost").then_some(()))
    })
    .unwrap();
    wait_until("the tap's return", SOON, || {
        let jobs = ask(&stage, "query-block-jobs", &json!({}));
        Ok((!jobs.as_array().unwrap().is_empty()).then_some(()))
    })
    .unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    more_ticks(&mut guest, 3);
    ask(&stage, "stop", &json!({}));
    stage.drained("web");
    let copy = stage.copy_image("web", "latest", "image.raw");
    let opened = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest"]).unwrap();
    let second_copy = stage.path("second.image");
    lab::copy_image(opened["socket"].as_str().unwrap(), "vdb", &second_copy).unwrap();
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    assert_eq!(traces(&stage), before);
    guest.kill().unwrap();
    assert!(same_bytes(&copy, &image) && same_bytes(&second_copy, &second));
    let known = ["the tap is lost", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}
