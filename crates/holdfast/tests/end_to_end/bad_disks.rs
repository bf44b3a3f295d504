//! Local disks that fail, and files that shrink: the guest is told, the region is marked, and protection goes on.
//!
//! The disks are real: images on a small file system in memory, and loop devices on one and on memory that is
//! sealed. Making those takes root.

use crate::stage::{SOON, Stage, refused, same_bytes};
use lab::NbdClient;
use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A small file system in memory. It is unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this is not root.
    fn mount(at: PathBuf, bytes: u64) -> Option<Self> {
        if !is_root() {
            return None;
        }
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at));
        Some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A loop device on a file.
pub(crate) struct LoopDevice(pub(crate) String);

impl LoopDevice {
    pub(crate) fn on(file: &Path) -> Self {
        Self(run(Command::new("losetup").args(["-f", "--show", "-P"]).arg(file)).trim().to_owned())
    }

    /// Its first partition, over so many bytes from the first MiB on, whether the disk has a table or not.
    pub(crate) fn partition(&self, bytes: u64) -> PathBuf {
        let [from, sectors] = [MIB, bytes].map(|bytes| (bytes / 512).to_string());
        run(Command::new("addpart").args([&self.0, "1", &from, &sectors]));
        PathBuf::from(format!("{}p1", self.0))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can make such a disk");
    }
    root
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|byte| (byte.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// A disk that has room for only a part of itself, until the ballast beside it goes.
fn fails_and_recovers(on_loop: bool, code: u32, disk_name: &str) {
    let stage = Stage::set();
    let Some(small) = SmallDisk::mount(stage.path("small"), 24 * MIB) else { return };
    let (file, ballast) = (small.0.join("disk.raw"), small.0.join("ballast"));
    OpenOptions::new().create_new(true).write(true).open(&file).unwrap().set_len(16 * MIB).unwrap();
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let device = on_loop.then(|| LoopDevice::on(&file));
    let path = device.as_ref().map_or(file.clone(), |device| PathBuf::from(&device.0));
    let socket = stage.protect("web", "web", &path);
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    let bytes = noise(1 << 20);
    let mut failed = 0;
    for at in (0..16 * MIB).step_by(1 << 20) {
        if let Err(error) = client.write(at, &bytes) {
            assert!(error.to_string().ends_with(&format!("error {code}")), "{error:#}");
            failed += 1;
        }
    }
    assert!((4..16).contains(&failed), "{failed} of 16 writes failed");
    // Others are not held up, and the connection is whole.
    client.write(0, &bytes[..4096]).unwrap();
    std::fs::remove_file(&ballast).unwrap();
    for at in (0..16 * MIB).step_by(1 << 20) {
        client.write(at, &bytes).unwrap();
    }
    drop(client);
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &path));
    let known = ["request failed", disk_name, "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_full_file_system_is_told_to_the_guest_and_protection_goes_on() {
    fails_and_recovers(false, 28, "small/disk.raw");
}

#[test]
fn a_block_device_that_fails_writes_is_told_to_the_guest_and_protection_goes_on() {
    fails_and_recovers(true, 28, "/dev/loop");
}

#[test]
fn a_block_device_with_io_errors_is_told_to_the_guest_and_protection_goes_on() {
    if !is_root() {
        return;
    }
    let stage = Stage::set();
    let memory = memfd_create("disk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&memory, 16 * MIB).unwrap();
    let of_ours = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let device = LoopDevice::on(Path::new(&of_ours));
    let path = PathBuf::from(&device.0);
    let socket = stage.protect("web", "web", &path);
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    let bytes = noise(1 << 20);
    client.write(0, &bytes).unwrap();
    // From here on every write to the device fails as a broken disk's does.
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    for at in (MIB..16 * MIB).step_by(1 << 20) {
        let error = client.write(at, &bytes).unwrap_err();
        assert!(error.to_string().ends_with("error 5"), "{error:#}");
    }
    let mut found = vec![0; 1 << 20];
    client.read(0, &mut found).unwrap();
    assert!(found == bytes, "what can be read is read");
    drop(client);
    stage.drained("web");
    assert!(same_bytes(&stage.copy_image("web", "latest", "image.raw"), &path));
    let known = ["request failed", "/dev/loop", "RPO exceeded"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn an_image_that_shrinks_fails_reads_and_holds_up_nobody() {
    let stage = Stage::set();
    let (shrinking, whole) = (stage.disk("shrinking.raw", 16 * MIB), stage.disk("whole.raw", 16 * MIB));
    let sockets = [("web", &shrinking), ("db", &whole)].map(|(vm, disk)| stage.protect(vm, vm, disk));
    let mut clients = sockets.map(|socket| NbdClient::connect(&socket, "vda").unwrap());
    let file = OpenOptions::new().write(true).open(&shrinking).unwrap();
    file.set_len(8 * MIB).unwrap();
    let mut bytes = vec![0; 4096];
    for at in [8 * MIB, 12 * MIB, 16 * MIB - 4096] {
        let error = clients[0].read(at, &mut bytes).unwrap_err();
        assert!(error.to_string().ends_with("error 5"), "{error:#}");
    }
    clients[0].read(4 * MIB, &mut bytes).unwrap();
    clients[1].write(12 * MIB, &noise(4096)).unwrap();
    // A write makes room again, as on any file; and a file of the old size is a whole disk again.
    clients[0].write(12 * MIB, &noise(4096)).unwrap();
    file.set_len(16 * MIB).unwrap();
    stage.a.wait_for_state("web", "journaling", SOON).unwrap();
    stage.a.ask(&["vm", "verify", "web"]).unwrap_err();
    stage.drained("web");
    stage.drained("db");
    for (vm, disk) in [("web", &shrinking), ("db", &whole)] {
        assert!(same_bytes(&stage.copy_image(vm, "latest", &format!("{vm}.image")), disk), "{vm}");
    }
    let known =
        ["request failed", "RPO exceeded", "differ", "is not protected", "written to by somebody else"];
    assert_eq!(stage.a.unannounced(&known).unwrap(), Vec::<String>::new());
}

#[test]
fn a_block_device_that_is_mounted_is_refused_and_a_protected_one_cannot_be() {
    if !is_root() {
        return;
    }
    let stage = Stage::set();
    let (file, folder) = (stage.path("disk.raw"), stage.path("mounted"));
    lab::make_disk(&file, 16 * MIB).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let device = LoopDevice::on(&file);
    run(Command::new("mount").arg(&device.0).arg(&folder));
    let result = stage.try_protect("web", "web", Path::new(&device.0), &[]);
    run(Command::new("umount").arg(&folder));
    refused(result, 2, "it is mounted");
    stage.protect("web", "web", Path::new(&device.0));
    assert!(!Command::new("mount").arg(&device.0).arg(&folder).status().unwrap().success());
}
