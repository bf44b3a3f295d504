//! Which disks of a VM under the tap are still heard.
//!
//! What holds: the end of a disk's connection, or of its mirror, means lost writes, unless it was known before that the VM has that very
//! disk no more. Whoever has lost writes stays so, until the tap is attached anew.

use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(super) struct Heard {
    gone: Vec<AtomicBool>,
    lost: AtomicBool,
}

impl Heard {
    pub(super) fn new(disks: usize) -> Self {
        Self { gone: (0..disks).map(|_| AtomicBool::default()).collect(), lost: AtomicBool::default() }
    }

    /// The VM has this disk no more: its connection ends, or has ended.
    pub(super) fn on_gone(&self, at: usize) {
        if let Some(gone) = self.gone.get(at) {
            gone.store(true, Ordering::SeqCst);
        }
    }

    /// A disk's connection has ended, or its mirror; whether a write may have been made by now that nobody tells of.
    pub(super) fn on_left(&self, at: usize) -> bool {
        let expected = self.gone.get(at).is_some_and(|gone| gone.load(Ordering::SeqCst));
        if !expected {
            self.lost.store(true, Ordering::SeqCst);
        }
        !expected
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_gone_excuses_its_own_connection_only() {
        let heard = Heard::new(2);
        heard.on_gone(0);
        assert!(!heard.on_left(0) && !heard.has_lost());
        assert!(heard.on_left(1) && heard.has_lost(), "the other disk's writes are not heard any more");
    }

    #[test]
    fn a_connection_that_ends_first_is_a_loss_and_excuses_nobody_later() {
        let heard = Heard::new(2);
        assert!(heard.on_left(0));
        heard.on_gone(0);
        assert!(heard.has_lost(), "until the tap is attached anew");
        assert!(heard.on_left(1));
    }
}
