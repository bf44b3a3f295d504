//! Where batches wait that memory has no room for: the seam to the files they lie in.
//!
//! What holds of an implementation: batches are read back as they were appended, in that order, or an error says that they
//! are not. Nothing has to outlive the agent.

use batch::Batch;
use std::error::Error;
use std::fmt;
use types::WriteSeq;

/// Why something could not be done, for a person.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A spill. Whoever calls one may have to wait for a disk.
pub trait Spill: fmt::Debug + Send {
    /// Appends a batch that follows the one before.
    ///
    /// # Errors
    /// [`NotTaken`]; the batch is not in it then.
    fn append(&mut self, batch: &Batch) -> Result<(), NotTaken>;

    /// The first batch that has anything above `after`; none where everything lies at or below.
    ///
    /// # Errors
    /// Where it is not as it was appended.
    fn next_after(&self, after: WriteSeq) -> Result<Option<Batch>, Cause>;

    /// Up to where all must be acknowledged for the first room to be given back; none where it is empty.
    fn first_end(&self) -> Option<WriteSeq>;

    /// Gives back the room of what is acknowledged, as far as it can; whether any was.
    fn release(&mut self, up_to: WriteSeq) -> bool;

    /// Gives back all of its room.
    fn clear(&mut self);

    fn bytes(&self) -> u64;

    fn bytes_max(&self) -> u64;

    /// Changes how much it may hold. What lies in it stays.
    fn set_bytes_max(&mut self, bytes_max: u64);
}

/// Why a batch was not taken.
#[derive(Debug)]
pub enum NotTaken {
    /// It holds as much as it may.
    Full,
    /// It cannot be written.
    Failed(Cause),
}

#[cfg(test)]
pub(crate) mod in_memory;
