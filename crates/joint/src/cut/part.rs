//! What a cut asks of a host, and what ends the connection to one.

use replication::wire::CutRefusal;
use std::fmt;
use types::{Checkpoint, WriteSeq};

/// What a cut does to a host's part of its group.
pub trait Part {
    /// Keeps acknowledgements back from now on; what lets them go again. A later hold takes the place of an earlier.
    fn hold(&mut self) -> u64;

    /// Lets go what that hold keeps back; nothing where a later one has taken its place.
    fn release(&mut self, hold: u64);

    /// Draws exactly this number, while holding.
    ///
    /// # Errors
    /// Where it was drawn before, or a VM misses writes in its stream.
    fn draw(&mut self, cut: WriteSeq) -> Result<(), CutRefusal>;

    /// Puts the mark of a cut that all hosts have made into every stream here. `hosts`: the others, by name, whose marks
    /// the checkpoint needs as well.
    ///
    /// # Errors
    /// Where it cannot, in words.
    fn mark(&mut self, checkpoint: &Checkpoint, hosts: &[String]) -> Result<(), String>;
}

/// A message of the other side that has no place in a cut; the connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disbelieved(pub String);

impl fmt::Display for Disbelieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Disbelieved {}

/// A host that holds and draws whatever it is told to, with what it has marked.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Willing {
    pub(super) marked: Vec<WriteSeq>,
}

#[cfg(test)]
impl Part for Willing {
    fn hold(&mut self) -> u64 {
        1
    }

    fn release(&mut self, _hold: u64) {}

    fn draw(&mut self, _cut: WriteSeq) -> Result<(), CutRefusal> {
        Ok(())
    }

    fn mark(&mut self, checkpoint: &Checkpoint, _hosts: &[String]) -> Result<(), String> {
        self.marked.push(checkpoint.cut);
        Ok(())
    }
}
