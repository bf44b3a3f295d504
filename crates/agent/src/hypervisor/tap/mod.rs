//! Tapping a VM that runs on its own image: the hypervisor tells us of each write, and lets us read the disk.
//!
//! Of QEMU, for each disk:
//!
//! 1. a *change log* is begun: a bitmap in QEMU's memory of every block written from here on;
//! 2. `blockdev-mirror` sends every write to our NBD server, and the guest's write is done when both have it
//!    (`write-blocking`); it copies nothing by itself (`sync=none`);
//! 3. the change logs of taps before this one say what was written while nobody listened: the caller marks that,
//!    and only then are they removed.
//!
//! The disk is read for a sync in one of the ways of [`reading`]: nothing is open for that while nobody reads.
//!
//! When the agent dies the mirror ends with an error, and the guest goes on at once; the change log goes on too.
//! It is begun anew now and then, so that it says little when it is needed: the one before is kept until the next
//! time, for a write may be in the image and not yet on its way to us.

mod disks;
mod logs;
mod reading;

use super::qmp::{Monitor, Qmp};
use anyhow::{Context, Result, bail};
pub(crate) use disks::{DiskFacts, NotThere};
use disks::{FoundDisk, PREFIX, find_disks, recognise, recognise_by_name};
use logs::ChangeLogs;
pub(crate) use logs::Missed;
use reading::{ExportDoor, ExportRoom, Readable, STEP_TRIES, TRY_INTERVAL, Way};
use serde_json::{Value, json};
use splitter::ReadDoor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;

/// A disk that is to be tapped: our name for it and what it is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// An operator's word for it.
    Called {
        name: String,
        called: String,
    },
    /// An older version has written down no more than the name that QEMU had for its drive or node.
    Named {
        name: String,
        was: String,
    },
    Known {
        name: String,
        facts: DiskFacts,
    },
}

/// A disk of a running VM.
#[derive(Debug, Clone)]
pub(crate) struct TapDisk {
    /// Our name for it.
    pub(crate) name: String,
    pub(crate) facts: DiskFacts,
    node: String,
    way: Way,
}

/// A VM under the tap, or about to be.
#[derive(Debug)]
pub(crate) struct Tap {
    monitor: Monitor,
    disks: Vec<TapDisk>,
    room: Arc<ExportRoom>,
}

impl Tap {
    /// Connects to a VM's control socket and finds its disks; `wanted` names them, or none for all that can be
    /// written. `reader_socket` is where the VM will let itself be read.
    ///
    /// # Errors
    /// Where the VM does not answer, has no such disk, or cannot be read without danger for it.
    pub(crate) fn open(control: &Path, wanted: &[Wanted], reader_socket: PathBuf) -> Result<Self> {
        let qmp = Qmp::connect(control)
            .with_context(|| format!("connect to the VM's control socket {}", control.display()))?;
        let monitor = Monitor::new(qmp);
        let found = find_disks(&monitor)?;
        let readable = Readable::ask(&monitor)?;
        let chosen = choose(wanted, &found)?;
        let qemu = monitor.peer_pid();
        let disks = chosen.into_iter().map(|(name, disk)| {
            let way = readable.way(disk, qemu)?;
            Ok(TapDisk { name, facts: disk.facts.clone(), node: disk.node.clone(), way })
        });
        let disks: Vec<TapDisk> = disks.collect::<Result<_>>()?;
        let room = Arc::new(ExportRoom::new(monitor.clone(), reader_socket));
        Ok(Self { monitor, disks, room })
    }

    pub(crate) fn disks(&self) -> &[TapDisk] {
        &self.disks
    }

    /// Attaches: from when this returns, every write of the guest arrives at `target`, where our NBD server has each
    /// disk under its name. `take` is told what each disk was written while nobody listened, and must have marked
    /// it when it returns; it is given the door to read the disk by.
    ///
    /// # Errors
    /// With what the VM says; what was begun is taken away again.
    pub(crate) fn attach(
        &self,
        target: &Path,
        mut take: impl FnMut(usize, &Missed, Arc<dyn ReadDoor>),
    ) -> Result<()> {
        self.clear()?;
        let attached = self.begin_all(target, &mut take);
        if attached.is_err() {
            // What went wrong is what is told; whatever is left is cleared by the next try.
            let _ = self.clear();
        }
        attached
    }

    fn begin_all(
        &self,
        target: &Path,
        take: &mut impl FnMut(usize, &Missed, Arc<dyn ReadDoor>),
    ) -> Result<()> {
        let mut old_logs = Vec::new();
        for disk in &self.disks {
            old_logs.push(self.logs(disk).begin()?);
            self.begin_mirror(disk, target)?;
        }
        for (at, (disk, logs)) in self.disks.iter().zip(&old_logs).enumerate() {
            let missed = self.logs(disk).read(logs, &disk.way, &self.room, disk.facts.size_bytes)?;
            let door = self.door(disk);
            // A VM that cannot be read is better refused now than found out in the middle of a sync.
            door.close(door.open().context("read the VM's disk")?);
            take(at, &missed, door);
            for log in logs {
                self.logs(disk).remove(log)?;
            }
        }
        Ok(())
    }

    fn door(&self, disk: &TapDisk) -> Arc<dyn ReadDoor> {
        match &disk.way {
            Way::File(file) => Arc::new(file.clone()),
            Way::Export => Arc::new(ExportDoor {
                room: self.room.clone(),
                name: disk.name.clone(),
                node: disk.node.clone(),
                size_bytes: disk.facts.size_bytes,
            }),
        }
    }

    fn logs<'a>(&'a self, disk: &'a TapDisk) -> ChangeLogs<'a> {
        ChangeLogs { monitor: &self.monitor, node: &disk.node }
    }

    fn begin_mirror(&self, disk: &TapDisk, target: &Path) -> Result<()> {
        let far = format!("{PREFIX}{}", disk.name);
        let server = json!({ "type": "unix", "path": target });
        let node = json!({
            "driver": "nbd", "node-name": far, "server": server, "export": disk.name,
            "discard": "unmap", "detect-zeroes": "off"
        });
        self.monitor.ask("blockdev-add", &node).context("have the VM connect to the agent")?;
        let job = json!({
            "job-id": far, "device": disk.node, "target": far, "sync": "none",
            "copy-mode": "write-blocking", "on-target-error": "report",
            "filter-node-name": format!("{PREFIX}{}-filter", disk.name)
        });
        self.monitor.ask("blockdev-mirror", &job).context("begin to mirror the VM's writes")?;
        Ok(())
    }

    /// Takes away what a tap has left in the VM, but for its change logs.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn clear(&self) -> Result<()> {
        self.room.clear().context("end an export")?;
        for job in ours(&self.monitor.rows("query-block-jobs", &json!({}))?, "device") {
            // It may end by itself in the meantime.
            let _ = self.monitor.ask("block-job-cancel", &json!({ "device": job, "force": true }));
            self.wait_for_job_end(&job)?;
        }
        let nodes = self.monitor.rows("query-named-block-nodes", &json!({ "flat": true }))?;
        for node in ours(&nodes, "node-name") {
            // A filter goes with its job.
            if let Err(error) = self.monitor.ask("blockdev-del", &json!({ "node-name": node })) {
                tracing::debug!(%error, node, "not removed");
            }
        }
        Ok(())
    }

    fn wait_for_job_end(&self, job: &str) -> Result<()> {
        for _ in 0..STEP_TRIES {
            let rows = self.monitor.rows("query-block-jobs", &json!({}))?;
            if !rows.iter().any(|row| row["device"] == job) {
                return Ok(());
            }
            sleep(TRY_INTERVAL);
        }
        bail!("the mirror {job} does not end")
    }

    /// Whether every write still arrives.
    ///
    /// # Errors
    /// With what has ended.
    pub(crate) fn check(&self) -> Result<()> {
        let jobs = self.monitor.rows("query-block-jobs", &json!({}))?;
        for disk in &self.disks {
            let job = format!("{PREFIX}{}", disk.name);
            let is_well = |row: &Value| row["device"] == job && row["io-status"].as_str() != Some("failed");
            if !jobs.iter().any(is_well) {
                bail!("the mirror of disk {} has ended", disk.name);
            }
        }
        Ok(())
    }

    /// Begins every change log anew, and forgets those from before the last time.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn rotate_logs(&self) -> Result<()> {
        for disk in &self.disks {
            let mut old = self.logs(disk).begin()?;
            // Writes that were under way when the last one of these was begun stand in the one before it.
            old.pop();
            for log in old {
                self.logs(disk).remove(&log)?;
            }
        }
        Ok(())
    }

    /// Leaves the VM without a trace.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn detach(&self) -> Result<()> {
        self.clear()?;
        for disk in &self.disks {
            self.logs(disk).remove_all()?;
        }
        Ok(())
    }
}

/// The names that are ours in a column.
fn ours(rows: &[Value], key: &str) -> Vec<String> {
    let names = rows.iter().filter_map(|row| row[key].as_str());
    names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
}

/// The disks that are wanted, under our names.
fn choose<'a>(wanted: &[Wanted], found: &'a [FoundDisk]) -> Result<Vec<(String, &'a FoundDisk)>> {
    if wanted.is_empty() {
        let letter = |at: usize| char::from(b'a' + at.min(25) as u8);
        let all: Vec<_> =
            found.iter().enumerate().map(|(at, disk)| (format!("vd{}", letter(at)), disk)).collect();
        if all.is_empty() {
            bail!("the VM has no disk that can be written");
        }
        return Ok(all);
    }
    let not_there = |name: &str, why: &NotThere| format!("disk {name} is not there as it was: {why}");
    let one = |wanted: &Wanted| match wanted {
        Wanted::Called { name, called } => {
            let Some(disk) = found.iter().find(|disk| disk.is_called(called)) else {
                let known: Vec<String> = found.iter().map(FoundDisk::describe).collect();
                bail!("the VM has no disk {called:?} that can be written; it has {}", known.join(", "));
            };
            Ok((name.clone(), disk))
        }
        Wanted::Named { name, was } => {
            let disk = recognise_by_name(was, found);
            Ok((name.clone(), disk.map_err(|why| anyhow::anyhow!(not_there(name, &why)))?))
        }
        Wanted::Known { name, facts } => {
            let disk = recognise(facts, found);
            Ok((name.clone(), disk.map_err(|why| anyhow::anyhow!(not_there(name, &why)))?))
        }
    };
    wanted.iter().map(one).collect()
}
