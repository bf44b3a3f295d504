//! Operations: what changes more than one thing, in steps that survive `kill -9` between and inside any two
//! instructions.
//!
//! A [`Plan`] has all that was chosen before anything was done, ids of what does not exist yet among it. Its [`Record`]
//! is durable before the first step, and after each. Whoever starts again goes on from the record:
//!
//! ```text
//!            ┌────────────────────── cancelled, or a step failed ─────┐
//!            │                                                        ▼
//!  begin ─▶ Forward{next} ── last step done ─▶ Done        Back{next, why} ── first undone ─▶ TakenBack{why}
//!            │    ▲                                           │    ▲
//!            └────┘ a step done, and written down             └────┘ a step undone, and written down
//! ```
//!
//! From its [point of no return](Plan::is_final) on an operation only goes forward: what fails there is tried again,
//! and told, until it is done. So an operation ends in one of two ways, and never in the middle. Where what fails would
//! only free room, an operator may have it [left](Plan::may_be_left): the record then says what was.
//!
//! A record is foreign bytes: one that cannot be read, or that says what no plan of this version can mean, is not gone on
//! with ([`Record::check`]); whoever keeps it tells.
//!
//! What two operations would both change is locked, by all of an operation's [locks](Plan::locks) at once or by none:
//! nobody waits while holding something, so there is no order to get wrong.
//!
//! This crate has no clock, thread or file: the agent's [`Work`] does the steps, its [`Ledger`] keeps the records.

mod at;
mod book;
mod control;
mod lock;
mod plan;
mod record;
mod run;
#[cfg(test)]
mod tests;

pub use at::At;
pub use book::{Begun, Book, Refused};
pub use control::{Cancelled, Control, Progress, TooLate};
pub use lock::Lock;
pub use plan::{Failure, Plan, Trouble, Work};
pub use record::{BadRecord, OperationId, Record, RequestKey, Standing};
pub use run::{Ledger, LedgerError, Pass, go_on};
