//! A site: its authority, its agent, its folders and ports. Two of them trust each other by exchanged
//! CA certificates; nothing else connects them.

use crate::clock::wait_until;
use crate::guest_files::run_quietly;
use crate::ports::free_port;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Users that guests run as: of those that Debian gives nobody, and that a container has.
const GUESTS: (u32, u32) = (64_100, 64_355);
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A host of a site, of which most have one only.
#[derive(Debug)]
pub struct Site {
    pub name: String,
    /// What its agent is called.
    host: String,
    pub folder: PathBuf,
    pub stream_port: u16,
    holdfast: PathBuf,
    agent: Option<Child>,
}

/// A command that ended with an error, as a script would see it.
#[derive(Debug)]
pub struct CommandFailed {
    pub code: i32,
    pub message: String,
}

impl std::fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}: {}", self.code, self.message)
    }
}

impl std::error::Error for CommandFailed {}

/// Makes two sites that trust each other.
///
/// # Errors
/// Where a command fails.
pub fn pair(holdfast: &Path, folder: &Path) -> Result<(Site, Site)> {
    let a = Site::make(holdfast, &folder.join("a"), "site-a")?;
    let b = Site::make(holdfast, &folder.join("b"), "site-b")?;
    a.trust(&b)?;
    b.trust(&a)?;
    Ok((a, b))
}

impl Site {
    /// Makes a site's folder, authority, certificate and configuration.
    ///
    /// # Errors
    /// Where a command fails.
    pub fn make(holdfast: &Path, folder: &Path, name: &str) -> Result<Self> {
        let site = Self::empty(holdfast, folder, name, "agent-1")?;
        run_quietly(site.command().args(["pki", "init", "--site", name, "--dir"]).arg(site.pki()))?;
        site.equip()
    }

    /// Makes a second host of this site, that trusts whom the first one does by now.
    ///
    /// # Errors
    /// Where a command fails.
    pub fn second_host(&self, folder: &Path) -> Result<Self> {
        let host = Self::empty(&self.holdfast, folder, &self.name, "agent-2")?;
        std::fs::create_dir_all(host.folder.join("state")).context("make the host's folder")?;
        run_quietly(Command::new("cp").arg("-a").arg(self.pki()).arg(host.pki()))?;
        host.equip()
    }

    fn empty(holdfast: &Path, folder: &Path, name: &str, host: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self {
            name: name.to_owned(),
            host: host.to_owned(),
            folder: folder.to_path_buf(),
            stream_port: free_port()?,
            holdfast: holdfast.to_path_buf(),
            agent: None,
        })
    }

    /// Gives a host of a site that has its authority a certificate and a configuration.
    fn equip(self) -> Result<Self> {
        let issue = ["pki", "issue", "--agent", &self.host, "--host", "127.0.0.1", "--dir"];
        run_quietly(self.command().args(issue).arg(self.pki()))?;
        self.configure("")?;
        Ok(self)
    }

    /// Writes the agent's configuration anew, with `more` at its end.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn configure(&self, more: &str) -> Result<()> {
        let text = format!(
            "site = \"{}\"\nagent = \"{}\"\nstate_dir = \"state\"\nrun_dir = \"run\"\n\
             pki_dir = \"state/pki\"\n\n\
             [guests]\nuids = [{}, {}]\n\n\
             [stream]\nlisten = \"127.0.0.1:{}\"\n{more}",
            self.name, self.host, GUESTS.0, GUESTS.1, self.stream_port
        );
        std::fs::write(self.config(), text).context("write the agent's configuration")
    }

    /// Lets another site's agents in.
    ///
    /// # Errors
    /// Where the command fails.
    pub fn trust(&self, other: &Site) -> Result<()> {
        let certificate = other.pki().join("ca.pem");
        let trust = ["pki", "trust", "--site", &other.name, "--dir"];
        run_quietly(self.command().args(trust).arg(self.pki()).arg(certificate))
    }

    pub fn pki(&self) -> PathBuf {
        self.folder.join("state/pki")
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The last lines of the agent's log, for an error.
    pub fn end_of_log(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub fn api_socket(&self) -> PathBuf {
        self.folder.join("run/agent.sock")
    }

    /// Where this site's agent takes streams.
    pub fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.stream_port)
    }

    /// The binary, told where this site's agent is.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.holdfast);
        command.env("HOLDFAST_SOCKET", self.api_socket()).stdin(Stdio::null());
        command
    }

    /// Runs one of the operator's commands with `--json`.
    ///
    /// # Errors
    /// [`CommandFailed`] with exit code and message.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command().args(arguments).arg("--json").output().context("run holdfast")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(CommandFailed { code: output.status.code().unwrap_or(-1), message }.into());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("read the answer to {arguments:?}"))
    }

    /// Starts the agent and waits until it answers.
    ///
    /// # Errors
    /// Where it ends instead; the error holds its log.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.until_it_answers()
    }

    /// The same, with its folder for a working directory and a configuration that is named relative to that.
    ///
    /// # Errors
    /// As [`Site::start_agent`].
    pub fn start_agent_in_folder(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        self.spawn(&folder, Path::new("agent.toml"))?;
        self.until_it_answers()
    }

    fn until_it_answers(&mut self) -> Result<()> {
        let mut child = self.agent.take().context("the agent was just started")?;
        wait_until("the agent's answer", READY_LIMIT, || {
            if let Some(status) = child.try_wait().context("ask for the agent")? {
                bail!("the agent ended with {status}; its log ends with:\n{}", self.log_end());
            }
            Ok(self.ask(&["status"]).ok())
        })?;
        self.agent = Some(child);
        Ok(())
    }

    /// Starts the agent and waits for nothing.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn_agent(&mut self) -> Result<()> {
        let config = self.config();
        self.spawn(Path::new("."), &config)
    }

    fn spawn(&mut self, folder: &Path, config: &Path) -> Result<()> {
        let log =
            OpenOptions::new().create(true).append(true).open(self.log()).context("open the agent's log")?;
        let child = self
            .command()
            .args(["agent", "--config"])
            .arg(config)
            .current_dir(folder)
            .stdout(log.try_clone().context("share the agent's log")?)
            .stderr(log)
            .spawn()
            .context("start the agent")?;
        self.agent = Some(child);
        Ok(())
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// The agent's process, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Whether the agent runs; false also where it has ended by itself.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn agent_runs(&mut self) -> Result<bool> {
        let Some(agent) = &mut self.agent else { return Ok(false) };
        Ok(agent.try_wait().context("ask for the agent")?.is_none())
    }

    /// `kill -9` of the agent.
    ///
    /// # Errors
    /// Where it cannot be waited for.
    pub fn kill_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().context("kill the agent")?;
            agent.wait().context("wait for the agent")?;
        }
        Ok(())
    }

    /// Ends the agent as a service manager would.
    ///
    /// # Errors
    /// Where it does not end in time.
    pub fn stop_agent(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        run_quietly(Command::new("kill").arg(agent.id().to_string()))?;
        let ended =
            wait_until("the agent's end", READY_LIMIT, || agent.try_wait().context("ask for the agent"));
        if ended.is_err() {
            let _ = agent.kill();
        }
        ended.map(drop)
    }

    /// Lets the agent run on when this is dropped.
    pub fn leave_running(&mut self) {
        self.agent = None;
    }

    /// One protected VM, as the API tells it.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub fn protected(&self, vm: &str) -> Result<Value> {
        self.ask(&["vm", "show", vm])
    }

    /// One kept VM, as the API tells it.
    ///
    /// # Errors
    /// Where the agent does not answer, or keeps no such VM.
    pub fn recovered(&self, vm: &str) -> Result<Value> {
        let status = self.ask(&["status"])?;
        let rows = status["recovered"].as_array().cloned().unwrap_or_default();
        rows.into_iter()
            .find(|row| row["name"] == vm)
            .with_context(|| format!("{} keeps no VM {vm}", self.name))
    }

    /// Waits until a protected VM is in a state.
    ///
    /// # Errors
    /// Where it does not get there in time; the error holds what it is in.
    pub fn wait_for_state(&self, vm: &str, state: &str, limit: Duration) -> Result<Value> {
        let mut last = Value::Null;
        let seen = wait_until(&format!("{vm} {state}"), limit, || {
            last = self.protected(vm)?;
            Ok((last["state"] == state).then(|| last.clone()))
        });
        seen.with_context(|| format!("{vm} is {last:#}"))
    }

    /// Warnings and errors in the agent's log that hold none of `announced`.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn unannounced(&self, announced: &[&str]) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(self.log()).context("read the agent's log")?;
        let loud = text.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        Ok(loud
            .filter(|line| !announced.iter().any(|known| line.contains(known)))
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.kill_agent();
    }
}
