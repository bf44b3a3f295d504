//! Failover of a group, its commit and its rollback, and what becomes of the old protected side.

use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::{Console, GuestFiles, NbdClient, Site, Ticks, Work, make_disk, wait_until};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

fn write_over(socket: &str, from: &std::path::Path) {
    let uri = format!("nbd+unix:///vda?socket={socket}");
    assert!(Command::new("nbdcopy").arg("--flush").arg(from).arg(&uri).status().unwrap().success());
}

#[test]
fn a_group_fails_over_as_one_rolls_back_and_protection_goes_on() {
    let stage = Stage::set();
    let (one, two) = (stage.disk("one.raw", 4 << 20), stage.disk("two.raw", 4 << 20));
    let socket = stage.protect("one", "shop", &one);
    stage.protect("two", "shop", &two);
    stage.tag("shop", "two", "good");
    stage.drained("one");
    stage.drained("two");
    let before = stage.path("before.raw");
    std::fs::copy(&one, &before).unwrap();

    let failover = stage.b.ask(&["failover", "start", "--group", "shop", "--at", "good"]).unwrap();
    assert_eq!(failover["phase"], "running");
    assert_eq!(failover["vms"].as_array().unwrap().len(), 2);
    assert_eq!(failover["checkpoint"]["tag"], "good");
    stage.a.wait_for_state("one", "fenced", SOON).unwrap();
    stage.a.wait_for_state("two", "fenced", SOON).unwrap();
    refused(stage.b.ask(&["failover", "start", "--group", "shop"]), 4, "failed over already");
    let image = failover["vms"][0]["image"].as_str().unwrap().to_owned();
    refused(stage.b.ask(&["image", "close", &image]), 4, "roll it back");

    // Both sides are written to while they disagree.
    let noise = stage.disk("noise.raw", 4 << 20);
    let mut bytes = std::fs::read(&noise).unwrap();
    bytes.reverse();
    std::fs::write(&noise, bytes).unwrap();
    write_over(failover["vms"][0]["socket"].as_str().unwrap(), &noise);
    // At A by a client that is older than the failover.
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &std::fs::read(&noise).unwrap()).unwrap();
    drop(guest);

    let rolled_back = stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();
    assert_eq!(rolled_back["phase"], "rolled-back");
    stage.a.wait_for_state("one", "journaling", SOON).unwrap();
    stage.drained("one");
    assert_eq!(stage.a.protected("one").unwrap()["epoch"], 2, "the group goes on with the failover's epoch");
    assert!(same_bytes(&stage.copy_image("one", "latest", "after.raw"), &noise), "A's writes have arrived");
    assert!(same_bytes(&stage.copy_image("one", "good", "good.raw"), &before), "history is as it was");
}

#[test]
fn a_committed_failover_keeps_what_was_written_and_fences_for_good() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 4 << 20);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let failover = stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    let socket = failover["vms"][0]["socket"].as_str().unwrap().to_owned();
    let noise = stage.disk("noise.raw", 4 << 20);
    let mut bytes = std::fs::read(&noise).unwrap();
    bytes.reverse();
    std::fs::write(&noise, bytes).unwrap();
    write_over(&socket, &noise);
    assert_eq!(stage.b.ask(&["failover", "commit", "--group", "web"]).unwrap()["phase"], "committed");
    refused(stage.b.ask(&["failover", "rollback", "--group", "web"]), 4, "committed already");

    // Neither side's restart changes who is right.
    stage.b.kill_agent().unwrap();
    stage.a.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    let copy = stage.path("copy.raw");
    lab::copy_image(&socket, "vda", &copy).unwrap();
    assert!(same_bytes(&copy, &noise), "the image goes on, on the same socket");

    // The end of it: the disk becomes a plain one, then the image and the journal go, and the disk stays.
    let image = failover["vms"][0]["image"].as_str().unwrap().to_owned();
    refused(stage.b.ask(&["image", "close", &image]), 4, "promote");
    stage.b.ask(&["image", "promote", &image]).unwrap();
    let closed = stage.b.ask(&["image", "close", &image]).unwrap();
    let kept = std::path::PathBuf::from(closed["kept"][0].as_str().unwrap());
    assert!(same_bytes(&kept, &noise));
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    stage.b.ask(&["vm", "forget", "web"]).unwrap();
    assert!(same_bytes(&kept, &noise), "nothing removes the promoted disk");
    stage.protect("web", "web-again", &disk);
}

#[test]
fn what_cannot_be_failed_over_is_refused() {
    let stage = Stage::set();
    refused(stage.b.ask(&["failover", "start", "--group", "nobody"]), 3, "no journals of a group");
    let disk = stage.disk("disk.raw", 4 << 20);
    stage.protect("web", "web", &disk);
    refused(
        stage.b.ask(&["failover", "start", "--group", "web", "--at", "yesterday"]),
        3,
        "no checkpoint tagged",
    );
    refused(stage.b.ask(&["failover", "start", "--group", "web", "--at", "9-9"]), 3, "no checkpoint 9-9");
    refused(stage.b.ask(&["failover", "commit", "--group", "web"]), 3, "has not failed over");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "journaling", "and nothing was fenced");
}

/// A command's exit code, and what it printed as JSON.
fn asked(site: &Site, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = site.command().args(arguments).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (output.status.code(), answer)
}

#[test]
fn a_failover_of_which_not_all_vms_run_says_so_with_exit_code_8() {
    let stage = Stage::set();
    let definition = stage.path("web.toml");
    std::fs::write(&definition, "vcpus = 1\nmemory_mib = 32\naccelerator = \"tcg\"\n").unwrap();
    let definition = definition.display().to_string();
    let (web, db) = (stage.disk("web.raw", 1 << 20), stage.disk("db.raw", 1 << 20));
    stage.try_protect("web", "shop", &web, &["--definition", &definition]).unwrap();
    stage.protect("db", "shop", &db);
    stage.tag("shop", "db", "good");
    stage.tag("shop", "web", "good");

    let start = ["failover", "start", "--group", "shop", "--at", "good"];
    let (code, failover) = asked(&stage.b, &start);
    let states = |failover: &Value| {
        let rows = failover["vms"].as_array().unwrap().clone();
        let mut states: Vec<_> =
            rows.iter().map(|vm| format!("{} {}", vm["vm"], vm["run_state"]).replace('"', "")).collect();
        states.sort();
        states
    };
    assert_eq!(states(&failover), ["db not-defined", "web running"]);
    assert_eq!(
        (code, &failover["phase"]),
        (Some(8), &"running".into()),
        "the answer is printed all the same"
    );
    stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();

    // Where all that was asked for runs, or none is to run, nothing is missing.
    for (vm, state) in [("web", "running"), ("db", "not-defined")] {
        let (code, failover) = asked(&stage.b, &[&start[..], &["--vm", vm]].concat());
        assert_eq!((code, states(&failover)), (Some(0), vec![format!("{vm} {state}")]));
        stage.b.ask(&["failover", "rollback", "--group", "shop"]).unwrap();
    }
}

#[test]
fn a_pause_tracks_changes_and_a_resume_sends_only_them() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 32 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.tag("web", "web", "before the pause");
    assert_eq!(stage.a.ask(&["vm", "pause", "web"]).unwrap()["state"], "paused");
    let before = stage.path("before.raw");
    std::fs::copy(&disk, &before).unwrap();
    let fio = Command::new("fio")
        .args([
            "--name=w",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--size=32M",
            "--io_size=1M",
            "--minimal",
        ])
        .arg(format!("--uri=nbd+unix:///vda?socket={socket}"))
        .output()
        .unwrap();
    assert!(fio.status.success());
    let paused = stage.a.protected("web").unwrap();
    let dirty = paused["dirty_bytes"].as_u64().unwrap();
    assert!(dirty > 0 && dirty < 32 << 20, "{dirty}");
    let sent = paused["sent_bytes"].as_u64().unwrap();
    assert_eq!(stage.a.ask(&["vm", "resume", "web", "--wait"]).unwrap()["state"], "journaling");
    stage.drained("web");
    let more = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap() - sent;
    assert!(more < dirty + (1 << 20), "{more} bytes were sent for {dirty} marked");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    assert!(
        same_bytes(&stage.copy_image("web", "before the pause", "then.raw"), &before),
        "history has not moved"
    );
}

#[test]
fn a_vm_that_has_failed_over_is_looked_at_paused_and_goes_on() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 64 << 20).unwrap();
    let definition = stage.path("web.toml");
    let text = GuestFiles::find().unwrap().definition(&Work::Tick.append());
    std::fs::write(&definition, format!("graphics = \"vga\"\n{text}")).unwrap();
    let definition = definition.display().to_string();
    stage.try_protect("web", "web", &disk, &["--definition", &definition]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    refused(stage.b.ask(&["failover", "pause", "--group", "web"]), 3, "has not failed over");
    let failover = stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    assert_eq!(failover["vms"][0]["run_state"], "running");
    let mut console = Console::new(&stage.b.folder.join("run/guests/web/console"));
    console.wait_for("TICK", Duration::from_secs(120)).unwrap();
    let paused = stage.b.ask(&["failover", "pause", "--group", "web"]).unwrap();
    assert_eq!(paused["vms"][0]["run_state"], "paused");
    let last = |console: &mut Console| Ticks::reported(console).unwrap().last().unwrap().number;
    wait_until("the event", SOON, || {
        let groups = stage.b.ask(&["failover", "list"])?;
        Ok((groups[0]["failover"]["vms"][0]["last_event"]["what"] == "paused").then_some(()))
    })
    .unwrap();
    let disks = paused["vms"][0]["disks"].as_array().unwrap();
    assert_eq!(
        (disks.len(), &disks[0]["name"], &disks[0]["size_bytes"]),
        (1, &"vda".into(), &(64 << 20).into())
    );
    assert!(disks[0]["written_bytes"].as_u64().unwrap() > 0 && disks[0]["failed_requests"] == 0);
    let png = stage.path("screen.png");
    let shoot = |vm: &str| {
        let to = png.display().to_string();
        stage.b.ask(&["failover", "screenshot", "--group", "web", "--vm", vm, "--to", &to])
    };
    shoot("web").unwrap();
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    refused(shoot("other"), 3, "no failover here with a VM \"other\"");
    let before = last(&mut console);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(last(&mut console), before, "it stands still");
    // A new agent listens to the VM as the one before did.
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    let resumed = stage.b.ask(&["failover", "resume", "--group", "web"]).unwrap();
    assert_eq!(resumed["vms"][0]["run_state"], "running");
    wait_until("the event", SOON, || {
        let groups = stage.b.ask(&["failover", "list"])?;
        Ok((groups[0]["failover"]["vms"][0]["last_event"]["what"] == "resumed").then_some(()))
    })
    .unwrap();
    wait_until("another record", SOON, || Ok((last(&mut console) > before).then_some(()))).unwrap();
    let rolled_back = stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    assert_eq!(rolled_back["vms"][0]["run_state"], "stopped");
}
