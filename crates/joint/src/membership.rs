//! Who is of a group: from when on a VM that comes to it is, and whom a cut has.
//!
//! A VM belongs to its group once its first sync was durable at the recovery side: whoever comes holds up no cut of the
//! others. From the moment that the end of that sync may be heard there, an image of the group may have it, whatever was
//! heard of it here.

use types::VmId;

/// How far the first sync of a VM is. It belongs to its group from the end of it on.
///
/// ```text
///   NotBegun ──▶ Greeted ──▶ Running ──▶ Closing ──▶ Done
/// ```
///
/// Each is written down before what it says can be so, but the last, which says what was heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum FirstSync {
    /// The recovery side has not heard of the VM.
    NotBegun,
    /// It may have heard of it, and may keep something of it: it is told when the VM leaves.
    Greeted,
    Running,
    /// Its end may be at the recovery side, whatever was heard of that.
    Closing,
    /// All of it was durable at the recovery side.
    #[default]
    Done,
}

impl FirstSync {
    /// Whether a state of the VM may be at the recovery side that can be opened: then an image of the group may have it,
    /// and what is promised to others of the group rests on it too.
    pub fn may_be_there(self) -> bool {
        matches!(self, Self::Closing | Self::Done)
    }

    /// Whether cuts of the group have it.
    pub fn is_member(self) -> bool {
        self == Self::Done
    }

    /// Whether the recovery side is to be told when the VM leaves.
    pub fn was_heard_of(self) -> bool {
        self != Self::NotBegun
    }
}

/// A VM as a cut finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub vm: VmId,
    pub first_sync: FirstSync,
    /// Writes are missing in its stream: a sync is under way, or will be.
    pub misses_writes: bool,
}

/// Why a cut has nobody, or may not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCut {
    /// No first sync is done.
    Nobody,
    /// This one misses writes.
    Misses(VmId),
}

/// Whom a cut of those that are protected here has: each is marked in its stream and counted, or the cut is not taken.
///
/// # Errors
/// Where it may not be taken.
pub fn whom(found: &[Found]) -> Result<Vec<VmId>, NoCut> {
    let members: Vec<_> = found.iter().filter(|one| one.first_sync.is_member()).collect();
    if members.is_empty() {
        return Err(NoCut::Nobody);
    }
    match members.iter().find(|one| one.misses_writes) {
        Some(one) => Err(NoCut::Misses(one.vm)),
        None => Ok(members.iter().map(|one| one.vm).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_has_those_whose_first_sync_is_done_and_waits_for_nobody_who_comes() {
        let one = |number: u8, first_sync, misses_writes| Found {
            vm: VmId::from_bytes([number; 16]),
            first_sync,
            misses_writes,
        };
        let comes = one(2, FirstSync::Running, true);
        assert_eq!(whom(&[]), Err(NoCut::Nobody));
        assert_eq!(whom(&[comes, one(4, FirstSync::Closing, false)]), Err(NoCut::Nobody));
        assert_eq!(whom(&[comes, one(1, FirstSync::Done, false)]), Ok(vec![VmId::from_bytes([1; 16])]));
        let misses = one(3, FirstSync::Done, true);
        assert_eq!(whom(&[one(1, FirstSync::Done, false), misses]), Err(NoCut::Misses(misses.vm)));
    }
}
