//! Whether anybody is at the other end of a connection.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The other end, or this one, says nothing more, whether or not that was noticed.
pub(crate) fn has_hung_up(stream: &UnixStream) -> bool {
    let mut looked_at = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP)];
    let looked = poll(&mut looked_at, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && looked_at[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}
