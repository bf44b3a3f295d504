//! A spill in memory, of "files" of a few batches each.

use super::{Cause, NotTaken, Spill};
use batch::{Batch, Kind};
use std::collections::VecDeque;
use std::sync::Arc;
use threads::sync::{Mutex, MutexGuard};
use types::WriteSeq;

const BATCHES_A_FILE: usize = 4;

#[derive(Debug, Clone, Default)]
pub(crate) struct InMemory(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    files: VecDeque<Vec<Batch>>,
    bytes_max: u64,
    damaged: bool,
    failing: bool,
}

impl InMemory {
    pub(crate) fn of(bytes_max: u64) -> Self {
        let spill = Self::default();
        spill.lock().bytes_max = bytes_max;
        spill
    }

    /// What lies in it cannot be read from now on; what is appended once it is empty can.
    pub(crate) fn damage(&self) {
        self.lock().damaged = true;
    }

    pub(crate) fn fail(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// How many bytes of the disk there are in it of records of such kinds.
    pub(crate) fn bytes_of(&self, is_meant: impl Fn(Kind) -> bool) -> u64 {
        let inner = self.lock();
        let entries = inner.files.iter().flatten().flat_map(Batch::entries);
        entries.filter(|entry| is_meant(entry.kind)).map(|entry| entry.range.len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.files.iter().flatten().map(|batch| batch.bytes().len() as u64).sum()
    }
}

impl Spill for InMemory {
    fn append(&mut self, batch: &Batch) -> Result<(), NotTaken> {
        let mut inner = self.lock();
        if inner.failing {
            return Err(NotTaken::Failed("no space left".into()));
        }
        if inner.bytes() + batch.bytes().len() as u64 > inner.bytes_max {
            return Err(NotTaken::Full);
        }
        if inner.files.back().is_none_or(|file| file.len() >= BATCHES_A_FILE) {
            inner.files.push_back(Vec::new());
        }
        inner.files.back_mut().expect("just made").push(batch.clone());
        Ok(())
    }

    fn next_after(&self, after: WriteSeq) -> Result<Option<Batch>, Cause> {
        let inner = self.lock();
        if inner.damaged {
            return Err("damaged".into());
        }
        Ok(inner.files.iter().flatten().find(|batch| batch.header().last_seq > after).cloned())
    }

    fn first_end(&self) -> Option<WriteSeq> {
        self.lock().files.front().and_then(|file| file.last()).map(|batch| batch.header().last_seq)
    }

    fn release(&mut self, up_to: WriteSeq) -> bool {
        let mut inner = self.lock();
        let before = inner.files.len();
        let is_done = |file: &Vec<Batch>| file.last().is_some_and(|batch| batch.header().last_seq <= up_to);
        while inner.files.pop_front_if(|file| is_done(file)).is_some() {}
        inner.files.len() < before
    }

    fn clear(&mut self) {
        let mut inner = self.lock();
        inner.files.clear();
        inner.damaged = false;
    }

    fn bytes(&self) -> u64 {
        self.lock().bytes()
    }

    fn bytes_max(&self) -> u64 {
        self.lock().bytes_max
    }

    fn set_bytes_max(&mut self, bytes_max: u64) {
        self.lock().bytes_max = bytes_max;
    }
}
