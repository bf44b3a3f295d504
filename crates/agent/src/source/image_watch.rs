//! Looks at the images of a protected VM each second: what they are seen as is noted beside the dirty map, by which the
//! next agent tells whether anybody else wrote to them.
//!
//! A look never waits for another: one that hangs on a disk that hangs is followed by none.

use super::vm::ProtectedVm;
use crate::clock;
use splitter::DiskIdentity;
use std::sync::{Arc, Weak};
use std::time::Duration;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Every so many looks what the images are seen as is made durable, for the time after a crash of the host.
const LOOKS_PER_DURABLE_NOTE: u64 = 10;

/// Watches until the VM is stopped or forgotten.
pub(super) async fn watch(vm: Weak<ProtectedVm>) {
    let mut durable: Option<Vec<Option<DiskIdentity>>> = None;
    for look in 0u64.. {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(vm) = vm.upgrade().filter(|vm| !vm.is_ending()) else { return };
        let last = durable.take();
        let looking = tokio::task::spawn_blocking(move || {
            let seen = note(&vm);
            if look % LOOKS_PER_DURABLE_NOTE == 0 { note_durably(&vm, seen, last) } else { last }
        });
        durable = looking.await.expect("a panic aborts the process");
    }
}

/// Notes what the disks are seen as, none where one cannot be looked at.
fn note(vm: &Arc<ProtectedVm>) -> Option<Vec<Option<DiskIdentity>>> {
    match vm.identities() {
        Ok(seen) => {
            vm.capture().note_alive(clock::wall(), &seen);
            Some(seen)
        }
        Err(error) => {
            tracing::warn!(vm = vm.name(), %error, "a disk cannot be looked at");
            None
        }
    }
}

/// Notes what was `seen` where it is new since the `last` such note, once the disks have it as well. What was noted
/// last then.
fn note_durably(
    vm: &Arc<ProtectedVm>,
    seen: Option<Vec<Option<DiskIdentity>>>,
    last: Option<Vec<Option<DiskIdentity>>>,
) -> Option<Vec<Option<DiskIdentity>>> {
    let Some(seen) = seen else { return last };
    if last.as_ref() != Some(&seen)
        && let Err(error) = vm.disks().iter().try_for_each(|disk| disk.sync_all())
    {
        tracing::warn!(vm = vm.name(), %error, "a disk cannot be synced: after a crash of the host more is compared");
        return last;
    }
    vm.capture().note_durable(clock::wall(), &seen);
    Some(seen)
}
