//! One client writes to a disk, and others read: what a plain QEMU's lock on its image is for.

use crate::stage::{SOON, Stage};
use lab::{NbdClient, wait_until};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

/// Another client than this process.
fn qemu_io(socket: &str, command: &str) -> Output {
    let uri = format!("nbd+unix:///vda?socket={socket}");
    Command::new("qemu-io").args(["-f", "raw", "-c", command, &uri]).output().unwrap()
}

fn said(output: &Output) -> String {
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
    let info = Command::new("nbdinfo").arg(format!("nbd+unix:///vda?socket={socket}")).output().unwrap();
    assert!(said(&info).contains(&us), "{}", said(&info));
    wait_until("an alert", SOON, || {
        let alerts = stage.a.ask(&["status"])?["alerts"].to_string();
        Ok((alerts.contains("(qemu-io) wanted to write to disk vda of VM web") && alerts.contains(&us))
            .then_some(()))
    })
    .unwrap();
    drop((first, same));
    let write = qemu_io(&socket, "write -P 2 0 4096");
    assert!(write.status.success() && !said(&write).contains("failed"), "{}", said(&write));
    let known = ["wanted to write", "writes are refused", "request failed"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
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
