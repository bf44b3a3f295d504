//! What is done with one thing goes one at a time, and nobody waits for what is done with another.
//!
//! A turn is held while disks are waited for, which may be for as long as they like. So an operator who waits for one does
//! not wait for ever, and is told.

use crate::error::{OperationError, Result};
use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long an operator waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct OneAtATime<K> {
    busy: Mutex<BTreeSet<K>>,
    freed: Condvar,
}

/// Nobody else does anything with these things until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn<'a, K: Ord> {
    of: &'a OneAtATime<K>,
    things: Vec<K>,
}

impl<K> Default for OneAtATime<K> {
    fn default() -> Self {
        Self { busy: Mutex::default(), freed: Condvar::new() }
    }
}

impl<K: Ord + Clone> OneAtATime<K> {
    /// The turn of whoever does something with all of these; waits for who has one of them.
    ///
    /// # Errors
    /// Where that takes too long. `what` they are, in words.
    pub(crate) fn take(&self, things: Vec<K>, what: &str) -> Result<Turn<'_, K>> {
        self.take_within(things, PATIENCE).ok_or_else(|| {
            OperationError::unavailable(format!(
                "something is being done with {what} that has not ended for {} s; look at its disks and try again",
                PATIENCE.as_secs()
            ))
        })
    }

    /// The same without waiting; none where somebody has one of them.
    pub(crate) fn try_take(&self, things: Vec<K>) -> Option<Turn<'_, K>> {
        self.take_within(things, Duration::ZERO)
    }

    /// The same for as long as it takes.
    pub(crate) fn wait(&self, things: Vec<K>) -> Turn<'_, K> {
        let busy = self.freed.wait_while(self.lock(), |busy| things.iter().any(|thing| busy.contains(thing)));
        self.turn(busy.expect("a panic aborts the process"), things)
    }

    fn take_within(&self, things: Vec<K>, within: Duration) -> Option<Turn<'_, K>> {
        let is_busy = |busy: &mut BTreeSet<K>| things.iter().any(|thing| busy.contains(thing));
        let waited = self.freed.wait_timeout_while(self.lock(), within, is_busy);
        let (busy, waited) = waited.expect("a panic aborts the process");
        (!waited.timed_out()).then(|| self.turn(busy, things))
    }

    fn turn(&self, mut busy: MutexGuard<'_, BTreeSet<K>>, things: Vec<K>) -> Turn<'_, K> {
        busy.extend(things.iter().cloned());
        Turn { of: self, things }
    }
}

impl<K: Ord> OneAtATime<K> {
    /// Whether somebody has this just now.
    pub(crate) fn is_busy(&self, thing: &K) -> bool {
        self.lock().contains(thing)
    }
}

impl<K> OneAtATime<K> {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<K>> {
        self.busy.lock().expect("a panic aborts the process")
    }
}

impl<K: Ord> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut busy = self.of.lock();
        self.things.iter().for_each(|thing| {
            busy.remove(thing);
        });
        drop(busy);
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_waits_for_itself_and_for_no_other() {
        let (turns, web, db) = (OneAtATime::default(), vec!["web"], vec!["db"]);
        let one = turns.try_take(web.clone()).unwrap();
        assert!(turns.try_take(web.clone()).is_none());
        let other = turns.try_take(db.clone()).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(web.clone(), "web").map(drop));
            let waits_too = scope.spawn(|| drop(turns.wait(web.clone())));
            drop(one);
            waits.join().unwrap().unwrap();
            waits_too.join().unwrap();
        });
        drop(other);
        assert!(turns.try_take(web).is_some() && turns.try_take(db).is_some());
    }

    #[test]
    fn who_does_something_with_several_has_all_or_none_of_them() {
        let turns = OneAtATime::default();
        let one = turns.try_take(vec!["db"]).unwrap();
        assert!(turns.try_take(vec!["web", "db"]).is_none());
        let other = turns.try_take(vec!["web"]).expect("nobody holds it while he waits for another");
        drop((one, other));
        assert!(turns.try_take(vec!["web", "db"]).is_some());
    }
}
