//! The spill of one VM's stream: segment files in a folder of the agent's.

use crate::clock;
use crate::state::random;
use anyhow::{Context, Result};
use batch::Batch;
use joint::spill::{Cause, NotTaken, Spill};
use journal::{FsStore, Released, SpillError};
use std::path::Path;
use std::sync::Arc;
use types::{VmId, WriteSeq};

#[derive(Debug)]
pub(super) struct SegmentSpill(journal::Spill);

impl SegmentSpill {
    /// An empty one of at most so many bytes.
    ///
    /// # Errors
    /// Where the folder cannot be made or emptied.
    pub(super) fn open(folder: &Path, vm: VmId, bytes_max: u64) -> Result<Box<dyn Spill>> {
        let store = FsStore::open(folder).with_context(|| format!("open {}", folder.display()))?;
        let spill = journal::Spill::create(Arc::new(store), vm, bytes_max);
        Ok(Box::new(Self(spill.with_context(|| format!("empty the spill {}", folder.display()))?)))
    }
}

impl Spill for SegmentSpill {
    fn append(&mut self, batch: &Batch) -> Result<(), NotTaken> {
        self.0.append(batch, random(), clock::wall()).map_err(|error| match error {
            SpillError::Full { .. } => NotTaken::Full,
            SpillError::Io(_) => NotTaken::Failed(error.into()),
        })
    }

    fn next_after(&self, after: WriteSeq) -> Result<Option<Batch>, Cause> {
        self.0.next_after(after).map_err(Into::into)
    }

    fn first_end(&self) -> Option<WriteSeq> {
        self.0.first_end()
    }

    fn release(&mut self, up_to: WriteSeq) -> bool {
        let released = self.0.release(up_to);
        warn_of(&released);
        released.any
    }

    fn clear(&mut self) {
        warn_of(&self.0.clear());
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn bytes_max(&self) -> u64 {
        self.0.bytes_max()
    }

    fn set_bytes_max(&mut self, bytes_max: u64) {
        self.0.set_bytes_max(bytes_max);
    }
}

fn warn_of(released: &Released) {
    if let Some(error) = &released.left_behind {
        tracing::warn!(%error, "a file of the spill is left behind");
    }
}
