//! The built binary only, through its command line and its sockets: two sites on this machine, real QEMU
//! guests, other people's NBD clients. `cargo xtask test` makes the guest these need.
#![allow(clippy::unwrap_used, reason = "tests")]

mod alerts;
mod api;
mod bad_clients;
mod bad_disks;
mod configuration;
mod damage;
mod disks;
mod doors;
mod failover;
mod failover_kill;
mod formats;
mod groups;
mod guide;
mod hostile;
mod images;
mod journals;
mod kill;
mod migration;
mod newcomer;
mod one_writer;
mod order;
mod peers;
mod private;
mod ranges;
mod refusals;
mod remote;
mod service_manager;
mod snapshots;
mod stage;
mod streams;
mod suite_away;
mod suite_joints;
mod suite_libvirt;
mod suite_tap;
mod suite_ublk;
mod synchronous;
mod tap;
mod tap_changes;
mod tap_harmless;
mod tap_identity;
mod tap_reader;
mod telling;
mod ublk;
mod vhost_user;
