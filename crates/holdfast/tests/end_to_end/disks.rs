//! Images that others write to, replace or resize, and what guests write at their beginning: whatever is done to a
//! disk beside the agent is noticed, and nothing stale counts as protected.

use crate::bad_disks::{LoopDevice, is_root};
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

/// What was written to a partition is in the page cache, where the whole device does not show it, and no sync of the device
/// writes it back. It reaches the disk when it likes: behind a comparison that has found both sides equal.
#[test]
fn what_is_only_in_memory_of_a_partition_is_copied_and_compared() {
    if !is_root() {
        return;
    }
    let mut stage = Stage::set();
    let file = stage.disk("disk.raw", 16 * MIB);
    let device = LoopDevice::on(&file);
    // As long as somebody has it open, nothing is written back at its closing.
    let partition = OpenOptions::new().write(true).open(device.partition(8 * MIB)).unwrap();
    let is_copied = |stage: &Stage, byte: u8| {
        stage.a.wait_for_state("web", "journaling", SOON).unwrap();
        stage.drained("web");
        let image = std::fs::read(stage.copy_image("web", "latest", "latest.raw")).unwrap();
        image[MIB as usize..][..65536] == [byte; 65536]
    };
    partition.write_all_at(&[1; 65536], 0).unwrap();
    stage.protect("web", "web", Path::new(&device.0));
    assert!(is_copied(&stage, 1), "the first sync has passed over it");
    stage.a.stop_agent().unwrap();
    partition.write_all_at(&[2; 65536], 0).unwrap();
    stage.a.start_agent().unwrap();
    assert!(is_copied(&stage, 2), "the comparison has passed over it");
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
fn a_vm_whose_image_has_grown_is_protected_anew_and_its_old_history_holds_nobody_back() {
    for anew in ["web", "web-2"] {
        let stage = Stage::set();
        let disk = stage.disk("disk.raw", 8 * MIB);
        let socket = stage.protect("web", "web", &disk);
        NbdClient::connect(&socket, "vda").unwrap().write(MIB, &[1; 4096]).unwrap();
        stage.tag("web", "web", "old");
        OpenOptions::new().write(true).open(&disk).unwrap().set_len(16 * MIB).unwrap();
        fails_with(&stage, "web", "has grown to 16777216");
        // What the agent says is to be done.
        stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
        let socket = stage.protect(anew, "web", &disk);
        NbdClient::connect(&socket, "vda").unwrap().write(12 * MIB, &[2; 4096]).unwrap();
        stage.drained(anew);
        let failover = stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
        let vms = failover["vms"].as_array().unwrap();
        assert!(vms.len() == 1 && vms[0]["vm"] == anew, "{failover:#}");
        let mut found = [0; 4096];
        let mut client = NbdClient::connect(vms[0]["socket"].as_str().unwrap(), "vda").unwrap();
        client.read(12 * MIB, &mut found).unwrap();
        assert_eq!(found, [2; 4096], "{anew}");
        drop(client);
        stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
        stage.a.wait_for_state(anew, "journaling", SOON).unwrap();
        // What was kept until then is as it was.
        let status = stage.b.ask(&["status"]).unwrap();
        let left = status["recovered"].as_array().unwrap().iter().find(|vm| vm["state"] == "left").unwrap();
        let old = std::fs::read(stage.copy_image(left["id"].as_str().unwrap(), "old", "old.raw")).unwrap();
        assert_eq!((old.len() as u64, &old[MIB as usize..][..4096]), (8 * MIB, &[1; 4096][..]), "{anew}");
    }
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
    stage.b.ask(&["image", "promote", id]).unwrap();
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
    refused(protect(&promoted), 4, "of a journal");
    let qemu =
        std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k", &promoted]).output();
    assert!(String::from_utf8_lossy(&qemu.unwrap().stderr).contains("lock"), "QEMU finds it in use too");
    let replica = Path::new(&promoted).ancestors().nth(2).unwrap().join("replica/vda.raw");
    refused(protect(&replica.display().to_string()), 4, "is the replica of a journal");
    client.write(0, &[6; 4096]).unwrap();
}
