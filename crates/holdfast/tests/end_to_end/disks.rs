//! Images that others write to, replace or resize, and what guests write at their beginning: whatever is done to a
//! disk beside the agent is noticed, and nothing stale counts as protected.

use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::{NbdClient, wait_until};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// As `dd conv=notrunc`, or a VM on its plain image, does.
fn write_beside(disk: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(disk).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_change_right_after_the_agents_end_is_noticed() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    let socket = stage.protect("web", "web", &disk);
    for (byte, clean) in [(3, true), (4, false)] {
        NbdClient::connect(&socket, "vda").unwrap().write(MIB, &[1; 4096]).unwrap();
        stage.drained("web");
        if clean {
            stage.a.stop_agent().unwrap()
        } else {
            stage.a.kill_agent().unwrap()
        }
        write_beside(&disk, 5 * MIB, &vec![byte; 1 << 20]);
        stage.a.start_agent().unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        stage.drained("web");
        let image = stage.copy_image("web", "latest", "latest.raw");
        assert!(same_bytes(&image, &disk), "what was written beside the agent is missing (clean: {clean})");
    }
}

#[test]
fn raw_stays_raw_whatever_a_guest_writes() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    let socket = stage.protect("web", "web", &disk);
    for magic in [&b"QFI\xfb"[..], b"KDMV", b"vhdxfile", b"conectix"] {
        NbdClient::connect(&socket, "vda")
            .unwrap()
            .write(0, &[magic, &[0; 512][..]].concat()[..512])
            .unwrap();
        stage.a.kill_agent().unwrap();
        stage.a.start_agent().unwrap();
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    }
    // A disk that begins like that is taken where the operator says what it is, and only then.
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    client.write(0, b"QFI\xfb\0\0\0\x03").unwrap();
    drop(client);
    stage.drained("web");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    refused(stage.try_protect("web2", "web2", &disk, &[]), 2, "--format raw");
    stage.try_protect("web2", "web2", &disk, &["--format", "raw"]).unwrap();
    stage.a.wait_for_state("web2", "journaling", SOON).unwrap();
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("web2", "journaling", SOON).unwrap();
    stage.drained("web2");
    assert!(same_bytes(&stage.copy_image("web2", "latest", "latest.raw"), &disk));
}

/// The VM is not protected, says why, and an alert does too.
fn fails_with(stage: &Stage, vm: &str, words: &str) {
    let mut last = serde_json::Value::Null;
    let seen = wait_until(words, SOON, || {
        let alerts = stage.a.ask(&["status"])?["alerts"].to_string();
        last = stage.a.protected(vm)?;
        let error = last["last_error"].as_str().unwrap_or_default().to_owned();
        Ok((last["state"] == "failed" && error.contains(words) && alerts.contains(words)).then_some(()))
    });
    assert!(seen.is_ok(), "{last:#}");
}

#[test]
fn an_image_that_is_replaced_resized_or_deleted_under_the_agent_is_not_protected() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    // A copy is put in its place while the VM is off.
    let (kept, copy) = (stage.path("kept.raw"), stage.path("copy.raw"));
    std::fs::rename(&disk, &kept).unwrap();
    std::fs::write(&copy, vec![2; 16 << 20]).unwrap();
    std::fs::rename(&copy, &disk).unwrap();
    fails_with(&stage, "web", "names another file");
    client
        .write(0, &[9; 4096])
        .expect_err("nothing is acknowledged for a file that is not the VM's any more");
    drop(client);
    // The file is back: as if nothing had been.
    std::fs::rename(&kept, &disk).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    NbdClient::connect(&socket, "vda").unwrap().write(0, &[8; 4096]).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    std::fs::rename(&disk, &kept).unwrap();
    fails_with(&stage, "web", "does not exist any more");
    std::fs::rename(&kept, &disk).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    OpenOptions::new().write(true).open(&disk).unwrap().set_len(32 * MIB).unwrap();
    fails_with(&stage, "web", "16777216 bytes");
    OpenOptions::new().write(true).open(&disk).unwrap().set_len(16 * MIB).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    let known = ["is not protected", "RPO exceeded", "request failed", "peer not reached", "link lost"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}
