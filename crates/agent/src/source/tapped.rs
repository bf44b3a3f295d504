//! Protected VMs that run on their own image: the tap is attached before the stream begins, watched, and where it is
//! lost the whole protection is taken up anew, which finds out what was missed.

use super::Source;
use super::record::ProtectionRecord;
use crate::clock;
use crate::error::{OperationError, Result};
use crate::hypervisor::{Missed, Tap};
use splitter::{Capture, TappedDisk};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::{ByteRange, DiskIndex, Monotonic};

const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The tap of a protected VM.
#[derive(Debug)]
pub(super) struct VmTap {
    tap: Mutex<Tap>,
    disks: Vec<TappedDisk>,
    /// How often the VM's change logs are begun anew.
    change_log_interval: Duration,
    ended: AtomicBool,
}

impl VmTap {
    /// Connects to the VM. Nothing is attached yet.
    pub(super) fn open(
        source: &Source,
        record: &mut ProtectionRecord,
        control: &std::path::Path,
    ) -> Result<Self> {
        let wanted: Vec<_> =
            record.disks.iter().map(|disk| (disk.name.clone(), disk.path.display().to_string())).collect();
        let reader_socket = source.run_dir.join("vms").join(format!("{}.read", record.name));
        let tap = Tap::open(control, &wanted, reader_socket).map_err(unavailable)?;
        if record.disks.is_empty() {
            let found = tap.disks().iter();
            record.disks = found
                .map(|disk| super::DiskRecord { name: disk.name.clone(), path: PathBuf::from(&disk.device) })
                .collect();
        }
        let disks =
            tap.disks().iter().map(|disk| TappedDisk::new(disk.size_bytes, disk.device.clone())).collect();
        let change_log_interval = source.change_log_interval;
        Ok(Self { tap: Mutex::new(tap), disks, change_log_interval, ended: AtomicBool::new(false) })
    }

    pub(super) fn disks(&self) -> &[TappedDisk] {
        &self.disks
    }

    /// Attaches, and has compared what was written while nobody listened. To be done before the stream begins.
    pub(super) fn attach(&self, capture: &Capture, target: &std::path::Path) -> Result<()> {
        let attached = self.lock().attach(target, |at, missed, reader| {
            let (index, disk) = (DiskIndex(at as u16), &self.disks[at]);
            disk.read_by(reader);
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
            }
        });
        watching.map(drop).map_err(|error| anyhow::anyhow!("start a thread: {error}").into())
    }

    fn look(&self, rotated_at: &mut Monotonic) -> anyhow::Result<()> {
        let mut tap = self.lock();
        tap.check()?;
        let now = clock::now();
        if now.since(*rotated_at) >= self.change_log_interval {
            *rotated_at = now;
            tap.rotate_logs()?;
        }
        Ok(())
    }

    /// It is not watched any more. The VM keeps its change log.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
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

fn unavailable(error: anyhow::Error) -> OperationError {
    OperationError::unavailable(format!("{error:#}"))
}
