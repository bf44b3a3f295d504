//! Starting, pausing and stopping VMs, looking at them, and tapping those that run on their own image. What is asked
//! for is said in the field's words; how a hypervisor is told stays behind [`Adapter`]. Plain QEMU is the first.

mod claimed_users;
mod definition;
mod events;
mod guest_folder;
mod guest_users;
mod launcher;
mod older_guests;
mod own_unit;
mod processes;
mod qemu;
mod qmp;
mod tap;

pub use definition::{DefinitionError, VmDefinition};
pub use events::VmEvent;
pub use launcher::Launch;
pub use qemu::{Adapter, RunDisk, RunState, StartDisk, Started};
pub(crate) use tap::{DiskFacts, Ears, Missed, Seen, Tap, TapDisk, Wanted};
