//! Two agents with trust in each other: one in this process, one in its own.

use crate::clock::{Moment, cpu_of};
use agent::Agent;
use agent::config::Config;
use agent::pki::Pki;
use anyhow::{Context, Result, bail};
use api::{Asking, Client, Endpoint, ProtectDisk, ProtectRequest, ProtectSettings, ProtectedVm};
use batch::Kind;
use bytes::Bytes;
use splitter::Capture;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use types::limits::BLOCK_BYTES;
use types::{ByteRange, DiskIndex};

/// A state has to come within this.
const PATIENCE_SECONDS: f64 = 120.0;

/// Both sides, and the folders they live in.
pub(crate) struct Pair {
    folder: PathBuf,
    port: u16,
    recovery: Option<Child>,
    /// Another agent of the protected side.
    member: Option<Child>,
    /// Where the protected side listens, if it does.
    our_port: u16,
    pub(super) runtime: Runtime,
    protected: Option<Agent>,
}

/// Runs an agent in this process until it is told to stop.
pub(crate) fn run_agent(config: &Path) -> Result<()> {
    let config = Config::load(config)?;
    let runtime = runtime()?;
    runtime.block_on(agent::run(config))?;
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start a runtime")
}

/// Two sites' keys in `folder`, each trusting the other.
pub(super) fn trust(folder: &Path) -> Result<(Pki, Pki)> {
    let (ours, theirs) = (folder.join("ours/pki"), folder.join("theirs/pki"));
    let (our_pki, their_pki) = (Pki::new(&ours), Pki::new(&theirs));
    our_pki.init("ours")?;
    their_pki.init("theirs")?;
    let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    our_pki.issue("a", "agent", &hosts, 30)?;
    their_pki.issue("b", "agent", &hosts, 30)?;
    our_pki.trust("theirs", &theirs.join("ca.pem"))?;
    their_pki.trust("ours", &ours.join("ca.pem"))?;
    Ok((our_pki, their_pki))
}

impl Pair {
    /// Starts both sides below `folder`; `more` goes into the protected side's configuration.
    pub(super) fn start(folder: &Path, more: &str) -> Result<Self> {
        Self::start_with(folder, more, "")
    }

    /// As [`Pair::start`]; `theirs` goes into the recovery side's configuration, at its beginning.
    pub(crate) fn start_with(folder: &Path, more: &str, theirs: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).context("make the pair's folder")?;
        trust(folder)?;
        // Taken and given back: the port stays free unless somebody else is very quick.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = |name: &str, text: String| -> Result<()> {
            let path = folder.join(name).join("agent.toml");
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        config(
            "ours",
            format!(
                "site = \"ours\"\nagent = \"a\"\nstate_dir = \"state\"\nrun_dir = \"state/run\"\npki_dir = \"pki\"\n{more}"
            ),
        )?;
        config(
            "theirs",
            format!(
                "site = \"theirs\"\nagent = \"b\"\nstate_dir = \"state\"\nrun_dir = \"state/run\"\npki_dir = \"pki\"\n{theirs}\
                 [stream]\nlisten = \"127.0.0.1:{port}\"\n"
            ),
        )?;
        let mut pair = Self {
            folder: folder.to_path_buf(),
            port,
            recovery: None,
            member: None,
            our_port: 0,
            runtime: runtime()?,
            protected: None,
        };
        pair.start_recovery()?;
        pair.start_protected()?;
        Ok(pair)
    }

    /// As [`Pair::start`], with a protected side that coordinates groups.
    pub(super) fn start_listening(folder: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut pair = Self::start(folder, &format!("[stream]\nlisten = \"127.0.0.1:{port}\"\n"))?;
        pair.our_port = port;
        Ok(pair)
    }

    /// Starts another agent of the protected side, in a process of its own; `more` goes into its configuration.
    pub(super) fn start_member(&mut self, more: &str) -> Result<()> {
        let (ours, member) = (self.folder.join("ours/pki"), self.member_folder());
        copy_folder(&ours, &member.join("pki"))?;
        Pki::new(member.join("pki")).issue("c", "agent", &["127.0.0.1".to_owned()], 30)?;
        let text = format!(
            "site = \"ours\"\nagent = \"c\"\nstate_dir = \"state\"\nrun_dir = \"state/run\"\npki_dir = \"pki\"\n{more}"
        );
        std::fs::write(member.join("agent.toml"), text).context("write a configuration")?;
        self.restart_member()
    }

    /// Starts it again, after it was killed.
    pub(super) fn restart_member(&mut self) -> Result<()> {
        self.member = Some(spawn_agent(&self.member_folder().join("agent.toml"))?);
        let client = self.member_client();
        self.wait("the other agent answers", || {
            Ok(self.runtime.block_on(client.status()).is_ok().then_some(()))
        })
    }

    pub(super) fn kill_member(&mut self) -> Result<()> {
        kill(self.member.take()).context("kill the other agent")
    }

    pub(super) fn member_folder(&self) -> PathBuf {
        self.folder.join("member")
    }

    fn member_client(&self) -> Client {
        Client::new(Endpoint::Unix(self.member_folder().join("state/run/agent.sock")))
    }

    pub(super) fn member_vm(&self, name: &str) -> Result<ProtectedVm> {
        Ok(self.runtime.block_on(self.member_client().protected_vm(name))?)
    }

    /// Protects a VM of one empty disk at the other agent, in a group that this one coordinates if one is named.
    pub(super) fn protect_at_member(
        &self,
        name: &str,
        group: Option<&str>,
        disk_bytes: u64,
        settings: ProtectSettings,
    ) -> Result<()> {
        let path = self.folder.join(format!("{name}.raw"));
        std::fs::File::create(&path).and_then(|image| image.set_len(disk_bytes)).context("make an image")?;
        let request = ProtectRequest {
            group: group.map(str::to_owned),
            coordinator: group.map(|_| format!("127.0.0.1:{}", self.our_port)),
            ..self.request(name, &path, settings)
        };
        self.runtime.block_on(self.member_client().protect(&request, &until_it_has_begun()))?;
        self.wait(&format!("{name} is journaling"), || {
            Ok((self.member_vm(name)?.state == "journaling").then_some(()))
        })
    }

    fn request(&self, name: &str, path: &Path, settings: ProtectSettings) -> ProtectRequest {
        ProtectRequest {
            name: name.to_owned(),
            group: None,
            coordinator: None,
            qmp: None,
            format: None,
            shared: false,
            ublk: false,
            disks: vec![ProtectDisk { name: "vda".into(), path: path.display().to_string() }],
            peer: format!("127.0.0.1:{}", self.port),
            definition: None,
            settings,
        }
    }

    pub(super) fn start_recovery(&mut self) -> Result<()> {
        self.recovery = Some(spawn_agent(&self.folder.join("theirs/agent.toml"))?);
        let client = self.their_client();
        self.wait("the recovery side answers", || {
            Ok(self.runtime.block_on(client.status()).is_ok().then_some(()))
        })
    }

    /// Kills the recovery side, as a lost link does from where the protected side stands.
    pub(super) fn kill_recovery(&mut self) -> Result<()> {
        kill(self.recovery.take()).context("kill the recovery side")
    }

    fn start_protected(&mut self) -> Result<()> {
        let config = Config::load(&self.folder.join("ours/agent.toml"))?;
        self.protected = Some(self.runtime.block_on(Agent::start(config))?);
        Ok(())
    }

    pub(super) fn our_client(&self) -> Client {
        Client::new(Endpoint::Unix(self.folder.join("ours/state/run/agent.sock")))
    }

    pub(super) fn their_client(&self) -> Client {
        Client::new(Endpoint::Unix(self.folder.join("theirs/state/run/agent.sock")))
    }

    /// Protects a VM of one empty disk and waits until it is journaling.
    pub(super) fn protect(
        &self,
        name: &str,
        disk_bytes: u64,
        settings: ProtectSettings,
    ) -> Result<Arc<Capture>> {
        self.protect_filled(name, settings, |path| {
            std::fs::File::create(path).and_then(|image| image.set_len(disk_bytes)).context("make an image")
        })
        .map(|(_, capture)| capture)
    }

    /// Protects a VM whose disk `fill` makes, and waits until it is journaling; the seconds that took.
    pub(super) fn protect_filled(
        &self,
        name: &str,
        settings: ProtectSettings,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(f64, Arc<Capture>)> {
        let path = self.folder.join(format!("{name}.raw"));
        fill(&path)?;
        let seconds = self.protect_image(name, &path, settings)?;
        let agent = self.protected.as_ref().context("the protected side runs")?;
        Ok((seconds, agent.capture(name).context("the VM is protected")?))
    }

    /// Protects a VM whose disk is there already, and waits until it is journaling; the seconds that took.
    pub(crate) fn protect_image(&self, name: &str, path: &Path, settings: ProtectSettings) -> Result<f64> {
        let begun = Moment::now();
        let request = self.request(name, path, settings);
        self.runtime.block_on(self.our_client().protect(&request, &until_it_has_begun()))?;
        self.wait_for_state(name, "journaling")?;
        Ok(begun.elapsed())
    }

    /// Protects a VM that runs on its own image, and waits until it is journaling.
    pub(crate) fn protect_running(
        &self,
        name: &str,
        control: &Path,
        settings: ProtectSettings,
    ) -> Result<()> {
        let mut request = self.request(name, control, settings);
        request.qmp = Some(control.display().to_string());
        request.disks.clear();
        self.runtime.block_on(self.our_client().protect(&request, &until_it_has_begun()))?;
        self.wait_for_state(name, "journaling")
    }

    /// Pauses a VM's replication: its writes only mark the bitmap.
    pub(crate) fn pause(&self, name: &str) -> Result<()> {
        self.runtime.block_on(self.our_client().pause(name))?;
        self.wait_for_state(name, "paused")
    }

    /// Ends both sides.
    pub(crate) fn stop(&mut self) {
        if let Some(agent) = self.protected.take() {
            let _entered = self.runtime.enter();
            agent.stop();
        }
        let _ = self.kill_recovery();
        let _ = self.kill_member();
    }

    /// Puts something into blocks of a VM's image, for a sync to find: what the capture was told of never
    /// went there.
    pub(super) fn fill_image(&self, name: &str, source: &Bytes, blocks: &BTreeSet<u64>) -> Result<()> {
        let image = std::fs::OpenOptions::new().write(true).open(self.folder.join(format!("{name}.raw")))?;
        for block in blocks {
            let from = (block * BLOCK_BYTES) as usize % source.len();
            image.write_all_at(&source[from..from + BLOCK_BYTES as usize], block * BLOCK_BYTES)?;
        }
        Ok(())
    }

    pub(crate) fn vm(&self, name: &str) -> Result<ProtectedVm> {
        Ok(self.runtime.block_on(self.our_client().protected_vm(name))?)
    }

    pub(super) fn wait_for_state(&self, name: &str, state: &str) -> Result<()> {
        self.wait(&format!("{name} is {state}"), || Ok((self.vm(name)?.state == state).then_some(())))
    }

    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let begun = Moment::now();
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if begun.elapsed() > PATIENCE_SECONDS {
                bail!("waited {PATIENCE_SECONDS} s for: {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Seconds of processor time the recovery side has used.
    pub(super) fn recovery_cpu(&self) -> Result<f64> {
        let id = self.recovery.as_ref().context("the recovery side runs")?.id();
        cpu_of(id)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn_agent(config: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg("--agent").arg(config).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().context("start an agent")
}

/// Kills a process, if there is one, and waits for its end.
fn kill(child: Option<Child>) -> Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).context("make a folder")?;
    for row in std::fs::read_dir(from).context("list a folder")? {
        let row = row?;
        if row.file_type()?.is_dir() {
            copy_folder(&row.path(), &to.join(row.file_name()))?;
        } else {
            std::fs::copy(row.path(), to.join(row.file_name())).context("copy a file")?;
        }
    }
    Ok(())
}

/// Gives one write to a capture, as a front end does once the local disk has it.
pub(super) fn write(capture: &Capture, at: u64, payload: &Bytes) -> Result<()> {
    let range = ByteRange::new(at, payload.len() as u64);
    capture.begin_write(DiskIndex(0), range).context("begin a write")?;
    capture.commit(DiskIndex(0), Kind::Write, range, payload);
    Ok(())
}

/// A protection is waited for: it is looked at next.
fn until_it_has_begun() -> Asking {
    Asking { wait_seconds: Some(60), key: None }
}
