//! The tap when a VM's monitor says nothing.

use crate::stage::{SOON, Stage};
use lab::wait_until;
use std::path::Path;
use std::process::Command;

/// So many that the wait for one after the other would be longer than an agent may take to start or to end.
const SILENT: usize = 8;

#[test]
#[ignore = "suite: tap"]
fn monitors_that_say_nothing_hold_up_neither_the_agent_nor_other_vms() {
    let mut stage = Stage::set();
    let (disk, peer) = (stage.disk("other.raw", 8 << 20), stage.b.peer());
    stage.protect("other", "other", &disk);
    let mut vms = Vec::new();
    for at in 0..SILENT {
        let (name, control) = (format!("web{at}"), stage.path(&format!("{at}.qmp")).display().to_string());
        let image = stage.disk(&format!("{name}.raw"), 1 << 20);
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35", "-accel", "tcg", "-S", "-m", "64", "-nodefaults", "-display", "none"]);
        qemu.arg("-qmp").arg(format!("unix:{control},server=on,wait=off"));
        qemu.arg("-blockdev")
            .arg(format!("driver=raw,node-name=own,file.driver=file,file.filename={}", image.display()));
        vms.push(Killed(qemu.args(["-device", "virtio-blk-pci,drive=own,id=own"]).spawn().unwrap()));
        wait_until("a monitor", SOON, || Ok(Path::new(&control).exists().then_some(()))).unwrap();
        stage.a.ask(&["vm", "protect", &name, "--qmp", &control, "--peer", &peer]).unwrap();
        stage.a.wait_for_state(&name, "journaling", SOON).unwrap();
    }
    let signal = |signal: &str| {
        let pids = vms.iter().map(|vm| vm.0.id().to_string());
        assert!(Command::new("kill").arg(signal).args(pids).status().unwrap().success());
    };
    signal("-STOP");
    stage.a.ask(&["vm", "unprotect", "web0"]).unwrap();
    stage.a.stop_agent().unwrap();
    stage.a.start_agent().unwrap();
    stage.a.wait_for_state("other", "journaling", SOON).unwrap();
    for _ in 0..3 {
        stage.a.ask(&["vm", "resync", "other"]).unwrap();
        stage.a.ask(&["status"]).unwrap();
    }
    stage.a.ask(&["vm", "unprotect", "web1"]).unwrap();
    stage.a.ask(&["vm", "unprotect", "other"]).unwrap();
    assert_eq!(stage.a.protected("web2").unwrap()["state"], "failed");
    signal("-CONT");
    for at in 2..SILENT {
        stage.a.wait_for_state(&format!("web{at}"), "journaling", SOON).unwrap();
    }
}

/// A process that is killed when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
