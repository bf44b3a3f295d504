//! Images that others write to while the agent is away, and what guests write at their beginning.

use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::NbdClient;
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
