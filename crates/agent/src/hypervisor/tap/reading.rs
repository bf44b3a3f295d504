//! How the disks of a running VM are read: through an export of its QEMU, or beside it.
//!
//! An export is served by the thread that serves the disk. In the versions of QEMU before [`HARMLESS_SINCE`] a client
//! that leaves an export that an I/O thread serves may end the whole process, and the guest with it; the agent itself
//! may end at any moment. So no export is ever made there: a raw image is read as a file, and a VM with another is
//! refused; before [`READ_AS_FILE_SINCE`] each is. Elsewhere an export is there while the disk is read, and not longer.

use super::disks::{FoundDisk, PREFIX};
use crate::hypervisor::qmp::{Monitor, QmpError};
use crate::source::with_sources;
use serde_json::json;
use splitter::nbd::Client;
use splitter::{DiskReader, ImageFile, ReadDoor};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

/// The first version for which it was shown that an export may be left at any moment.
const HARMLESS_SINCE: u64 = 10;
/// The first version whose VMs with I/O threads are tapped at all: of one with 7.2 the process was seen to end once while
/// an agent came back, though nothing was open in it for reading. Of those between, nothing of the kind is known.
const READ_AS_FILE_SINCE: u64 = 8;
pub(super) const STEP_TRIES: u32 = 100;
pub(super) const TRY_INTERVAL: Duration = Duration::from_millis(50);

/// What decides how a VM may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readable {
    qemu_major: u64,
    has_io_threads: bool,
}

/// How a disk is read.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Export,
    File(ImageFile),
}

/// Why a disk cannot be read without danger for its VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReadable {
    #[error(
        "disk {disk} cannot be read without danger for the VM: QEMU {major} with I/O threads may end when a reader \
         leaves. A disk of raw format could be read as a file, but this {why}; start the VM without I/O threads, or on \
         the agent's sockets, or with QEMU {HARMLESS_SINCE}"
    )]
    IoThread { disk: String, major: u64, why: String },
    #[error(
        "disk {disk} cannot be read without danger for the VM: QEMU {major} with I/O threads may end while an agent comes \
         or goes; start the VM without I/O threads, or on the agent's sockets, or with QEMU {HARMLESS_SINCE}"
    )]
    Version { disk: String, major: u64 },
}

impl Readable {
    pub(super) fn ask(monitor: &Monitor) -> Result<Self, QmpError> {
        let version = monitor.execute("query-version")?;
        Ok(Self {
            // One that does not say is taken for an old one.
            qemu_major: version["qemu"]["major"].as_u64().unwrap_or(0),
            has_io_threads: !monitor.rows("query-iothreads", &json!({}))?.is_empty(),
        })
    }

    fn allows_exports(self) -> bool {
        !self.has_io_threads || self.qemu_major >= HARMLESS_SINCE
    }

    /// How a disk is to be read.
    pub(super) fn way(self, disk: &FoundDisk, qemu: Option<u32>) -> Result<Way, NotReadable> {
        if self.allows_exports() {
            return Ok(Way::Export);
        }
        if self.qemu_major < READ_AS_FILE_SINCE {
            return Err(NotReadable::Version { disk: disk.describe(), major: self.qemu_major });
        }
        let file = raw_file(disk, qemu).map_err(|why| NotReadable::IoThread {
            disk: disk.describe(),
            major: self.qemu_major,
            why,
        });
        file.map(Way::File)
    }
}

/// The file of a raw disk, which must be the one that the process `qemu` has open.
fn raw_file(disk: &FoundDisk, qemu: Option<u32>) -> Result<ImageFile, String> {
    if disk.format != "raw" || !disk.facts.image.starts_with('/') {
        return Err(format!("is of format {}", disk.format));
    }
    let path = Path::new(&disk.facts.image);
    let file = ImageFile::open(path).map_err(|error| format!("cannot be opened here: {error}"))?;
    match file.size_bytes() {
        Ok(size) if size == disk.facts.size_bytes => {}
        _ => return Err("has another size as a file".into()),
    }
    match qemu.map(|pid| has_open(pid, &file)) {
        Some(Ok(true)) => Ok(file),
        Some(Ok(false)) => Err("is another file than the VM has open".into()),
        Some(Err(error)) => Err(format!("cannot be found among the files that the VM has open: {error}")),
        None => Err("cannot be found among the files that the VM has open: its process is not known".into()),
    }
}

/// Whether a process has this very file open.
fn has_open(pid: u32, file: &ImageFile) -> io::Result<bool> {
    let of = |facts: std::fs::Metadata| {
        let number =
            if facts.file_type().is_block_device() { (facts.rdev(), 0) } else { (facts.dev(), facts.ino()) };
        (facts.file_type().is_block_device(), number)
    };
    let wanted = of(file.file().metadata()?);
    for row in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may have been closed since.
        if let Ok(facts) = std::fs::metadata(row?.path())
            && of(facts) == wanted
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// QEMU's NBD server, which is there while a disk of its VM is read.
#[derive(Debug)]
pub(super) struct ExportRoom {
    monitor: Monitor,
    socket: PathBuf,
    /// How many exports there are.
    open: Mutex<usize>,
}

impl ExportRoom {
    pub(super) fn new(monitor: Monitor, socket: PathBuf) -> Self {
        Self { monitor, socket, open: Mutex::new(0) }
    }

    /// Takes away what another agent, or this one before, has left.
    pub(super) fn clear(&self) -> Result<(), QmpError> {
        let mut open = self.lock();
        *open = 0;
        let exports = self.monitor.rows("query-block-exports", &json!({}))?;
        let ours: Vec<&str> =
            exports.iter().filter_map(|row| row["id"].as_str()).filter(|id| id.starts_with(PREFIX)).collect();
        for id in &ours {
            self.end_export(id)?;
        }
        if !ours.is_empty() || is_listened_at(&self.socket) {
            // It is ours by its exports or its path: nobody else's has been started there.
            let _ = self.monitor.execute("nbd-server-stop");
            let _ = std::fs::remove_file(&self.socket);
        }
        Ok(())
    }

    /// Reads an export with `context` while it is there for nobody else.
    pub(super) fn with<T>(
        &self,
        export: &serde_json::Value,
        read: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        self.begin(export)?;
        let done = read(&self.socket);
        self.end(export["id"].as_str().unwrap_or_default());
        done
    }

    fn begin(&self, export: &serde_json::Value) -> io::Result<()> {
        let mut open = self.lock();
        if !Readable::ask(&self.monitor).map_err(other)?.allows_exports() {
            return Err(io::Error::other(
                "the VM has got I/O threads; it cannot be read through its QEMU any more",
            ));
        }
        if *open == 0 {
            let _ = std::fs::remove_file(&self.socket);
            let address = json!({ "type": "unix", "data": { "path": self.socket } });
            self.monitor.ask("nbd-server-start", &json!({ "addr": address })).map_err(|error| {
                io::Error::other(format!(
                    "{error}; a VM whose own NBD server is in use, by a backup for example, cannot be read"
                ))
            })?;
        }
        let added = self.monitor.ask("block-export-add", export);
        if added.is_err() && *open == 0 {
            self.stop_server();
        }
        added.map_err(other)?;
        *open += 1;
        Ok(())
    }

    fn end(&self, id: &str) {
        let mut open = self.lock();
        if let Err(error) = self.end_export(id) {
            // One that does not answer is cleared when it is tapped the next time.
            tracing::debug!(%error, id, "an export is not taken away");
        }
        *open = open.saturating_sub(1);
        if *open == 0 {
            self.stop_server();
        }
    }

    fn stop_server(&self) {
        if let Err(error) = self.monitor.execute("nbd-server-stop") {
            tracing::debug!(%error, "the VM's NBD server is not stopped");
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    fn end_export(&self, id: &str) -> Result<(), QmpError> {
        self.monitor.ask("block-export-del", &json!({ "id": id, "mode": "hard" }))?;
        for _ in 0..STEP_TRIES {
            let rows = self.monitor.rows("query-block-exports", &json!({}))?;
            if !rows.iter().any(|row| row["id"] == id) {
                break;
            }
            sleep(TRY_INTERVAL);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, usize> {
        self.open.lock().expect("a panic aborts the process")
    }
}

/// A disk that is read through an export.
#[derive(Debug)]
pub(super) struct ExportDoor {
    pub(super) room: Arc<ExportRoom>,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) size_bytes: u64,
}

impl ExportDoor {
    fn id(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn connect(&self) -> io::Result<Client> {
        let client = Client::connect(&self.room.socket, &self.name, "base:allocation")?;
        if client.size_bytes() != self.size_bytes {
            return Err(io::Error::other("it has another size than it had"));
        }
        Ok(client)
    }
}

impl ReadDoor for ExportDoor {
    fn open(&self) -> io::Result<Box<dyn DiskReader>> {
        self.room.begin(&json!({
            "type": "nbd", "id": self.id(), "node-name": self.node, "name": self.name, "writable": false
        }))?;
        match self.connect() {
            Ok(client) => Ok(Box::new(client)),
            Err(error) => {
                self.room.end(&self.id());
                Err(error)
            }
        }
    }

    fn close(&self, reader: Box<dyn DiskReader>) {
        drop(reader);
        self.room.end(&self.id());
    }
}

pub(super) fn other(error: QmpError) -> io::Error {
    io::Error::other(with_sources(&error))
}

/// Whether somebody listens at this path, even where it was removed: a service manager empties the run folder.
fn is_listened_at(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.display().to_string();
    socket.exists() || sockets.lines().any(|line| line.ends_with(&path))
}

#[cfg(test)]
mod tests {
    use super::super::disks::DiskFacts;
    use super::*;
    use std::fs::File;

    fn disk(format: &str, image: &Path, size_bytes: u64) -> FoundDisk {
        let image = image.display().to_string();
        FoundDisk {
            node: "n".into(),
            drive: "n".into(),
            format: format.into(),
            facts: DiskFacts { device: None, serial: None, image, inode: None, size_bytes },
            has_log: false,
        }
    }

    #[test]
    fn no_export_is_made_where_leaving_it_may_end_the_vm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let held = File::create(&path).unwrap();
        held.set_len(1 << 20).unwrap();
        let me = Some(std::process::id());
        let way = |qemu_major, has_io_threads, disk: &FoundDisk, qemu| {
            Readable { qemu_major, has_io_threads }.way(disk, qemu)
        };
        let raw = disk("raw", &path, 1 << 20);
        assert!(matches!(way(7, false, &raw, me), Ok(Way::Export)));
        assert!(matches!(way(10, true, &raw, me), Ok(Way::Export)));
        assert!(matches!(way(9, true, &raw, me), Ok(Way::File(_))));
        assert!(way(7, true, &raw, me).unwrap_err().to_string().contains("QEMU 7 with I/O threads may end"));
        let refused = |disk: &FoundDisk, qemu| way(9, true, disk, qemu).unwrap_err().to_string();
        assert!(refused(&disk("qcow2", &path, 1 << 20), me).contains("is of format qcow2"));
        assert!(refused(&disk("raw", &path, 2 << 20), me).contains("another size"));
        assert!(refused(&raw, None).contains("its process is not known"));
        drop(held);
        let other = disk("raw", &folder.path().join("gone.raw"), 1 << 20);
        assert!(refused(&other, me).contains("cannot be opened here"));
        assert!(refused(&raw, Some(1)).contains("VM has open"), "pid 1 has other files");
    }
}
