//! Tapping a VM that runs on its own image: the hypervisor tells us of each write, and lets us read the disk.
//!
//! Of QEMU, for each disk:
//!
//! 1. a *change log* is begun: a bitmap in QEMU's memory of every block written from here on;
//! 2. `blockdev-mirror` sends every write to our NBD server, and the guest's write is done when both have it
//!    (`write-blocking`); it copies nothing by itself (`sync=none`);
//! 3. an export lets us read the disk for a sync;
//! 4. the change logs of taps before this one say what was written while nobody listened: the caller marks that,
//!    and only then are they removed.
//!
//! When the agent dies the mirror ends with an error, and the guest goes on at once; the change log goes on too.
//! It is begun anew now and then, so that it says little when it is needed: the one before is kept until the next
//! time, for a write may be in the image and not yet on its way to us.

use super::qmp::{Qmp, QmpError};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use splitter::nbd::Client;
use splitter::status_of;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use types::ByteRange;
use types::limits::BLOCK_BYTES;

/// All that is ours in a VM is called so, and by the disk's name.
const PREFIX: &str = "holdfast-";
const STEP_TRIES: u32 = 100;
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// Flag of a dirty bitmap's context.
const STATE_DIRTY: u32 = 1;

/// A disk of a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TapDisk {
    /// Our name for it.
    pub(crate) name: String,
    /// The VM's own name for it.
    pub(crate) device: String,
    pub(crate) size_bytes: u64,
    node: String,
}

/// What was written to a disk while nobody listened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Nobody knows.
    Unknown,
    Ranges(Vec<ByteRange>),
}

/// A VM under the tap, or about to be.
#[derive(Debug)]
pub(crate) struct Tap {
    qmp: Qmp,
    disks: Vec<TapDisk>,
    /// Where the VM lets itself be read.
    reader_socket: PathBuf,
}

impl Tap {
    /// Connects to a VM's control socket and finds its disks; `wanted` names them, ours and the VM's own, or none
    /// for all that can be written.
    ///
    /// # Errors
    /// Where the VM does not answer or has no such disk.
    pub(crate) fn open(control: &Path, wanted: &[(String, String)], reader_socket: PathBuf) -> Result<Self> {
        let qmp = Qmp::connect(control)
            .with_context(|| format!("connect to the VM's control socket {}", control.display()))?;
        let mut tap = Self { qmp, disks: Vec::new(), reader_socket };
        let found = tap.find_disks()?;
        if wanted.is_empty() {
            tap.disks.clone_from(&found);
        }
        for (name, device) in wanted {
            let is_it = |disk: &&TapDisk| disk.device == *device || disk.node == *device;
            let Some(disk) = found.iter().find(is_it) else {
                let known: Vec<&str> = found.iter().map(|disk| disk.device.as_str()).collect();
                bail!("the VM has no disk {device:?} that can be written; it has {}", known.join(", "));
            };
            tap.disks.push(TapDisk { name: name.clone(), ..disk.clone() });
        }
        if tap.disks.is_empty() {
            bail!("the VM has no disk that can be written");
        }
        Ok(tap)
    }

    pub(crate) fn disks(&self) -> &[TapDisk] {
        &self.disks
    }

    fn find_disks(&mut self) -> Result<Vec<TapDisk>> {
        let mut found: Vec<TapDisk> = Vec::new();
        for row in self.qmp.execute("query-block")?.as_array().into_iter().flatten() {
            let inserted = &row["inserted"];
            // A tap that was left behind stands in front of the disk.
            let node = inserted["node-name"].as_str().unwrap_or_default();
            let node = self.behind_filter(node)?;
            let size_bytes = inserted["image"]["virtual-size"].as_u64().unwrap_or(0);
            if node.is_empty() || inserted["ro"].as_bool() != Some(false) || size_bytes == 0 {
                continue;
            }
            let device =
                row["device"].as_str().filter(|device| !device.is_empty()).unwrap_or(&node).to_owned();
            let letter = char::from(b'a' + found.len().min(25) as u8);
            found.push(TapDisk { name: format!("vd{letter}"), device, size_bytes, node });
        }
        Ok(found)
    }

    /// The node itself, or the one behind it where it is a filter of ours.
    fn behind_filter(&mut self, node: &str) -> Result<String> {
        if !node.starts_with(PREFIX) {
            return Ok(node.to_owned());
        }
        let nodes = self.qmp.ask("query-named-block-nodes", &json!({ "flat": true }))?;
        let filter = nodes.as_array().into_iter().flatten().find(|row| row["node-name"] == node);
        let file = filter.and_then(|row| row["file"].as_str()).unwrap_or_default();
        let behind = nodes.as_array().into_iter().flatten().find(|row| {
            row["file"] == file && !row["node-name"].as_str().unwrap_or(PREFIX).starts_with(PREFIX)
        });
        Ok(behind.and_then(|row| row["node-name"].as_str()).unwrap_or_default().to_owned())
    }

    /// Attaches: from when this returns, every write of the guest arrives at `target`, where our NBD server has each
    /// disk under its name. `take` is told what each disk was written while nobody listened, and must have marked
    /// it when it returns; it is given the connection to read the disk by.
    ///
    /// # Errors
    /// With what the VM says; what was begun is taken away again.
    pub(crate) fn attach(
        &mut self,
        target: &Path,
        mut take: impl FnMut(usize, &Missed, Client),
    ) -> Result<()> {
        self.clear_leftovers()?;
        let attached = self.begin_all(target, &mut take);
        if attached.is_err() {
            // What went wrong is what is told; whatever is left is cleared by the next try.
            let _ = self.clear_leftovers();
        }
        attached
    }

    fn begin_all(&mut self, target: &Path, take: &mut impl FnMut(usize, &Missed, Client)) -> Result<()> {
        let disks = self.disks.clone();
        let mut old_logs = Vec::new();
        for disk in &disks {
            old_logs.push(self.begin_log(disk)?);
            self.begin_mirror(disk, target)?;
        }
        let _ = std::fs::remove_file(&self.reader_socket);
        let address = json!({ "type": "unix", "data": { "path": self.reader_socket } });
        self.qmp
            .ask("nbd-server-start", &json!({ "addr": address }))
            .context("read the VM's disks through QEMU; a VM whose NBD server is in use cannot be tapped")?;
        for (at, (disk, logs)) in disks.iter().zip(&old_logs).enumerate() {
            let missed = self.read_logs(disk, logs)?;
            let export = json!({
                "type": "nbd", "id": format!("{PREFIX}{}", disk.name), "node-name": disk.node,
                "name": disk.name, "writable": false
            });
            self.qmp.ask("block-export-add", &export).context("have the VM's disk read")?;
            let reader = Client::connect(&self.reader_socket, &disk.name, "base:allocation")
                .context("read the VM's disk")?;
            if reader.size_bytes() != disk.size_bytes {
                bail!("disk {} has another size than it had", disk.name);
            }
            take(at, &missed, reader);
            for log in logs {
                self.remove_log(disk, log)?;
            }
        }
        Ok(())
    }

    /// The names of a disk's change logs, oldest first.
    fn logs(&mut self, disk: &TapDisk) -> Result<Vec<(u64, String)>> {
        let nodes = self.qmp.ask("query-named-block-nodes", &json!({ "flat": true }))?;
        let node = nodes.as_array().into_iter().flatten().find(|row| row["node-name"] == disk.node.as_str());
        let mut logs: Vec<(u64, String)> = node
            .and_then(|node| node["dirty-bitmaps"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|row| row["name"].as_str())
            .filter_map(|name| Some((name.strip_prefix(PREFIX)?.parse().ok()?, name.to_owned())))
            .collect();
        logs.sort_unstable();
        Ok(logs)
    }

    /// Begins a change log; those that were there.
    fn begin_log(&mut self, disk: &TapDisk) -> Result<Vec<String>> {
        let logs = self.logs(disk)?;
        let number = logs.last().map_or(1, |(number, _)| number + 1);
        self.qmp
            .ask(
                "block-dirty-bitmap-add",
                &json!({ "node": disk.node, "name": format!("{PREFIX}{number}"), "granularity": BLOCK_BYTES }),
            )
            .context("begin a change log")?;
        Ok(logs.into_iter().map(|(_, name)| name).collect())
    }

    fn remove_log(&mut self, disk: &TapDisk, log: &str) -> Result<(), QmpError> {
        self.qmp.ask("block-dirty-bitmap-remove", &json!({ "node": disk.node, "name": log })).map(drop)
    }

    fn begin_mirror(&mut self, disk: &TapDisk, target: &Path) -> Result<()> {
        let far = format!("{PREFIX}{}", disk.name);
        let server = json!({ "type": "unix", "path": target });
        let node = json!({
            "driver": "nbd", "node-name": far, "server": server, "export": disk.name,
            "discard": "unmap", "detect-zeroes": "off"
        });
        self.qmp.ask("blockdev-add", &node).context("have the VM connect to the agent")?;
        let job = json!({
            "job-id": far, "device": disk.node, "target": far, "sync": "none",
            "copy-mode": "write-blocking", "on-target-error": "report",
            "filter-node-name": format!("{PREFIX}{}-filter", disk.name)
        });
        self.qmp.ask("blockdev-mirror", &job).context("begin to mirror the VM's writes")?;
        Ok(())
    }

    /// What change logs of before say.
    fn read_logs(&mut self, disk: &TapDisk, logs: &[String]) -> Result<Missed> {
        if logs.is_empty() {
            return Ok(Missed::Unknown);
        }
        for log in logs {
            self.qmp
                .ask("block-dirty-bitmap-disable", &json!({ "node": disk.node, "name": log }))
                .context("end a change log")?;
        }
        let id = format!("{PREFIX}{}-log", disk.name);
        let export = json!({
            "type": "nbd", "id": id, "node-name": disk.node, "name": id, "writable": false, "bitmaps": logs
        });
        self.qmp.ask("block-export-add", &export).context("have the change log read")?;
        let mut ranges = Vec::new();
        for log in logs {
            let mut reader = Client::connect(&self.reader_socket, &id, &format!("qemu:dirty-bitmap:{log}"))
                .context("read the change log")?;
            let whole = ByteRange::new(0, disk.size_bytes);
            let status = status_of(&mut reader, whole).context("read the change log")?;
            ranges.extend(
                status.into_iter().filter(|(_, flags)| flags & STATE_DIRTY != 0).map(|(range, _)| range),
            );
        }
        self.end_export(&id)?;
        Ok(Missed::Ranges(ranges))
    }

    fn end_export(&mut self, id: &str) -> Result<()> {
        self.qmp.ask("block-export-del", &json!({ "id": id, "mode": "hard" }))?;
        self.wait_until_gone("query-block-exports", "id", id)
    }

    fn wait_until_gone(&mut self, query: &str, key: &str, value: &str) -> Result<()> {
        for _ in 0..STEP_TRIES {
            let rows = self.qmp.execute(query)?;
            if !rows.as_array().into_iter().flatten().any(|row| row[key] == value) {
                return Ok(());
            }
            sleep(TRY_INTERVAL);
        }
        bail!("{value} does not end")
    }

    /// Takes away what a tap has left in the VM, but for its change logs.
    fn clear_leftovers(&mut self) -> Result<()> {
        let ours = |rows: &Value, key: &str| -> Vec<String> {
            let names = rows.as_array().into_iter().flatten().filter_map(|row| row[key].as_str());
            names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
        };
        for job in ours(&self.qmp.execute("query-block-jobs")?, "device") {
            // It may end by itself in the meantime.
            let _ = self.qmp.ask("block-job-cancel", &json!({ "device": job, "force": true }));
            self.wait_until_gone("query-block-jobs", "device", &job).context("end the mirror")?;
        }
        let exports = ours(&self.qmp.execute("query-block-exports")?, "id");
        for export in &exports {
            self.end_export(export).context("end an export")?;
        }
        if self.reader_socket.exists() {
            // It is ours by its path: nobody else's has been started there.
            let _ = self.qmp.execute("nbd-server-stop");
            let _ = std::fs::remove_file(&self.reader_socket);
        }
        let nodes = self.qmp.ask("query-named-block-nodes", &json!({ "flat": true }))?;
        for node in ours(&nodes, "node-name") {
            // A filter goes with its job.
            if let Err(error) = self.qmp.ask("blockdev-del", &json!({ "node-name": node })) {
                tracing::debug!(%error, node, "not removed");
            }
        }
        Ok(())
    }

    /// Whether every write still arrives.
    ///
    /// # Errors
    /// With what has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let jobs = self.qmp.execute("query-block-jobs")?;
        for disk in &self.disks {
            let job = format!("{PREFIX}{}", disk.name);
            let is_well = |row: &Value| row["device"] == job && row["io-status"].as_str() != Some("failed");
            if !jobs.as_array().into_iter().flatten().any(is_well) {
                bail!("the mirror of disk {} has ended", disk.name);
            }
        }
        Ok(())
    }

    /// Begins every change log anew, and forgets those from before the last time.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn rotate_logs(&mut self) -> Result<()> {
        for disk in self.disks.clone() {
            let mut old = self.begin_log(&disk)?;
            // Writes that were under way when the last one of these was begun stand in the one before it.
            old.pop();
            for log in old {
                self.remove_log(&disk, &log)?;
            }
        }
        Ok(())
    }

    /// Leaves the VM without a trace.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn detach(&mut self) -> Result<()> {
        self.clear_leftovers()?;
        for disk in self.disks.clone() {
            for (_, log) in self.logs(&disk)? {
                self.remove_log(&disk, &log)?;
            }
        }
        Ok(())
    }
}
