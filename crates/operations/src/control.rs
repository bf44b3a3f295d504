//! What others see and ask of an operation while it goes on.
//!
//! A cancel that was taken is kept: the gate shuts in the moment in which the last step with a way back ends, and either
//! the cancel was there before, or it is refused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// An operator wants the operation to end where it is, and to be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

/// There is no way back any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is past the point from which there is a way back")]
pub struct TooLate;

/// How far the step in progress is, in whatever it counts: bytes, mostly. A total of 0 is one that nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    Cancelled,
    Shut,
}

/// Shared between who runs an operation and who looks at it.
#[derive(Debug, Default)]
pub struct Control {
    gate: Mutex<Gate>,
    leaves: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Control {
    /// Asks for the operation to be taken back. That is not durable before the step in progress has heard it: of an agent
    /// that is killed until then it has to be asked again.
    ///
    /// # Errors
    /// If there is no way back.
    pub fn cancel(&self) -> Result<(), TooLate> {
        let mut gate = self.gate();
        if *gate == Gate::Shut {
            return Err(TooLate);
        }
        *gate = Gate::Cancelled;
        Ok(())
    }

    /// # Errors
    /// If an operator has cancelled the operation.
    pub fn check(&self) -> Result<(), Cancelled> {
        if *self.gate() == Gate::Cancelled { Err(Cancelled) } else { Ok(()) }
    }

    /// From here on it only goes forward.
    pub(crate) fn shut(&self) -> Result<(), Cancelled> {
        let mut gate = self.gate();
        if *gate == Gate::Cancelled {
            return Err(Cancelled);
        }
        *gate = Gate::Shut;
        Ok(())
    }

    /// Asks for what cannot be done or undone to be left as it is, the next time that it fails, where
    /// [the plan](crate::Plan::may_be_left) has it so.
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    /// Whether an operator has asked for that, once.
    pub(crate) fn take_leave(&self) -> bool {
        self.leaves.swap(false, Ordering::Relaxed)
    }

    /// How far the step in progress is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { done: self.done.load(Ordering::Relaxed), total: self.total.load(Ordering::Relaxed) }
    }

    /// A step says how far it is.
    pub fn set_progress(&self, progress: Progress) {
        self.done.store(progress.done, Ordering::Relaxed);
        self.total.store(progress.total, Ordering::Relaxed);
    }

    /// A step has done so much more.
    pub fn add_done(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    /// Why it does not go on just now.
    ///
    /// # Panics
    /// If another thread has panicked meanwhile.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("a panic aborts the process").clone()
    }

    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().expect("a panic aborts the process") = trouble;
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("a panic aborts the process")
    }
}
