//! The spill of a simulated agent: the product's segments on a simulated disk.

use crate::rng::Rng;
use crate::store::SimStore;
use batch::Batch;
use joint::spill::{Cause, NotTaken, Spill};
use journal::SpillError;
use std::sync::Arc;
use threads::sync::{Mutex, MutexGuard};
use types::{VmId, WallTime, WriteSeq};

#[derive(Debug, Clone)]
pub(crate) struct SimSpill(Arc<Mutex<(journal::Spill, Rng)>>);

impl SimSpill {
    pub(crate) fn create(store: SimStore, vm: VmId, bytes_max: u64, rng: &mut Rng) -> Self {
        let spill = journal::Spill::create(Arc::new(store), vm, bytes_max).expect("a disk that works");
        Self(Arc::new(Mutex::new((spill, Rng::new(rng.bits())))))
    }

    fn lock(&self) -> MutexGuard<'_, (journal::Spill, Rng)> {
        self.0.lock().expect("one thread")
    }
}

impl Spill for SimSpill {
    fn append(&mut self, batch: &Batch) -> Result<(), NotTaken> {
        let mut guard = self.lock();
        let (spill, rng) = &mut *guard;
        spill.append(batch, rng.sixteen(), WallTime(0)).map_err(|error| match error {
            SpillError::Full { .. } => NotTaken::Full,
            SpillError::Io(_) => NotTaken::Failed(error.into()),
        })
    }

    fn next_after(&self, after: WriteSeq) -> Result<Option<Batch>, Cause> {
        self.lock().0.next_after(after).map_err(Into::into)
    }

    fn first_end(&self) -> Option<WriteSeq> {
        self.lock().0.first_end()
    }

    fn release(&mut self, up_to: WriteSeq) -> bool {
        self.lock().0.release(up_to).any
    }

    fn clear(&mut self) {
        let _ = self.lock().0.clear();
    }

    fn bytes(&self) -> u64 {
        self.lock().0.bytes()
    }

    fn bytes_max(&self) -> u64 {
        self.lock().0.bytes_max()
    }

    fn set_bytes_max(&mut self, bytes_max: u64) {
        self.lock().0.set_bytes_max(bytes_max);
    }
}
