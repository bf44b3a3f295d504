//! Holding acknowledgements of a whole group for the moment in which its hosts agree on a cut.
//!
//! A write that draws its sequence after the cut finds the gate closed, and is acknowledged to its guest only
//! once the gate is open again: by then every host has made its cut, so nothing that depends on the write can
//! be in anybody's. The gate opens by itself: a write waits no longer than [`CUT_HOLD_MAX`], whatever becomes
//! of the others.

use threads::sync::atomic::{AtomicBool, Ordering};
use threads::sync::{Condvar, Mutex};
use types::limits::CUT_HOLD_MAX;

/// One for each group on a host.
#[derive(Debug, Default)]
pub struct AckGate {
    closed: AtomicBool,
    /// How often it was closed; guards the waiting.
    times: Mutex<u64>,
    opened: Condvar,
}

impl AckGate {
    /// Closes the gate: to be done before the cut's number is drawn. What is returned opens it again.
    pub fn close(&self) -> u64 {
        let mut times = self.times.lock().expect("a panic aborts the process");
        *times += 1;
        self.closed.store(true, Ordering::SeqCst);
        *times
    }

    /// Opens the gate that `close` closed as `time`; a later closing stays.
    pub fn open(&self, time: u64) {
        let times = self.times.lock().expect("a panic aborts the process");
        if *times == time {
            self.closed.store(false, Ordering::SeqCst);
            self.opened.notify_all();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits while the gate is closed. To be called between commit and acknowledgement.
    pub(crate) fn pass(&self) {
        if !self.is_closed() {
            return;
        }
        let times = self.times.lock().expect("a panic aborts the process");
        let time = *times;
        let waits = |times: &mut u64| *times == time && self.closed.load(Ordering::SeqCst);
        drop(self.opened.wait_timeout_while(times, CUT_HOLD_MAX, waits).expect("a panic aborts the process"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_closed_gate_holds_and_lets_go_by_itself() {
        let gate = Arc::new(AckGate::default());
        gate.pass();
        let time = gate.close();
        let passing = {
            let gate = gate.clone();
            std::thread::spawn(move || gate.pass())
        };
        gate.open(time - 1);
        gate.open(time);
        passing.join().unwrap();
        gate.close();
        gate.pass();
    }
}
