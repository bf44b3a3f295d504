//! Sockets, one for each disk, and whoever is connected to them.

use super::device::Device;
use crate::acceptor::Acceptor;
use crate::hung_up::has_hung_up;
use crate::nbd::{BindError, Export, bind_socket};
use crate::writers::Client;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vhost::vhost_user::{BackendReqHandler, Error};

/// A disk and the socket it is served on.
#[derive(Clone)]
pub struct DiskSocket {
    pub path: PathBuf,
    pub export: Export,
}

/// Served sockets. Dropping it finishes what guests have begun, closes the connections and removes the sockets.
pub struct VhostServer {
    shared: Arc<Shared>,
    accepting: Option<Acceptor>,
}

struct Shared {
    disks: Vec<DiskSocket>,
    /// At most one connection to each disk.
    connected: Vec<Mutex<Option<Connection>>>,
}

struct Connection {
    stream: UnixStream,
    serving: JoinHandle<()>,
}

impl Connection {
    /// The client is there and is served.
    fn is_alive(&self) -> bool {
        !self.serving.is_finished() && !has_hung_up(&self.stream)
    }

    /// Waits until what the client had begun is done.
    fn end(self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.serving.join();
    }
}

impl VhostServer {
    /// Listens on every disk's socket. One left behind by a process that died is replaced.
    ///
    /// # Errors
    /// [`BindError::InUse`] where somebody answers there.
    pub fn bind(disks: Vec<DiskSocket>) -> Result<Self, BindError> {
        let listeners = disks.iter().map(|disk| bind_socket(&disk.path)).collect::<Result<Vec<_>, _>>()?;
        let first = disks.first().map(|disk| disk.path.clone()).unwrap_or_default();
        let connected = disks.iter().map(|_| Mutex::default()).collect();
        let shared = Arc::new(Shared { disks, connected });
        let accepting = {
            let shared = shared.clone();
            Acceptor::start("vhost-accept", listeners, move |at, stream| shared.start(at, stream))
        };
        let accepting = accepting.map_err(|source| BindError::Io { path: first, source })?;
        Ok(Self { shared, accepting: Some(accepting) })
    }

    /// Hangs up on all clients, without waiting for what they have begun.
    pub fn hang_up(&self) {
        for place in &self.shared.connected {
            if let Some(connection) = &*place.lock().expect("a panic aborts the process") {
                let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// How many clients are connected, or have gone with something of theirs still under way.
    pub fn connections(&self) -> usize {
        let is_served = |place: &&Mutex<Option<Connection>>| {
            let place = place.lock().expect("a panic aborts the process");
            place.as_ref().is_some_and(|connection| !connection.serving.is_finished())
        };
        self.shared.connected.iter().filter(is_served).count()
    }
}

impl Drop for VhostServer {
    fn drop(&mut self) {
        // Nobody comes in any more.
        drop(self.accepting.take());
        for place in &self.shared.connected {
            let connection = place.lock().expect("a panic aborts the process").take();
            if let Some(connection) = connection {
                connection.end();
            }
        }
        for disk in &self.shared.disks {
            let _ = std::fs::remove_file(&disk.path);
        }
    }
}

impl Shared {
    fn start(&self, at: usize, stream: UnixStream) {
        let place = &self.connected[at];
        let label = self.disks[at].path.display().to_string();
        let writers = self.disks[at].export.device.writers();
        if let Some(Err(refused)) = writers.map(|writers| writers.admit(&Client::of_process(&stream))) {
            // Whoever asks for what was refused tells; a VM tries again each second.
            tracing::debug!(disk = label, %refused, "vhost-user connection refused");
            return;
        }
        let before = {
            let mut place = place.lock().expect("a panic aborts the process");
            if place.as_ref().is_some_and(Connection::is_alive) {
                let client = Client::of_process(&stream).to_string();
                tracing::warn!(
                    disk = label,
                    client,
                    "vhost-user connection refused: somebody is connected already"
                );
                return;
            }
            place.take()
        };
        // A client that comes back at once finds its place free, and nothing of its own before it under way.
        if let Some(before) = before {
            before.end();
        }
        let export = self.disks[at].export.clone();
        let started = stream.try_clone().and_then(|kept| {
            let serving = std::thread::Builder::new()
                .name("vhost".into())
                .spawn(move || serve(stream, export, label))?;
            Ok(Connection { stream: kept, serving })
        });
        match started {
            Ok(connection) => *place.lock().expect("a panic aborts the process") = Some(connection),
            Err(error) => tracing::error!(%error, "a vhost-user connection cannot be served"),
        }
    }
}

fn serve(stream: UnixStream, export: Export, label: String) {
    let client = Client::of_process(&stream);
    let device = Arc::new(Mutex::new(Device::new(export, label.clone(), client)));
    let mut handler = BackendReqHandler::from_stream(stream, device.clone());
    loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::SocketBroken(_) | Error::PartialMessage) => break,
            // It was told so already.
            Err(Error::ReqHandlerError(error)) => {
                tracing::warn!(disk = label, %error, "vhost-user request refused");
            }
            Err(error) => {
                tracing::warn!(disk = label, %error, "vhost-user connection ended");
                break;
            }
        }
    }
    device.lock().expect("a panic aborts the process").stop_all();
    // The server keeps the socket too, to end this from outside.
    if let Ok(stream) = handler.try_clone_connection() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}
