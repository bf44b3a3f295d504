//! Two sites on one machine and real guests on them, for the demo and the end-to-end tests. Never
//! shipped. Everything here goes through the built binary, its command line and its sockets.

mod cable;
mod clock;
mod console;
mod disk;
mod guest;
mod guest_files;
mod libvirt;
mod link;
mod namespace;
mod nbd;
mod ports;
mod qemu;
mod site;
mod ticks;

pub use cable::Cable;
pub use clock::{now, wait_until};
pub use console::Console;
pub use disk::{check_file_system, copy_image, make_disk, read_file};
pub use guest::{Guest, GuestDisk, GuestOptions, Work};
pub use guest_files::{GuestFiles, run_quietly};
pub use libvirt::{Libvirt, LibvirtVersion};
pub use link::Link;
pub use namespace::Namespace;
pub use nbd::{NbdClient, discard_all};
pub use ports::free_port;
pub use qemu::Qemu;
pub use site::{CommandFailed, Site, pair};
pub use ticks::{Tick, Ticks, sum_of_line};
