//! Which process is at the other end of a unix socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process at the other end of a connection; none where the system does not say, as of one in another container.
pub fn peer_process(stream: &UnixStream) -> Option<u32> {
    // SAFETY: all-zero is a valid `ucred`.
    let mut peer: libc::ucred = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut peer).cast();
    // SAFETY: the descriptor is open for the length of the call, and `peer` and `len` outlive it.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut len)
    };
    // Of a process that this one cannot see the system says 0, which no type may rule out.
    u32::try_from(peer.pid).ok().filter(|pid| done == 0 && *pid > 0)
}
