//! What may be wrong with an overlay.

use std::io;

/// Why an overlay could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("overlay map {name}: {what}")]
    Map { name: String, what: &'static str },
    #[error(
        "overlay map {name} is damaged at byte {at}: whether bytes {from} to {to} of the disk are the image's own is not \
         known"
    )]
    Rotten { name: String, at: u64, from: u64, to: u64 },
    #[error(
        "the overlay could not be made durable before: what was written since the last flush may be lost; mend the \
         disk and start the agent anew, or close the image"
    )]
    Failed,
    #[error("cannot read or write the overlay")]
    Io(#[from] io::Error),
}
