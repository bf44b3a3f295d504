//! Starting, pausing and stopping VMs, and tapping those that run on their own image. What is asked for is said in the field's words; how a hypervisor is told
//! stays behind [`Adapter`]. Plain QEMU is the first.

mod definition;
mod qemu;
mod qmp;
mod tap;

pub use definition::{DefinitionError, VmDefinition};
pub use qemu::{Adapter, RunState, StartDisk, Started};
pub(crate) use tap::{Missed, Tap};
