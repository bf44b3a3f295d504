//! Connections that others begin: who they are, and what they come for.
//!
//! It stands above both sides of the agent and gives each what is for it, so that neither knows the other: streams and what
//! is said of them are for the recovery side, hosts that join a group for the protected one. It decides nothing else.

mod dispatch;
mod identify;
mod listen;

pub(crate) use listen::listen;
