//! `docs/operate/getting-started.md`, command for command, on two hosts that have nothing of Holdfast's yet.
//!
//! Each host is a namespace of this machine: its own `/etc/holdfast`, `/run`, `/var/lib/holdfast` and
//! `/var/lib/images`, with a cable to the other. A block that begins with `sh HOST` is run there as it stands, line after
//! line; `stays` behind it: until the end; `soon`: again until it does what it should. `sh person` is for a person. `toml FILE` is written to that file on both
//! hosts, with each one's own names. Nothing else of the guide is run.

use crate::stage::{HOLDFAST, SOON};
use lab::{Namespace, wait_until};
use std::path::Path;
use std::process::{Child, Command};
use tempfile::TempDir;

const GUIDE: &str = include_str!("../../../../docs/operate/getting-started.md");

/// A block of the guide: the words behind its fence, and what is in it.
struct Block {
    words: Vec<&'static str>,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in GUIDE.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(words), None) => {
                open = Some(Block { words: words.split_whitespace().collect(), text: String::new() })
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of the guide has no end");
    blocks
}

/// A host, until it is dropped.
struct Host {
    name: &'static str,
    folder: TempDir,
    namespace: Namespace,
    stays: Vec<Child>,
}

/// `$H` is the host's folder.
const SETUP: &str = "
mount -t tmpfs tmpfs /run
mkdir $H/over $H/holdfast $H/images $H/home
mount -t tmpfs tmpfs $H/over
for name in etc var/lib; do
    mkdir -p $H/over/$name.new $H/over/$name.work
    mount -t overlay overlay -o lowerdir=/$name,upperdir=$H/over/$name.new,workdir=$H/over/$name.work /$name
done
mkdir -p /etc/holdfast /var/lib/holdfast /var/lib/images
mount --bind $H/holdfast /var/lib/holdfast
mount --bind $H/images /var/lib/images
printf '127.0.0.1 localhost\\n10.0.0.1 host-1.berlin.example\\n10.0.0.2 host-1.munich.example\\n' > /etc/hosts
ip link set lo up";

impl Host {
    fn start(name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(HOLDFAST, folder.path().join("bin/holdfast")).unwrap();
        let namespace = Namespace::start(folder.path(), SETUP).unwrap();
        Self { name, folder, namespace, stays: Vec::new() }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = self.namespace.command("sh");
        command.args(["-ec", &format!("cd {}\n{script}", self.home().display())]);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}/bin:{path}:/usr/sbin:/sbin", self.folder.path().display()));
        command.env_remove("HOLDFAST_SOCKET");
        command
    }

    fn home(&self) -> std::path::PathBuf {
        self.folder.path().join("home")
    }

    fn run(&self, script: &str) {
        let output = self.command(script).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{}: {script}\n{}", self.name, said.concat());
    }

    /// Runs a command until the end, once it has not ended at once.
    fn keep(&mut self, script: &str) {
        let log = std::fs::File::create(self.home().join(format!("log.{}", self.stays.len()))).unwrap();
        let mut command = self.command(&format!("exec {}", script.trim()));
        self.stays.push(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    fn write(&self, file: &str, text: &str) {
        let home = self.home().join("written");
        std::fs::write(&home, text).unwrap();
        self.run(&format!("cp written {file}"));
    }

    fn logs(&self) -> String {
        let logs = (0..self.stays.len()).map(|at| self.home().join(format!("log.{at}")));
        logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in &mut self.stays {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a person does between the blocks.
fn exchange_authorities(berlin: &Host, munich: &Host) {
    for (from, to) in [(berlin, munich), (munich, berlin)] {
        from.run(&format!("cp /etc/holdfast/pki/ca.pem {}-ca.pem", from.name));
        let name = format!("{}-ca.pem", from.name);
        std::fs::copy(from.home().join(&name), to.home().join(&name)).unwrap();
    }
}

#[test]
fn every_command_of_the_guide_does_what_it_says() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make namespaces");
        return;
    }
    let (mut berlin, mut munich) = (Host::start("berlin"), Host::start("munich"));
    berlin.namespace.lay_cable(&munich.namespace, "cable").unwrap();
    for (host, address) in [(&berlin, "10.0.0.1/24"), (&munich, "10.0.0.2/24")] {
        host.run(&format!("ip addr add {address} dev cable; ip link set cable up"));
    }
    berlin.run("head -c 16M /dev/urandom > /var/lib/images/web.raw; truncate -s 64M /var/lib/images/web.raw");
    let mut ran = 0;
    for block in blocks() {
        // Nothing that is there already is copied again.
        if !berlin.home().join("munich-ca.pem").exists() && Path::new(&munich_authority(&munich)).exists() {
            exchange_authorities(&berlin, &munich);
        }
        match block.words[..] {
            ["toml", file] => {
                berlin.write(file, &block.text.replace("\"kvm\"", "\"tcg\""));
                munich.write(file, &block.text.replace("berlin", "munich"));
            }
            ["sh", name, ref how @ ..] if name != "person" => {
                let host = match name {
                    "berlin" => &mut berlin,
                    "munich" => &mut munich,
                    other => panic!("no host {other}"),
                };
                if how == ["stays"] {
                    host.keep(&block.text);
                    let up = || Ok(host.command("holdfast status").output()?.status.success().then_some(()));
                    wait_until("an agent's answer", SOON, up).unwrap_or_else(|_| panic!("{}", host.logs()));
                } else if how == ["soon"] {
                    let done = || Ok(host.command(&block.text).output()?.status.success().then_some(()));
                    wait_until(&block.text, SOON, done).unwrap();
                } else {
                    host.run(&block.text);
                }
                ran += 1;
            }
            ["sh", ..] | ["text"] => {}
            ref words => panic!("the test does not know what to do with a block of {words:?}"),
        }
    }
    assert!(ran >= 8, "only {ran} blocks were run");
}

/// Where Munich's CA certificate is once it was made, as this test sees it.
fn munich_authority(munich: &Host) -> String {
    format!("/proc/{}/root/etc/holdfast/pki/ca.pem", munich.namespace.pid())
}
