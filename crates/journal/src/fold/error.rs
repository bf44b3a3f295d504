//! Why a fold, and whatever else upkeep does, stopped.

use crate::payload::ReadError;
use crate::run::RunError;
use std::io;

/// Why a fold stopped. It can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("cannot read what is to be folded")]
    Read(#[from] ReadError),
    #[error("cannot read the index")]
    Run(#[from] RunError),
    #[error("cannot write the replica")]
    Replica(#[source] io::Error),
    #[error("cannot write before-images")]
    Undo(#[source] io::Error),
    #[error("cannot write the index")]
    Footer(#[source] io::Error),
    #[error("cannot save the manifest")]
    Manifest(#[source] io::Error),
}
