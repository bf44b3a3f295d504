//! What a server has to give: disks under names.

use crate::device::BlockDevice;
use std::sync::Arc;

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub device: Arc<dyn BlockDevice>,
}
