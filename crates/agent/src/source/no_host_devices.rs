//! What stands for [`super::host_devices`] where Holdfast was built without ublk.

use super::record::ProtectionRecord;
use crate::error::{OperationError, Result};
use splitter::ProtectedDisk;
use std::sync::Arc;

/// No devices.
#[derive(Debug, Default)]
pub(super) struct HostDevices;

fn missing() -> OperationError {
    OperationError::invalid("this holdfast was built without ublk; build it with `--features ublk`")
}

impl HostDevices {
    pub(super) fn free_numbers(_: usize, _: &[ProtectionRecord]) -> Result<Vec<u32>> {
        Err(missing())
    }

    pub(super) fn serve(record: &ProtectionRecord, _: &[Arc<ProtectedDisk>]) -> Result<Self> {
        if record.ublk.is_empty() { Ok(Self) } else { Err(missing()) }
    }

    pub(super) fn path(&self, _: usize) -> Option<String> {
        None
    }

    pub(super) fn leave(&self) {}

    pub(super) fn in_use(&self) -> Option<String> {
        None
    }

    pub(super) fn remove(self) -> Result<()> {
        Ok(())
    }

    pub(super) fn remove_unserved(record: &ProtectionRecord) -> Result<()> {
        if record.ublk.is_empty() { Ok(()) } else { Err(missing()) }
    }
}
