//! Plain QEMU: one process per VM, disks over NBD, told over QMP.
//!
//! The process is nobody's but the guest's: a user of its own, without capabilities, in QEMU's own sandbox, in a folder
//! ([`GuestFolder`]) that has all it may reach, and not ended with the agent ([`OwnUnit`]).

use super::definition::{Graphics, VmDefinition};
use super::guest_folder::{self, CONSOLE, GuestFolder, SCREEN};
use super::guest_users::{GuestUser, GuestUsers};
use super::own_unit::OwnUnit;
use super::qmp::{Qmp, QmpError};
use crate::config::GuestsConfig;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// How long a guest's request waits for the agent to come back before it fails.
const RECONNECT_SECONDS: u32 = 3600;
const START_TRIES: u32 = 100;
const STOP_TRIES: u32 = 100;
/// How often a process is looked for that holds a VM's log and is not seen.
const UNSEEN_TRIES: u32 = 10;
const TRY_INTERVAL: Duration = Duration::from_millis(100);
/// What QEMU forbids itself and its threads before the guest runs; the word that its process is known by too.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Starts and stops VMs on this host.
#[derive(Debug, Clone)]
pub struct Adapter {
    program: PathBuf,
    /// Where each guest has a folder.
    run_dir: PathBuf,
    guests: GuestsConfig,
}

/// A disk to start a VM with.
#[derive(Debug, Clone)]
pub struct StartDisk {
    pub name: String,
    /// The NBD socket, where the disk is an export by its name.
    pub socket: PathBuf,
}

/// A VM that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub pid: u32,
}

/// A disk of a VM that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDisk {
    pub name: String,
    pub size_bytes: u64,
    /// Since the VM was started.
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub failed_requests: u64,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    Running,
    /// Its processors stand still: an operator has paused it, or its disk has failed.
    Paused,
    Stopped,
}

impl Graphics {
    fn device(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Vga => Some("VGA"),
            Self::Virtio => Some("virtio-vga"),
        }
    }
}

impl Adapter {
    pub fn new(program: PathBuf, run_dir: PathBuf, guests: GuestsConfig) -> Self {
        Self { program, run_dir, guests }
    }

    /// Whether there is a user whom VMs can be started as.
    ///
    /// # Errors
    /// Where there is none; the message says what to do.
    pub fn check_users(&self) -> Result<()> {
        GuestUsers::find(&self.guests).map(drop)
    }

    /// Starts a VM; `file` tells where a file of the definition lies here. `key` names the running VM
    /// on this host. One that runs already, on the same disks, is taken as it is: an agent that has died may have started it
    /// and not written that down.
    ///
    /// # Errors
    /// With what the hypervisor said, where it ended by itself.
    pub fn start(
        &self,
        key: &str,
        title: &str,
        definition: &VmDefinition,
        file: impl Fn(&str) -> Option<PathBuf>,
        disks: &[StartDisk],
    ) -> Result<Started> {
        std::fs::create_dir_all(self.folder(key).path()).context("make the guest's folder")?;
        for _ in 0..START_TRIES {
            if let Some(pid) = self.find(key) {
                check_is_on(pid, disks)?;
                match self.await_monitor(key, || (!self.is_alive(key, pid)).then(|| "ended".into()))? {
                    Waited::Answers => {
                        self.clear_files(key, definition);
                        return Ok(Started { pid });
                    }
                    Waited::Ended(_) => continue,
                    Waited::IsSilent => bail!("process {pid} of the VM does not answer"),
                }
            }
            if let Some(log) = self.take_log(key)? {
                let user = self.prepare(key, definition, file, disks)?;
                let started = self.spawn(key, log, self.command(key, title, definition, disks, user));
                self.clear_files(key, definition);
                return started;
            }
            sleep(TRY_INTERVAL);
        }
        bail!("a process that is not seen holds {}: end it", self.folder(key).log().display())
    }

    /// Makes the guest's folder ready, with all that its process needs in it.
    fn prepare(
        &self,
        key: &str,
        definition: &VmDefinition,
        file: impl Fn(&str) -> Option<PathBuf>,
        disks: &[StartDisk],
    ) -> Result<Option<GuestUser>> {
        let find = |name| file(name).with_context(|| format!("the VM's {name} has not arrived"));
        let names = definition.files().into_iter().map(|(name, _)| name);
        let files = names.map(|name| Ok((name, find(name)?))).collect::<Result<Vec<_>>>()?;
        let (folder, users) = (self.folder(key), GuestUsers::find(&self.guests)?);
        let user = folder.prepare(users)?;
        for (name, path) in files {
            folder.bring(name, &path, user)?;
        }
        let uid = user.map(|user| user.uid);
        disks.iter().try_for_each(|disk| folder.give(&disk.socket, uid))?;
        Ok(user)
    }

    /// QEMU has read its files.
    fn clear_files(&self, key: &str, definition: &VmDefinition) {
        let folder = self.folder(key);
        definition.files().into_iter().for_each(|(name, _)| folder.clear(name));
    }

    /// Gives a socket of disks that is served anew to the VM of that key, if it had it.
    ///
    /// # Errors
    /// Where it cannot be given.
    pub fn give_again(&self, key: &str, socket: &Path) -> Result<()> {
        self.folder(key).give_again(socket)
    }

    fn command(
        &self,
        key: &str,
        title: &str,
        definition: &VmDefinition,
        disks: &[StartDisk],
        user: Option<GuestUser>,
    ) -> Command {
        let image = disks.first().map(|disk| guest_folder::name_of(&disk.socket)).unwrap_or_default();
        let unit = OwnUnit::find(&format!("{key}-{}", image.trim_end_matches(".sock")));
        // The binary as it is now, also where another version has been installed meanwhile.
        let mut command = unit.command(&format!("/proc/{}/exe", std::process::id()));
        command.args(["launch-guest", "--folder"]).arg(self.folder(key).path());
        if let Some(user) = user {
            command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
        }
        if let Some(group) = kvm_group(definition) {
            command.args(["--group", &group.to_string()]);
        }
        if let Some(cgroup) = unit.cgroup() {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("--").arg(&self.program).args(arguments(title, definition, disks));
        command
    }

    fn spawn(&self, key: &str, log: File, mut command: Command) -> Result<Started> {
        log.set_len(0).context("empty the VM's log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("share the VM's log")?).stderr(log);
        let program = command.get_program().display().to_string();
        let mut child = command.spawn().with_context(|| format!("start the VM's process with {program}"))?;
        let pid = child.id();
        let ended = || match child.try_wait() {
            Ok(status) => status.map(|status| status.to_string()),
            Err(error) => Some(format!("an error: {error}")),
        };
        match self.await_monitor(key, ended)? {
            Waited::Answers => {
                // Somebody must wait for the process, or it stays as a zombie once it ends.
                std::thread::spawn(move || child.wait());
                Ok(Started { pid })
            }
            Waited::Ended(status) => {
                let said = std::fs::read_to_string(self.folder(key).log()).unwrap_or_default();
                bail!("the VM's process ended with {status}: {}", said.trim())
            }
            Waited::IsSilent => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the VM's process does not answer")
            }
        }
    }

    /// Waits until a VM's monitor answers, or its process has `ended`, as that says.
    fn await_monitor(&self, key: &str, mut ended: impl FnMut() -> Option<String>) -> Result<Waited> {
        for _ in 0..START_TRIES {
            if let Some(how) = ended() {
                return Ok(Waited::Ended(how));
            }
            if self.ask(key, "query-status").is_ok() {
                return Ok(Waited::Answers);
            }
            sleep(TRY_INTERVAL);
        }
        Ok(Waited::IsSilent)
    }

    /// The process of the VM of that key, whoever has started it; none where it does not run.
    pub fn find(&self, key: &str) -> Option<u32> {
        let rows = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = rows.filter_map(|row| row.file_name().to_str()?.parse().ok());
        pids.filter(|pid| self.is_alive(key, *pid)).min()
    }

    fn folder(&self, key: &str) -> GuestFolder {
        GuestFolder::new(&self.run_dir, key)
    }

    /// The log of a VM; none while a process has it. Its process holds it locked from its first moment, in which it
    /// is not yet seen for what it is, to its last.
    fn take_log(&self, key: &str) -> Result<Option<File>> {
        let log = File::options().create(true).write(true).truncate(false).open(self.folder(key).log());
        let log = log.context("make the VM's log")?;
        match flock(&log, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).context("lock the VM's log"),
        }
        Ok(Some(log))
    }

    /// What the VM of that key is doing.
    pub fn state(&self, key: &str, pid: u32) -> RunState {
        if !self.is_alive(key, pid) {
            return RunState::Stopped;
        }
        // One that does not answer is busy, not stopped.
        let answer = self.ask(key, "query-status");
        match answer.as_ref().ok().and_then(|status| status["running"].as_bool()) {
            Some(false) => RunState::Paused,
            _ => RunState::Running,
        }
    }

    /// The disks of a VM that runs, and what it has done with them.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn disks(&self, key: &str) -> Result<Vec<RunDisk>> {
        let mut monitor = Qmp::connect(&self.control_socket(key))?;
        let devices = monitor.execute("query-block")?;
        let counted = monitor.execute("query-blockstats")?;
        let counted = counted.as_array().cloned().unwrap_or_default();
        let attached = devices.as_array().into_iter().flatten().filter_map(|row| row.get("inserted"));
        let describe = |disk: &Value| {
            let name = &disk["node-name"];
            let stats = counted.iter().find(|row| row["node-name"] == *name).map(|row| &row["stats"]);
            let count = |what: &str| stats.and_then(|stats| stats[what].as_u64()).unwrap_or(0);
            let failed = ["failed_rd_operations", "failed_wr_operations", "failed_flush_operations"];
            RunDisk {
                name: name.as_str().unwrap_or_default().to_owned(),
                size_bytes: disk["image"]["virtual-size"].as_u64().unwrap_or(0),
                read_bytes: count("rd_bytes"),
                written_bytes: count("wr_bytes"),
                failed_requests: failed.into_iter().map(count).sum(),
            }
        };
        Ok(attached.map(describe).collect())
    }

    /// What a VM shows on its screen, as PNG.
    ///
    /// # Errors
    /// Where it has no screen, or does not answer.
    pub fn screenshot(&self, key: &str) -> Result<Vec<u8>> {
        let arguments = json!({ "filename": SCREEN, "format": "png" });
        let take = || Ok(Qmp::connect(&self.control_socket(key))?.ask("screendump", &arguments)?);
        self.folder(key).take(SCREEN, take).context("take a screenshot")
    }

    /// Has a VM's processors stand still, or go on.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn set_paused(&self, key: &str, paused: bool) -> Result<()> {
        self.ask(key, if paused { "stop" } else { "cont" }).map(drop).context("tell the VM")
    }

    /// Ends a VM at once, as pulling its plug would, whoever has started it.
    ///
    /// # Errors
    /// Where its process cannot be ended.
    pub fn stop(&self, key: &str) -> Result<()> {
        let mut is_asked = false;
        for tries in 0..STOP_TRIES {
            let Some(pid) = self.find(key) else {
                // One that is just being started is seen in a moment.
                if !self.folder(key).log().exists() || tries >= UNSEEN_TRIES || self.take_log(key)?.is_some()
                {
                    return Ok(());
                }
                sleep(TRY_INTERVAL);
                continue;
            };
            if !is_asked {
                is_asked = true;
                let _ = self.ask(key, "quit");
            } else if tries >= STOP_TRIES / 2 {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
                match rustix::process::kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error).context("kill the VM's process"),
                }
            }
            sleep(TRY_INTERVAL);
        }
        bail!("the VM's process {} does not end", self.find(key).unwrap_or_default())
    }

    fn control_socket(&self, key: &str) -> PathBuf {
        self.folder(key).join(guest_folder::MONITOR)
    }

    /// A monitor of its own for whoever listens: each takes one client.
    pub(super) fn event_socket(&self, key: &str) -> PathBuf {
        self.folder(key).join(guest_folder::EVENTS)
    }

    fn ask(&self, key: &str, command: &str) -> Result<Value, QmpError> {
        Qmp::connect(&self.control_socket(key))?.execute(command)
    }

    /// Whether the process is there and is this VM's: a process id alone may have been given again. It is one that was
    /// started as a guest, and it stands in this guest's folder, where no other guest can go.
    pub fn is_alive(&self, key: &str, pid: u32) -> bool {
        let is_guest = words_of(pid).split(|byte| *byte == 0).any(|word| word == SANDBOX.as_bytes());
        is_guest && self.folder(key).has(pid)
    }
}

fn arguments(title: &str, definition: &VmDefinition, disks: &[StartDisk]) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "-name",
        &title.replace(',', ",,"),
        "-sandbox",
        SANDBOX,
        "-machine",
        &format!("{},accel={}", definition.machine, definition.accelerator),
        "-cpu",
        &definition.cpu,
        "-smp",
        &definition.vcpus.to_string(),
        "-m",
        &definition.memory_mib.to_string(),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        &format!("file:{CONSOLE}"),
    ]
    .map(str::to_owned)
    .to_vec();
    for (name, _) in definition.files() {
        let option = if name == "firmware" { "-bios".to_owned() } else { format!("-{name}") };
        arguments.extend([option, name.to_owned()]);
    }
    if definition.kernel.is_some() && !definition.append.is_empty() {
        arguments.extend(["-append".to_owned(), definition.append.clone()]);
    }
    if let Some(device) = definition.graphics.device() {
        arguments.extend(["-device".to_owned(), device.to_owned()]);
    }
    for disk in disks {
        let node = &disk.name;
        arguments.extend([
            "-blockdev".to_owned(),
            format!(
                "driver=nbd,node-name={node},{}export={node},reconnect-delay={RECONNECT_SECONDS},discard=unmap",
                server(&disk.socket)
            ),
            "-device".to_owned(),
            format!("virtio-blk-pci,drive={node},serial={node}"),
        ]);
    }
    arguments
}

/// The group that may use KVM, where that takes one and the VM is to use it.
fn kvm_group(definition: &VmDefinition) -> Option<u32> {
    let device = Path::new("/dev/kvm").metadata().ok().filter(|_| definition.accelerator == "kvm")?;
    let (mode, gid) = (device.mode(), device.gid());
    (mode & 0o060 == 0o060 && mode & 0o006 != 0o006 && gid != 0).then_some(gid)
}

/// How waiting for a VM's monitor has ended.
enum Waited {
    Answers,
    /// With what it ended.
    Ended(String),
    IsSilent,
}

/// What has a VM's disk lie behind a socket, as its process finds that.
fn server(socket: &Path) -> String {
    format!("server.type=unix,server.path={},", guest_folder::name_of(socket))
}

/// What a process was started with; nothing where it is not there.
fn words_of(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether a process that has a VM's name runs on the disks it is to run on.
fn check_is_on(pid: u32, disks: &[StartDisk]) -> Result<()> {
    let words = words_of(pid);
    let has = |disk: &StartDisk| {
        let server = server(&disk.socket);
        words.windows(server.len()).any(|window| window == server.as_bytes())
    };
    if !words.is_empty() && !disks.iter().all(has) {
        bail!("process {pid} has this VM's name and runs on other disks: end it and try again");
    }
    Ok(())
}
