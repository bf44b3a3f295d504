//! How the disks of a running VM are read: through an export of its QEMU, which is there while a disk is read, and not
//! longer.
//!
//! An export is served by the thread that serves the disk, and a client may leave it at any moment, for the agent may end
//! at any. Where an I/O thread serves, that was seen to end the whole process, and the guest with it, in the versions
//! before [`IO_THREAD_SINCE`]; with several, a later one was seen to stand still for seconds. Such VMs are not tapped at
//! all. `suite_tap` plays what is tapped.
//!
//! Who answers at the socket must be that QEMU: what it says is taken for the disk's content.

use super::disks::PREFIX;
use crate::error::with_sources;
use crate::hypervisor::qmp::{Monitor, QmpError};
use serde_json::json;
use splitter::nbd::Client;
use splitter::{DiskReader, ReadDoor};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

/// The first version whose VMs with one I/O thread were shown to outlive every end of the agent. With 7.2 one was seen to
/// end; what lies between was not tried.
const IO_THREAD_SINCE: u64 = 10;
pub(super) const STEP_TRIES: u32 = 100;
pub(super) const TRY_INTERVAL: Duration = Duration::from_millis(50);

/// What decides whether a VM may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readable {
    qemu_major: u64,
    /// Those that there are, used or not.
    io_threads: usize,
}

/// A VM cannot be read without danger for it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the VM cannot be read without danger for it: {}. Start the VM without I/O threads or with QEMU {IO_THREAD_SINCE} and \
     one for all its disks, or protect its images by `vm protect --disk` and start it on the agent's own sockets, NBD or \
     vhost-user",
    self.danger()
)]
pub(crate) struct NotReadable {
    major: u64,
}

impl NotReadable {
    fn danger(&self) -> String {
        match self.major < IO_THREAD_SINCE {
            true => format!("QEMU {} with I/O threads may end when an agent does", self.major),
            false => {
                format!(
                    "QEMU {} with several I/O threads may stand still while its disks are read",
                    self.major
                )
            }
        }
    }
}

impl Readable {
    pub(super) fn ask(monitor: &Monitor) -> Result<Self, QmpError> {
        let version = monitor.execute("query-version")?;
        Ok(Self {
            // One that does not say is taken for an old one.
            qemu_major: version["qemu"]["major"].as_u64().unwrap_or(0),
            io_threads: monitor.rows("query-iothreads", &json!({}))?.len(),
        })
    }

    pub(super) fn check(self) -> Result<(), NotReadable> {
        match self.io_threads {
            0 => Ok(()),
            1 if self.qemu_major >= IO_THREAD_SINCE => Ok(()),
            _ => Err(NotReadable { major: self.qemu_major }),
        }
    }
}

/// QEMU's NBD server, which is there while a disk of its VM is read.
#[derive(Debug)]
pub(super) struct ExportRoom {
    monitor: Monitor,
    /// The VM's process, where it can be told.
    process: Option<u32>,
    socket: PathBuf,
    /// How many exports there are.
    open: Mutex<usize>,
}

impl ExportRoom {
    pub(super) fn new(monitor: Monitor, socket: PathBuf) -> Self {
        Self { process: monitor.peer_pid(), monitor, socket, open: Mutex::new(0) }
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

    /// Has an export there while it is read.
    pub(super) fn with<T>(
        &self,
        export: &serde_json::Value,
        read: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.begin(export)?;
        let done = read();
        self.end(export["id"].as_str().unwrap_or_default());
        done
    }

    /// Connects to an export that is there.
    pub(super) fn connect(&self, export: &str, context: &str) -> io::Result<Client> {
        Client::connect(&self.socket, self.process, export, context)
    }

    fn begin(&self, export: &serde_json::Value) -> io::Result<()> {
        let mut open = self.lock();
        // It may have got I/O threads since it was tapped.
        Readable::ask(&self.monitor).map_err(other)?.check().map_err(io::Error::other)?;
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
        let client = self.room.connect(&self.name, "base:allocation")?;
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
    use super::*;

    #[test]
    fn a_vm_is_not_read_where_that_may_end_it() {
        let check = |qemu_major, io_threads| Readable { qemu_major, io_threads }.check();
        assert!(check(7, 0).is_ok() && check(10, 0).is_ok() && check(10, 1).is_ok());
        for major in [0, 7, 8, 9] {
            let refused = check(major, 1).unwrap_err().to_string();
            assert!(refused.contains(&format!("QEMU {major} with I/O threads may end")), "{refused}");
        }
        let refused = check(10, 2).unwrap_err().to_string();
        assert!(refused.contains("QEMU 10 with several I/O threads may stand still"), "{refused}");
    }
}
