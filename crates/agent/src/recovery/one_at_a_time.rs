//! What is done with one group goes one at a time, and no group waits for another. Its turn is held while guests are
//! started and stopped.

use crate::error::Result;
use crate::one_at_a_time;
use types::GroupId;

#[derive(Debug, Default)]
pub(super) struct OneAtATime(one_at_a_time::OneAtATime<GroupId>);

/// Nobody else does anything with the group until this is dropped.
pub(super) type Turn<'a> = one_at_a_time::Turn<'a, GroupId>;

impl OneAtATime {
    /// The turn of whoever does something with a group; waits for who has it.
    pub(super) fn take(&self, group: GroupId, name: &str) -> Result<Turn<'_>> {
        self.0.take(vec![group], &format!("group {name}"))
    }

    /// The same without waiting; none where somebody has it.
    pub(super) fn try_take(&self, group: GroupId) -> Option<Turn<'_>> {
        self.0.try_take(vec![group])
    }
}
