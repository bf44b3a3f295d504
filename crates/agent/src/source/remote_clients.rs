//! Clients of a VM's disks over TCP, each served by a thread of its own.
//!
//! What holds: once [`RemoteClients::end`] has returned none of them is served, and none will be.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(super) struct RemoteClients {
    inner: Mutex<Inner>,
    gone: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Our end of each one's connection, for as long as it is served.
    connections: BTreeMap<u64, UnixStream>,
    has_ended: bool,
}

/// A client that is served until this is dropped.
#[derive(Debug)]
pub(super) struct RemoteClient {
    clients: Arc<RemoteClients>,
    number: u64,
}

impl RemoteClients {
    /// A client has picked a disk.
    ///
    /// # Errors
    /// Where the VM is being stopped: then it must not be served.
    pub(super) fn admit(self: &Arc<Self>, connection: UnixStream) -> io::Result<RemoteClient> {
        let mut inner = self.lock();
        if inner.has_ended {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the VM is being stopped"));
        }
        let number = inner.next;
        inner.next += 1;
        inner.connections.insert(number, connection);
        Ok(RemoteClient { clients: self.clone(), number })
    }

    pub(super) fn count(&self) -> usize {
        self.lock().connections.len()
    }

    /// Hangs up on all of them, and takes no more.
    pub(super) fn hang_up(&self) {
        let mut inner = self.lock();
        inner.has_ended = true;
        for connection in inner.connections.values() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Hangs up on all of them, and waits until what they have begun is done.
    pub(super) fn end(&self) {
        self.hang_up();
        let is_served = |inner: &mut Inner| !inner.connections.is_empty();
        drop(self.gone.wait_while(self.lock(), is_served).expect("a panic aborts the process"));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic aborts the process")
    }
}

impl Drop for RemoteClient {
    fn drop(&mut self) {
        self.clients.lock().connections.remove(&self.number);
        self.clients.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use std::io::Read;

    #[test]
    fn clients_are_waited_for_and_none_comes_in_behind_that() {
        let clients = Arc::new(RemoteClients::default());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let served = clients.admit(theirs.try_clone().unwrap()).unwrap();
        assert_eq!(clients.count(), 1);
        let ending = {
            let clients = clients.clone();
            std::thread::spawn(move || clients.end())
        };
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0, "it is hung up on");
        assert!(clients.admit(theirs).is_err());
        assert!(!ending.is_finished(), "what it has begun is not done yet");
        drop(served);
        ending.join().unwrap();
        assert_eq!(clients.count(), 0);
    }
}
