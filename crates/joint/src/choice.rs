//! Which cut of a whole group a failover opens, and whom it has.
//!
//! A checkpoint says how many VMs the group had when it was taken, and its mark stands in the stream of each of
//! them: so its members are those whose journals hold it, former ones too, and it is complete where they are as many.
//! Between checkpoints the members are those of now. Whoever cannot be opened at the cut is left out only by the
//! operator's own word.

use std::collections::BTreeSet;
use types::{Checkpoint, CheckpointId, VmId, WallTime, WriteSeq};

/// A VM whose journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub vm: VmId,
    /// It has left its group: what came later does not have it.
    pub left: bool,
}

/// Which members of a group are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    All,
    Only(Vec<VmId>),
    Without(Vec<VmId>),
}

impl Pick {
    /// Whether a VM is meant, of those that could be.
    pub fn has(&self, vm: VmId) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.contains(&vm),
            Self::Without(ids) => !ids.contains(&vm),
        }
    }
}

/// The moment that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The newest there is.
    Latest,
    Id(CheckpointId),
    /// The newest checkpoint taken at this time or before.
    Time(WallTime),
    /// The newest checkpoint with these words.
    Tag(String),
}

impl At {
    /// Whether a VM whose checkpoint is damaged counts as one that does not have it. Who names a checkpoint gets it as it is.
    fn wants_undamaged(&self) -> bool {
        match self {
            Self::Latest | Self::Time(_) => true,
            Self::Id(_) | Self::Tag(_) => false,
        }
    }
}

/// A checkpoint as one journal holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub checkpoint: Checkpoint,
    /// So much of it cannot be read.
    pub damaged_bytes: u64,
}

/// What the journals of a group have.
pub trait Journals {
    /// What cannot be read.
    type Error;

    /// The newest cut at or below `at_most` at which a VM can be opened with nothing lost; none where there is none, or
    /// its journal is not open.
    fn newest_consistent(&self, vm: VmId, at_most: WriteSeq) -> Option<WriteSeq>;

    /// A checkpoint of a VM; none where its journal does not hold it, or is not open.
    ///
    /// # Errors
    /// Where nobody can tell.
    fn checkpoint(&self, vm: VmId, id: CheckpointId) -> Result<Option<Held>, Self::Error>;

    /// Gives the checkpoints of a VM that a moment may mean to `take`, best first, until that takes one. None where its
    /// journal is not open. Up to which cut there may be others before that one, which nobody can tell.
    ///
    /// # Errors
    /// Where none is taken, and nobody can tell whether there are more.
    fn each(
        &self,
        vm: VmId,
        at: &At,
        take: &mut dyn FnMut(&Checkpoint) -> bool,
    ) -> Result<Option<WriteSeq>, Self::Error>;
}

/// What a failover opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub cut: WriteSeq,
    pub vms: Vec<VmId>,
    /// Whom it leaves out by the operator's word.
    pub left_out: Vec<VmId>,
    /// Of whom so much cannot be read there.
    pub damaged: Vec<(VmId, u64)>,
    /// Of whom nobody can tell whether they have newer checkpoints that the moment means: this is the newest of all others.
    pub untold: Vec<VmId>,
}

/// Why there is no cut.
#[derive(Debug, Clone, PartialEq)]
pub enum NotChosen<E> {
    /// No VM that is of the group now is meant.
    Nobody,
    /// These have no state that can be opened, or no journal that is open.
    Hindered(Vec<VmId>),
    /// This one has no state that the others have too.
    NothingInCommon(VmId),
    /// No journal has such a checkpoint.
    Missing,
    /// The best there is lacks somebody.
    Lacking(Lacking),
    Unread(E),
}

/// Whom a checkpoint lacks of those that are meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Lacking {
    pub checkpoint: Checkpoint,
    pub holders: Vec<VmId>,
    /// Whom the operator has named, and who is not among them.
    pub named: Vec<VmId>,
}

/// Chooses the cut of a group, whose VMs are `kept` here. With VMs on several hosts (`spans_hosts`) the moments between
/// checkpoints have no order in common.
///
/// # Errors
/// Where there is none.
pub fn choose<J: Journals>(
    kept: &[Member],
    spans_hosts: bool,
    at: &At,
    pick: &Pick,
    journals: &J,
) -> Result<Chosen, NotChosen<J::Error>> {
    match at {
        At::Latest if !spans_hosts => tail(kept, pick, journals),
        At::Id(id) => at_checkpoint(kept, *id, pick, journals),
        At::Latest | At::Time(_) | At::Tag(_) => newest(kept, at, pick, journals),
    }
}

/// The newest cut at which each of `vms` can be opened, as `newest` says of each and a bound.
///
/// # Errors
/// The first one that has none.
pub fn newest_common(
    vms: &[VmId],
    newest: impl Fn(VmId, WriteSeq) -> Option<WriteSeq>,
) -> Result<WriteSeq, VmId> {
    let mut cut = WriteSeq::MAX;
    loop {
        let mut lowest = cut;
        for vm in vms {
            lowest = newest(*vm, lowest).ok_or(*vm)?;
        }
        if lowest == cut {
            return Ok(cut);
        }
        cut = lowest;
    }
}

/// The newest cut durable and consistent in every stream that is meant.
fn tail<J: Journals>(kept: &[Member], pick: &Pick, journals: &J) -> Result<Chosen, NotChosen<J::Error>> {
    let members = kept.iter().filter(|member| !member.left).map(|member| member.vm);
    let (vms, left_out): (Vec<_>, Vec<_>) = members.partition(|vm| pick.has(*vm));
    if vms.is_empty() {
        return Err(NotChosen::Nobody);
    }
    let has_none = |vm: &VmId| journals.newest_consistent(*vm, WriteSeq::MAX).is_none();
    let hindered: Vec<_> = vms.iter().copied().filter(has_none).collect();
    if !hindered.is_empty() {
        return Err(NotChosen::Hindered(hindered));
    }
    let newest = |vm, at_most| journals.newest_consistent(vm, at_most);
    let cut = newest_common(&vms, newest).map_err(NotChosen::NothingInCommon)?;
    Ok(Chosen { cut, vms, left_out, damaged: Vec::new(), untold: Vec::new() })
}

/// The cut of one checkpoint.
fn at_checkpoint<J: Journals>(
    kept: &[Member],
    id: CheckpointId,
    pick: &Pick,
    journals: &J,
) -> Result<Chosen, NotChosen<J::Error>> {
    let mut found = None;
    for member in kept {
        let held = journals.checkpoint(member.vm, id).map_err(NotChosen::Unread)?;
        found = found.or(held.map(|held| held.checkpoint));
    }
    let checkpoint = found.ok_or(NotChosen::Missing)?;
    let judged =
        judge(kept, &checkpoint, (pick, false), journals).map_err(|(_, error)| NotChosen::Unread(error))?;
    judged.map_err(NotChosen::Lacking)
}

/// The newest checkpoint of a moment that has everybody it should have, of those of which that can be told.
fn newest<J: Journals>(
    kept: &[Member],
    at: &At,
    pick: &Pick,
    journals: &J,
) -> Result<Chosen, NotChosen<J::Error>> {
    let mut best: Option<Chosen> = None;
    let mut incomplete: Option<Lacking> = None;
    let (mut untold, mut unread) = (Vec::new(), None);
    // No journal need hold them all: who joined later lacks the old ones, who has left the new ones.
    for member in kept {
        let mut take = |checkpoint: &Checkpoint| {
            if best.as_ref().is_some_and(|best| checkpoint.cut <= best.cut) {
                return true;
            }
            match judge(kept, checkpoint, (pick, at.wants_undamaged()), journals) {
                Ok(Ok(chosen)) => best = Some(chosen),
                Ok(Err(lacking)) => drop(incomplete.get_or_insert(lacking)),
                Err((vm, error)) => {
                    untold.push((vm, checkpoint.cut));
                    unread.get_or_insert(error);
                }
            }
            best.as_ref().is_some_and(|best| best.cut == checkpoint.cut)
        };
        match journals.each(member.vm, at, &mut take) {
            Ok(upto) => untold.extend(upto.map(|upto| (member.vm, upto))),
            Err(error) => {
                untold.push((member.vm, WriteSeq::MAX));
                unread.get_or_insert(error);
            }
        }
    }
    let Some(mut best) = best else {
        let none = incomplete.map_or(NotChosen::Missing, NotChosen::Lacking);
        return Err(unread.map_or(none, NotChosen::Unread));
    };
    let newer = untold.into_iter().filter(|(_, upto)| *upto > best.cut).map(|(vm, _)| vm);
    best.untold = newer.collect::<BTreeSet<_>>().into_iter().collect();
    Ok(best)
}

/// Whether a checkpoint has everybody who is meant: what is opened, or whom it lacks. Where only undamaged ones count,
/// whose checkpoint is damaged does not have it. An error is of the VM of which nobody can tell.
fn judge<J: Journals>(
    kept: &[Member],
    checkpoint: &Checkpoint,
    (pick, undamaged): (&Pick, bool),
    journals: &J,
) -> Result<Result<Chosen, Lacking>, (VmId, J::Error)> {
    let (mut holders, mut damaged) = (Vec::new(), Vec::new());
    for Member { vm, .. } in kept.iter().copied() {
        let held = journals.checkpoint(vm, checkpoint.id).map_err(|error| (vm, error))?;
        let Some(held) = held else { continue };
        if held.damaged_bytes == 0 || !undamaged {
            holders.push(vm);
        }
        if held.damaged_bytes > 0 {
            damaged.push((vm, held.damaged_bytes));
        }
    }
    let named = match whom(&holders, usize::from(checkpoint.members), pick) {
        Ok(vms) => {
            let is_left_out = |member: &&Member| {
                let then = holders.contains(&member.vm);
                let named = matches!(pick, Pick::Without(without) if without.contains(&member.vm));
                !member.left && (then || named) && !vms.contains(&member.vm)
            };
            let left_out = kept.iter().filter(is_left_out).map(|member| member.vm).collect();
            damaged.retain(|(vm, _)| vms.contains(vm));
            let untold = Vec::new();
            return Ok(Ok(Chosen { cut: checkpoint.cut, vms, left_out, damaged, untold }));
        }
        Err(named) => named,
    };
    Ok(Err(Lacking { checkpoint: checkpoint.clone(), holders, named }))
}

/// Who is opened of the holders of a checkpoint that is of so many; or whom the operator has named and who is none of them.
fn whom(holders: &[VmId], members: usize, pick: &Pick) -> Result<Vec<VmId>, Vec<VmId>> {
    match pick {
        Pick::All if holders.len() < members => Err(Vec::new()),
        Pick::All => Ok(holders.to_vec()),
        Pick::Only(only) => {
            let absent: Vec<_> = only.iter().copied().filter(|vm| !holders.contains(vm)).collect();
            match absent.is_empty() {
                true => Ok(holders.iter().copied().filter(|vm| only.contains(vm)).collect()),
                false => Err(absent),
            }
        }
        Pick::Without(without) => {
            let absent = without.iter().filter(|vm| !holders.contains(vm)).count();
            let rest: Vec<_> = holders.iter().copied().filter(|vm| !without.contains(vm)).collect();
            match holders.len() + absent < members || rest.is_empty() {
                true => Err(Vec::new()),
                false => Ok(rest),
            }
        }
    }
}

#[cfg(test)]
mod tests;
