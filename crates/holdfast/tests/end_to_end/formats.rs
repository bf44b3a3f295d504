//! Disks in formats of their own are not written under a guest; each is named with what to do.

use crate::stage::{Stage, refused};
use std::process::Command;

#[test]
fn images_that_only_qemu_writes_are_named_with_what_to_do() {
    let stage = Stage::set();
    for (format, name) in [("qcow2", "qcow2"), ("vmdk", "VMDK"), ("vhdx", "VHDX"), ("vpc", "VHD")] {
        let image = stage.path(&format!("disk.{format}"));
        let create = Command::new("qemu-img").args(["create", "-f", format]).arg(&image).arg("16M").output();
        assert!(create.unwrap().status.success());
        let words = format!("{name} format, which only QEMU writes: protect the running VM with `--qmp`");
        refused(stage.try_protect("web", "web", &image, &[]), 2, &words);
    }
}
