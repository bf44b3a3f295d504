//! A lock that is held in turns: who has much to do under it lets in between whoever waits.

use threads::sync::atomic::{AtomicUsize, Ordering};
use threads::sync::{Mutex, MutexGuard, TryLockError};
use types::limits::GIVE_WAY_YIELDS_MAX;

#[derive(Debug, Default)]
pub(crate) struct PoliteLock<T> {
    inner: Mutex<T>,
    /// How many wait. A thread that takes a mutex again at once mostly gets it, however long others have waited.
    waiting: AtomicUsize,
}

impl<T> PoliteLock<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner: Mutex::new(inner), waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let guard = self.inner.lock();
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                guard.expect("a panic aborts the process")
            }
            Err(TryLockError::Poisoned(_)) => panic!("a panic aborts the process"),
        }
    }

    /// Between two turns, without the lock: lets in whoever waits, but not for ever.
    pub(crate) fn give_way(&self) {
        for _ in 0..GIVE_WAY_YIELDS_MAX {
            if self.waiting.load(Ordering::SeqCst) == 0 {
                return;
            }
            threads::thread::yield_now();
        }
    }
}
