//! The daemon on every hypervisor host: it joins the splitter, the stream and the journal, performs what
//! their machines decide, and answers the operator.
//!
//! [`source`] is the protected side: VMs whose writes are captured and sent. [`recovery`] is the other:
//! journals received, images opened, groups failed over. One agent may be both at once; neither knows the other. What
//! others connect for is given to either by [`stream`].

mod alerts;
pub mod artifacts;
mod audit;
mod certificate_name;
pub mod claimed;
pub mod clock;
pub mod config;
mod daemon;
mod disk_server;
pub mod error;
mod fingerprint;
pub mod http;
pub mod hypervisor;
mod id_text;
mod ledger;
mod link;
mod link_limits;
mod lock_holder;
pub mod memory;
mod one_at_a_time;
mod own_folders;
mod pace;
pub mod pki;
mod places;
mod policy;
pub mod privacy;
mod recovery;
mod refusals;
mod rights;
mod service;
mod shown;
mod sockets;
mod source;
mod state;
mod stream;
mod tls;
mod waiting_room;
mod wire_io;

pub use daemon::{Agent, run};
pub use rights::{Purpose, Role};
pub use state::random;
pub use tls::operator_client;
