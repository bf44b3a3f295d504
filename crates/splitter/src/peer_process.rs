//! Which process is at the other end of a unix socket.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

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

/// When a process was started, since the host came up, to the tick before; none where it is not there.
pub(crate) fn started_at(process: u32) -> Option<Duration> {
    started(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// The 22nd field, in hundredths of a second on every architecture there is. The second is a name, in which anything may be.
fn started(stat: &str) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let ticks: u64 = behind_name.split_whitespace().nth(19)?.parse().ok()?;
    ticks.checked_mul(10).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_process_was_started_is_read_behind_a_name_in_which_anything_may_be() {
        let stat = "7 (a) b 1 (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        assert_eq!(started(stat), Some(Duration::from_millis(42_420)));
        assert_eq!(started("7 (a) S 1"), None);
        let [init, own] = [1, std::process::id()].map(|process| started_at(process).unwrap());
        assert!(init <= own && started_at(u32::MAX).is_none());
    }
}
