//! Locks, channels and threads, of which there are two kinds: those of the standard library, and, with the feature
//! `interleavings`, those of `shuttle`. There one thread runs at a time, and at each lock, channel and atomic that it touches a
//! scheduler draws by seed who goes on: what two threads can do to each other is played, and played again.
//!
//! A lock of the standard library is none to that scheduler: a thread that is set aside while it holds one stops everything.
//! Whoever runs in such tests therefore has its locks from here, but for those that are held over nothing else.

#[cfg(feature = "interleavings")]
pub use shuttle::{sync, thread};
#[cfg(not(feature = "interleavings"))]
pub use std::{sync, thread};

use thread::{Scope, ScopedJoinHandle};

/// Starts a thread in `scope`.
///
/// # Errors
/// Where the system has no threads left.
#[cfg(not(feature = "interleavings"))]
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    body: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().spawn_scoped(scope, body)
}

/// Starts a thread in `scope`; here it never fails.
///
/// # Errors
/// None.
#[cfg(feature = "interleavings")]
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    body: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    Ok(scope.spawn(body))
}

#[cfg(feature = "interleavings")]
pub mod by_seed;
