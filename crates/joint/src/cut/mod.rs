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
mod part;

pub use completion::Completion;
pub use coordinator::{
    Ask, CannotBegin, Coordinator, HostSession, NotRemoved, Outcome, Said, TooManyHosts, Why,
};
pub use follower::Follower;
pub use part::{Disbelieved, Part};
