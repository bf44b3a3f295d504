//! Making a journal: its replicas, and the first manifest.

use crate::copies;
use crate::manifest::{DiskEntry, GapEntry, Log, Manifest, StreamPoint, replica_name};
use crate::replica::make_sums;
use crate::store::Store;
use std::io;
use types::{DiskSpec, Epoch, VmId};

/// Why a journal could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("a journal stands there already")]
    Exists,
    #[error("cannot make the journal")]
    Io(#[from] io::Error),
}

/// Makes the folder of a journal; replicas that are not new lie in it already.
pub(crate) fn create(
    store: &dyn Store,
    vm: VmId,
    vm_name: &str,
    disks: &[DiskSpec],
    epoch: Epoch,
    replica_is_new: bool,
) -> Result<(), CreateError> {
    if copies::is_journal(store)? {
        return Err(CreateError::Exists);
    }
    for disk in disks {
        let replica = store.open(&replica_name(&disk.name), true)?;
        if replica_is_new {
            replica.set_len(0)?;
        }
        replica.set_len(disk.size_bytes)?;
        replica.sync_data()?;
        make_sums(store, &disk.name, disk.size_bytes, true)?;
    }
    let disks = disks.iter().map(|disk| DiskEntry {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        summed_below: if replica_is_new { disk.size_bytes } else { 0 },
    });
    let log = Log { next_segment: 1, ..Log::default() };
    let mut manifest = Manifest {
        generation: 0,
        vm: vm.to_string(),
        vm_name: vm_name.to_owned(),
        disks: disks.collect(),
        epoch: epoch.0,
        applied: 0,
        retired_below: 0,
        before_images_upto: 0,
        gaps: vec![GapEntry { begin: 0, end: None }],
        left_out: None,
        must_resync: None,
        lost: Vec::new(),
        base: StreamPoint::default(),
        redo: log.clone(),
        undo: log,
        age_clock: 0,
        checkpoints: Vec::new(),
        next_file: 0,
        tags: Vec::new(),
        pins: Vec::new(),
        next_pin: 0,
        damage: Vec::new(),
        scrubbed_at: None,
    };
    manifest.save(store)?;
    Ok(())
}
