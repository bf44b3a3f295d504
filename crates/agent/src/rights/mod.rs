//! Who may do what: roles in certificates and of groups of this host, and what a certificate is for.
//!
//! What holds: nobody has a role but by a certificate of this site that names it, by a group that `[rights]` in
//! agent.toml names, or as the agent's own user or root.

mod caller;
mod local;
mod named;
mod role;

pub(crate) use caller::{Caller, Person};
pub(crate) use local::LocalRights;
pub use named::Purpose;
pub(crate) use named::Rights;
pub use role::Role;
