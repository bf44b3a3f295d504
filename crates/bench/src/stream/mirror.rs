//! Beside QEMU's own way: `blockdev-mirror`, write-blocking, over TLS to a `qemu-nbd` on the same disk.
//!
//! Both copy the same half-empty image of 4 GiB to begin with, and then take the same 4 KiB writes at depth
//! 32 through NBD, by `qemu-img bench`. QEMU's writes wait for the other side's page cache; ours are in the
//! other side's journal, synced, and the time until the last of them is counts.

use super::headline::incompressible;
use super::pair::{Pair, trust};
use crate::Run;
use crate::clock::Moment;
use crate::figures::{Figure, Goal};
use anyhow::{Context, Result, bail};
use api::ProtectSettings;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const WRITE_BYTES: u64 = 4096;
/// It writes so much slower here that it is given less to write.
const SLOWER: u64 = 100;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let (size, writes) = (run.scaled(4 << 30), run.scaled(200_000));
    let source = incompressible();
    let (mut our_sync, mut their_sync) = (Vec::new(), Vec::new());
    let (mut our_writes, mut their_writes) = (Vec::new(), Vec::new());
    for round in 0..run.rounds().min(3) {
        let folder = run.folder.join(format!("mirror-{round}"));
        std::fs::create_dir_all(&folder).context("make a folder")?;
        let image = folder.join("theirs.raw");
        half_empty(&image, size, &source)?;
        let mirror = Mirror::start(&folder, &image, size)?;
        their_sync.push(size as f64 / MIB as f64 / mirror.synced_in);
        their_writes.push(writes_per_second(&mirror.export(), writes / SLOWER)?);
        drop(mirror);
        let _ = std::fs::remove_file(&image);

        let pair = Pair::start(&folder.join("pair"), "")?;
        let image = folder.join("pair/vm.raw");
        let fill = |path: &Path| half_empty(path, size, &source);
        let (seconds, capture) = pair.protect_filled("vm", ProtectSettings::default(), fill)?;
        our_sync.push(size as f64 / MIB as f64 / seconds);
        let begun = Moment::now();
        let socket = pair.vm("vm")?.socket;
        writes_per_second(&format!("nbd+unix:///vda?socket={socket}"), writes)?;
        let last = capture.status().last;
        pair.wait("all is durable", || Ok((capture.status().released >= last).then_some(())))?;
        our_writes.push(writes as f64 / begun.elapsed());
        drop(pair);
        let _ = std::fs::remove_file(&image);
        std::fs::remove_dir_all(&folder).context("remove the folder")?;
    }
    Ok(vec![
        Figure::against(
            "initial sync of a half-empty disk",
            &our_sync,
            &their_sync,
            "MiB/s",
            Goal::AtLeast(1.0),
        ),
        Figure::against(
            "4 KiB writes at depth 32",
            &our_writes,
            &their_writes,
            "writes/s",
            Goal::AtLeast(2.0),
        ),
    ])
}

/// An image of which every second MiB is written.
fn half_empty(path: &Path, size: u64, source: &[u8]) -> Result<()> {
    let file = File::create(path).context("make an image")?;
    file.set_len(size)?;
    for at in (0..size).step_by(2 * MIB as usize) {
        let from = (at / 2) as usize % source.len();
        file.write_all_at(&source[from..from + MIB as usize], at).context("fill an image")?;
    }
    file.sync_all().context("fill an image")
}

/// Writes a second through an export.
fn writes_per_second(export: &str, writes: u64) -> Result<f64> {
    let mut command = Command::new("qemu-img");
    command.args(["bench", "-w", "-t", "none", "-f", "raw", "-d", "32", "--pattern=165", "-S", "4096"]);
    command.args(["-s", &WRITE_BYTES.to_string(), "-c", &writes.to_string(), export]);
    let begun = Moment::now();
    let output = command.output().context("run qemu-img bench")?;
    if !output.status.success() {
        bail!("qemu-img bench: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(writes as f64 / begun.elapsed())
}

/// A storage daemon that mirrors an image over TLS.
struct Mirror {
    daemon: Child,
    target: Child,
    socket: PathBuf,
    synced_in: f64,
}

impl Mirror {
    fn start(folder: &Path, image: &Path, size: u64) -> Result<Self> {
        let tls = folder.join("tls");
        std::fs::create_dir_all(&tls)?;
        trust(&tls)?;
        for role in ["server", "client"] {
            credentials(&tls, role)?;
        }
        let copy = folder.join("copy.raw");
        File::create(&copy)?.set_len(size)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let creds = |name: &str, endpoint: &str| {
            let folder = tls.join(name).display().to_string();
            format!("tls-creds-x509,id=tls0,endpoint={endpoint},dir={folder},verify-peer=yes")
        };
        let target = Command::new("qemu-nbd")
            .args(["--object", &creds("server", "server"), "--tls-creds=tls0", "-f", "raw", "-x", "copy"])
            .args(["-t", "-b", "127.0.0.1", "-p", &port.to_string(), "--cache=none", "--aio=io_uring"])
            .arg(&copy)
            .stdout(Stdio::null())
            .spawn()
            .context("start qemu-nbd")?;
        let (socket, monitor) = (folder.join("nbd.sock"), folder.join("qmp.sock"));
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--object", &creds("client", "client")])
            .args([
                "--blockdev",
                &format!(
                    "driver=file,node-name=file,filename={},cache.direct=on,aio=io_uring",
                    image.display()
                ),
            ])
            .args(["--blockdev", "driver=raw,node-name=disk,file=file"])
            .args(["--nbd-server", &format!("addr.type=unix,addr.path={}", socket.display())])
            .args(["--export", "type=nbd,id=e,node-name=disk,name=vda,writable=on"])
            .args(["--chardev", &format!("socket,id=m,path={},server=on,wait=off", monitor.display())])
            .args(["--monitor", "chardev=m"])
            .spawn()
            .context("start qemu-storage-daemon")?;
        let mut mirror = Self { daemon, target, socket, synced_in: 0.0 };
        let mut qmp = Qmp::connect(&monitor)?;
        let server = json!({ "type": "inet", "host": "127.0.0.1", "port": port.to_string() });
        let far = json!({
            "driver": "nbd", "node-name": "far", "server": server, "export": "copy",
            "tls-creds": "tls0", "tls-hostname": "localhost", "cache": { "direct": true }
        });
        let asked = Moment::now();
        while let Err(error) = qmp.ask("blockdev-add", &far) {
            // qemu-nbd needs a moment to listen.
            if asked.elapsed() > 10.0 {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let begun = Moment::now();
        qmp.ask(
            "blockdev-mirror",
            &json!({
                "job-id": "mirror", "device": "disk", "target": "far", "sync": "full",
                "copy-mode": "write-blocking"
            }),
        )?;
        qmp.wait_for("BLOCK_JOB_READY")?;
        mirror.synced_in = begun.elapsed();
        Ok(mirror)
    }

    fn export(&self) -> String {
        format!("nbd+unix:///vda?socket={}", self.socket.display())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.target] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The files QEMU wants: it checks its own certificate too, so both ends are of one authority.
fn credentials(tls: &Path, role: &str) -> Result<()> {
    let folder = tls.join(role);
    std::fs::create_dir_all(&folder)?;
    for (from, to) in [
        ("agent.pem", format!("{role}-cert.pem")),
        ("agent.key", format!("{role}-key.pem")),
        ("ca.pem", "ca-cert.pem".into()),
    ] {
        std::fs::copy(tls.join("theirs/pki").join(from), folder.join(to)).context("copy a certificate")?;
    }
    Ok(())
}

/// A monitor of QEMU.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let begun = Moment::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > 10.0 => return Err(error).context("connect to the monitor"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut qmp = Self { reader: BufReader::new(stream.try_clone()?), writer: stream };
        qmp.read()?;
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("read from the monitor")? == 0 {
            bail!("the monitor was closed");
        }
        serde_json::from_str(&line).context("read from the monitor")
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        writeln!(self.writer, "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn wait_for(&mut self, event: &str) -> Result<()> {
        loop {
            let seen = self.read()?;
            if seen["event"] == event {
                return Ok(());
            }
            if seen["event"] == "BLOCK_JOB_COMPLETED" {
                bail!("the job has ended: {seen}");
            }
        }
    }
}
