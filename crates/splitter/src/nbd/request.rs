//! Requests of a client, as they come out of its socket.

use super::protocol::*;
use crate::bounce::Bounce;
use crate::device::BlockDevice;
use std::io::{self, IoSliceMut, Read};
use std::os::unix::net::UnixStream;
use types::ByteRange;
use types::limits::NBD_REQUEST_BYTES_MAX;

const REQUEST_BYTES: usize = 28;
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) range: ByteRange,
    /// The payload of a write: the one copy that is made of it.
    pub(super) payload: Option<Bounce>,
    /// Set where the request is refused before it reaches the disk.
    pub(super) refused: Option<u32>,
}

impl Request {
    /// Memory for its data, be it brought or fetched.
    pub(super) fn data_bytes(&self) -> u64 {
        let moves = matches!(self.command, command::READ | command::WRITE);
        if moves && self.range.len <= u64::from(NBD_REQUEST_BYTES_MAX) { self.range.len } else { 0 }
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn changes_disk(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }

    /// The protocol's error for a request that must not reach the disk.
    fn check(&self, device: &dyn BlockDevice, structured: bool, has_contexts: bool) -> Option<u32> {
        let allowed = match self.command {
            command::READ => flag::FUA | if structured { flag::DF } else { 0 },
            command::WRITE | command::TRIM => flag::FUA,
            command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            command::CACHE => 0,
            command::FLUSH => flag::FUA,
            command::BLOCK_STATUS if has_contexts => flag::REQ_ONE,
            _ => return Some(errno::EINVAL),
        };
        if self.flags & !allowed != 0 {
            Some(errno::EINVAL)
        } else if self.changes_disk() && device.is_read_only() {
            Some(errno::EPERM)
        } else if matches!(self.command, command::READ | command::WRITE)
            && self.range.len > u64::from(NBD_REQUEST_BYTES_MAX)
        {
            Some(errno::EOVERFLOW)
        } else if self.command == command::FLUSH {
            (self.range != ByteRange::new(0, 0)).then_some(errno::EINVAL)
        } else if !self.range.fits(device.size_bytes()) {
            let is_write = matches!(self.command, command::WRITE | command::WRITE_ZEROES);
            Some(if is_write { errno::ENOSPC } else { errno::EINVAL })
        } else if self.command == command::BLOCK_STATUS && self.range.is_empty() {
            Some(errno::EINVAL)
        } else if self.has(flag::FAST_ZERO) && self.command == command::WRITE_ZEROES && !device.zeroes_fast()
        {
            Some(errno::ENOTSUP)
        } else {
            None
        }
    }
}

/// The reading half of a connection. The socket does not block.
pub(super) struct Inbox<'a> {
    stream: &'a UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// A write whose payload is on its way, and how much of it is here.
    arriving: Option<(Request, usize)>,
    /// Bytes of a payload that is too long to be taken: they are read past.
    skip: u64,
    /// The client sends nothing more.
    has_ended: bool,
    /// Nothing more comes out of here.
    pub(super) closed: bool,
    structured: bool,
    has_contexts: bool,
}

impl<'a> Inbox<'a> {
    pub(super) fn new(stream: &'a UnixStream, structured: bool, has_contexts: bool) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        Self {
            stream,
            buffer,
            start: 0,
            end: 0,
            arriving: None,
            skip: 0,
            has_ended: false,
            closed: false,
            structured,
            has_contexts,
        }
    }

    /// Reads what is there; false where nothing is.
    ///
    /// # Errors
    /// As the socket says.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        if self.has_ended {
            return Ok(false);
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut direct: &mut [u8] = &mut [];
        let room = &mut self.buffer[self.end..];
        if let Some((Request { payload: Some(payload), .. }, filled)) = &mut self.arriving
            && self.start == self.end
        {
            direct = &mut payload[*filled..];
        }
        let direct_len = direct.len();
        let read = self.stream.read_vectored(&mut [IoSliceMut::new(direct), IoSliceMut::new(room)]);
        let read = match read {
            Ok(0) => {
                self.has_ended = true;
                return Ok(true);
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        if let Some((_, filled)) = &mut self.arriving {
            *filled += read.min(direct_len);
        }
        self.end += read.saturating_sub(direct_len);
        Ok(true)
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let start = self.start;
        self.start += len;
        &self.buffer[start..self.start]
    }

    /// The next whole request among what was read. The client's leave-taking closes the inbox.
    ///
    /// # Errors
    /// Where the client does not follow the protocol.
    pub(super) fn next(&mut self, device: &dyn BlockDevice) -> io::Result<Option<Request>> {
        let skipped = self.skip.min((self.end - self.start) as u64);
        self.skip -= skipped;
        self.start += skipped as usize;
        if self.skip > 0 || self.closed {
            return Ok(self.nothing_yet());
        }
        if self.arriving.is_none() {
            if self.end - self.start < REQUEST_BYTES {
                return Ok(self.nothing_yet());
            }
            let mut request = parse(self.take(REQUEST_BYTES))?;
            if request.command == command::DISCONNECT {
                self.closed = true;
                return Ok(None);
            }
            request.refused = request.check(device, self.structured, self.has_contexts);
            if request.command != command::WRITE {
                return Ok(Some(request));
            }
            if request.range.len > u64::from(NBD_REQUEST_BYTES_MAX) {
                self.skip = request.range.len;
                return Ok(Some(request));
            }
            request.payload = Some(Bounce::take(request.range.len as usize));
            self.arriving = Some((request, 0));
        }
        let (mut request, mut filled) = self.arriving.take().expect("put there or found there");
        let payload = request.payload.as_mut().expect("only a write arrives in parts");
        let more = (payload.len() - filled).min(self.end - self.start);
        payload[filled..filled + more].copy_from_slice(self.take(more));
        filled += more;
        if filled == payload.len() {
            return Ok(Some(request));
        }
        self.arriving = Some((request, filled));
        Ok(self.nothing_yet())
    }

    fn nothing_yet(&mut self) -> Option<Request> {
        self.closed |= self.has_ended;
        None
    }
}

fn parse(head: &[u8]) -> io::Result<Request> {
    let mut fields = Fields(head);
    let magic = fields.u32().expect("28 bytes");
    if magic != REQUEST_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD request"));
    }
    let (flags, command) = (fields.u16().expect("28 bytes"), fields.u16().expect("28 bytes"));
    let (cookie, start) = (fields.u64().expect("28 bytes"), fields.u64().expect("28 bytes"));
    let len = fields.u32().expect("28 bytes");
    let range = ByteRange::new(start, len.into());
    Ok(Request { flags, command, cookie, range, payload: None, refused: None })
}
