//! What is done with one group goes one at a time, and no group waits for another.
//!
//! Held while guests are started and stopped, which a disk may hold up for as long as it likes: so whoever waits does not
//! wait for ever, and is told.

use crate::error::{OperationError, Result};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;
use types::GroupId;

/// How long somebody waits for what is under way with the group.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct OneAtATime {
    busy: Mutex<BTreeSet<GroupId>>,
    freed: Condvar,
}

/// Nobody else does anything with the group until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn<'a> {
    of: &'a OneAtATime,
    group: GroupId,
}

impl OneAtATime {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<GroupId>> {
        self.busy.lock().expect("a panic aborts the process")
    }

    /// The turn of whoever does something with a group; waits for who has it.
    pub(super) fn take(&self, group: GroupId, name: &str) -> Result<Turn<'_>> {
        self.take_within(group, PATIENCE).ok_or_else(|| {
            OperationError::unavailable(format!(
                "something is being done with group {name} that has not ended for {} s; look at the disks of its journals \
                 and try again",
                PATIENCE.as_secs()
            ))
        })
    }

    /// The same without waiting; none where somebody has it.
    pub(super) fn try_take(&self, group: GroupId) -> Option<Turn<'_>> {
        self.take_within(group, Duration::ZERO)
    }

    fn take_within(&self, group: GroupId, within: Duration) -> Option<Turn<'_>> {
        let is_busy = |busy: &mut BTreeSet<GroupId>| busy.contains(&group);
        let waited = self.freed.wait_timeout_while(self.lock(), within, is_busy);
        let mut busy = waited.expect("a panic aborts the process").0;
        busy.insert(group).then(|| Turn { of: self, group })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(&self.group);
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_group_waits_for_itself_and_for_no_other() {
        let (turns, web, db) =
            (OneAtATime::default(), GroupId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
        let one = turns.try_take(web).unwrap();
        assert!(turns.try_take(web).is_none());
        let other = turns.try_take(db).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(web, "web").map(drop));
            drop(one);
            waits.join().unwrap().unwrap();
        });
        drop(other);
        assert!(turns.try_take(web).is_some() && turns.try_take(db).is_some());
    }
}
