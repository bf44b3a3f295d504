//! Transmission: requests come in, replies go out in whatever order the disk finishes them.

use super::negotiate::Agreed;
use super::protocol::*;
use crate::device::{BlockDevice, ExtentKind};
use bytes::Bytes;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex};
use types::ByteRange;
use types::limits::{NBD_BYTES_IN_FLIGHT_MAX, NBD_REQUEST_BYTES_MAX, NBD_REQUESTS_IN_FLIGHT_MAX};

const REQUEST_BYTES: usize = 28;
const WORKERS: usize = 8;
/// The most extents one block status reply tells; the client asks on behind them.
const EXTENTS_MAX: usize = 4096;

#[derive(Debug)]
struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    range: ByteRange,
    /// The payload of a write: the one copy that is made of it.
    payload: Bytes,
    /// Set where the request is refused before it reaches the disk.
    refused: Option<u32>,
}

impl Request {
    /// Memory for its data, be it brought or fetched.
    fn data_bytes(&self) -> u64 {
        let moves = matches!(self.command, command::READ | command::WRITE);
        if moves && self.range.len <= u64::from(NBD_REQUEST_BYTES_MAX) { self.range.len } else { 0 }
    }
}

/// What a request ends with.
enum Outcome {
    Done,
    Data(Vec<u8>),
    /// For each context its extents: length and state.
    Extents(Vec<(Context, Vec<(u32, u32)>)>),
    Failed(u32),
}

struct Connection<'a, W> {
    device: &'a dyn BlockDevice,
    structured: bool,
    contexts: &'a [Context],
    replies: Mutex<W>,
    in_flight: Budget,
}

/// Bytes of data that are worked on; who brings more waits.
#[derive(Default)]
struct Budget {
    used: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    fn take(&self, bytes: u64) {
        let used = self.used.lock().expect("a panic aborts the process");
        let full = |used: &mut u64| *used > 0 && *used + bytes > NBD_BYTES_IN_FLIGHT_MAX;
        *self.freed.wait_while(used, full).expect("a panic aborts the process") += bytes;
    }

    fn give_back(&self, bytes: u64) {
        *self.used.lock().expect("a panic aborts the process") -= bytes;
        self.freed.notify_one();
    }
}

/// Serves requests until the client disconnects.
pub(super) fn transmit<R: Read, W: Write + Send>(
    agreed: &Agreed<'_>,
    reader: R,
    writer: W,
) -> io::Result<()> {
    let connection = Connection {
        device: &*agreed.export.device,
        structured: agreed.structured,
        contexts: &agreed.contexts,
        replies: Mutex::new(writer),
        in_flight: Budget::default(),
    };
    let (jobs, queue) = sync_channel::<Request>(NBD_REQUESTS_IN_FLIGHT_MAX);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| connection.work(&queue));
        }
        // The channel is closed when this returns, so the workers finish what they have and end.
        connection.read_requests(BufReader::with_capacity(256 << 10, reader), jobs)
    })
}

impl<W: Write> Connection<'_, W> {
    fn work(&self, queue: &Mutex<Receiver<Request>>) {
        loop {
            let next = queue.lock().expect("a panic aborts the process").recv();
            let Ok(request) = next else { return };
            let data = request.data_bytes();
            let served = self.serve(request);
            self.in_flight.give_back(data);
            if served.is_err() {
                return; // The client is gone; the reader notices by itself.
            }
        }
    }

    fn read_requests<R: Read>(&self, mut reader: BufReader<R>, jobs: SyncSender<Request>) -> io::Result<()> {
        while let Some(request) = self.read_request(&mut reader)? {
            let alone = reader.buffer().is_empty();
            if alone && matches!(request.command, command::READ | command::WRITE) {
                let data = request.data_bytes();
                let served = self.serve(request);
                self.in_flight.give_back(data);
                served?;
            } else if jobs.send(request).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next request with its payload; `None` where the client has disconnected between requests.
    fn read_request<R: Read>(&self, reader: &mut BufReader<R>) -> io::Result<Option<Request>> {
        if reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut head = [0; REQUEST_BYTES];
        reader.read_exact(&mut head)?;
        let mut fields = Fields(&head);
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if fields.u32() != Some(REQUEST_MAGIC) {
            return Err(invalid("not an NBD request"));
        }
        let (flags, command) = (fields.u16().expect("28 bytes"), fields.u16().expect("28 bytes"));
        let (cookie, start) = (fields.u64().expect("28 bytes"), fields.u64().expect("28 bytes"));
        let len = fields.u32().expect("28 bytes");
        if command == command::DISCONNECT {
            return Ok(None);
        }
        let range = ByteRange::new(start, len.into());
        let mut request = Request { flags, command, cookie, range, payload: Bytes::new(), refused: None };
        request.refused = self.check(&request);
        if command == command::WRITE {
            if len > NBD_REQUEST_BYTES_MAX {
                // Too large to keep: it is read past, and refused.
                io::copy(&mut reader.by_ref().take(len.into()), &mut io::sink())?;
            } else {
                self.in_flight.take(request.data_bytes());
                let mut payload = vec![0; len as usize];
                reader.read_exact(&mut payload)?;
                request.payload = payload.into();
                return Ok(Some(request));
            }
        }
        self.in_flight.take(request.data_bytes());
        Ok(Some(request))
    }

    /// The protocol's error for a request that must not reach the disk.
    fn check(&self, request: &Request) -> Option<u32> {
        let allowed = match request.command {
            command::READ => flag::FUA | if self.structured { flag::DF } else { 0 },
            command::WRITE | command::TRIM => flag::FUA,
            command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            command::CACHE => 0,
            command::FLUSH => flag::FUA,
            command::BLOCK_STATUS if !self.contexts.is_empty() => flag::REQ_ONE,
            _ => return Some(errno::EINVAL),
        };
        let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if request.flags & !allowed != 0 {
            Some(errno::EINVAL)
        } else if changes && self.device.is_read_only() {
            Some(errno::EPERM)
        } else if matches!(request.command, command::READ | command::WRITE)
            && request.range.len > u64::from(NBD_REQUEST_BYTES_MAX)
        {
            Some(errno::EOVERFLOW)
        } else if request.command == command::FLUSH {
            (request.range != ByteRange::new(0, 0)).then_some(errno::EINVAL)
        } else if !request.range.fits(self.device.size_bytes()) {
            let is_write = matches!(request.command, command::WRITE | command::WRITE_ZEROES);
            Some(if is_write { errno::ENOSPC } else { errno::EINVAL })
        } else if request.command == command::BLOCK_STATUS && request.range.is_empty() {
            Some(errno::EINVAL)
        } else {
            None
        }
    }

    fn serve(&self, request: Request) -> io::Result<()> {
        let outcome = match request.refused {
            Some(errno) => Outcome::Failed(errno),
            None => self.perform(&request).unwrap_or_else(|error| {
                tracing::warn!(command = request.command, range = ?request.range, %error, "request failed");
                Outcome::Failed(to_errno(&error))
            }),
        };
        self.reply(&request, &outcome)
    }

    fn perform(&self, request: &Request) -> io::Result<Outcome> {
        let range = request.range;
        match request.command {
            command::READ => {
                let mut data = vec![0; range.len as usize];
                self.device.read(range.start, &mut data)?;
                return Ok(Outcome::Data(data));
            }
            command::BLOCK_STATUS => return self.block_status(request),
            command::WRITE => self.device.write(range.start, request.payload.clone())?,
            command::TRIM => self.device.discard(range)?,
            command::CACHE => self.device.cache(range)?,
            command::WRITE_ZEROES if request.flags & flag::FAST_ZERO != 0 && !self.device.zeroes_fast() => {
                return Ok(Outcome::Failed(errno::ENOTSUP));
            }
            command::WRITE_ZEROES => {
                self.device.write_zeroes(range, request.flags & flag::NO_HOLE == 0)?;
            }
            _ => self.device.flush()?,
        }
        if request.flags & flag::FUA != 0 && request.command != command::FLUSH {
            self.device.flush()?;
        }
        Ok(Outcome::Done)
    }

    fn block_status(&self, request: &Request) -> io::Result<Outcome> {
        let wanted = if request.flags & flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let mut found = Vec::new();
        for &context in self.contexts {
            let rows: Vec<(u32, u32)> = match context {
                Context::Allocation => {
                    let hole = |kind| if kind == ExtentKind::Hole { STATE_HOLE_ZERO } else { 0 };
                    let extents = self.device.extents(request.range)?.into_iter().take(wanted);
                    extents.map(|extent| (extent.range.len as u32, hole(extent.kind))).collect()
                }
                Context::Unsent => {
                    let parts =
                        self.device.unsent(request.range).unwrap_or_default().into_iter().take(wanted);
                    parts.map(|(part, unsent)| (part.len as u32, u32::from(unsent) * STATE_UNSENT)).collect()
                }
            };
            found.push((context, rows));
        }
        Ok(Outcome::Extents(found))
    }

    fn reply(&self, request: &Request, outcome: &Outcome) -> io::Result<()> {
        let structured = self.structured && matches!(request.command, command::READ | command::BLOCK_STATUS);
        let mut head = Vec::with_capacity(64);
        let mut data: &[u8] = &[];
        if !structured {
            let errno = if let Outcome::Failed(errno) = outcome { *errno } else { 0 };
            head.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
            head.extend(errno.to_be_bytes());
            head.extend(request.cookie.to_be_bytes());
            if let Outcome::Data(bytes) = outcome {
                data = bytes;
            }
        } else {
            match outcome {
                Outcome::Done => begin_chunk(&mut head, request.cookie, chunk::NONE, 0, true),
                Outcome::Data(bytes) if bytes.is_empty() => {
                    begin_chunk(&mut head, request.cookie, chunk::NONE, 0, true);
                }
                Outcome::Data(bytes) => {
                    begin_chunk(&mut head, request.cookie, chunk::OFFSET_DATA, bytes.len() + 8, true);
                    head.extend(request.range.start.to_be_bytes());
                    data = bytes;
                }
                Outcome::Extents(found) => {
                    for (at, (context, rows)) in found.iter().enumerate() {
                        let last = at + 1 == found.len();
                        begin_chunk(&mut head, request.cookie, chunk::BLOCK_STATUS, 4 + 8 * rows.len(), last);
                        head.extend(context.id().to_be_bytes());
                        for (len, state) in rows {
                            head.extend(len.to_be_bytes());
                            head.extend(state.to_be_bytes());
                        }
                    }
                }
                Outcome::Failed(errno) => {
                    begin_chunk(&mut head, request.cookie, chunk::ERROR, 6, true);
                    head.extend(errno.to_be_bytes());
                    head.extend(0u16.to_be_bytes());
                }
            }
        }
        let mut replies = self.replies.lock().expect("a panic aborts the process");
        write_both(&mut *replies, &head, data)
    }
}

/// The beginning of a structured reply's chunk.
fn begin_chunk(head: &mut Vec<u8>, cookie: u64, kind: u16, len: usize, last: bool) {
    head.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head.extend(if last { chunk::DONE } else { 0 }.to_be_bytes());
    head.extend(kind.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend((len as u32).to_be_bytes());
}

fn write_both(out: &mut impl Write, head: &[u8], data: &[u8]) -> io::Result<()> {
    if data.is_empty() {
        return out.write_all(head);
    }
    let sent = out.write_vectored(&[IoSlice::new(head), IoSlice::new(data)])?;
    if sent < head.len() {
        out.write_all(&head[sent..])?;
        return out.write_all(data);
    }
    out.write_all(&data[sent - head.len()..])
}

fn to_errno(error: &io::Error) -> u32 {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => errno::ENOSPC,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => errno::EPERM,
        _ => errno::EIO,
    }
}
