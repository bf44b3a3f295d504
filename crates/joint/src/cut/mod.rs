//! A cut of a group whose VMs are on several hosts.
//!
//! All hosts draw the same number from their counters, while each holds its guests' acknowledgements: a write that
//! depends on one of another host was begun after that one was acknowledged, and so has either both or none below the
//! cut.
//!
//! ```text
//!   coordinator                                     each host
//!     │ Prepare (cut, above all that was drawn)       │
//!     ├──────────────────────────────────────────────▶│ 1. hold
//!     │ does the same here                            │ 2. draw exactly that number
//!     │ Prepared                                      │
//!     │◀──────────────────────────────────────────────┤
//!     │ Settle (the mark, if all were in time)        │
//!     ├──────────────────────────────────────────────▶│ 3. release, mark the streams
//! ```
//!
//! Nothing is marked before all are known to have cut, and every host holds for longer ([`CUT_HOLD_MAX`], from when it
//! hears of the cut) than the coordinator waits ([`CUT_DECIDE_MAX`], from before it says so): a cut that is marked was
//! made while all were holding. A host that is slow or gone costs a checkpoint, never the guests.
//! Where a connection is lost or an agent ends meanwhile, its streams never get the mark, and the checkpoint is never
//! complete.
//!
//! [`CUT_HOLD_MAX`]: types::limits::CUT_HOLD_MAX
//! [`CUT_DECIDE_MAX`]: types::limits::CUT_DECIDE_MAX

mod completion;
mod coordinator;
mod follower;

pub use completion::Completion;
pub use coordinator::{
    Ask, CannotBegin, Coordinator, HostSession, NotRemoved, Outcome, Said, TooManyHosts, Why,
};
pub use follower::Follower;

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
