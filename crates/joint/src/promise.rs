//! What synchronous mode may promise to a VM whose group has several.
//!
//! A failover opens the group as of one moment, the newest that all its VMs have at the recovery side. So a write is there
//! only once all of them are as far, the quiet ones too: whoever makes a promise asks them to say how far they are.

use splitter::Others;
use std::collections::BTreeMap;
use types::{VmId, WriteSeq};

/// How one VM's stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Every write of it up to here is at the recovery side for good. While writes are missing this stays where it was.
    pub up_to: WriteSeq,
    /// Writes are missing in its stream.
    pub missing: bool,
    /// It is being sent, with little on the way.
    pub caught_up: bool,
}

impl Standing {
    /// Of a stream that has said nothing yet.
    pub const UNKNOWN: Self = Self { up_to: WriteSeq::ZERO, missing: true, caught_up: false };
}

/// How the streams of a group's VMs stand: of those that images of the group have.
#[derive(Debug, Default)]
pub struct Promises {
    standings: BTreeMap<VmId, Standing>,
    /// Images of the group may have VMs of which nothing is said here, or its moments no order in common.
    nothing: bool,
}

impl Promises {
    /// How a VM stands now; true where that is news.
    pub fn note(&mut self, vm: VmId, standing: Standing) -> bool {
        self.standings.insert(vm, standing) != Some(standing)
    }

    /// A VM has left, or images of the group are made without it; true where that is news.
    pub fn left(&mut self, vm: VmId) -> bool {
        self.standings.remove(&vm).is_some()
    }

    /// Whether nothing can be promised, whatever is said of the streams: images of the group may have VMs of which nothing
    /// is sent from here, or moments between checkpoints mean nothing. True where that is news.
    pub fn lacks_vms(&mut self, yes: bool) -> bool {
        std::mem::replace(&mut self.nothing, yes) != yes
    }

    /// What a promise to this VM rests on beside its own stream.
    pub fn others(&self, vm: VmId) -> Others {
        let others = self.standings.iter().filter(|(other, _)| **other != vm);
        let none = Others { missing: self.nothing, ..Others::NONE };
        others.fold(none, |all, (_, one)| Others {
            up_to: all.up_to.min(one.up_to),
            missing: all.missing || one.missing,
            caught_up: all.caught_up && one.caught_up,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: VmId = VmId::from_bytes([1; 16]);
    const DB: VmId = VmId::from_bytes([2; 16]);
    const LOG: VmId = VmId::from_bytes([3; 16]);

    fn standing(up_to: u64) -> Standing {
        Standing { up_to: WriteSeq::from_raw(up_to), missing: false, caught_up: true }
    }

    #[test]
    fn a_promise_rests_on_the_other_that_is_least_far() {
        let mut promises = Promises::default();
        assert_eq!(promises.others(WEB), Others::NONE);
        assert!(promises.note(WEB, standing(3)));
        assert_eq!(promises.others(WEB), Others::NONE, "not on its own");
        promises.note(DB, standing(9));
        promises.note(LOG, Standing { missing: true, ..standing(7) });
        assert!(!promises.note(DB, standing(9)), "no news");
        let others = promises.others(WEB);
        assert_eq!((others.up_to, others.missing, others.caught_up), (WriteSeq::from_raw(7), true, true));
        assert!(promises.left(LOG) && !promises.left(LOG));
        let others = promises.others(WEB);
        assert_eq!((others.up_to, others.missing), (WriteSeq::from_raw(9), false));
        assert_eq!(promises.others(DB).up_to, WriteSeq::from_raw(3));
    }

    #[test]
    fn nothing_is_promised_while_an_image_may_have_a_vm_that_says_nothing() {
        let mut promises = Promises::default();
        assert!(promises.lacks_vms(true) && !promises.lacks_vms(true));
        assert!(promises.others(WEB).missing);
        assert!(promises.lacks_vms(false) && !promises.others(WEB).missing);
    }
}
