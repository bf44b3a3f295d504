//! The NBD front end: a server for QEMU and any other client, on a unix socket.
//!
//! Fixed newstyle handshake (GO, INFO, LIST, EXPORT_NAME, STRUCTURED_REPLY, meta contexts), structured
//! replies, `base:allocation`, READ, WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, several connections to
//! one export. A flush on any connection covers the completed writes of all: they share one file.
//! The protocol is <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! One thread reads a connection. A request that came alone is served on that thread; where more are
//! waiting, workers share them, so a slow one holds up nobody.

mod negotiate;
mod protocol;
mod server;
mod transmit;

pub use server::{BindError, Export, Server};
