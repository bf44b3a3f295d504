//! Which process is at the other end of a unix socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process that connected; none where the system does not say, as of one in another container.
pub(crate) fn pid_of(stream: &UnixStream) -> Option<i32> {
    // SAFETY: all-zero is a valid `ucred`.
    let mut peer: libc::ucred = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut peer).cast();
    // SAFETY: the descriptor is open for the length of the call, and `peer` and `len` outlive it.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut len)
    };
    (done == 0 && peer.pid > 0).then_some(peer.pid)
}
