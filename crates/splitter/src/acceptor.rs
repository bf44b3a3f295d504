//! A thread that takes connections from sockets until it is dropped, whatever has become of the sockets' paths.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// After a connection could not be taken, as where the process has no descriptors left.
const RETRY_DELAY: Duration = Duration::from_millis(100);

pub(crate) struct Acceptor {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Calls `take` with each connection and the number of the listener it came to.
    ///
    /// # Errors
    /// Where the system has no thread or descriptor left.
    pub(crate) fn start(
        name: &str,
        listeners: Vec<UnixListener>,
        take: impl Fn(usize, UnixStream) + Send + 'static,
    ) -> io::Result<Self> {
        // A client may be gone again before it is taken.
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let stop = stop.clone();
            let run = move || accept(&listeners, &stop, take);
            std::thread::Builder::new().name(name.into()).spawn(run)?
        };
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        rustix::io::write(&*self.stop, &1u64.to_ne_bytes()).expect("a counter far from full");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listeners: &[UnixListener], stop: &OwnedFd, take: impl Fn(usize, UnixStream)) {
    loop {
        let mut all = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        all.extend(
            listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
        );
        if poll(&mut all, None).is_err() {
            continue; // Interrupted.
        }
        if !all[0].revents().is_empty() {
            return;
        }
        for (at, _) in all[1..].iter().enumerate().filter(|(_, one)| !one.revents().is_empty()) {
            match listeners[at].accept() {
                Ok((stream, _)) => take(at, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be taken");
                    std::thread::sleep(RETRY_DELAY);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_although_its_socket_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let (taken, seen) = std::sync::mpsc::channel();
        let acceptor = Acceptor::start("test", vec![listener], move |at, _| taken.send(at).unwrap()).unwrap();
        let _client = UnixStream::connect(folder.path().join("socket")).unwrap();
        assert_eq!(seen.recv().unwrap(), 0);
        drop(folder);
        drop(acceptor);
    }
}
