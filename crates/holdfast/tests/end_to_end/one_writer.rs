//! One client writes to a disk, and others read: what a plain QEMU's lock on its image is for.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage};
use crate::vhost_user::vhost_socket;
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, NbdClient, Work, make_disk, wait_until};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

/// Another client than this process.
pub(crate) fn qemu_io(socket: &str, command: &str) -> Output {
    let uri = format!("nbd+unix:///vda?socket={socket}");
    Command::new("qemu-io").args(["-f", "raw", "-c", command, &uri]).output().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn a_second_client_cannot_write_until_the_first_has_gone() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let socket = stage.protect("web", "web", &disk);
    let mut first = NbdClient::connect(&socket, "vda").unwrap();
    let mut same = NbdClient::connect(&socket, "vda").unwrap();
    first.write(0, &[1; 4096]).unwrap();
    same.write(4096, &[1; 4096]).unwrap();
    let write = qemu_io(&socket, "write -P 2 0 4096");
    assert!(said(&write).contains("Operation not permitted"), "{}", said(&write));
    let read = qemu_io(&socket, "read -P 1 0 8192");
    assert!(read.status.success() && !said(&read).contains("failed"), "{}", said(&read));
    let us = format!("process {}", std::process::id());
    assert!(description(&socket).contains(&us), "{}", description(&socket));
    wait_for_refusal(&stage, "(qemu-io)", &us);
    drop((first, same));
    let write = qemu_io(&socket, "write -P 2 0 4096");
    assert!(write.status.success() && !said(&write).contains("failed"), "{}", said(&write));
    let known = ["wanted to write", "writes are refused", "request failed"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

/// What a client is told of an export when it connects.
fn description(socket: &str) -> String {
    said(&Command::new("nbdinfo").arg(format!("nbd+unix:///vda?socket={socket}")).output().unwrap())
}

/// Waits until the agent tells of a client that wanted to write to the disk of another.
pub(crate) fn wait_for_refusal(stage: &Stage, client: &str, owner: &str) {
    let wanted = format!("wanted to write to disk vda of VM web, which {owner}");
    wait_until("an alert", SOON, || {
        let alerts = stage.a.ask(&["status"])?["alerts"].to_string();
        Ok((alerts.contains(client) && alerts.contains(&wanted)).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_guest_on_vhost_user_and_a_client_over_nbd_do_not_both_write() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let on_vhost_user = || GuestDisk::VhostUser { socket: vhost_socket(&stage), queues: 1 };
    let us = format!("process {} (", std::process::id());
    // The guest first.
    let mut guest = stage.guest(Work::Tick, on_vhost_user(), &[]);
    let qemu = format!("process {} (qemu-system", guest.pid());
    assert!(description(&socket).contains(&qemu), "{}", description(&socket));
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    let mut start = [0; 4096];
    client.read(0, &mut start).unwrap();
    let refused = client.write(0, &start).unwrap_err().to_string();
    assert!(refused.contains("error 1"), "{refused}");
    wait_for_refusal(&stage, &us, &qemu);
    more_ticks(&mut guest, 3);
    guest.kill().unwrap();
    // Then the other, which is there already.
    wait_until("its turn", SOON, || Ok(client.write(0, &start).ok())).unwrap();
    let before = std::fs::read(&disk).unwrap();
    let files = GuestFiles::find().unwrap();
    let folder = stage.folder.path().to_path_buf();
    let (work, on) = (Work::Tick, on_vhost_user());
    let options = GuestOptions { files: &files, work, disk: on, folder, name: "late", more: &[] };
    let mut late = Guest::start(&options).unwrap();
    late.console.wait_for("DONE cannot mount", Duration::from_secs(120)).unwrap();
    let lines = late.console.lines().unwrap();
    let failed = |line: &str| line.contains("I/O error, dev vda") && line.contains("(WRITE)");
    assert!(lines.iter().any(|(_, line)| failed(line)), "its kernel is told that its writes have failed");
    assert!(std::fs::read(&disk).unwrap() == before, "nothing of it is on the disk");
    let qemu = format!("process {} (qemu-system", late.pid());
    wait_for_refusal(&stage, &qemu, &us);
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    let told = |line: &str| line.contains("can only read") && line.contains(&qemu) && line.contains(&us);
    assert!(log.lines().any(told), "the log says at once whom it finds there");
    client.write(0, &start).unwrap();
    let known = ["wanted to write", "writes are refused", "request failed"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_disk_whose_group_has_failed_over_takes_no_newcomer_and_who_was_there_goes_on() {
    let mut stage = Stage::set();
    let disk = stage.disk("disk.raw", 2 << 20);
    let socket = stage.protect("web", "web", &disk);
    let mut guest = NbdClient::connect(&socket, "vda").unwrap();
    guest.write(0, &[1; 4096]).unwrap();
    stage.drained("web");
    stage.b.ask(&["failover", "start", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "fenced", SOON).unwrap();
    guest.write(0, &[2; 4096]).expect("who was there goes on");
    let is_fenced = |stage: &Stage| {
        let newcomer = qemu_io(&socket, "read 0 4096");
        assert!(
            !newcomer.status.success() && said(&newcomer).contains("has failed over"),
            "{}",
            said(&newcomer)
        );
        wait_until("an alert", SOON, || {
            let alerts = stage.a.ask(&["alerts"])?.to_string();
            Ok(alerts
                .contains("(qemu-io) came to disk vda of VM web, whose group has failed over")
                .then_some(()))
        })
        .unwrap();
        let mut guest = NbdClient::connect(&socket, "vda").expect("who was there may come back");
        guest.write(0, &[3; 4096]).unwrap();
    };
    drop(guest);
    is_fenced(&stage);
    stage.a.kill_agent().unwrap();
    stage.a.start_agent().unwrap();
    assert_eq!(stage.a.protected("web").unwrap()["state"], "fenced");
    is_fenced(&stage);
    // It is given back: whoever comes is taken.
    stage.b.ask(&["failover", "rollback", "--group", "web"]).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    let write = qemu_io(&socket, "write -P 4 0 4096");
    assert!(write.status.success() && !said(&write).contains("failed"), "{}", said(&write));
}

#[test]
fn a_disk_of_a_cluster_is_written_to_by_several() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let row = stage.try_protect("web", "web", &disk, &["--shared"]).unwrap();
    let socket = row["socket"].as_str().unwrap();
    let mut first = NbdClient::connect(socket, "vda").unwrap();
    first.write(0, &[1; 4096]).unwrap();
    let write = qemu_io(socket, "write -P 2 0 4096");
    assert!(write.status.success() && !said(&write).contains("failed"), "{}", said(&write));
    first.write(0, &[1; 4096]).unwrap();
}

#[test]
fn a_client_for_whom_there_is_no_place_is_told() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let socket = stage.protect("web", "web", &disk);
    let clients: Vec<_> = (0..16).map(|_| NbdClient::connect(&socket, "vda").unwrap()).collect();
    let mut one_more = UnixStream::connect(&socket).unwrap();
    one_more.read_exact(&mut [0; 18]).unwrap();
    one_more.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\0\0").unwrap();
    let mut reply = [0; 20];
    one_more.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..16], 0x8000_0002_u32.to_be_bytes(), "NBD_REP_ERR_POLICY");
    let mut text = vec![0; u32::from_be_bytes(reply[16..].try_into().unwrap()) as usize];
    one_more.read_exact(&mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("16 clients are connected"));
    drop(clients);
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    assert!(log.contains("all places are taken"));
}
