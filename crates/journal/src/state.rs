//! Who changes the state of a journal, and in which order memory and disk learn of it.
//!
//! Everything that a manifest says is changed through [`State::change_manifest`]: on the disk first, then in memory.
//! Whoever changes or reads a journal stands above this, and knows nothing of the others that do.

use crate::copies;
use crate::life::Life;
use crate::manifest::Manifest;
use crate::store::Store;
use crate::view::Shared;
use std::io;
use std::sync::Arc;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use threads::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

fn next_uid() -> u64 {
    NEXT_UID.fetch_add(1, Ordering::Relaxed)
}

/// The state of one opening of a journal, and the store it is kept in.
#[derive(Debug)]
pub(crate) struct State {
    /// Names this opening of the journal in the process's caches.
    pub(crate) uid: u64,
    pub(crate) store: Arc<dyn Store>,
    life: Life,
    /// Somebody waits for this life to end, or for the journal's folder.
    gives_way: AtomicBool,
    saving: Mutex<()>,
    shared: RwLock<Shared>,
}

impl State {
    pub(crate) fn new(store: Arc<dyn Store>, life: Life, shared: Shared) -> Self {
        let gives_way = AtomicBool::new(false);
        Self {
            uid: next_uid(),
            store,
            life,
            gives_way,
            saving: Mutex::default(),
            shared: RwLock::new(shared),
        }
    }

    pub(crate) fn read_shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().expect("a panic aborts the process")
    }

    pub(crate) fn write_shared(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().expect("a panic aborts the process")
    }

    /// Replaces the manifest, durably, and then publishes it together with what `publish` does. Where it
    /// cannot be saved, nothing has changed in memory but the numbers that were taken; on the disk the old
    /// one or the new one stands, and whatever is changed must be right with either.
    ///
    /// A crash story: (1) a file is made and a manifest that names it is put in place, but syncing the
    /// folder fails; (2) it is tried again, over the same file; (3) the power goes, and what is found is
    /// the first manifest with a part of the second file. So a number that was taken is never taken again.
    pub(crate) fn change_manifest(
        &self,
        change: impl FnOnce(&mut Manifest),
        publish: impl FnOnce(&mut Shared, Manifest),
    ) -> io::Result<()> {
        let _saving = self.saving.lock().expect("a panic aborts the process");
        self.check_life()?;
        let mut manifest = {
            let shared = self.read_shared();
            Manifest { age_clock: shared.age.now, ..(*shared.manifest).clone() }
        };
        change(&mut manifest);
        if let Err(error) = manifest.save(&*self.store) {
            let mut shared = self.write_shared();
            let mut kept = (*shared.manifest).clone();
            kept.keep_numbers_of(&manifest);
            shared.set_manifest(kept, |_| {});
            return Err(error);
        }
        publish(&mut self.write_shared(), manifest);
        Ok(())
    }

    /// [`Self::change_manifest`], where nothing else in memory hangs on what is changed.
    pub(crate) fn change_manifest_alone(&self, change: impl FnOnce(&mut Manifest)) -> io::Result<()> {
        self.change_manifest(change, |shared, manifest| shared.set_manifest(manifest, |_| {}))
    }

    /// Writes the manifest anew where one of its copies is not as it was written: what is wrong with them.
    pub(crate) fn mend_copies(&self) -> io::Result<Vec<String>> {
        let (spoilt, differ) = {
            let _saving = self.saving.lock().expect("a panic aborts the process");
            self.check_life()?;
            match copies::load(&*self.store) {
                Ok(found) => {
                    let is_other = found.manifest.generation != self.read_shared().manifest.generation;
                    (found.spoilt, found.differ || is_other)
                }
                // What they should say is in memory.
                Err(error) => (vec![error.to_string()], true),
            }
        };
        if differ {
            self.change_manifest_alone(|_| {})?;
        }
        Ok(spoilt)
    }

    /// Nothing is changed any more.
    pub(crate) fn end_life(&self) {
        self.life.end();
    }

    /// Waits for whoever is replacing the manifest.
    pub(crate) fn wait_for_saving(&self) {
        drop(self.saving.lock().expect("a panic aborts the process"));
    }

    /// Whether its life has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.life.is_over(&*self.store)
    }

    /// What is long gives way from here on, or goes on.
    pub(crate) fn give_way(&self, yes: bool) {
        self.gives_way.store(yes, Ordering::SeqCst);
    }

    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::SeqCst)
    }

    /// Whether what is long goes on with its next step.
    pub(crate) fn check_turn(&self) -> io::Result<()> {
        self.check_life()?;
        match self.gives_way() {
            true => {
                Err(io::Error::other("somebody waits for this journal: what is long is gone on with later"))
            }
            false => Ok(()),
        }
    }

    pub(crate) fn check_life(&self) -> io::Result<()> {
        match self.is_closed() {
            true => Err(io::Error::other("this journal was closed, or opened anew")),
            false => Ok(()),
        }
    }
}
