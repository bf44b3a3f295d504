//! What a connection is for: its first word decides which side has it.

use crate::link::PeerIdentity;
use crate::pki::Pki;
use crate::recovery::{Recovery, serve_stream};
use crate::source::{Source, serve_host};
use crate::wire_io::{read_ahead, write_messages};
use anyhow::{Context, Result};
use replication::wire::{FrameReader, FrameWriter, Message};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use types::limits::CONNECT_TIMEOUT;

/// Messages read ahead of whoever takes them.
const MESSAGES_AHEAD: usize = 4;

/// Serves a connection until it ends.
pub(super) async fn dispatch(
    recovery: Arc<Recovery>,
    source: Arc<Source>,
    pki: &Pki,
    stream: TlsStream<TcpStream>,
    peer: PeerIdentity,
) -> Result<()> {
    let name = peer.name.clone();
    let (reader, writer) = tokio::io::split(stream);
    let (outgoing, queue) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write_messages(writer, FrameWriter::default(), queue));
    let (messages, mut inbox) = mpsc::channel(MESSAGES_AHEAD);
    let reading = tokio::spawn(read_ahead(reader, FrameReader::default(), messages));
    // Whoever connects says with the first word what for.
    let first =
        timeout(CONNECT_TIMEOUT, inbox.recv()).await.context("the peer does not say what it wants")?;
    let why = match first {
        Some(Ok(Message::Join(join))) => serve_host(&source, &name, &join, outgoing, &mut inbox).await,
        Some(Ok(Message::Leave(leave))) => {
            let _ = outgoing.send(block_in_place(|| recovery.on_leave(&leave, &name)).into());
            drop(outgoing);
            "it has said who leaves".to_owned()
        }
        Some(first) => serve_stream(recovery, pki.clone(), peer, first, outgoing, &mut inbox).await,
        None => "the connection was closed".to_owned(),
    };
    reading.abort();
    let _ = timeout(CONNECT_TIMEOUT, writing).await;
    tracing::info!(peer = name, why, "connection ended");
    Ok(())
}
