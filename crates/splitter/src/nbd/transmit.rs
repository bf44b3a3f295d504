//! Transmission: requests come in, replies go out in whatever order the disk finishes them.
//!
//! One thread moves everything of a connection and waits for nothing but the next event:
//!
//! ```text
//!   socket ─▶ Inbox ─▶ DiskQueue ─▶ Outbox ─▶ socket
//! ```
//!
//! A client that floods is read no further while its requests stand at their bound; one that takes no replies is
//! not either, since a reply counts until it is sent, its head as its data does.

use super::negotiate::Agreed;
use super::protocol::*;
use super::reply::{Asked, Outbox, Outcome, extent_chunks};
use super::request::{Inbox, Request};
use crate::device::{BlockDevice, ExtentKind};
use crate::hung_up::has_hung_up;
use crate::queue::{Action, Answer, DiskQueue, Done, Job};
use crate::writers::{Client, Writer};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use types::ByteRange;
use types::limits::{
    NBD_BYTES_IN_FLIGHT_MAX, NBD_HEADS_BYTES_MAX, NBD_REQUEST_BYTES_MAX, NBD_REQUESTS_IN_FLIGHT_MAX,
};

/// The most extents one block status reply tells; the client asks on behind them.
const EXTENTS_MAX: usize = 4096;

/// A request the disk works on.
struct Pending {
    asked: Asked,
    data_bytes: u64,
}

struct Connection<'a> {
    contexts: Vec<Context>,
    inbox: Inbox<'a>,
    outbox: Outbox<'a>,
    queue: DiskQueue,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Data of the reads and writes that are pending.
    data_bytes: u64,
    /// The client sends nothing more.
    is_leaving: bool,
}

/// Serves requests until the client disconnects.
pub(super) fn transmit(agreed: &Agreed<'_>, stream: &UnixStream, client: Client) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let device = &agreed.export.device;
    let mut connection = Connection {
        contexts: agreed.contexts.clone(),
        inbox: Inbox::new(stream, agreed.structured, !agreed.contexts.is_empty()),
        outbox: Outbox::new(stream, agreed.structured),
        queue: DiskQueue::new(device.clone(), Writer::connect(device.writers(), client))?,
        pending: (0..NBD_REQUESTS_IN_FLIGHT_MAX).map(|_| None).collect(),
        free: (0..NBD_REQUESTS_IN_FLIGHT_MAX).collect(),
        data_bytes: 0,
        is_leaving: false,
    };
    while !connection.is_over() {
        let has_read = connection.takes_more() && connection.inbox.fill()?;
        connection.begin_requests()?;
        // What was read may hold more requests than there was room for.
        let was_full = !connection.takes_more();
        let has_ended = connection.end_requests();
        connection.outbox.flush()?;
        let has_room_again = was_full && connection.takes_more();
        connection.notice_leaving(stream);
        if !has_read && !has_ended && !has_room_again {
            connection.wait(stream);
        }
    }
    Ok(())
}

impl Connection<'_> {
    fn is_over(&self) -> bool {
        self.inbox.closed && self.free.len() == self.pending.len() && self.outbox.is_empty()
    }

    /// Whether one more request of any size may be worked on.
    fn takes_more(&self) -> bool {
        let room = NBD_BYTES_IN_FLIGHT_MAX - u64::from(NBD_REQUEST_BYTES_MAX);
        !self.inbox.closed
            && !self.free.is_empty()
            && self.data_bytes + self.outbox.data_bytes <= room
            && self.outbox.head_bytes <= NBD_HEADS_BYTES_MAX
    }

    /// A client that leaves asks again for what it has no answer to, so that nothing is held for it any more. Where
    /// every place is taken its leaving is not read, and has to be looked for.
    fn notice_leaving(&mut self, stream: &UnixStream) {
        if !self.is_leaving && (self.inbox.closed || (!self.takes_more() && has_hung_up(stream))) {
            self.is_leaving = true;
            self.queue.end_patience();
        }
    }

    fn wait(&mut self, stream: &UnixStream) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.takes_more());
        flags.set(PollFlags::RDHUP, !self.takes_more() && !self.is_leaving);
        flags.set(PollFlags::OUT, !self.outbox.is_empty());
        let watched = [(stream.as_fd(), flags)];
        self.queue.wait(if flags.is_empty() { &[] } else { &watched });
    }

    fn begin_requests(&mut self) -> io::Result<()> {
        while self.takes_more() {
            let Some(request) = self.inbox.next(self.queue.device())? else { break };
            self.begin(request);
        }
        Ok(())
    }

    fn begin(&mut self, mut request: Request) {
        let asked = Asked { cookie: request.cookie, command: request.command, start: request.range.start };
        if let Some(errno) = request.refused {
            return self.outbox.push(&asked, Outcome::Failed(errno));
        }
        let durable = request.has(flag::FUA) && request.changes_disk();
        let action = match request.command {
            command::FLUSH => Action::Flush,
            _ if request.range.is_empty() && durable => Action::Flush,
            _ if request.range.is_empty() => return self.outbox.push(&asked, Outcome::Done),
            command::READ => Action::Read { at: asked.start, len: request.range.len as usize },
            command::WRITE => {
                let payload = request.payload.take().expect("a write that is not refused has one");
                Action::Write { at: asked.start, bytes: payload.into_bytes() }
            }
            command::TRIM => Action::Discard { range: request.range },
            command::WRITE_ZEROES => {
                Action::Zero { range: request.range, unmap: !request.has(flag::NO_HOLE) }
            }
            command::CACHE => {
                let range = request.range;
                Action::Ask(Box::new(move |device| device.cache(range).map(|()| Vec::new())))
            }
            _ => self.block_status(&request),
        };
        let slot = self.free.pop().expect("there was room for one more");
        let data_bytes = request.data_bytes();
        self.data_bytes += data_bytes;
        self.pending[slot] = Some(Pending { asked, data_bytes });
        self.queue.submit(Job { token: slot as u64, action, durable });
    }

    fn block_status(&self, request: &Request) -> Action {
        let (contexts, range, cookie) = (self.contexts.clone(), request.range, request.cookie);
        let wanted = if request.has(flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
        Action::Ask(Box::new(move |device| {
            let mut found = Vec::new();
            for context in contexts {
                found.push((context, extents(device, context, range, wanted)?));
            }
            Ok(extent_chunks(cookie, &found))
        }))
    }

    /// Answers what is done; false where nothing is.
    fn end_requests(&mut self) -> bool {
        let mut any = false;
        while let Some(Done { token, result }) = self.queue.next_done() {
            any = true;
            let slot = token as usize;
            let Pending { asked, data_bytes } =
                self.pending[slot].take().expect("begun and not ended before");
            self.free.push(slot);
            self.data_bytes -= data_bytes;
            let outcome = match result {
                Ok(Answer::Read(data)) => Outcome::Data(data),
                Ok(Answer::Told(chunks)) if asked.command == command::BLOCK_STATUS => Outcome::Chunks(chunks),
                Ok(Answer::Nothing | Answer::Told(_)) => Outcome::Done,
                Ok(Answer::Abandoned) => continue,
                Err(error) => {
                    tracing::warn!(command = asked.command, at = asked.start, %error, "request failed");
                    Outcome::Failed(to_errno(&error))
                }
            };
            self.outbox.push(&asked, outcome);
        }
        any
    }
}

/// What a context tells of a range, in lengths and states.
fn extents(
    device: &dyn BlockDevice,
    context: Context,
    range: ByteRange,
    wanted: usize,
) -> io::Result<Vec<(u32, u32)>> {
    Ok(match context {
        Context::Allocation => {
            let hole = |kind| if kind == ExtentKind::Hole { STATE_HOLE_ZERO } else { 0 };
            let extents = device.first_extents(range, wanted)?.into_iter();
            extents.map(|extent| (extent.range.len as u32, hole(extent.kind))).collect()
        }
        Context::Unsent => {
            let parts = device.unsent(range, wanted).unwrap_or_default().into_iter();
            parts.map(|(part, unsent)| (part.len as u32, u32::from(unsent) * STATE_UNSENT)).collect()
        }
    })
}

fn to_errno(error: &io::Error) -> u32 {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => errno::ENOSPC,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => errno::EPERM,
        _ => errno::EIO,
    }
}

#[cfg(test)]
mod tests;
