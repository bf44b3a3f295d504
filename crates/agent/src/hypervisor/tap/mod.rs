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
//! The disk is read for a sync through [`reading`]: nothing is open for that while nobody reads.
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
use reading::{ExportDoor, ExportRoom, Readable, STEP_TRIES, TRY_INTERVAL};
use serde_json::{Value, json};
use splitter::ReadDoor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

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
    /// Where it stands in the VM; else why it is not tapped.
    place: Result<Place, NotThere>,
}

/// Where a disk stands in the VM as long as that runs.
#[derive(Debug, Clone)]
struct Place {
    node: String,
}

impl TapDisk {
    pub(crate) fn is_tapped(&self) -> bool {
        self.place.is_ok()
    }
}

/// What a look at the VM has found, beside that every write arrives.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Disks that the VM has no more, by their place among the tap's; just now.
    pub(crate) gone: Vec<usize>,
    /// What an operator has to know of disks that are not protected, or not any more.
    pub(crate) unprotected: Vec<String>,
    /// What the guest is doing, in QEMU's word.
    pub(crate) guest: String,
}

/// A VM under the tap, or about to be.
#[derive(Debug)]
pub(crate) struct Tap {
    monitor: Monitor,
    disks: Vec<TapDisk>,
    room: Arc<ExportRoom>,
}

/// Hears what a VM says by itself, while others ask it.
#[derive(Debug)]
pub(crate) struct Ears(Monitor);

impl Ears {
    /// Listens for as long as `within`, or until `done` where that comes of what is heard. Where nothing can be heard any more
    /// that is found out by asking.
    pub(crate) fn listen(&self, within: Duration, done: impl Fn() -> bool) {
        if let Err(error) = self.0.listen(within, done) {
            tracing::debug!(%error, "the VM is not heard");
        }
    }
}

impl Tap {
    /// Whether a VM answers at its control socket. What does not is found out by waiting for it.
    ///
    /// # Errors
    /// As it says, or does not.
    pub(crate) fn answers(control: &Path) -> Result<()> {
        connect(control).map(drop)
    }

    /// Connects to a VM's control socket and finds its disks; `wanted` names them, or none for all that can be
    /// written. `reader_socket` is where the VM will let itself be read.
    ///
    /// # Errors
    /// Where the VM does not answer, has no such disk, or cannot be read without danger for it.
    pub(crate) fn open(control: &Path, wanted: &[Wanted], reader_socket: PathBuf) -> Result<Self> {
        let monitor = Monitor::new(connect(control)?);
        is_here(&status_of_vm(&monitor)?)?;
        let found = find_disks(&monitor)?;
        Readable::ask(&monitor)?.check()?;
        let mut disks = Vec::new();
        for (name, known, chosen) in choose(wanted, &found)? {
            let (facts, place) = match (chosen, known) {
                (Ok(disk), _) => (disk.facts.clone(), Ok(Place { node: disk.node.clone() })),
                (Err(why), Some(facts)) => (facts, Err(why)),
                (Err(why), None) => bail!("disk {name} is not there as it was: {why}"),
            };
            disks.push(TapDisk { name, facts, place });
        }
        if let Some((disk, why)) = disks.first().and_then(|disk| Some((disk, disk.place.as_ref().err()?)))
            && disks.iter().all(|disk| disk.place.is_err())
        {
            bail!("disk {} is not there as it was: {why}", disk.name);
        }
        let room = Arc::new(ExportRoom::new(monitor.clone(), reader_socket));
        Ok(Self { monitor, disks, room })
    }

    pub(crate) fn disks(&self) -> &[TapDisk] {
        &self.disks
    }

    /// Attaches: from when this returns, every write of the guest arrives at `target`, where our NBD server has each
    /// disk under its name. `take` is told what each disk was written while nobody listened, and must have marked
    /// it when it returns; it is given the door to read the disk by. `ended` is told when the mirror of a disk has ended, by
    /// whoever reads of it first: it waits for nothing, and asks the VM nothing.
    ///
    /// # Errors
    /// With what the VM says; what was begun is taken away again.
    pub(crate) fn attach(
        &self,
        target: &Path,
        mut take: impl FnMut(usize, &Missed, Arc<dyn ReadDoor>),
        ended: impl Fn(usize) + Send + 'static,
    ) -> Result<()> {
        self.clear()?;
        // Not before: what was cleared has ended too.
        let jobs: Vec<String> = self.disks.iter().map(|disk| format!("{PREFIX}{}", disk.name)).collect();
        self.monitor.on_event(move |event| {
            if let Some(at) = ended_job(event).and_then(|job| jobs.iter().position(|ours| ours == job)) {
                ended(at);
            }
        });
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
        for (at, disk, place) in self.placed() {
            old_logs.push((at, disk, place, self.logs(place).begin()?));
            self.begin_mirror(disk, place, target)?;
        }
        for (at, disk, place, logs) in old_logs {
            let missed = self.logs(place).read(&logs, &self.room, disk.facts.size_bytes)?;
            let door = self.door(disk, place);
            // A VM that cannot be read is better refused now than found out in the middle of a sync.
            door.close(door.open().context("read the VM's disk")?);
            take(at, &missed, door);
            for log in &logs {
                self.logs(place).remove(log)?;
            }
        }
        Ok(())
    }

    /// To hear what the VM says by itself.
    pub(crate) fn ears(&self) -> Ears {
        Ears(self.monitor.clone())
    }

    /// The disks that are tapped, by their places among all.
    fn placed(&self) -> impl Iterator<Item = (usize, &TapDisk, &Place)> {
        let disks = self.disks.iter().enumerate();
        disks.filter_map(|(at, disk)| disk.place.as_ref().ok().map(|place| (at, disk, place)))
    }

    fn door(&self, disk: &TapDisk, place: &Place) -> Arc<dyn ReadDoor> {
        Arc::new(ExportDoor {
            room: self.room.clone(),
            name: disk.name.clone(),
            node: place.node.clone(),
            size_bytes: disk.facts.size_bytes,
        })
    }

    fn logs<'a>(&'a self, place: &'a Place) -> ChangeLogs<'a> {
        ChangeLogs { monitor: &self.monitor, node: &place.node }
    }

    fn begin_mirror(&self, disk: &TapDisk, place: &Place, target: &Path) -> Result<()> {
        let far = format!("{PREFIX}{}", disk.name);
        let server = json!({ "type": "unix", "path": target });
        let node = json!({
            "driver": "nbd", "node-name": far, "server": server, "export": disk.name,
            "discard": "unmap", "detect-zeroes": "off"
        });
        self.monitor.ask("blockdev-add", &node).context("have the VM connect to the agent")?;
        let job = json!({
            "job-id": far, "device": place.node, "target": far, "sync": "none",
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

    /// Has the guest stand still, or go on.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn set_running(&self, runs: bool) -> Result<()> {
        self.monitor.execute(if runs { "cont" } else { "stop" })?;
        Ok(())
    }

    /// Ends the VM at once, as pulling its plug would.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn power_off(&self) -> Result<()> {
        self.monitor.execute("quit")?;
        Ok(())
    }

    /// Whether every write still arrives, and what else an operator has to know. `left_out`: images that need no
    /// protection.
    ///
    /// # Errors
    /// With what has ended.
    pub(crate) fn check(&self, left_out: &[String]) -> Result<Seen> {
        let guest = status_of_vm(&self.monitor)?;
        is_here(&guest)?;
        let jobs = self.monitor.rows("query-block-jobs", &json!({}))?;
        let found = find_disks(&self.monitor)?;
        let mut seen = Seen { guest, ..Seen::default() };
        for (at, disk) in self.disks.iter().enumerate() {
            let now = recognise(&disk.facts, &found);
            match (&disk.place, now) {
                (Ok(_), Ok(_)) => self.check_mirror(disk, &jobs)?,
                (Ok(_), Err(NotThere::Gone)) => seen.gone.push(at),
                (Ok(_), Err(why)) => bail!("disk {}: {why}", disk.name),
                (Err(_), Ok(_)) => bail!("disk {} is there again", disk.name),
                (Err(_), Err(why)) => {
                    seen.unprotected.push(format!("disk {} is not protected any more: {why}", disk.name));
                }
            }
        }
        let is_known = |found: &&FoundDisk| {
            left_out.contains(&found.facts.image)
                || self.placed().any(|(_, disk, _)| disk.facts.image == found.facts.image)
        };
        for disk in found.iter().filter(|disk| !is_known(disk)) {
            let which = disk.describe();
            seen.unprotected
                .push(format!("disk {which} is not protected: `vm unprotect` and `vm protect` take it in"));
        }
        Ok(seen)
    }

    fn check_mirror(&self, disk: &TapDisk, jobs: &[Value]) -> Result<()> {
        let job = format!("{PREFIX}{}", disk.name);
        let is_well = |row: &Value| row["device"] == job && row["io-status"].as_str() != Some("failed");
        if !jobs.iter().any(is_well) {
            bail!("the mirror of disk {} has ended", disk.name);
        }
        Ok(())
    }

    /// The VM has a disk no more: ends its tap, and takes away what the disk has left in the VM because of it.
    pub(crate) fn lose_disk(&mut self, at: usize) {
        let disk = &mut self.disks[at];
        let Ok(place) = std::mem::replace(&mut disk.place, Err(NotThere::Gone)) else { return };
        let name = format!("{PREFIX}{}", disk.name);
        let ended = self.monitor.ask("block-job-cancel", &json!({ "device": name, "force": true }));
        let ended = ended.map_err(Into::into).and_then(|_| self.wait_for_job_end(&name));
        if let Err(error) = ended.and_then(|()| Ok(self.logs(&place).remove_all()?)) {
            tracing::warn!(
                disk = name,
                error = format!("{error:#}"),
                "something of a disk's tap is left in the VM"
            );
        }
        for node in [name].into_iter().chain(orphans(&place.node)) {
            if let Err(error) = self.monitor.ask("blockdev-del", &json!({ "node-name": node })) {
                tracing::debug!(%error, node, "not removed");
            }
        }
    }

    /// Images of disks that the operator has left out.
    pub(crate) fn left_out(&self) -> Result<Vec<String>> {
        let found = find_disks(&self.monitor)?.into_iter().map(|disk| disk.facts.image);
        Ok(found.filter(|image| !self.disks.iter().any(|disk| disk.facts.image == *image)).collect())
    }

    /// The VM's process, where it can be told.
    pub(crate) fn process(&self) -> Option<u32> {
        self.monitor.peer_pid()
    }

    /// Begins every change log anew, and forgets those from before the last time.
    ///
    /// # Errors
    /// As the VM says.
    pub(crate) fn rotate_logs(&self) -> Result<()> {
        for (_, _, place) in self.placed() {
            let mut old = self.logs(place).begin()?;
            // Writes that were under way when the last one of these was begun stand in the one before it.
            old.pop();
            for log in old {
                self.logs(place).remove(&log)?;
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
        for (_, _, place) in self.placed() {
            self.logs(place).remove_all()?;
        }
        Ok(())
    }
}

fn connect(control: &Path) -> Result<Qmp> {
    Qmp::connect(control).with_context(|| format!("connect to the VM's control socket {}", control.display()))
}

/// The job of whose end an event tells: from then on the guest's writes are made without us.
fn ended_job(event: &Value) -> Option<&str> {
    match event["event"].as_str()? {
        "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_ERROR" => event["data"]["device"].as_str(),
        _ => None,
    }
}

/// The nodes of a disk that is gone and was served by this one: libvirt does not try again to remove them where our job was in
/// the way. Newer versions have no node of their own for the format of a raw image.
fn orphans(node: &str) -> Vec<String> {
    if !node.starts_with("libvirt-") {
        return Vec::new();
    }
    let storage = node.strip_suffix("-format").map(|disk| format!("{disk}-storage"));
    [node.to_owned()].into_iter().chain(storage).collect()
}

/// The names that are ours in a column.
fn ours(rows: &[Value], key: &str) -> Vec<String> {
    let names = rows.iter().filter_map(|row| row[key].as_str());
    names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect()
}

/// What the VM is doing, in QEMU's word.
fn status_of_vm(monitor: &Monitor) -> Result<String> {
    let status = monitor.execute("query-status")?;
    Ok(status["status"].as_str().unwrap_or("unknown").to_owned())
}

/// A VM that has moved on leaves a process behind that says all is well.
fn is_here(status: &str) -> Result<()> {
    match status {
        "postmigrate" => bail!(
            "the VM was migrated or saved, and runs on elsewhere or not at all: nothing it writes there is protected.              Protect it where it runs; `vm unprotect` ends this protection"
        ),
        "inmigrate" => bail!("the VM is still on its way in from another host or a save file"),
        _ => Ok(()),
    }
}

/// Our name for a disk, what it was known by, and the disk.
type Chosen<'a> = (String, Option<DiskFacts>, Result<&'a FoundDisk, NotThere>);

/// The disks that are wanted, under our names.
fn choose<'a>(wanted: &[Wanted], found: &'a [FoundDisk]) -> Result<Vec<Chosen<'a>>> {
    if wanted.is_empty() {
        let letter = |at: usize| char::from(b'a' + at.min(25) as u8);
        let all: Vec<_> = found
            .iter()
            .enumerate()
            .map(|(at, disk)| (format!("vd{}", letter(at)), None, Ok(disk)))
            .collect();
        if all.is_empty() {
            bail!("the VM has no disk that can be written");
        }
        return Ok(all);
    }
    let one = |wanted: &Wanted| match wanted {
        Wanted::Called { name, called } => {
            let Some(disk) = found.iter().find(|disk| disk.is_called(called)) else {
                let known: Vec<String> = found.iter().map(FoundDisk::describe).collect();
                bail!("the VM has no disk {called:?} that can be written; it has {}", known.join(", "));
            };
            Ok((name.clone(), None, Ok(disk)))
        }
        Wanted::Named { name, was } => Ok((name.clone(), None, recognise_by_name(was, found))),
        Wanted::Known { name, facts } => Ok((name.clone(), Some(facts.clone()), recognise(facts, found))),
    };
    wanted.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libvirt_leaves_of_a_disk_is_its_format_and_its_storage() {
        assert_eq!(orphans("libvirt-2-format"), ["libvirt-2-format", "libvirt-2-storage"]);
        assert_eq!(orphans("libvirt-2-storage"), ["libvirt-2-storage"]);
        assert!(orphans("second-format").is_empty(), "whoever has named it removes it");
    }

    #[test]
    fn a_job_has_ended_where_it_is_done_is_cancelled_or_has_failed() {
        let of = |event: &str| json!({ "event": event, "data": { "device": "holdfast-vda", "len": 0 } });
        for end in ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR"] {
            assert_eq!(ended_job(&of(end)), Some("holdfast-vda"));
        }
        assert_eq!(ended_job(&of("BLOCK_JOB_READY")), None);
        assert_eq!(ended_job(&json!({ "event": "STOP" })), None);
    }
}
