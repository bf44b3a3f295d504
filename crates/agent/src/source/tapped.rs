//! Protected VMs that run on their own image: the tap is attached before the stream begins, watched, and where it is
//! lost the whole protection is taken up anew, which finds out what was missed.

use super::Source;
use super::record::{DiskRecord, ProtectionRecord, TappedRecord};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{Missed, Tap, Wanted};
use splitter::{Capture, TappedDisk};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use types::{ByteRange, DiskIndex, Monotonic};

const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The tap of a protected VM.
#[derive(Debug)]
pub(super) struct VmTap {
    tap: Tap,
    disks: Vec<TappedDisk>,
    /// How often the VM's change logs are begun anew.
    change_log_interval: Duration,
    ended: AtomicBool,
}

/// Who has named the disks of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// An operator, just now.
    Request,
    /// The record of a protection that goes on.
    Record,
}

impl VmTap {
    /// Connects to the VM and finds the disks of the record in it, which gets what they are known by. Nothing is
    /// attached yet.
    pub(super) fn open(
        source: &Source,
        record: &mut ProtectionRecord,
        control: &std::path::Path,
        named_by: NamedBy,
    ) -> Result<Self> {
        let wanted: Vec<Wanted> = record.disks.iter().map(|disk| wanted(disk, named_by)).collect();
        let reader_socket = source.run_dir.of_hypervisors("taps").map_err(unavailable)?.join(&record.name);
        let tap = Tap::open(control, &wanted, reader_socket).map_err(unavailable)?;
        if named_by == NamedBy::Request {
            let name_by_image = |disk: &crate::hypervisor::TapDisk| DiskRecord {
                name: disk.name.clone(),
                path: PathBuf::from(&disk.facts.image),
                tapped: None,
            };
            record.disks = tap.disks().iter().map(name_by_image).collect();
        }
        for (disk, found) in record.disks.iter_mut().zip(tap.disks()) {
            disk.tapped.get_or_insert_with(|| TappedRecord::of(&found.facts));
        }
        let labelled = record.disks.iter().zip(tap.disks());
        let disks = labelled
            .map(|(disk, found)| TappedDisk::new(found.facts.size_bytes, disk.path.display().to_string()));
        let disks = disks.collect();
        let change_log_interval = source.change_log_interval;
        Ok(Self { tap, disks, change_log_interval, ended: AtomicBool::new(false) })
    }

    pub(super) fn disks(&self) -> &[TappedDisk] {
        &self.disks
    }

    /// Attaches, and has compared what was written while nobody listened. To be done before the stream begins.
    pub(super) fn attach(&self, capture: &Capture, target: &std::path::Path) -> Result<()> {
        let attached = self.tap.attach(target, |at, missed, door| {
            let (index, disk) = (DiskIndex(at as u16), &self.disks[at]);
            disk.read_by(door);
            match missed {
                Missed::Unknown => {
                    let whole = ByteRange::new(0, splitter::LocalDisk::size_bytes(disk));
                    capture.mark_suspect(index, whole, false);
                }
                Missed::Ranges(ranges) => {
                    tracing::info!(disk = at, ranges = ranges.len(), "written while nobody listened");
                    ranges.iter().for_each(|range| capture.mark_suspect(index, *range, false));
                }
            }
        });
        attached.map_err(unavailable)
    }

    /// Watches the tap of a VM until it is lost or given up.
    pub(super) fn watch(self: &Arc<Self>, source: &Arc<Source>, vm: &str) -> Result<()> {
        let (tap, source, vm) = (self.clone(), source.clone(), vm.to_owned());
        let runtime = tokio::runtime::Handle::current();
        let watching = std::thread::Builder::new().name("tap".into()).spawn(move || {
            let _entered = runtime.enter();
            let mut rotated_at = clock::now();
            while !tap.ended.load(Ordering::SeqCst) {
                std::thread::sleep(CHECK_INTERVAL);
                if let Err(error) = tap.look(&mut rotated_at)
                    && !tap.ended.load(Ordering::SeqCst)
                {
                    source.lose_tap(&vm, &format!("{error:#}"));
                    return;
                }
                tap.tell_of_reading(&source, &vm);
            }
        });
        watching.map(drop).map_err(|error| anyhow::anyhow!("start a thread: {error}").into())
    }

    fn look(&self, rotated_at: &mut Monotonic) -> anyhow::Result<()> {
        self.disks.iter().for_each(TappedDisk::close_idle);
        self.tap.check()?;
        let now = clock::now();
        if now.since(*rotated_at) >= self.change_log_interval {
            *rotated_at = now;
            self.tap.rotate_logs()?;
        }
        Ok(())
    }

    /// Says so while the VM cannot be read: then its syncs wait.
    fn tell_of_reading(&self, source: &Source, vm: &str) {
        let cause = reading_alert(vm);
        if self.ended.load(Ordering::SeqCst) {
            return;
        }
        match self.disks.iter().find_map(|disk| Some((splitter::LocalDisk::label(disk), disk.trouble()?))) {
            Some((disk, why)) => {
                let text =
                    format!("disk {disk} of VM {vm} cannot be read for a sync: {why}; tried again by itself");
                source.alerts.raise(cause, text);
            }
            None => source.alerts.clear(&cause),
        }
    }

    /// It is not watched and not read any more. The VM goes on as it is until [`VmTap::leave`].
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.disks.iter().for_each(TappedDisk::shut);
    }

    /// Takes away what the tap has in the VM, but for its change logs, which go on. To be said when nobody waits for
    /// our server any more.
    pub(super) fn leave(&self) {
        if let Err(error) = self.tap.clear() {
            // A VM that is gone or does not answer; where it comes back, the next tap clears it.
            tracing::debug!(error = format!("{error:#}"), "the VM keeps what it has of the tap");
        }
    }

    /// Leaves the VM without a trace. A VM that is gone has none.
    pub(super) fn detach(&self) -> Result<()> {
        self.end();
        self.tap.detach().map_err(unavailable)
    }
}

/// The alert of a VM that cannot be read.
pub(super) fn reading_alert(vm: &str) -> String {
    format!("reading of {vm}")
}

fn wanted(disk: &DiskRecord, named_by: NamedBy) -> Wanted {
    let name = disk.name.clone();
    match (&disk.tapped, named_by) {
        (Some(tapped), _) => Wanted::Known { name, facts: tapped.facts() },
        (None, NamedBy::Request) => Wanted::Called { name, called: disk.path.display().to_string() },
        (None, NamedBy::Record) => Wanted::Named { name, was: disk.path.display().to_string() },
    }
}

fn unavailable(error: anyhow::Error) -> OperationError {
    OperationError::unavailable(format!("{error:#}"))
}
