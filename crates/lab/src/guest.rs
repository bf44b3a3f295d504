//! A VM at the protected site, started as its administrator would: plain QEMU on the agent's socket.

use crate::console::Console;
use crate::guest_files::GuestFiles;
use crate::qemu::Qemu;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// What the guest does once it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Appends records.
    Tick,
    /// Appends records while several writers fill, delete and trim.
    Load,
    /// The same, while the disk is read all the time past the guest's cache.
    LoadAndRead,
    /// As `Load`, while the second disk is written all over too.
    LoadOnTwo,
    /// A few rounds of the same writers, then powers off; with one request to the disk at a time.
    Burst,
    /// Reports what it finds and powers off.
    Report,
    /// Asks for its disk's serial number, and for nothing else meanwhile: see `serial.sh`.
    Serial,
    /// As `Load` or `Tick`, while tokens are passed on: as the first, second or third of three guests. See `relay.sh`.
    Relay { under_load: bool, own: u8 },
    /// Is a host with an agent of its own, which protects the guest's disk: see `host.sh`.
    Host,
}

impl Work {
    /// The option on the kernel's command line.
    pub fn append(self) -> String {
        match self {
            Work::Tick => "holdfast.work=tick".into(),
            Work::Load => "holdfast.work=load".into(),
            Work::LoadAndRead => "holdfast.work=load holdfast.read=1".into(),
            Work::LoadOnTwo => "holdfast.work=load holdfast.second=1".into(),
            Work::Burst => "holdfast.work=burst holdfast.depth=1".into(),
            Work::Report => "holdfast.work=report".into(),
            Work::Serial => "rdinit=/serial.sh".into(),
            Work::Relay { under_load, own } => {
                let work = if under_load { "load" } else { "tick" };
                format!("rdinit=/relay.sh holdfast.work={work} holdfast.own={own}")
            }
            Work::Host => "rdinit=/host.sh".into(),
        }
    }
}

/// How to start a guest.
#[derive(Debug, Clone)]
pub struct GuestOptions<'a> {
    pub files: &'a GuestFiles,
    pub work: Work,
    pub disk: GuestDisk,
    /// Where console and log go.
    pub folder: PathBuf,
    pub name: &'a str,
    /// Further arguments for QEMU.
    pub more: &'a [String],
}

/// How QEMU reaches the guest's disk.
#[derive(Debug, Clone)]
pub enum GuestDisk {
    /// QEMU's `-blockdev` values, the last of which is the node `disk`.
    Blockdevs(Vec<String>),
    /// QEMU's arguments that make the disk, whatever they are.
    Arguments(Vec<String>),
    /// An NBD socket whose export `vda` the guest's own kernel is the client of; QEMU only carries the bytes.
    GuestKernel { socket: String },
    /// A vhost-user socket, with so many queues. QEMU connects again by itself.
    VhostUser { socket: String, queues: u16 },
}

impl GuestDisk {
    /// The guest's own image, in this format, with nothing of ours in between.
    pub fn image(path: &Path, format: &str) -> Self {
        Self::Blockdevs(vec![format!(
            "driver={format},node-name=disk,discard=unmap,file.driver=file,file.filename={},file.discard=unmap",
            path.display()
        )])
    }

    /// An export of an agent's NBD socket. The guest's requests wait while the agent is away.
    pub fn nbd(socket: &str, export: &str) -> Self {
        Self::Blockdevs(vec![Guest::on_socket(socket, export)])
    }

    fn arguments(&self) -> Vec<String> {
        let option = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        match self {
            GuestDisk::Blockdevs(values) => {
                let nodes = values.iter().flat_map(|value| option("-blockdev", value));
                nodes.chain(option("-device", "virtio-blk-pci,drive=disk,discard=on")).collect()
            }
            GuestDisk::Arguments(arguments) => arguments.clone(),
            GuestDisk::GuestKernel { socket } => {
                let net = format!("user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:10809-unix:{socket}");
                [option("-netdev", &net), option("-device", "virtio-net-pci,netdev=net,romfile=")].concat()
            }
            GuestDisk::VhostUser { socket, queues } => {
                let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={queues}");
                [
                    option("-object", "memory-backend-memfd,id=memory,size=256M,share=on"),
                    option("-machine", "memory-backend=memory"),
                    option("-chardev", &format!("socket,id=disk,path={socket},reconnect=1")),
                    option("-device", &device),
                ]
                .concat()
            }
        }
    }
}

/// A running guest. It is killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    pub console: Console,
}

impl Guest {
    /// The `-blockdev` value for an export of an agent's socket. The guest's requests wait while the
    /// agent is away.
    pub fn on_socket(socket: &str, export: &str) -> String {
        format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={socket},export={export},\
             reconnect-delay=300,discard=unmap"
        )
    }

    /// Starts a guest on the installed QEMU.
    ///
    /// # Errors
    /// Where QEMU cannot be started.
    pub fn start(options: &GuestOptions<'_>) -> Result<Self> {
        Self::start_on(&Qemu::system(), options)
    }

    /// Starts a guest on a QEMU.
    ///
    /// # Errors
    /// Where QEMU cannot be started.
    pub fn start_on(qemu: &Qemu, options: &GuestOptions<'_>) -> Result<Self> {
        let path = |suffix: &str| options.folder.join(format!("{}.{suffix}", options.name));
        let console = path("console");
        let _ = std::fs::remove_file(&console);
        let log = File::create(path("qemu.log")).context("make the guest's log")?;
        let mut command = qemu.command("qemu-system-x86_64");
        // In one thread: where two emulated processors run at once, a kernel that patches its own code crashes now
        // and then, for one of them runs what it has translated before.
        command.args(["-machine", "q35", "-accel", "tcg,thread=single"]);
        command.args(["-cpu", "max", "-smp", "1", "-m", "256"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&options.files.kernel).arg("-initrd").arg(&options.files.initrd);
        let client = match options.disk {
            GuestDisk::GuestKernel { .. } => " holdfast.nbd=10.0.2.100",
            _ => "",
        };
        command.arg("-append").arg(format!("console=ttyS0 panic=-1 quiet {}{client}", options.work.append()));
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(options.disk.arguments());
        for more in options.more {
            command.arg(more);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the guest's log")?)
            .stderr(log)
            .spawn()
            .context("start qemu-system-x86_64; is it installed?")?;
        Ok(Self { child, console: Console::new(Path::new(&console)) })
    }

    /// The guest's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the guest's process at once, as a power cut would.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().context("wait for the guest").map(drop)
    }

    /// Whether the guest's process still runs.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("ask for the guest")?.is_none())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
