//! Servers of one file: QEMU's, and an agent.

use crate::clock::Moment;
use crate::disk::written_file;
use crate::stream::{Pair, Qmp};
use anyhow::{Context, Result, bail};
use api::ProtectSettings;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The file all of them serve, every block of it written.
pub(super) fn preallocated(folder: &Path, bytes: u64) -> Result<PathBuf> {
    let path = folder.join("disk.raw");
    if !path.exists() {
        written_file(&path, bytes)?;
    }
    Ok(path)
}

/// One of QEMU's servers.
pub(super) struct Qemu {
    process: Child,
    socket: PathBuf,
}

impl Qemu {
    pub(super) fn nbd(folder: &Path, image: &Path) -> Result<Self> {
        let socket = folder.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args([
            "-t",
            "-e",
            "8",
            "-f",
            "raw",
            "--cache=none",
            "--aio=io_uring",
            "--discard=unmap",
            "-k",
        ]);
        command.arg(&socket).arg(image);
        Self::start(command, socket)
    }

    pub(super) fn daemon_nbd(folder: &Path, image: &Path) -> Result<Self> {
        let socket = folder.join("daemon-nbd.sock");
        let mut command = Self::daemon(image);
        command.args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())]);
        command.args(["--export", "nbd,id=e0,node-name=f0,writable=on,name="]);
        Self::start(command, socket)
    }

    pub(super) fn daemon_vhost_user(folder: &Path, image: &Path) -> Result<Self> {
        let socket = folder.join("daemon-vhost.sock");
        let mut command = Self::daemon(image);
        let export = format!(
            "vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path={},writable=on",
            socket.display()
        );
        command.args(["--export", &export]);
        Self::start(command, socket)
    }

    fn daemon(image: &Path) -> Command {
        let mut command = Command::new("qemu-storage-daemon");
        let file = format!(
            "file,node-name=f0,filename={},cache.direct=on,aio=io_uring,discard=unmap",
            image.display()
        );
        command.args(["--blockdev", &file]);
        command
    }

    pub(super) fn start(mut command: Command, socket: PathBuf) -> Result<Self> {
        let _ = std::fs::remove_file(&socket);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.with_context(|| format!("start {command:?}; is it installed?"))?;
        let mut server = Self { process, socket };
        let begun = Moment::now();
        // A vhost-user server takes one client only: it is not connected to just to see whether it is there.
        while !server.socket.exists() {
            if begun.elapsed() > 10.0 || server.process.try_wait()?.is_some() {
                bail!("{command:?} does not serve");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(server)
    }

    pub(super) fn socket(&self) -> &str {
        self.socket.to_str().expect("made of UTF-8")
    }

    pub(super) fn nbd_uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A VM on its own image. Its processor stands still: what a guest would write comes through an export of the node
/// that its disk is on, so the VM itself costs nothing.
pub(super) struct RunningVm {
    qemu: Qemu,
    control: PathBuf,
}

impl RunningVm {
    pub(super) fn start(folder: &Path, image: &Path) -> Result<Self> {
        let (control, own, socket) = (folder.join("vm.qmp"), folder.join("own.qmp"), folder.join("vm.vhost"));
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S"]);
        let node = format!(
            "driver=raw,node-name=disk,file.driver=file,file.filename={},cache.direct=on,\
             file.cache.direct=on,file.aio=io_uring",
            image.display()
        );
        command.args(["-blockdev", &node, "-device", "virtio-blk-pci,drive=disk,share-rw=on"]);
        for monitor in [&control, &own] {
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        }
        let mut qemu = Qemu::start(command, own.clone())?;
        let mut qmp = Qmp::connect(&own)?;
        let _ = std::fs::remove_file(&socket);
        qmp.ask(
            "block-export-add",
            &json!({
                "type": "vhost-user-blk", "id": "guest", "node-name": "disk", "writable": true,
                "addr": { "type": "unix", "path": socket }
            }),
        )?;
        qemu.socket = socket;
        Ok(Self { qemu, control })
    }

    pub(super) fn socket(&self) -> &str {
        self.qemu.socket()
    }
}

/// Where the recovery side keeps its journal and replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journal {
    InMemory,
    OnDisk,
}

/// What becomes of the writes beside being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    Paused,
    Replicated(Journal),
}

/// Two agents, the first of which serves the file.
pub(super) struct Holdfast {
    pair: Pair,
    protection: Protection,
    /// What goes with it.
    folders: Vec<PathBuf>,
}

const VM: &str = "vm";

impl Holdfast {
    pub(super) fn start(folder: &Path, image: &Path, protection: Protection) -> Result<Self> {
        let target = Self::agents(folder, protection)?;
        target.pair.protect_image(VM, image, ProtectSettings::default())?;
        if protection == Protection::Paused {
            target.pair.pause(VM)?;
        }
        Ok(target)
    }

    /// A VM under the tap, replicated into memory.
    pub(super) fn tap(folder: &Path, vm: &RunningVm) -> Result<Self> {
        let target = Self::agents(folder, Protection::Replicated(Journal::InMemory))?;
        target.pair.protect_running(VM, &vm.control, ProtectSettings::default())?;
        Ok(target)
    }

    fn agents(folder: &Path, protection: Protection) -> Result<Self> {
        let ours = folder.join("pair");
        let in_memory = PathBuf::from(format!("/dev/shm/holdfast-bench-{}", std::process::id()));
        let folders = vec![ours.clone(), in_memory.clone()];
        for folder in &folders {
            let _ = std::fs::remove_dir_all(folder);
        }
        let (buffers, journals) = if protection == Protection::Replicated(Journal::InMemory) {
            std::fs::create_dir_all(&in_memory).context("make a folder in memory")?;
            let place = in_memory.display();
            (
                format!("[buffers]\nspill_dir = \"{place}/spill\"\n"),
                format!("journal_dir = \"{place}/journals\"\n"),
            )
        } else {
            (String::new(), String::new())
        };
        let pair = Pair::start_with(&ours, &buffers, &journals)?;
        Ok(Self { pair, protection, folders })
    }

    pub(super) fn nbd_uri(&self) -> Result<String> {
        Ok(format!("nbd+unix:///vda?socket={}", self.pair.vm(VM)?.socket))
    }

    pub(super) fn vhost_user_socket(&self) -> Result<String> {
        let vm = self.pair.vm(VM)?;
        vm.disks[0].vhost_user_socket.clone().context("the disk has a vhost-user socket")
    }

    /// Waits until nothing of the workload before is left to be sent.
    pub(super) fn wait_until_drained(&self) -> Result<()> {
        if self.protection == Protection::Paused {
            return Ok(());
        }
        self.pair.wait("all is durable", || {
            let vm = self.pair.vm(VM)?;
            let left = vm.dirty_bytes + vm.buffer_bytes + vm.spill_bytes;
            Ok((left == 0 && vm.state == "journaling").then_some(()))
        })
    }
}

impl Drop for Holdfast {
    fn drop(&mut self) {
        self.pair.stop();
        for folder in &self.folders {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
