//! The NBD front end: a server for QEMU and any other client, on a unix socket, or behind STARTTLS.
//!
//! Fixed newstyle handshake (GO, INFO, LIST, EXPORT_NAME, STRUCTURED_REPLY, meta contexts), structured
//! replies, `base:allocation` and a context of our own, READ, WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES, fast
//! zeroes, CACHE, DF, several connections to one export. What is there and what is not:
//! `docs/formats/nbd.md`. A flush on any connection covers the completed writes of all: they share one file.
//! The protocol is <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! Each connection has a thread and a queue of its own, so a slow or greedy one holds up nobody.

mod before_tls;
mod client;
mod export;
mod negotiate;
mod protocol;
mod reply;
mod request;
mod server;
mod transmit;

pub use before_tls::{BeforeTls, Next, Step};
pub use client::Client;
pub use export::Export;
pub(crate) use server::bind_socket;
pub use server::{BindError, Private, Server, serve_greeted};
