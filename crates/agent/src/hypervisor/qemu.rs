//! Plain QEMU: one process per VM, disks over NBD, told over QMP.
//!
//! The process is nobody's but the guest's: a user of its own, without capabilities, in QEMU's own sandbox, in a folder
//! ([`GuestFolder`]) that has all it may reach, and not ended with the agent ([`OwnUnit`]).

use super::claimed_users::CLAIMS;
use super::definition::{Graphics, VmDefinition};
use super::guest_folder::{self, CONSOLE, GuestFolder, SCREEN};
use super::guest_users::{self, GuestUser, GuestUsers};
use super::older_guests::OlderGuest;
use super::own_unit::OwnUnit;
use super::processes;
use super::qmp::{Qmp, QmpError};
use crate::clock;
use crate::config::GuestsConfig;
use crate::state::random;
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// How long a guest's request waits for the agent to come back before it fails.
const RECONNECT_SECONDS: u32 = 3600;
/// How long a VM may take until its monitor answers.
const START_PATIENCE: Duration = Duration::from_secs(10);
const STOP_TRIES: u32 = 100;
const TRY_INTERVAL: Duration = Duration::from_millis(100);
const KVM: &str = "/dev/kvm";
/// What QEMU forbids itself and its threads before the guest runs; the word that its process is known by too, where it has no
/// user of its own.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Starts and stops VMs on this host.
#[derive(Debug, Clone)]
pub struct Adapter {
    program: PathBuf,
    /// Where each guest has a folder.
    run_dir: PathBuf,
    guests: GuestsConfig,
    /// What a guest's process is started through.
    launcher: PathBuf,
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
    pub fn new(program: PathBuf, run_dir: PathBuf, guests: GuestsConfig, launcher: PathBuf) -> Self {
        Self { program, run_dir, guests, launcher }
    }

    /// Whether there is a user whom VMs can be started as.
    ///
    /// # Errors
    /// Where there is none; the message says what to do.
    pub fn check_users(&self) -> Result<()> {
        GuestUsers::find(&self.guests).map(drop)
    }

    /// Whether VMs could be started here by these keys: all that may hinder it is tried, but with a QEMU that says its version
    /// and ends.
    ///
    /// # Errors
    /// Where one could not; the message says why.
    pub fn check_start<'a>(&self, vms: impl Iterator<Item = (&'a str, &'a VmDefinition)>) -> Result<()> {
        self.check_users()?;
        let mut tried = BTreeSet::new();
        for (key, definition) in vms {
            self.check_no_older(key)?;
            if tried.insert(definition.accelerator.as_str()) {
                self.try_launch(definition).context("no VM could be started here")?;
            }
        }
        Ok(())
    }

    fn try_launch(&self, definition: &VmDefinition) -> Result<()> {
        // No VM is called so.
        let key = format!("~{:016x}", u64::from_le_bytes(random()[..8].try_into().expect("eight bytes")));
        let folder = self.folder(&key);
        let launch = || {
            std::fs::create_dir_all(folder.path()).context("make a guest's folder")?;
            let user = folder.prepare(GuestUsers::find(&self.guests)?, Path::new(CLAIMS))?;
            let mut command = self.launch(&key, &key, definition, user)?;
            command.arg("--version").stdin(Stdio::null()).output().context("start a guest's process")
        };
        let launched = launch();
        folder.remove()?;
        let launched = launched?;
        if !launched.status.success() {
            let said = String::from_utf8_lossy(&launched.stderr);
            bail!("{} --version ended with {}: {}", self.program.display(), launched.status, said.trim());
        }
        Ok(())
    }

    fn check_no_older(&self, key: &str) -> Result<()> {
        let older = self.older(key);
        if older.runs() {
            bail!(
                "a VM of this name runs that an agent of before December 2026 has started, and holds {}: shut it down, or end \
                 its process, and try again",
                older.log.display()
            );
        }
        Ok(())
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
        self.check_no_older(key)?;
        let folder = self.folder(key);
        std::fs::create_dir_all(folder.path()).context("make the guest's folder")?;
        let deadline = clock::now().plus(START_PATIENCE);
        while clock::now() < deadline {
            if let Some(pid) = self.find(key) {
                if !disks.iter().all(|disk| folder.has_socket(&disk.socket)) {
                    bail!("process {pid} has this VM's name and runs on other disks: end it and try again");
                }
                match self.await_monitor(key, || (!self.is_alive(key, pid)).then(|| "ended".into())) {
                    Waited::Answers => {
                        self.clear_files(key, definition);
                        return Ok(Started { pid });
                    }
                    Waited::Ended(_) => continue,
                    Waited::IsSilent => bail!("process {pid} of the VM does not answer"),
                }
            }
            // One that was being started when it was looked for may be its guest by now.
            let log = self.take_log(key)?.filter(|_| self.find(key).is_none());
            if let Some(log) = log {
                let prepared = self.prepare(key, definition, file, disks);
                let started = prepared.and_then(|user| {
                    self.spawn(key, log, self.command(key, title, definition, disks, user)?)
                });
                self.clear_files(key, definition);
                return started;
            }
            sleep(TRY_INTERVAL);
        }
        bail!("a process that is not seen holds {}: end it", folder.log().display())
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
        folder.check_room(&files)?;
        let user = folder.prepare(users, Path::new(CLAIMS))?;
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
    ) -> Result<Command> {
        let image = disks.first().map(|disk| guest_folder::name_of(&disk.socket)).unwrap_or_default();
        let unit = format!("{key}-{}", image.trim_end_matches(".sock"));
        let mut command = self.launch(key, &unit, definition, user)?;
        command.args(arguments(title, definition, disks));
        Ok(command)
    }

    /// What starts the program as a guest, with whatever arguments it is given.
    fn launch(
        &self,
        key: &str,
        unit: &str,
        definition: &VmDefinition,
        user: Option<GuestUser>,
    ) -> Result<Command> {
        let group = kvm_group(Path::new(KVM), definition, &self.guests)?;
        let unit = OwnUnit::find(unit);
        let mut command = unit.command(&self.launcher);
        command.args(["launch-guest", "--folder"]).arg(self.folder(key).path());
        if let Some(user) = user {
            command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
        }
        if let Some(group) = group {
            command.args(["--group", &group.to_string()]);
        }
        if definition.accelerator == "kvm" {
            command.args(["--needs", KVM]);
        }
        if let Some(cgroup) = unit.cgroup() {
            command.arg("--cgroup").arg(cgroup);
        }
        command.arg("--").arg(&self.program);
        Ok(command)
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
        match self.await_monitor(key, ended) {
            Waited::Answers => {
                // Somebody must wait for the process, or it stays as a zombie once it ends.
                std::thread::spawn(move || child.wait());
                Ok(Started { pid })
            }
            Waited::Ended(status) => {
                bail!("the VM's process ended with {status}: {}", self.folder(key).said())
            }
            Waited::IsSilent => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the VM's process does not answer")
            }
        }
    }

    /// Waits until a VM's monitor answers, or its process has `ended`, as that says.
    fn await_monitor(&self, key: &str, mut ended: impl FnMut() -> Option<String>) -> Waited {
        let deadline = clock::now().plus(START_PATIENCE);
        while clock::now() < deadline {
            if let Some(how) = ended() {
                return Waited::Ended(how);
            }
            if self.ask(key, "query-status").is_ok() {
                return Waited::Answers;
            }
            sleep(TRY_INTERVAL);
        }
        Waited::IsSilent
    }

    /// The process of the VM of that key, whoever has started it; none where it does not run.
    pub fn find(&self, key: &str) -> Option<u32> {
        self.processes(key).into_iter().min()
    }

    fn processes(&self, key: &str) -> Vec<u32> {
        let is_its_own = self.known_by(key);
        processes::all().filter(|pid| is_its_own(*pid)).collect()
    }

    /// What a VM's processes are known by: its user, whom nobody else is, whatever they say of themselves. Where it has none
    /// it is one that was started as a guest and stands in its folder.
    fn known_by(&self, key: &str) -> impl Fn(u32) -> bool {
        let (folder, older) = (self.folder(key), self.older(key));
        let older = Some(older).filter(OlderGuest::runs);
        let uid = folder.uid();
        move |pid| {
            let is_of_now = match uid {
                Some(uid) => processes::is_of(pid, uid),
                None => is_started_as_guest(pid) && folder.has(pid),
            };
            is_of_now || older.as_ref().is_some_and(|older| older.is(pid))
        }
    }

    fn older(&self, key: &str) -> OlderGuest {
        OlderGuest::new(&self.run_dir, key)
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
        let mut monitor = Qmp::connect_to_guest(&self.control_socket(key))?;
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
        let take = || Ok(Qmp::connect_to_guest(&self.control_socket(key))?.ask("screendump", &arguments)?);
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
            let pids = self.processes(key);
            if pids.is_empty() {
                // One that is just being started is seen in a moment.
                if self.has_ended(key)? {
                    return Ok(());
                }
            } else if !is_asked {
                is_asked = true;
                let _ = self.ask(key, "quit");
            } else if tries >= STOP_TRIES / 2 {
                let is_its_own = self.known_by(key);
                pids.into_iter().try_for_each(|pid| processes::kill(pid, || is_its_own(pid)))?;
            }
            sleep(TRY_INTERVAL);
        }
        let holds = |path: PathBuf| anyhow!("a process that is not seen holds {}: end it", path.display());
        match self.find(key) {
            Some(pid) => bail!("the VM's process {pid} does not end"),
            None if self.older(key).runs() => Err(holds(self.older(key).log)),
            None => Err(holds(self.folder(key).log())),
        }
    }

    /// Whether nothing of a VM is there that runs or is being started; what it had goes with it then.
    fn has_ended(&self, key: &str) -> Result<bool> {
        let folder = self.folder(key);
        if self.older(key).runs() {
            return Ok(false);
        }
        if !folder.path().exists() {
            return Ok(true);
        }
        let log = self.take_log(key)?;
        if log.is_none() || self.find(key).is_some() {
            return Ok(false);
        }
        folder.remove()?;
        Ok(true)
    }

    fn control_socket(&self, key: &str) -> PathBuf {
        self.folder(key).join(guest_folder::MONITOR)
    }

    /// A monitor of its own for whoever listens: each takes one client.
    pub(super) fn event_socket(&self, key: &str) -> PathBuf {
        self.folder(key).join(guest_folder::EVENTS)
    }

    fn ask(&self, key: &str, command: &str) -> Result<Value, QmpError> {
        Qmp::connect_to_guest(&self.control_socket(key))?.execute(command)
    }

    /// Whether the process is there and is this VM's, or another one of it: a process id alone may have been given again, and
    /// a process that was taken over may go on as another.
    pub fn is_alive(&self, key: &str, pid: u32) -> bool {
        self.known_by(key)(pid) || self.find(key).is_some()
    }
}

fn is_started_as_guest(pid: u32) -> bool {
    processes::words_of(pid).split(|byte| *byte == 0).any(|word| word == SANDBOX.as_bytes())
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
///
/// # Errors
/// Where that group may use what the agent serves; the message says what to do.
fn kvm_group(device: &Path, definition: &VmDefinition, config: &GuestsConfig) -> Result<Option<u32>> {
    let facts = device.metadata().ok().filter(|_| definition.accelerator == "kvm");
    let Some((mode, gid)) = facts.map(|facts| (facts.mode(), facts.gid())) else { return Ok(None) };
    if mode & 0o060 != 0o060 || mode & 0o006 == 0o006 || gid == 0 {
        return Ok(None);
    }
    let kept = guest_users::kept_from(config, Path::new("/etc/group"))?;
    if let Some((setting, _)) = kept.iter().find(|(_, kept)| *kept == gid) {
        bail!(
            "{} is of group {gid}, which {setting} names: whatever breaks out of a VM with KVM would get to what that group \
             may. Name another group there, or give {} to another with a rule of udev",
            device.display(),
            device.display()
        );
    }
    Ok(Some(gid))
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

#[cfg(test)]
mod tests;
