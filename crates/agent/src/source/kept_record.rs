//! The record of a VM while it is protected: what everybody sees of it, and what is on the disk.
//!
//! Changes come one at a time, each with its writing down, so that the disk never has what was before one that was told as
//! done. Whoever only looks waits for no disk.

use super::record::{ProtectionRecord, save_record};
use crate::state::StateDir;
use std::sync::{Mutex, MutexGuard};

#[derive(Debug)]
pub(super) struct KeptRecord {
    seen: Mutex<ProtectionRecord>,
    /// Held by whoever changes or saves it; taken before what is seen.
    changing: Mutex<()>,
}

impl KeptRecord {
    pub(super) fn new(record: ProtectionRecord) -> Self {
        Self { seen: Mutex::new(record), changing: Mutex::default() }
    }

    /// What is seen of it; held shortly.
    pub(super) fn lock(&self) -> MutexGuard<'_, ProtectionRecord> {
        self.seen.lock().expect("a panic aborts the process")
    }

    /// Changes what is seen, and then writes it down, where `change` says that there is something to write.
    ///
    /// # Errors
    /// Where it could not be written down; it is seen all the same.
    pub(super) fn note(
        &self,
        state: &StateDir,
        change: impl FnOnce(&mut ProtectionRecord) -> bool,
    ) -> anyhow::Result<bool> {
        let _one = self.lock_changes();
        let record = {
            let mut seen = self.lock();
            if !change(&mut seen) {
                return Ok(false);
            }
            seen.clone()
        };
        save_record(state, &record).map(|()| true)
    }

    /// Writes down what `changed` makes of it, and then has it seen; false where that is nothing.
    ///
    /// # Errors
    /// Where it could not be written down; then it stays as it was.
    pub(super) fn put(
        &self,
        state: &StateDir,
        changed: impl FnOnce(ProtectionRecord) -> Option<ProtectionRecord>,
    ) -> anyhow::Result<bool> {
        let _one = self.lock_changes();
        let before = self.lock().clone();
        let Some(changed) = changed(before) else { return Ok(false) };
        save_record(state, &changed)?;
        *self.lock() = changed;
        Ok(true)
    }

    /// Writes it down as it is.
    pub(super) fn save(&self, state: &StateDir) -> anyhow::Result<()> {
        self.note(state, |_| true).map(drop)
    }

    fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("a panic aborts the process")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// One is being written down when another comes: the later one is made of what the first has made.
    #[test]
    fn of_two_who_change_a_record_at_once_neither_loses_what_the_other_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let kept = KeptRecord::new(record(folder.path(), "web", joint::membership::FirstSync::Done));
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let put = kept.put(&state, |record| {
                scope.spawn(|| {
                    let noted = kept.note(&state, |record| {
                        record.paused = true;
                        true
                    });
                    assert!(noted.unwrap());
                    let _ = tell.send(());
                });
                // Whoever did not wait has changed it by now.
                let _ = told.recv_timeout(Duration::from_millis(300));
                Some(ProtectionRecord { peer: "other:7600".into(), ..record })
            });
            assert!(put.unwrap());
        });
        let saved = state.load::<ProtectionRecord>(&kept.lock().file_name()).unwrap().unwrap();
        assert!(saved == *kept.lock() && saved.paused && saved.peer == "other:7600", "{saved:?}");
    }
}
