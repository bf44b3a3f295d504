//! Sending a file of a VM's definition that the other side lacks.

use crate::wire_io::Outgoing;
use bytes::Bytes;
use replication::wire::{ArtifactHash, ArtifactPart, Message};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;
use types::limits::ARTIFACT_PART_BYTES;

/// Sends a file in parts, one part in the queue at a time.
pub(super) async fn send_file(
    queue: mpsc::UnboundedSender<Outgoing>,
    path: PathBuf,
    hash: ArtifactHash,
    vm: String,
) {
    if let Err(error) = send_parts(&queue, &path, hash).await {
        tracing::error!(vm, file = %path.display(), %error, "a file of the definition cannot be sent");
    }
}

async fn send_parts(
    queue: &mpsc::UnboundedSender<Outgoing>,
    path: &Path,
    hash: ArtifactHash,
) -> std::io::Result<()> {
    let file = std::fs::File::open(path)?;
    let size_bytes = file.metadata()?.len();
    let mut offset = 0;
    loop {
        let len = (size_bytes - offset).min(ARTIFACT_PART_BYTES as u64);
        let mut part = vec![0; len as usize];
        block_in_place(|| file.read_exact_at(&mut part, offset))?;
        let (done, written) = oneshot::channel();
        let message =
            Message::ArtifactPart(ArtifactPart { hash, offset, size_bytes, bytes: Bytes::from(part) });
        if queue.send(Outgoing { message, written: Some(done) }).is_err() || written.await.is_err() {
            return Ok(()); // The link is lost; what is missing is asked for again.
        }
        offset += len;
        if offset >= size_bytes {
            return Ok(());
        }
    }
}
