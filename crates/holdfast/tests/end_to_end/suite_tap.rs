//! The tap is harmless in every way in which QEMU can serve a disk, through every end of the agent: one VM of two disks
//! for each way, format and version, whose agent is killed again and again while it attaches, reads and journals. Each
//! time the VM's process goes on, without a connection of ours; at the end the disks are what B has.

use crate::kill::more_ticks;
use crate::stage::{SOON, Stage, same_bytes, wait_for_listener};
use crate::tap::{ask, monitors, protect, traces};
use crate::tap_harmless::{nothing_is_open, wait_until_nothing_is_open};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Qemu, Work, check_file_system, make_disk, wait_until};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const KILLS: usize = 12;
const NAMES: [&str; 2] = ["vda", "vdb"];

/// Which thread serves the disks. All have two queues, and the guest two processors that use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serving {
    MainLoop,
    OneIoThread,
}

/// What the end of the agent may leave open in the VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Listening,
}

/// When the agent is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Attaching,
    Reading,
    Journaling,
}

impl Moment {
    fn of_round(round: usize) -> Self {
        [Self::Attaching, Self::Reading, Self::Journaling][round % 3]
    }
}

impl Serving {
    fn device(self, at: usize) -> String {
        let mut device = json!({
            "driver": "virtio-blk-pci", "drive": format!("own{at}"), "id": format!("disk{at}"), "num-queues": 2,
            "discard": true
        });
        if self == Self::OneIoThread {
            device["iothread"] = json!("io0");
        }
        device.to_string()
    }

    fn arguments(self, images: &[PathBuf; 2], format: &str) -> Vec<String> {
        let mut words: Vec<String> = ["-smp", "2"].map(str::to_owned).to_vec();
        if self == Self::OneIoThread {
            words.extend(["-object", "iothread,id=io0"].map(str::to_owned));
        }
        for (at, image) in images.iter().enumerate() {
            let file = format!("file.driver=file,file.filename={},file.discard=unmap", image.display());
            let node = format!("driver={format},node-name=own{at},discard=unmap,{file}");
            words.extend(["-blockdev".to_owned(), node, "-device".to_owned(), self.device(at)]);
        }
        words
    }
}

/// A running VM and what it had open before it was protected.
struct Vm {
    guest: Guest,
    images: [PathBuf; 2],
    format: &'static str,
    log: PathBuf,
    sockets_before: Vec<String>,
}

impl Vm {
    fn start(stage: &Stage, qemu: &Qemu, serving: Serving, format: &'static str) -> Self {
        let images = [("own0", 96 << 20), ("own1", 16 << 20)].map(|(name, size)| {
            let (raw, image) = (stage.path(&format!("{name}.made")), stage.path(name));
            make_disk(&raw, size).unwrap();
            convert(&raw, "raw", &image, format);
            image
        });
        let (files, more) = (GuestFiles::find().unwrap(), monitors(stage));
        let folder = stage.folder.path().to_path_buf();
        let log = folder.join("guest.qemu.log");
        let disk = GuestDisk::Arguments(serving.arguments(&images, format));
        let options =
            GuestOptions { files: &files, work: Work::LoadOnTwo, disk, folder, name: "guest", more: &more };
        let mut guest = Guest::start_on(qemu, &options).unwrap();
        guest.console.wait_for("READY", Duration::from_secs(120)).unwrap();
        let sockets_before = open_sockets(guest.pid());
        Self { guest, images, format, log, sockets_before }
    }

    fn goes_on(&mut self) {
        let runs = self.guest.is_running().unwrap();
        assert!(runs, "QEMU has ended: {}", std::fs::read_to_string(&self.log).unwrap());
        more_ticks(&mut self.guest, 5);
    }

    /// It goes on, and has neither export nor connection of ours. After the agent was killed in the middle of something
    /// it may still listen for one: nobody is left who could tell it not to.
    fn is_left_alone(&mut self, stage: &Stage, left: Left) {
        self.goes_on();
        let (pid, before) = (self.guest.pid(), &self.sockets_before);
        let open = || -> Vec<String> {
            let is_ours = |line: &String| left == Left::Listening && line.contains("/run/taps/");
            open_sockets(pid).into_iter().filter(|line| !is_ours(line)).collect()
        };
        // QEMU closes a connection a moment after its other end has.
        wait_until("no connection of ours", SOON, || Ok((open() == *before).then_some(()))).unwrap();
        assert!(left == Left::Listening || nothing_is_open(stage));
    }

    fn is_like(&self, stage: &Stage) {
        let opened = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest"]).unwrap();
        for (name, image) in NAMES.iter().zip(&self.images) {
            let (copy, own) = (stage.path(&format!("{name}.image")), stage.path(&format!("{name}.own")));
            lab::copy_image(opened["socket"].as_str().unwrap(), name, &copy).unwrap();
            convert(image, self.format, &own, "raw");
            assert!(same_bytes(&copy, &own), "{name} at B is the disk of the VM");
            assert!(*name != "vda" || check_file_system(&copy).unwrap());
        }
        stage.b.ask(&["image", "close", opened["id"].as_str().unwrap()]).unwrap();
    }
}

/// Of an image that a VM has open, too.
fn convert(from: &Path, format: &str, to: &Path, wanted: &str) {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-U", "-f", format, "-O", wanted]).arg(from).arg(to);
    assert!(convert.status().unwrap().success());
}

/// The sockets that a process listens at, or that have another end. One whose other end is gone is nobody's: a node of
/// the tap has such a one until it is removed.
fn open_sockets(pid: u32) -> Vec<String> {
    let rows = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = rows.filter_map(|row| std::fs::read_link(row.unwrap().path()).ok());
    let of_it: Vec<String> = targets
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let known = Command::new("ss").args(["--unix", "--all", "--numeric", "--no-header"]).output().unwrap();
    let known = String::from_utf8(known.stdout).unwrap();
    let is_open = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Kind, state, queues, then name and number of either end.
        let &[_, state, _, _, _, number, _, other] = words.as_slice() else { return false };
        of_it.iter().any(|known| known == number) && (state == "LISTEN" || other != "0")
    };
    known.lines().filter(is_open).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn is_reading(stage: &Stage) {
    stage.a.ask(&["vm", "resync", "web"]).unwrap();
    stage.a.wait_for_state("web", "delta-sync", SOON).unwrap();
}

/// The agent runs when this begins, and when it ends.
fn is_killed(stage: &mut Stage, vm: &mut Vm, moment: Moment) {
    let mut left = Left::Listening;
    match moment {
        Moment::Journaling => left = Left::Nothing,
        Moment::Reading => is_reading(stage),
        Moment::Attaching => {
            stage.a.kill_agent().unwrap();
            vm.is_left_alone(stage, Left::Nothing);
            let nodes_before = traces(stage)["nodes"].clone();
            stage.a.spawn_agent().unwrap();
            let begun = || Ok((traces(stage)["nodes"] != nodes_before).then_some(()));
            wait_until("the beginning of a tap", SOON, begun).unwrap();
        }
    }
    stage.a.kill_agent().unwrap();
    vm.is_left_alone(stage, left);
    stage.a.start_agent().unwrap();
    is_idle(stage);
}

/// Everything is read and sent.
fn is_idle(stage: &Stage) {
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    wait_until_nothing_is_open(stage);
}

fn survives_every_end(qemu: &Qemu, serving: Serving, format: &'static str) {
    eprintln!("{serving:?}, {format}");
    let mut stage = Stage::set();
    let mut vm = Vm::start(&stage, qemu, serving, format);
    let before = traces(&stage);
    protect(&stage, &stage.path("holdfast.qmp")).unwrap();
    is_idle(&stage);
    for round in 0..KILLS {
        is_killed(&mut stage, &mut vm, Moment::of_round(round));
    }
    for reads in [false, true] {
        if reads {
            is_reading(&stage);
        }
        stage.a.stop_agent().unwrap();
        vm.is_left_alone(&stage, Left::Nothing);
        stage.a.start_agent().unwrap();
        is_idle(&stage);
    }
    vm.goes_on();
    ask(&stage, "stop", &json!({}));
    stage.drained("web");
    vm.is_like(&stage);
    ask(&stage, "cont", &json!({}));
    is_reading(&stage);
    stage.a.ask(&["vm", "unprotect", "web"]).unwrap();
    vm.is_left_alone(&stage, Left::Nothing);
    assert_eq!(traces(&stage), before, "the VM is as it was");
    // An agent that is killed every few seconds may not come to write down how far the copy is.
    let late = "nothing of it was ever complete";
    let known = ["link lost", "peer not reached", "connection refused", "RPO exceeded", late];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

fn survives_in_both_formats(qemu: &Qemu, serving: Serving) {
    for format in ["raw", "qcow2"] {
        survives_every_end(qemu, serving, format);
    }
}

#[test]
#[ignore = "suite: tap"]
fn a_vm_of_qemu_7_survives_every_end_of_the_agent() {
    survives_in_both_formats(&Qemu::system(), Serving::MainLoop);
}

#[test]
#[ignore = "suite: tap"]
fn a_vm_of_qemu_10_survives_every_end_of_the_agent() {
    survives_in_both_formats(&Qemu::ten().unwrap(), Serving::MainLoop);
}

#[test]
#[ignore = "suite: tap"]
fn a_vm_of_qemu_10_with_one_io_thread_survives_every_end_of_the_agent() {
    survives_in_both_formats(&Qemu::ten().unwrap(), Serving::OneIoThread);
}

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
        wait_for_listener(Path::new(&control));
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
