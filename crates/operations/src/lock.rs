//! What operations lock.

use std::fmt;
use types::{GroupId, VmId};

/// One thing that one operation at a time may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// The authority over a group, and who is in it.
    Group(GroupId),
    /// A VM that is protected here.
    Protected(VmId),
    /// A VM that is kept here: its journal, its images, its record.
    Kept(VmId),
    /// An image that is open here, by its number.
    Image(u32),
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(id) => write!(f, "group {id}"),
            Self::Protected(id) => write!(f, "protected VM {id}"),
            Self::Kept(id) => write!(f, "kept VM {id}"),
            Self::Image(id) => write!(f, "image {id:08x}"),
        }
    }
}
