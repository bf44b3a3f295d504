//! The contract of the agent's HTTP API: its JSON, and a client for it.
//!
//! Sequences, epochs-in-order and ids are texts: a write sequence does not fit a JavaScript number. Times
//! are RFC 3339 in UTC. Sizes are bytes, durations seconds, and say so in their names. Errors are RFC 9457
//! problem documents ([`Problem`]).

mod audit;
mod changes;
mod client;
mod journals;
mod model;
mod operations;

pub use audit::*;
pub use changes::*;
pub use client::{Asking, Begun, Client, ClientError, Endpoint};
pub use journals::*;
pub use model::*;
pub use operations::*;
