//! The socket, its exports, and the connections to them.

use super::export::Export;
use super::negotiate::{Agreed, negotiate, negotiate_greeted};
use super::protocol::{greet, option, read_option_head, reply, write_reply};
use super::transmit::transmit;
use crate::acceptor::Acceptor;
use crate::peer_process::peer_process;
use crate::thread_start;
use crate::writers::Client;
use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use types::limits::{NBD_CONNECTIONS_MAX, NBD_OPTION_BYTES_MAX};

/// So many clients are told at once that there is no place; others are hung up on.
const REFUSING_MAX: usize = 4;
/// So many things it may ask for.
const REFUSING_OPTIONS_MAX: usize = 4;
/// How long such a client may take to listen.
const REFUSING_PATIENCE: Duration = Duration::from_secs(2);

/// Why a socket could not be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("socket {} is served by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot serve socket {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A served socket. Dropping it closes the connections and removes the socket.
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<Acceptor>,
}

/// For whom a socket is that is nobody else's business.
pub struct Private {
    /// The only process that is let in; where it is not known, whoever may open the socket.
    pub process: Option<u32>,
    /// Told whenever a client has left, and which of the exports it had. Who has picked none is nothing.
    pub left: Box<dyn Fn(usize) + Send + Sync>,
}

struct Shared {
    exports: Vec<Export>,
    private: Option<Private>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    /// Clients that are just being told that there is no place.
    refusing: usize,
    open: HashMap<u64, (UnixStream, JoinHandle<()>)>,
}

impl Server {
    /// Listens on `path`. A socket left behind by a process that died is replaced.
    ///
    /// # Errors
    /// [`BindError::InUse`] where somebody answers there.
    pub fn bind(path: &Path, exports: Vec<Export>) -> Result<Self, BindError> {
        Self::serve(path, exports, None)
    }

    /// As [`Server::bind`], for one client only.
    ///
    /// # Errors
    /// As there.
    pub fn bind_private(path: &Path, exports: Vec<Export>, private: Private) -> Result<Self, BindError> {
        Self::serve(path, exports, Some(private))
    }

    fn serve(path: &Path, exports: Vec<Export>, private: Option<Private>) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_path_buf(), source };
        let listener = bind_socket(path)?;
        let shared = Arc::new(Shared { exports, private, connections: Mutex::new(Connections::default()) });
        let accepting = {
            let shared = shared.clone();
            let take = move |_, stream| shared.clone().accept(stream);
            Acceptor::start("nbd-accept", vec![listener], take).map_err(io)?
        };
        Ok(Self { path: path.to_path_buf(), shared, accepting: Some(accepting) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hangs up on all clients, without waiting for what they have begun.
    pub fn hang_up(&self) {
        let connections = self.shared.connections.lock().expect("a panic aborts the process");
        for (stream, _) in connections.open.values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().expect("a panic aborts the process").open.len()
    }
}

/// Listens on `path`. A socket left behind by a process that died is replaced.
pub(crate) fn bind_socket(path: &Path) -> Result<UnixListener, BindError> {
    let io = |source| BindError::Io { path: path.to_path_buf(), source };
    if UnixStream::connect(path).is_ok() {
        return Err(BindError::InUse { path: path.to_path_buf() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(io)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody comes in any more.
        drop(self.accepting.take());
        let open: Vec<_> = {
            let mut connections = self.shared.connections.lock().expect("a panic aborts the process");
            connections.open.drain().map(|(_, entry)| entry).collect()
        };
        // All of them first: one may wait for another to go.
        for (stream, _) in &open {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for (_, serving) in open {
            let _ = serving.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, stream: UnixStream) {
        if let Err(error) = self.start(stream) {
            tracing::warn!(%error, "NBD connection refused");
        }
    }

    fn start(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        if let Some(process) = self.private.as_ref().and_then(|private| private.process)
            && peer_process(&stream) != Some(process)
        {
            let client = Client::of_process(&stream);
            return Err(io::Error::other(format!(
                "{client} is not the VM whose disks these are; a VM under the tap has no socket for others"
            )));
        }
        let mut connections = self.connections.lock().expect("a panic aborts the process");
        let places = NBD_CONNECTIONS_MAX * self.exports.len();
        if connections.open.len() >= places {
            connections.refusing += 1;
            if connections.refusing > REFUSING_MAX {
                connections.refusing -= 1;
                return Err(io::Error::other("too many connections"));
            }
            let shared = self.clone();
            let refusing = thread_start::start("nbd-refuse", move || {
                let client = Client::of_process(&stream).to_string();
                tracing::warn!(client, connections = places, "NBD connection refused: all places are taken");
                let _ = refuse(stream, places);
                shared.connections.lock().expect("a panic aborts the process").refusing -= 1;
            });
            return refusing.map(drop).inspect_err(|_| connections.refusing -= 1);
        }
        let number = connections.next;
        connections.next += 1;
        let kept = stream.try_clone()?;
        let shared = self.clone();
        let serving = thread_start::start("nbd", move || {
            let mut had = None;
            if let Err(error) = shared.serve(stream, |at| had = at) {
                tracing::debug!(%error, "NBD connection ended");
            }
            if let (Some(private), Some(at)) = (&shared.private, had) {
                (private.left)(at);
            }
            shared.connections.lock().expect("a panic aborts the process").open.remove(&number);
        })?;
        // Whoever serves it waits for the lock before it takes this away again.
        connections.open.insert(number, (kept, serving));
        Ok(())
    }

    fn serve(&self, mut stream: UnixStream, chosen: impl FnOnce(Option<usize>)) -> io::Result<()> {
        let client = Client::of_process(&stream);
        let Some(agreed) = negotiate(&mut stream, &self.exports, &client)? else { return Ok(()) };
        chosen(self.exports.iter().position(|export| export.name == agreed.export.name));
        serve_agreed(&stream, &agreed, client)
    }
}

/// Says to a client that asks for something that there is no place for it.
fn refuse(mut stream: UnixStream, places: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(REFUSING_PATIENCE))?;
    stream.set_write_timeout(Some(REFUSING_PATIENCE))?;
    greet(&mut stream)?;
    let text = format!("{places} clients are connected, which is as many as may be");
    // The first thing it asks may be whether replies can be structured: then it goes on.
    for _ in 0..REFUSING_OPTIONS_MAX {
        let (option, len) = read_option_head(&mut stream)?;
        io::copy(&mut Read::take(&mut stream, u64::from(len.min(NBD_OPTION_BYTES_MAX))), &mut io::sink())?;
        match option {
            option::EXPORT_NAME | option::ABORT => return Ok(()),
            _ => write_reply(&mut stream, option, reply::ERR_POLICY, text.as_bytes())?,
        }
    }
    Ok(())
}

/// Serves a client whom somebody else has greeted and knows, until it leaves. `chosen` is told which of the exports it
/// has picked, and may refuse it; what it returns is dropped once everything the client has begun is done.
///
/// # Errors
/// Where it is refused, the connection fails or the client does not follow the protocol.
pub fn serve_greeted<T>(
    mut stream: &UnixStream,
    flags: u32,
    exports: &[Export],
    client: Client,
    chosen: impl FnOnce(usize) -> io::Result<T>,
) -> io::Result<()> {
    let Some(agreed) = negotiate_greeted(&mut stream, flags, exports, &client)? else { return Ok(()) };
    let at = exports.iter().position(|export| export.name == agreed.export.name);
    let _served = chosen(at.expect("one of those that were offered"))?;
    serve_agreed(stream, &agreed, client)
}

fn serve_agreed(stream: &UnixStream, agreed: &Agreed<'_>, client: Client) -> io::Result<()> {
    let served = transmit(agreed, stream, client);
    let _ = stream.shutdown(std::net::Shutdown::Both);
    served
}

#[cfg(test)]
mod tests;
