//! What becomes of a guest that runs on its own image once another site has taken over: its hypervisor is told what the
//! operator of this site has chosen.
//!
//! It is looked at with every look at the tap, so that it holds over restarts of agent and guest, and ends where the
//! operator chooses otherwise or the other site gives back what it has taken. A guest that somebody else has stopped is
//! not had go on.

use super::Source;
use super::tapped::VmTap;
use super::vm::ProtectedVm;
use crate::policy::OnFenced;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    StandStill,
    GoOn,
    /// It does not stand still any more, and not by us.
    Forget,
    End,
}

/// What a hypervisor is to be told. `stood`: it was told to have the guest stand still. `guest`: QEMU's word for what that
/// does now.
fn wanted(on_fenced: OnFenced, stood: bool, guest: &str) -> Wanted {
    match on_fenced {
        OnFenced::Stop => Wanted::End,
        OnFenced::Pause if guest == "running" => Wanted::StandStill,
        OnFenced::GoOn if stood && guest == "paused" => Wanted::GoOn,
        OnFenced::GoOn if stood => Wanted::Forget,
        OnFenced::GoOn | OnFenced::Pause => Wanted::Nothing,
    }
}

impl Source {
    /// Tells the VM's hypervisor, where there is something to tell.
    pub(super) fn have_guest_follow(&self, tap: &VmTap, vm: &ProtectedVm, guest: &str) {
        let (on_fenced, stood) = {
            let record = vm.lock_record();
            (record.on_fenced(), record.stands_still)
        };
        let name = vm.name();
        let told = match wanted(on_fenced, stood, guest) {
            Wanted::Nothing => return,
            Wanted::StandStill => {
                tracing::warn!(vm = name, "another site has taken over: its guest is to stand still");
                // Before it does: whoever finds it so must know by whom.
                self.note_stands_still(vm, true);
                tap.set_running(false)
            }
            Wanted::GoOn => {
                tracing::info!(vm = name, "its guest goes on");
                tap.set_running(true).inspect(|()| self.note_stands_still(vm, false))
            }
            Wanted::Forget => {
                self.note_stands_still(vm, false);
                Ok(())
            }
            Wanted::End => {
                tracing::warn!(vm = name, "another site has taken over: its guest is powered off");
                tap.power_off()
            }
        };
        if let Err(error) = told {
            let error = format!("{error:#}");
            tracing::error!(
                vm = name,
                error,
                "its guest does not do what it is to while another site has taken over"
            );
        }
    }

    fn note_stands_still(&self, vm: &ProtectedVm, stands_still: bool) {
        let noted = vm.note(&self.state, |record| {
            record.stands_still = stands_still;
            true
        });
        if let Err(error) = noted {
            let error = format!("{error:#}");
            tracing::error!(vm = vm.name(), error, "that its guest stands still is not recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_stands_still_while_it_is_to_and_goes_on_only_where_it_stands_by_us() {
        use OnFenced::{GoOn, Pause, Stop};
        for (on_fenced, stood, guest, told) in [
            (Pause, false, "running", Wanted::StandStill),
            (Pause, true, "running", Wanted::StandStill),
            (Pause, true, "paused", Wanted::Nothing),
            (Pause, false, "io-error", Wanted::Nothing),
            (GoOn, true, "paused", Wanted::GoOn),
            (GoOn, false, "paused", Wanted::Nothing),
            (GoOn, true, "running", Wanted::Forget),
            (GoOn, false, "running", Wanted::Nothing),
            (Stop, false, "running", Wanted::End),
            (Stop, true, "paused", Wanted::End),
        ] {
            assert_eq!(wanted(on_fenced, stood, guest), told, "{on_fenced:?} {stood} {guest}");
        }
    }
}
