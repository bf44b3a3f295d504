//! Disks in formats of their own: qcow2 is written, the others are named with what to do.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::{NbdClient, Ticks, check_file_system, make_disk, read_file};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn qemu_img(arguments: &[&str], paths: &[&Path]) -> std::process::Output {
    Command::new("qemu-img").args(arguments).args(paths).output().unwrap()
}

#[test]
fn a_guest_on_a_qcow2_image_outlives_the_agent_and_the_image_stays_whole() {
    let mut stage = Stage::set();
    let (raw, image) = (stage.path("made.raw"), stage.path("disk.qcow2"));
    make_disk(&raw, 96 << 20).unwrap();
    assert!(qemu_img(&["convert", "-O", "qcow2"], &[&raw, &image]).status.success());
    let socket = stage.protect("web", "web", &image);
    let mut guest = stage.guest_under_load(&socket);
    for round in 0..4 {
        more_ticks(&mut guest, 5);
        stage.a.kill_agent().unwrap();
        // Its tables are whole at any moment; clusters that nobody refers to are no harm.
        let check = qemu_img(&["check", "-f", "qcow2"], &[&image]);
        assert!(matches!(check.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&check.stdout));
        std::thread::sleep(Duration::from_millis(200 * round));
        stage.a.start_agent().unwrap();
    }
    more_ticks(&mut guest, 5);
    let reported = Ticks::reported(&mut guest.console).unwrap().last().unwrap().number;
    guest.kill().unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    let copy = stage.copy_image("web", "latest", "image.raw");
    stage.a.stop_agent().unwrap();
    let own = stage.path("own.raw");
    assert!(qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[&image, &own]).status.success());
    assert!(same_bytes(&copy, &own), "the image at B is the disk at A");
    assert!(check_file_system(&copy).unwrap());
    let ticks = Ticks::parse(&read_file(&copy, "/ticks").unwrap());
    assert!(ticks.violations == 0 && ticks.last >= reported, "record {reported} was reported");
}

#[test]
fn images_that_only_qemu_writes_are_named_with_what_to_do() {
    let stage = Stage::set();
    for (format, name) in [("vmdk", "VMDK"), ("vhdx", "VHDX"), ("vpc", "VHD")] {
        let image = stage.path(&format!("disk.{format}"));
        assert!(qemu_img(&["create", "-f", format], &[&image, Path::new("16M")]).status.success());
        refused(
            stage.try_protect("web", "web", &image, &[]),
            2,
            &format!("{name} format, which only QEMU writes"),
        );
    }
    let image = stage.path("disk.qcow2");
    assert!(qemu_img(&["create", "-f", "qcow2"], &[&image, Path::new("16M")]).status.success());
    let child = stage.path("child.qcow2");
    let backing = ["create", "-f", "qcow2", "-F", "qcow2", "-b"];
    assert!(qemu_img(&backing, &[&image, &child]).status.success());
    refused(stage.try_protect("web", "web", &child, &[]), 2, "with a backing file");
    assert!(qemu_img(&["snapshot", "-c", "one"], &[&image]).status.success());
    refused(stage.try_protect("web", "web", &image, &[]), 2, "with snapshots");
    std::fs::write(&image, b"QFI\xfb and then something else entirely").unwrap();
    refused(stage.try_protect("web", "web", &image, &[]), 2, "disk.qcow2");
}

#[test]
fn what_a_qcow2_image_was_told_to_hold_is_there_after_a_kill_without_any_flush() {
    let mut stage = Stage::set();
    let image = stage.path("disk.qcow2");
    assert!(qemu_img(&["create", "-f", "qcow2"], &[&image, Path::new("64M")]).status.success());
    let socket = stage.protect("web", "web", &image);
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    let place = |number: u64| number * (3 << 20) + 512 * number;
    for number in 0..20 {
        client.write(place(number), &vec![number as u8 + 1; 70_000]).unwrap();
    }
    stage.a.kill_agent().unwrap();
    let check = qemu_img(&["check", "-f", "qcow2"], &[&image]);
    assert!(matches!(check.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&check.stdout));
    stage.a.start_agent().unwrap();
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    for number in 0..20 {
        let mut back = vec![0; 70_000];
        client.read(place(number), &mut back).unwrap();
        assert!(back.iter().all(|&byte| byte == number as u8 + 1), "write {number} is lost");
    }
}
