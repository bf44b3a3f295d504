//! Protected VMs that run on their own image: the tap is attached before the stream begins, watched, and where it is
//! lost the whole protection is taken up anew, which finds out what was missed.

use super::Source;
use super::heard::Heard;
use super::log_rotation::LogRotation;
use super::record::{DiskRecord, ProtectionRecord, TappedRecord};
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{Ears, Missed, Seen, Tap, Wanted};
use splitter::nbd::Private;
use splitter::{Capture, LocalDisk, TappedDisk};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::{ByteRange, DiskIndex, WriteSeq};

const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// What an operator has to know of every VM under the tap.
pub(super) const TRIM_NOTE: &str = "TRIM has no effect while tapped: QEMU acknowledges the guest's discards and drops them, so \
     that image and replica keep room for what the guest has deleted. To give it back, `holdfast vm unprotect`, mount the \
     guest's file systems anew, run `fstrim --all` in it, and protect it again; a VM on the agent's sockets trims as usual";

/// The tap of a protected VM.
#[derive(Debug)]
pub(super) struct VmTap {
    tap: Mutex<Tap>,
    ears: Ears,
    disks: Vec<TappedDisk>,
    /// Images that the operator has left out.
    left_out: Vec<String>,
    /// The VM's process, where it can be told.
    process: Option<u32>,
    /// What the guest was doing when it was last looked at, in QEMU's word.
    guest: Mutex<String>,
    heard: Heard,
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
                file: None,
            };
            record.disks = tap.disks().iter().map(name_by_image).collect();
        }
        if record.disks.iter().all(|disk| disk.tapped.is_none()) {
            record.left_out = tap.left_out().map_err(unavailable)?;
        }
        for (disk, found) in record.disks.iter_mut().zip(tap.disks()) {
            disk.tapped.get_or_insert_with(|| TappedRecord::of(&found.facts));
        }
        let labelled = record.disks.iter().zip(tap.disks());
        let disks = labelled
            .map(|(disk, found)| TappedDisk::new(found.facts.size_bytes, disk.path.display().to_string()));
        let disks = disks.collect();
        let change_log_interval = source.change_log_interval;
        Ok(Self {
            heard: Heard::new(record.disks.len()),
            process: tap.process(),
            ears: tap.ears(),
            tap: Mutex::new(tap),
            disks,
            left_out: record.left_out.clone(),
            guest: Mutex::default(),
            change_log_interval,
            ended: AtomicBool::new(false),
        })
    }

    /// Whether a VM answers at its control socket; what does not is waited for.
    pub(super) fn answers(control: &std::path::Path) -> Result<()> {
        Tap::answers(control).map_err(unavailable)
    }

    pub(super) fn disks(&self) -> &[TappedDisk] {
        &self.disks
    }

    /// Attaches, and has compared what was written while nobody listened. To be done before the stream begins.
    pub(super) fn attach(self: &Arc<Self>, capture: &Arc<Capture>, target: &std::path::Path) -> Result<()> {
        let take = |at: usize, missed: &Missed, door| {
            let (index, disk) = (DiskIndex(at as u16), &self.disks[at]);
            disk.read_by(door);
            match missed {
                Missed::Unknown => {
                    let whole = ByteRange::new(0, disk.size_bytes());
                    capture.mark_suspect(index, whole, false);
                }
                Missed::Ranges(ranges) => {
                    tracing::info!(disk = at, ranges = ranges.len(), "written while nobody listened");
                    ranges.iter().for_each(|range| capture.mark_suspect(index, *range, false));
                }
            }
        };
        self.lock().attach(target, take, self.on_unheard(capture)).map_err(unavailable)?;
        for (disk, found) in self.disks.iter().zip(self.lock().disks()) {
            if !found.is_tapped() {
                disk.lose();
            }
        }
        Ok(())
    }

    /// Our server's only client, and what its leaving means.
    pub(super) fn private(self: &Arc<Self>, capture: &Arc<Capture>) -> Private {
        Private { process: self.process, left: Box::new(self.on_unheard(capture)) }
    }

    /// What it means that a disk is not heard any more: a write may have been made by now that nobody tells of. No lock is
    /// waited for but the capture's.
    fn on_unheard(self: &Arc<Self>, capture: &Arc<Capture>) -> impl Fn(usize) + Send + Sync + use<> {
        let (tap, capture) = (Arc::downgrade(self), Arc::downgrade(capture));
        move |at| {
            let (Some(tap), Some(capture)) = (tap.upgrade(), capture.upgrade()) else { return };
            if !tap.has_ended() && tap.heard.on_left(at) {
                capture.lose_writes();
            }
        }
    }

    /// What the guest is doing, in QEMU's word.
    pub(super) fn guest(&self) -> Option<String> {
        let guest = self.guest.lock().expect("a panic aborts the process").clone();
        (!guest.is_empty()).then_some(guest)
    }

    /// Watches the tap of a VM until it is lost or given up.
    pub(super) fn watch(
        self: &Arc<Self>,
        source: &Arc<Source>,
        vm: &str,
        capture: &Arc<Capture>,
    ) -> Result<()> {
        let (tap, source, vm, capture) =
            (self.clone(), source.clone(), vm.to_owned(), Arc::downgrade(capture));
        let runtime = tokio::runtime::Handle::current();
        let watching = std::thread::Builder::new().name("tap".into()).spawn(move || {
            let _entered = runtime.enter();
            let mut rotation = LogRotation::begin(clock::now(), tap.change_log_interval);
            let mut last_seen = WriteSeq::ZERO;
            while !tap.ended.load(Ordering::SeqCst) {
                tap.ears.listen(CHECK_INTERVAL, || tap.heard.has_lost());
                let Some(capture) = capture.upgrade() else { return };
                let holds = capture.is_held(std::mem::replace(&mut last_seen, capture.status().last));
                drop(capture);
                let seen = tap.look(rotation.is_due(clock::now(), holds));
                if tap.ended.load(Ordering::SeqCst) {
                    return;
                }
                match seen {
                    Ok(seen) => {
                        tap.tell(&source, &vm, &seen);
                        if let Ok(protected) = source.vm(&vm) {
                            source.have_guest_follow(&tap, &protected, &seen.guest);
                        }
                    }
                    Err(error) => return source.lose_tap(&tap, &vm, &format!("{error:#}")),
                }
            }
        });
        watching.map(drop).map_err(|error| anyhow::anyhow!("start a thread: {error}").into())
    }

    fn look(&self, rotates: bool) -> anyhow::Result<Seen> {
        self.disks.iter().for_each(TappedDisk::close_idle);
        let mut tap = self.lock();
        let seen = tap.check(&self.left_out)?;
        for &at in &seen.gone {
            tracing::warn!(disk = self.disks[at].label(), "the VM has this disk no more; the others go on");
            self.heard.on_gone(at);
            self.disks[at].lose();
            tap.lose_disk(at);
        }
        if self.heard.has_lost() {
            anyhow::bail!("the VM has left a disk's socket, and its writes are not told of any more");
        }
        if rotates {
            tap.rotate_logs()?;
        }
        Ok(seen)
    }

    /// Raises or clears what an operator has to know of a VM that is tapped.
    fn tell(&self, source: &Source, vm: &str, seen: &Seen) {
        let alert = |kind: AlertKind, text: Option<String>| {
            let cause = Cause::new(kind, vm);
            match text {
                Some(text) => source.alerts.raise(cause, text),
                None => source.alerts.clear(cause),
            }
        };
        let trouble = |disk: &TappedDisk| Some((disk.label(), disk.trouble()?));
        let reading = self.disks.iter().find_map(trouble).map(|(disk, why)| {
            format!("disk {disk} of VM {vm} cannot be read for a sync: {why}; tried again by itself")
        });
        alert(AlertKind::Reading, reading);
        let unprotected =
            (!seen.unprotected.is_empty()).then(|| format!("VM {vm}: {}", seen.unprotected.join("; ")));
        alert(AlertKind::Disks, unprotected);
        let stands = matches!(&*seen.guest, "io-error" | "guest-panicked" | "internal-error" | "watchdog");
        alert(AlertKind::Guest, stands.then(|| format!("VM {vm} stands still: QEMU says {}", seen.guest)));
        self.guest.lock().expect("a panic aborts the process").clone_from(&seen.guest);
    }

    /// Has the guest stand still, or go on.
    pub(super) fn set_running(&self, runs: bool) -> anyhow::Result<()> {
        self.lock().set_running(runs)
    }

    /// Ends the guest at once.
    pub(super) fn power_off(&self) -> anyhow::Result<()> {
        self.lock().power_off()
    }

    /// It is not watched and not read any more. The VM goes on as it is until [`VmTap::leave`].
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.disks.iter().for_each(TappedDisk::shut);
    }

    /// Whether it was ended on purpose.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Takes away what the tap has in the VM, but for its change logs, which go on. To be said when nobody waits for
    /// our server any more.
    pub(super) fn leave(&self) {
        let cleared = self.lock().clear();
        if let Err(error) = cleared {
            // A VM that is gone or does not answer; where it comes back, the next tap clears it.
            tracing::debug!(error = format!("{error:#}"), "the VM keeps what it has of the tap");
        }
    }

    /// Leaves the VM without a trace. A VM that is gone has none.
    pub(super) fn detach(&self) -> Result<()> {
        self.end();
        self.lock().detach().map_err(unavailable)
    }

    fn lock(&self) -> MutexGuard<'_, Tap> {
        self.tap.lock().expect("a panic aborts the process")
    }
}

/// The alerts of a VM under the tap, beside that it is not protected.
pub(super) fn clear_alerts(source: &Source, vm: &str) {
    for kind in [AlertKind::Reading, AlertKind::Disks, AlertKind::Guest] {
        source.alerts.clear(Cause::new(kind, vm));
    }
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
