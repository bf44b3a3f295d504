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

/// The VM's disks are closed.
fn is_let_go(stage: &Stage, vm: &str) {
    wait_until("closed disks", SOON, || Ok((stage.a.protected(vm)?["socket"] == "").then_some(()))).unwrap();
}

#[test]
fn an_image_that_is_replaced_deleted_or_resized_under_the_agent_is_not_protected() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    // A copy is put in its place while a VM runs: that goes on, but counts as failed.
    let (kept, copy) = (stage.path("kept.raw"), stage.path("copy.raw"));
    std::fs::rename(&disk, &kept).unwrap();
    std::fs::write(&copy, vec![2; 16 << 20]).unwrap();
    std::fs::rename(&copy, &disk).unwrap();
    fails_with(&stage, "web", "names another file");
    client.write(0, &[9; 4096]).unwrap();
    // Once the VM is off nobody can begin to write to a file that is gone when the agent ends.
    drop(client);
    is_let_go(&stage, "web");
    fails_with(&stage, "web", "vm resync web");
    assert!(NbdClient::connect(&socket, "vda").is_err());
    // The file is back: as if nothing had been.
    std::fs::rename(&disk, &copy).unwrap();
    std::fs::rename(&kept, &disk).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    std::fs::rename(&disk, &kept).unwrap();
    fails_with(&stage, "web", "does not exist");
    // Another file is taken only where the operator says that it is meant.
    std::fs::rename(&copy, &disk).unwrap();
    fails_with(&stage, "web", "vm resync web");
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
    let known = ["is not protected", "RPO exceeded", "another file than before", "link lost"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn an_image_that_has_grown_is_served_as_it_was_until_somebody_decides() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    let socket = stage.protect("web", "web", &disk);
    stage.drained("web");
    let set_len = |len| OpenOptions::new().write(true).open(&disk).unwrap().set_len(len).unwrap();
    set_len(32 * MIB);
    fails_with(&stage, "web", "truncate --size 16777216");
    stage.a.stop_agent().unwrap();
    stage.a.start_agent().unwrap();
    fails_with(&stage, "web", "truncate --size 16777216");
    NbdClient::connect(&socket, "vda").unwrap().write(16 * MIB - 4096, &[7; 4096]).unwrap();
    set_len(16 * MIB);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk));
}

#[test]
fn a_change_by_somebody_else_while_the_agent_runs_is_noticed() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    stage.noted("web", &disk);
    // So that the agent has looked twice before.
    wait_until("two checkpoints more", SOON, || {
        let page = stage.b.ask(&["checkpoint", "list", "--vm", "web"])?;
        Ok((page["checkpoints"].as_array().map_or(0, Vec::len) >= 4).then_some(()))
    })
    .unwrap();
    write_beside(&disk, 5 * MIB, &[6; 1 << 20]);
    wait_until("an alert", SOON, || {
        let alerts = stage.a.ask(&["status"])?["alerts"].to_string();
        Ok(alerts.contains("was written to by somebody else").then_some(()))
    })
    .unwrap();
    wait_until("the same at B", SOON, || {
        stage.drained("web");
        Ok(same_bytes(&stage.copy_image("web", "latest", "latest.raw"), &disk).then_some(()))
    })
    .unwrap();
    let known = ["written to by somebody else", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_disk_that_an_image_of_ours_is_written_to_is_in_use() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 * MIB);
    stage.protect("web", "web", &disk);
    stage.drained("web");
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest", "--writable"]).unwrap();
    let (id, socket) = (image["id"].as_str().unwrap(), image["socket"].as_str().unwrap());
    stage.b.ask(&["image", "promote", id, "--wait"]).unwrap();
    let images = stage.b.ask(&["image", "list"]).unwrap().to_string();
    let promoted =
        images.split('"').find(|word| word.ends_with("vda.data")).expect("its own disk").to_owned();
    let mut client = NbdClient::connect(socket, "vda").unwrap();
    client.write(0, &[5; 4096]).unwrap();
    let peer = stage.a.peer();
    let protect = |path: &str| {
        let disk = format!("vda={path}");
        stage.b.ask(&["vm", "protect", "back", "--disk", &disk, "--peer", &peer])
    };
    refused(protect(&promoted), 2, "is in use");
    let qemu =
        std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &promoted]).output();
    assert!(String::from_utf8_lossy(&qemu.unwrap().stderr).contains("lock"), "QEMU finds it in use too");
    let replica = Path::new(&promoted).ancestors().nth(2).unwrap().join("replica/vda.raw");
    refused(protect(&replica.display().to_string()), 4, "is the replica of a journal");
    client.write(0, &[6; 4096]).unwrap();
}
