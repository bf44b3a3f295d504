//! One journal at a time stands over a folder. Another one opened there ends the life of the one before, and
//! `Journal::close` ends it in order; whoever still holds an ended one can read with it, and change nothing.
//!
//! What it keeps from happening, as a story: (1) a journal fails and is opened again; (2) an image, a fold or a scrub still
//! holds the one before and saves *its* manifest, of before, over the new one's; (3) the agent is started again, and
//! removes the segments that manifest does not name: writes that were acknowledged.
//!
//! An ended life is waited for, not only refused: a fold that goes on with writing the replica does so under no
//! manifest's eye, and in rollback mode would put old bytes over what the next life has brought up there.

use crate::store::Store;
use threads::sync::atomic::{AtomicBool, Ordering};

/// Whether a journal may still change its folder.
#[derive(Debug)]
pub(crate) struct Life {
    number: u64,
    ended: AtomicBool,
}

impl Life {
    /// The newest one of a folder.
    pub(crate) fn begin(store: &dyn Store) -> Self {
        let number = store.lives().map_or(0, |lives| lives.fetch_add(1, Ordering::SeqCst) + 1);
        Self { number, ended: AtomicBool::new(false) }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self, store: &dyn Store) -> bool {
        let newest = store.lives().map_or(self.number, |lives| lives.load(Ordering::SeqCst));
        self.ended.load(Ordering::SeqCst) || newest != self.number
    }
}
