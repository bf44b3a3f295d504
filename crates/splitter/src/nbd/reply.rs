//! Replies to a client, on their way into its socket.

use super::protocol::*;
use crate::bounce::Bounce;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;

/// Pieces handed to the socket at once.
const SLICES_MAX: usize = 64;
/// A head that is as long is closed, so that it goes once it is sent, though the client is never through with the last.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What a reply is to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) cookie: u64,
    pub(super) command: u16,
    pub(super) start: u64,
}

/// What a request ends with.
pub(super) enum Outcome {
    Done,
    Data(Bounce),
    /// Chunks of block status, as [`extent_chunks`] makes them.
    Chunks(Vec<u8>),
    Failed(u32),
}

enum Piece {
    Head(Vec<u8>),
    Data(Bounce),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Head(head) => head,
            Piece::Data(data) => data,
        }
    }
}

/// The writing half of a connection. The socket does not block.
pub(super) struct Outbox<'a> {
    stream: &'a UnixStream,
    structured: bool,
    pieces: VecDeque<Piece>,
    /// Of the first piece, what was sent.
    sent: usize,
    /// Data of reads among it, in bytes.
    pub(super) data_bytes: u64,
    /// Everything else, in bytes.
    pub(super) head_bytes: u64,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(stream: &'a UnixStream, structured: bool) -> Self {
        Self { stream, structured, pieces: VecDeque::new(), sent: 0, data_bytes: 0, head_bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn push(&mut self, asked: &Asked, outcome: Outcome) {
        let structured = self.structured && matches!(asked.command, command::READ | command::BLOCK_STATUS);
        let head = self.open_head();
        let before = head.len();
        if !structured {
            let errno = if let Outcome::Failed(errno) = outcome { errno } else { 0 };
            head.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
            head.extend(errno.to_be_bytes());
            head.extend(asked.cookie.to_be_bytes());
        } else {
            match &outcome {
                Outcome::Done => begin_chunk(head, asked.cookie, chunk::NONE, 0, true),
                Outcome::Data(bytes) => {
                    begin_chunk(head, asked.cookie, chunk::OFFSET_DATA, bytes.len() + 8, true);
                    head.extend(asked.start.to_be_bytes());
                }
                Outcome::Chunks(chunks) => head.extend(chunks),
                Outcome::Failed(errno) => {
                    begin_chunk(head, asked.cookie, chunk::ERROR, 6, true);
                    head.extend(errno.to_be_bytes());
                    head.extend(0u16.to_be_bytes());
                }
            }
        }
        let more = head.len() - before;
        self.head_bytes += more as u64;
        if let Outcome::Data(data) = outcome {
            self.data_bytes += data.len() as u64;
            self.pieces.push_back(Piece::Data(data));
        }
    }

    /// The last piece, where it is a head, or a new one.
    fn open_head(&mut self) -> &mut Vec<u8> {
        if !matches!(self.pieces.back(), Some(Piece::Head(head)) if head.len() < HEAD_BYTES_MAX) {
            self.pieces.push_back(Piece::Head(Vec::with_capacity(64)));
        }
        match self.pieces.back_mut() {
            Some(Piece::Head(head)) => head,
            _ => unreachable!("looked at, or put there"),
        }
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// As the socket says.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let mut slices: Vec<IoSlice<'_>> =
                self.pieces.iter().take(SLICES_MAX).map(|piece| IoSlice::new(piece.bytes())).collect();
            slices[0] = IoSlice::new(&self.pieces[0].bytes()[self.sent..]);
            match self.stream.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.forget(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forget(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            match self.pieces.pop_front() {
                Some(Piece::Data(data)) => self.data_bytes -= data.len() as u64,
                Some(Piece::Head(head)) => self.head_bytes -= head.len() as u64,
                None => {}
            }
        }
    }
}

/// Block status chunks: for each context its extents, length and state.
pub(super) fn extent_chunks(cookie: u64, found: &[(Context, Vec<(u32, u32)>)]) -> Vec<u8> {
    let mut chunks = Vec::new();
    for (at, (context, rows)) in found.iter().enumerate() {
        let last = at + 1 == found.len();
        begin_chunk(&mut chunks, cookie, chunk::BLOCK_STATUS, 4 + 8 * rows.len(), last);
        chunks.extend(context.id().to_be_bytes());
        for (len, state) in rows {
            chunks.extend(len.to_be_bytes());
            chunks.extend(state.to_be_bytes());
        }
    }
    chunks
}

/// The beginning of a structured reply's chunk.
fn begin_chunk(head: &mut Vec<u8>, cookie: u64, kind: u16, len: usize, last: bool) {
    head.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    head.extend(if last { chunk::DONE } else { 0 }.to_be_bytes());
    head.extend(kind.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend((len as u32).to_be_bytes());
}
