//! Messages over a byte stream: reading one, and a task that writes what is queued.

use replication::wire::{FrameReader, FrameWriter, HEADER_BYTES, Message, WireError};
use std::io::{self, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use types::limits::PEER_SILENCE_MAX;

/// Why no further message can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Reads the next message.
pub(crate) async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    frames: &mut FrameReader,
) -> Result<Message, ReadError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Closed,
        _ => ReadError::Io(error),
    };
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(io)?;
    let header = frames.header(&header)?;
    let mut body = journal::batch_room(header.body_len);
    let mut rest = stream.take(header.body_len as u64);
    while body.len() < header.body_len {
        if rest.read_buf(&mut body).await.map_err(io)? == 0 {
            return Err(ReadError::Closed);
        }
    }
    Ok(frames.message(&header, body.freeze())?)
}

/// Reads messages until the connection fails or nobody takes them.
pub(crate) async fn read_ahead(
    mut reader: impl AsyncRead + Unpin,
    mut frames: FrameReader,
    messages: mpsc::Sender<Result<Message, ReadError>>,
) {
    loop {
        let message = read_message(&mut reader, &mut frames).await;
        let ends = message.is_err();
        if messages.send(message).await.is_err() || ends {
            return;
        }
    }
}

/// Writes one message, its pieces from where they lie.
pub(crate) async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    frames: &mut FrameWriter,
    message: &Message,
) -> io::Result<()> {
    let (header, body) = frames.encode(message);
    let pieces = std::iter::once(&header[..]).chain(body.iter().map(|piece| &piece[..]));
    let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut rest, written),
        }
    }
    Ok(())
}

/// Shorter messages are gathered: as much as one TLS record holds. Longer ones go from where they lie.
const GATHERED_BYTES: usize = 16 << 10;

/// A message to write, and somebody to tell once it is.
pub(crate) struct Outgoing {
    pub(crate) message: Message,
    pub(crate) written: Option<oneshot::Sender<()>>,
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        Self { message, written: None }
    }
}

/// Writes messages until the queue is closed or the connection fails. What is queued is bounded by
/// those who queue: the sender by its window, the receiver by answering no more than it was sent, and both
/// by a peer that does not read being given up after [`PEER_SILENCE_MAX`].
pub(crate) async fn write_messages(
    stream: impl AsyncWrite + Unpin,
    mut frames: FrameWriter,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
) -> io::Result<()> {
    let mut stream = BufWriter::with_capacity(GATHERED_BYTES, stream);
    while let Some(next) = queue.recv().await {
        let writing = async {
            write_message(&mut stream, &mut frames, &next.message).await?;
            if queue.is_empty() { stream.flush().await } else { Ok(()) }
        };
        timeout(PEER_SILENCE_MAX, writing).await.map_err(|_| stuck())??;
        if let Some(written) = next.written {
            let _ = written.send(());
        }
    }
    stream.flush().await?;
    stream.shutdown().await
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not read what it is sent")
}
