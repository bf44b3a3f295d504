//! The look at what the clients of one VM have open, in a thread of its own: those files are none of ours, and may lie on a
//! disk that hangs. There is one such thread for a VM; one that does not come back is an alert.

use super::images::{Trouble, trouble_above};
use crate::alerts::{Alerts, Cause};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// A look that has not ended after so many rounds hangs.
const ROUNDS_MAX: u32 = 60;

#[derive(Debug, Default)]
pub(super) struct Looking {
    running: Option<Receiver<Option<Trouble>>>,
    rounds: u32,
    found: Option<Trouble>,
    /// While it hangs.
    told: Option<Cause>,
}

impl Looking {
    /// What was found last. Begins the next look, at the processes that use this socket, where the last one has ended.
    pub(super) fn look(
        &mut self,
        vm: &str,
        clients: Option<(PathBuf, Vec<u32>)>,
        alerts: &Alerts,
    ) -> Option<Trouble> {
        match self.running.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => {
                self.note_round(vm, alerts);
                return self.found.clone();
            }
            Some(Ok(found)) => self.found = found,
            Some(Err(TryRecvError::Disconnected)) | None => {}
        }
        self.end(alerts);
        (self.running, self.rounds) = (None, 0);
        let Some((socket, processes)) = clients else {
            self.found = None;
            return None;
        };
        let ((tell, told), name) = (channel(), vm.to_owned());
        let look = move || drop(tell.send(trouble_above(processes, &socket, &name)));
        // Without a thread for it, it is tried again.
        self.running = std::thread::Builder::new().name("above".into()).spawn(look).ok().map(|_| told);
        self.found.clone()
    }

    fn note_round(&mut self, vm: &str, alerts: &Alerts) {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds != ROUNDS_MAX {
            return;
        }
        let cause = Cause::from(format!("look at the clients of {vm}"));
        let text = format!(
            "VM {vm}: what its QEMU has open cannot be looked at, for a disk that it uses beside ours does not answer: a \
             snapshot above a protected disk would not be noticed; see to that disk"
        );
        alerts.raise(cause.clone(), text);
        self.told = Some(cause);
    }

    /// Nothing hangs, or the VM is not watched any more.
    pub(super) fn end(&mut self, alerts: &Alerts) {
        self.told.take().into_iter().for_each(|cause| alerts.clear(cause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_hangs_is_an_alert_until_it_ends_and_no_other_begins_meanwhile() {
        let (alerts, mut looking) = (Alerts::default(), Looking::default());
        let (hangs, running) = channel();
        looking.running = Some(running);
        let nobody = || Some((PathBuf::from("/run/web.sock"), Vec::new()));
        for round in 1..=2 * ROUNDS_MAX {
            assert_eq!(looking.look("web", nobody(), &alerts), None);
            assert_eq!(alerts.list().len(), usize::from(round >= ROUNDS_MAX));
        }
        let found = Trouble { text: "above".into(), may_stay_open: true };
        hangs.send(Some(found.clone())).unwrap();
        assert_eq!(looking.look("web", nobody(), &alerts), Some(found));
        assert!(alerts.list().is_empty());
    }
}
