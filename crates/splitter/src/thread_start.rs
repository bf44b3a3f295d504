//! Starting threads, which the system may refuse: whoever starts one has to go on without it.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread.
///
/// # Errors
/// Where the system has none left. What was given to it is gone then.
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    #[cfg(test)]
    if refusing::is_refusing() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Builder::new().name(name.into()).spawn(run)
}

/// A system that has no thread left for whoever says so.
#[cfg(test)]
pub(crate) mod refusing {
    use std::cell::Cell;

    thread_local! {
        static REFUSES: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn is_refusing() -> bool {
        REFUSES.get()
    }

    /// Whether threads that this thread starts are refused from now on.
    pub(crate) fn set(refuses: bool) {
        REFUSES.set(refuses);
    }
}
