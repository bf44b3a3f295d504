//! A disk under the tap is known by its device and its image, not by what QEMU calls its node at the moment.

use crate::stage::{SOON, Stage, refused, same_bytes, wait_for_listener};
use crate::tap::{ask, monitors, protect, traces};
use lab::wait_until;
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command};

/// A VM that is not booted, killed when dropped: its disks are enough.
pub(crate) struct Unbooted(pub(crate) Child);

impl Unbooted {
    /// With disks of device, image and node each.
    pub(crate) fn start(stage: &Stage, disks: &[(&str, &Path, &str)], more: &[&str]) -> Self {
        let _ = std::fs::remove_file(stage.path("own.qmp"));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none"]).args(more);
        for (device, image, node) in disks {
            let image = image.display();
            qemu.arg("-blockdev")
                .arg(format!("driver=raw,node-name={node},file.driver=file,file.filename={image}"));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive={node},id={device}"));
        }
        let child = qemu.args(monitors(stage)).spawn().unwrap();
        wait_for_listener(&stage.path("own.qmp"));
        Self(child)
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Unbooted {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the alerts say something.
pub(crate) fn wait_for_alert(stage: &Stage, words: &str) {
    wait_until(&format!("an alert of {words:?}"), SOON, || {
        Ok(stage.a.ask(&["status"])?["alerts"].to_string().contains(words).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_disk_is_known_again_by_device_and_image_and_any_difference_is_told() {
    let stage = Stage::set();
    let (web, second) = (stage.disk("web.raw", 16 << 20), stage.path("second.raw"));
    std::fs::write(&second, vec![0x5e; 16 << 20]).unwrap();
    let mut vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "libvirt-1-format")], &[]);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    vm.kill();
    wait_for_alert(&stage, "VM web is not protected");
    // As libvirt numbers nodes once a second disk is there.
    let disks = [("virtio-disk0", &*web, "libvirt-2-format"), ("virtio-disk1", &*second, "libvirt-1-format")];
    let mut vm = Unbooted::start(&stage, &disks, &[]);
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.drained("web");
    let filter = ask(&stage, "query-block", &json!({}));
    let of = |device: &str| {
        let rows = filter.as_array().unwrap();
        rows.iter().find(|row| row["qdev"].as_str().unwrap().contains(device)).unwrap().to_string()
    };
    assert!(of("virtio-disk0").contains("holdfast-vda-filter"), "{filter}");
    assert!(!of("virtio-disk1").contains("holdfast-"), "{filter}");
    let copy = stage.copy_image("web", "latest", "image.raw");
    assert!(same_bytes(&copy, &web), "what is at B is the disk that was protected");
    vm.kill();
    wait_for_alert(&stage, "VM web is not protected");
    // Another image at the same device.
    let mut vm = Unbooted::start(&stage, &[("virtio-disk0", &second, "libvirt-1-format")], &[]);
    wait_for_alert(&stage, "device virtio-disk0 has image");
    assert!(!traces(&stage).to_string().contains("holdfast-"), "it is left alone");
    assert_eq!(stage.a.protected("web").unwrap()["state"], "failed");
    vm.kill();
    // Another file of the same name.
    std::fs::rename(&second, &web).unwrap();
    let _vm = Unbooted::start(&stage, &[("virtio-disk0", &web, "libvirt-1-format")], &[]);
    wait_for_alert(&stage, "was replaced by another file of that name");
    refused(stage.a.ask(&["vm", "resync", "web"]), 3, "");
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
}
