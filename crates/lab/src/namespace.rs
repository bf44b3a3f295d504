//! A host of its own on this machine: mount, network and process namespaces. Whatever was started in one ends with it, by
//! the kernel: nothing is looked for by name. Making one takes root.

use crate::clock::wait_until;
use crate::guest_files::run_quietly;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const READY_LIMIT: Duration = Duration::from_secs(30);

/// A running host. Everything in it is killed when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    child: Child,
    /// Its first process, as this machine numbers it.
    init: u32,
}

impl Namespace {
    /// Makes one: `setup`, a script for sh, mounts what it will, in `folder` as `$H`.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn start(folder: &Path, setup: &str) -> Result<Self> {
        let ready = folder.join("namespace-is-ready");
        let _ = std::fs::remove_file(&ready);
        let script = format!("{setup}\ntouch {}\nexec sleep infinity", ready.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "sh", "-ec", &script]).env("H", folder).stdin(Stdio::null());
        let mut child = command.spawn().context("run unshare")?;
        let made = wait_until("a namespace", READY_LIMIT, || {
            if let Some(status) = child.try_wait().context("ask for unshare")? {
                bail!("the namespace's script ended with {status}");
            }
            Ok(ready.exists().then_some(()))
        });
        let init = made.and_then(|()| first_child(child.id()));
        match init {
            Ok(init) => Ok(Self { child, init }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The number of its first process, for tools that want one to find the namespaces by.
    pub fn pid(&self) -> u32 {
        self.init
    }

    /// Lays a cable from this host to another: a network device of that name at either end.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn lay_cable(&self, other: &Self, name: &str) -> Result<()> {
        let mut command = Command::new("nsenter");
        // Of this one the network only: the other one's number is one of this machine.
        command.args([
            "--target",
            &self.init.to_string(),
            "--net",
            "ip",
            "link",
            "add",
            name,
            "type",
            "veth",
        ]);
        run_quietly(command.args(["peer", "name", name, "netns", &other.init.to_string()]))
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--", program]);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // unshare takes its child with it, and the kernel whatever else is in there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn first_child(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).context("unshare has no child")
}
