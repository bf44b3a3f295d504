//! What a stream goes through: outages, comparisons, replicas brought by hand, crashes of the host, bounds
//! and trust that is withdrawn.

use crate::bad_disks::{LoopDevice, is_root};
use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::{make_disk, wait_until};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ seed;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(word).collect()
}

/// Writes to a VM's disk as a guest does, from the disk's beginning.
fn write(stage: &Stage, socket: &str, bytes: &[u8]) {
    let path = stage.path("written.raw");
    std::fs::write(&path, bytes).unwrap();
    let uri = format!("nbd+unix:///vda?socket={socket}");
    assert!(std::process::Command::new("nbdcopy").arg(&path).arg(&uri).status().unwrap().success());
}

/// Changes a file behind everybody's back.
fn spoil(path: &Path, at: u64, len: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&noise(len, at), at).unwrap();
    file.sync_all().unwrap();
}

fn log_of_a(stage: &Stage) -> String {
    std::fs::read_to_string(stage.a.log()).unwrap()
}

#[test]
fn a_verification_finds_what_differs_and_repairs_it() {
    if !is_root() {
        return;
    }
    let stage = Stage::set();
    let file = stage.disk("disk.raw", 24 << 20);
    // Of a file the agent finds within a second, and before the verification perhaps, that it was changed.
    let device = LoopDevice::on(&file);
    let disk = PathBuf::from(&device.0);
    let socket = stage.protect("web", "web", &disk);
    write(&stage, &socket, &noise(20 << 20, 1));
    stage.drained("web");
    let found = stage.a.ask(&["vm", "verify", "web"]).unwrap();
    assert_eq!((&found["state"], &found["differing_bytes"]), (&"done".into(), &0.into()));
    assert_eq!(found["compared_bytes"], 24u64 << 20);
    // Somebody has written to the disk past the agent.
    spoil(&disk, 3 << 20, 1000);
    spoil(&disk, (9 << 20) - 100, 200);
    let output = stage.a.command().args(["vm", "verify", "web", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let extent =
        |start: u64, bytes: u64| serde_json::json!({ "disk": "vda", "start": start, "bytes": bytes });
    let expected = [extent(3 << 20, 65_536), extent((9 << 20) - 65_536, 131_072)];
    assert_eq!(found["differing"], Value::from(expected.to_vec()));
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    // Each tells of itself, and not of the one before.
    for at in 11..=15 {
        spoil(&disk, at << 20, 100);
        let output = stage.a.command().args(["vm", "verify", "web", "--json"]).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["differing"], Value::from(vec![extent(at << 20, 65_536)]));
        stage.drained("web");
    }
    refused(stage.a.ask(&["vm", "verify", "nobody"]), 3, "no VM \"nobody\"");
}

#[test]
fn a_resync_compares_everything_and_leaves_the_checkpoints() {
    if !is_root() {
        return;
    }
    let stage = Stage::set();
    let file = stage.disk("disk.raw", 16 << 20);
    let device = LoopDevice::on(&file);
    let disk = PathBuf::from(&device.0);
    let socket = stage.protect("web", "web", &disk);
    write(&stage, &socket, &noise(16 << 20, 2));
    stage.tag("web", "web", "before");
    let before = stage.copy_image("web", "before", "before.raw");
    let sent = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap();
    spoil(&disk, 5 << 20, 100);
    stage.a.ask(&["vm", "resync", "web", "--wait"]).unwrap();
    stage.drained("web");
    let more = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap() - sent;
    assert!(more < 1 << 20, "{more} bytes were sent for one block that differs");
    assert!(log_of_a(&stage).contains("to=\"delta-sync\" why=\"asked for\""));
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    assert!(same_bytes(&stage.copy_image("web", "before", "again.raw"), &before), "history has not moved");
}

#[test]
fn a_replica_brought_by_hand_is_compared_not_sent() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    std::fs::write(&disk, noise(32 << 20, 3)).unwrap();
    let seed = stage.path("carried.raw");
    std::fs::copy(&disk, &seed).unwrap();
    spoil(&disk, 7 << 20, 4096);
    let seed_disk = format!("vda={}", seed.display());
    refused(stage.b.ask(&["journal", "seed", "web", "--disk", "vda=/nowhere"]), 2, "/nowhere is no file");
    stage.b.ask(&["journal", "seed", "web", "--disk", &seed_disk]).unwrap();
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let sent = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap();
    assert!(sent < 1 << 20, "{sent} bytes were sent");
    assert!(log_of_a(&stage).contains("why=\"pre-seeded replica\""));
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
    refused(stage.b.ask(&["journal", "seed", "web", "--disk", &seed_disk]), 4, "is kept here already");
}

#[test]
fn an_outage_leaves_no_hole_in_the_history_while_the_spill_has_room() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 32 << 20);
    let socket = stage.protect("web", "web", &disk);
    stage.b.kill_agent().unwrap();
    let mut copies = Vec::new();
    for round in 0..4u64 {
        write(&stage, &socket, &noise(24 << 20, 10 + round));
        wait_until("the spill takes what is over half of the buffer", SOON, || {
            Ok((stage.a.protected("web")?["buffer_bytes"].as_u64() < Some(33 << 20)).then_some(()))
        })
        .unwrap();
        let tag = format!("round {round}");
        stage.a.ask(&["checkpoint", "tag", "--group", "web", &tag]).unwrap();
        let copy = stage.path(&format!("round-{round}.raw"));
        std::fs::copy(&disk, &copy).unwrap();
        copies.push((tag, copy));
    }
    let away = stage.a.protected("web").unwrap();
    assert_eq!(away["state"], "journaling", "nothing but the spill was needed: {away}");
    assert!(away["spill_bytes"].as_u64().unwrap() > 16 << 20, "{away}");
    stage.b.start_agent().unwrap();
    stage.drained("web");
    for (tag, copy) in &copies {
        assert!(same_bytes(&stage.copy_image("web", tag, "image.raw"), copy), "{tag}");
    }
    wait_until("the spill's files are gone", SOON, || {
        Ok((stage.a.protected("web")?["spill_bytes"].as_u64() < Some(8 << 20)).then_some(()))
    })
    .unwrap();
}

/// What a crash of the whole host costs, and that only the regions are compared then, is shown beside the log: nothing
/// here brings the host down.
#[test]
fn a_map_that_is_lost_without_a_crash_of_the_host_has_everything_compared_and_little_sent() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    std::fs::write(&disk, noise(160 << 20, 4)).unwrap();
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    write(&stage, &socket, &noise(1 << 20, 5));
    stage.a.kill_agent().unwrap();
    let tracking = stage.a.folder.join("state/tracking");
    let rows = std::fs::read_dir(tracking).unwrap().map(|row| row.unwrap().path());
    let map = rows.into_iter().find(|path| path.extension().is_some_and(|found| found == "map")).unwrap();
    std::fs::remove_file(map).unwrap();
    // In a region that nobody has written to through the agent.
    spoil(&disk, 40_000_000, 2000);
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    let log = log_of_a(&stage);
    assert!(log.contains("to=\"delta-sync\""), "{log}");
    let sent = stage.a.protected("web").unwrap()["sent_bytes"].as_u64().unwrap();
    assert!(sent < 4 << 20, "{sent} bytes were sent");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &disk));
}

#[test]
fn a_bound_that_is_exceeded_is_an_alert_and_stops_the_protection_if_it_is_to() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.try_protect("web", "web", &disk, &["--rpo", "2", "--fail-when-exceeded"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.tag("web", "web", "well");
    stage.b.kill_agent().unwrap();
    let failed = stage.a.wait_for_state("web", "failed", SOON).unwrap();
    assert_eq!((&failed["reason"], &failed["rpo_exceeded"]), (&"a bound is exceeded".into(), &true.into()));
    let alerts = stage.a.ask(&["status"]).unwrap()["alerts"].to_string();
    assert!(alerts.contains("older than its RPO of 2 s"), "{alerts}");
    stage.b.start_agent().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(stage.a.protected("web").unwrap()["state"], "failed", "it stays until somebody looks");
    stage.a.ask(&["vm", "resume", "web", "--wait"]).unwrap();
    wait_until("the alert's end", SOON, || {
        Ok(stage.a.ask(&["status"])?["alerts"].as_array().unwrap().is_empty().then_some(()))
    })
    .unwrap();
}

#[test]
fn trust_that_is_withdrawn_ends_the_connections_that_stand() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    stage.protect("web", "web", &disk);
    let trust = stage.b.pki().join("trust/site-a.pem");
    let kept = std::fs::read(&trust).unwrap();
    std::fs::remove_file(&trust).unwrap();
    wait_until("the link's end", SOON, || Ok((stage.a.protected("web")?["link"] != "up").then_some(())))
        .unwrap();
    let log = std::fs::read_to_string(stage.b.log()).unwrap();
    assert!(log.contains("not trusted any more") && log.contains("agent-1.site-a"), "{log}");
    std::fs::write(&trust, kept).unwrap();
    wait_until("the link", SOON, || Ok((stage.a.protected("web")?["link"] == "up").then_some(()))).unwrap();
}

#[test]
fn settings_of_a_stream_out_of_range_are_refused_with_the_range() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    for (more, words) in [
        (["--priority", "10"], "priority = 10 is out of range: use 1 to 9"),
        (["--sync-timeout", "0"], "sync_timeout_seconds = 0 is out of range: use 1 to 300"),
        (["--coordinator", "nowhere"], "give HOST:PORT"),
    ] {
        refused(stage.try_protect("web", "web", &disk, &more), 2, words);
    }
    refused(
        stage.try_protect("web", "web", &disk, &["--coordinator", "127.0.0.1:9"]),
        5,
        "cannot join group web",
    );
}

#[test]
fn what_is_overwritten_before_the_next_checkpoint_is_left_out_where_the_link_is_too_slow() {
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 64 << 20).unwrap();
    let slow = ["--coalesce", "--rate", "500000", "--buffer", "16777216"];
    let answer = stage.try_protect("web", "web", &disk, &slow).unwrap();
    let socket = answer["socket"].as_str().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let mut guest = stage.guest_under_load(socket);
    wait_until("some that is left out", Duration::from_secs(120), || {
        let vm = stage.a.protected("web")?;
        Ok((vm["left_out_bytes"].as_u64().unwrap() > 256 << 10).then_some(()))
    })
    .unwrap();
    guest.kill().unwrap();
    stage.left_and_drained("web");
    let vm = stage.a.protected("web").unwrap();
    assert!(vm["left_out_bytes"].as_u64() < vm["write_bytes"].as_u64(), "{vm}");
    stage.checkpoints_have_whole_file_systems("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    // What the journal knows of it outlives its agent.
    stage.b.kill_agent().unwrap();
    stage.b.start_agent().unwrap();
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    assert_eq!(stage.a.ask(&["vm", "verify", "web"]).unwrap()["differing_bytes"], 0);
}

#[test]
fn who_waits_for_a_sync_is_told_what_holds_it_up() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 8 << 20);
    let (out, err) = (stage.path("out"), stage.path("err"));
    let file = |path: &Path| std::fs::File::create(path).unwrap();
    let nobody = format!("127.0.0.1:{}", lab::free_port().unwrap());
    let mut command = stage.a.command();
    command.args(["vm", "protect", "web", "--disk", &format!("vda={}", disk.display()), "--peer", &nobody]);
    let mut waiting = command.arg("--wait").stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
    let told = wait_until("the trouble and the socket", SOON, || {
        let text = std::fs::read_to_string(&err)?;
        Ok((text.contains("onnection refused") && text.contains("web.sock")).then_some(text))
    });
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    // A line for what changes, not for each look.
    let lines = told.unwrap().lines().count();
    assert!(lines < 10, "{lines} lines");
}
