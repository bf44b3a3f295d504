//! Disks of a VM as block devices of this host, where that was asked for.

use super::record::ProtectionRecord;
use crate::error::{OperationError, Result, with_sources};
use splitter::{ProtectedDisk, UblkDevice};
use std::sync::Arc;

/// The devices of a VM, by its disks.
#[derive(Debug, Default)]
pub(super) struct HostDevices(Vec<UblkDevice>);

impl HostDevices {
    /// Numbers that no device has, and no protection of `others`.
    pub(super) fn free_numbers(count: usize, others: &[ProtectionRecord]) -> Result<Vec<u32>> {
        let mut taken: Vec<u32> = others.iter().flat_map(|record| record.ublk.iter().copied()).collect();
        let known = taken.len();
        for _ in 0..count {
            taken.push(UblkDevice::free_id(&taken));
        }
        Ok(taken.split_off(known))
    }

    /// Serves the disks of a VM that has asked for it.
    pub(super) fn serve(record: &ProtectionRecord, disks: &[Arc<ProtectedDisk>]) -> Result<Self> {
        let mut devices = Self::default();
        for (id, disk) in record.ublk.iter().zip(disks) {
            match UblkDevice::serve(disk.clone(), *id) {
                Ok(device) => devices.0.push(device),
                Err(error) => {
                    devices.leave();
                    return Err(OperationError::unavailable(with_sources(&error)));
                }
            }
        }
        Ok(devices)
    }

    pub(super) fn path(&self, disk: usize) -> Option<String> {
        self.0.get(disk).map(|device| device.path().display().to_string())
    }

    /// The agent ends: requests wait until it is back.
    pub(super) fn leave(&self) {
        self.0.iter().for_each(UblkDevice::leave);
    }

    /// Whether one of the devices is mounted or held; which.
    pub(super) fn in_use(&self) -> Option<String> {
        self.0.iter().find(|device| device.is_in_use()).map(|device| device.path().display().to_string())
    }

    /// The protection ends: the devices go.
    pub(super) fn remove(self) -> Result<()> {
        let remove = |device: UblkDevice| device.remove();
        self.0
            .into_iter()
            .try_for_each(remove)
            .map_err(|error| OperationError::conflict(with_sources(&error)))
    }

    /// The devices of a protection that is not served.
    pub(super) fn remove_unserved(record: &ProtectionRecord) -> Result<()> {
        let remove = |id: &u32| UblkDevice::remove_unserved(*id);
        record
            .ublk
            .iter()
            .try_for_each(remove)
            .map_err(|error| OperationError::conflict(with_sources(&error)))
    }
}
