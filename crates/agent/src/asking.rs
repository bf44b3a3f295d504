//! Whoever has asked for something over the API, and whether he is still there to hear how it ends.
//!
//! What holds: the end of what was asked for is taken as heard only where the connection that asked has not gone before it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// For whom this thread works.
    static ASKER: RefCell<Option<Asker>> = const { RefCell::new(None) };
}

/// Somebody who waits for an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    has_gone: Arc<AtomicBool>,
}

/// Dropped with what waits for the answer.
#[derive(Debug)]
pub(crate) struct Presence(Asker);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.has_gone.store(true, Ordering::SeqCst);
    }
}

impl Asker {
    /// One who is there as long as his presence is kept.
    pub(crate) fn present() -> (Presence, Self) {
        let asker = Self::default();
        (Presence(asker.clone()), asker)
    }

    /// For whom this thread works; one who stays where nobody else is known.
    pub(crate) fn of_this_thread() -> Self {
        ASKER.with_borrow(Clone::clone).unwrap_or_default()
    }

    /// Works for him on this thread.
    pub(crate) fn within<T>(self, work: impl FnOnce() -> T) -> T {
        let before = ASKER.replace(Some(self));
        let done = work();
        ASKER.set(before);
        done
    }

    pub(crate) fn is_there(&self) -> bool {
        !self.has_gone.load(Ordering::SeqCst)
    }
}
