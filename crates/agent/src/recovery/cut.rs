//! Which cut of a whole group an operator means, and whom it has.
//!
//! A checkpoint says how many VMs the group had when it was taken, and its mark stands in the stream of each of
//! them: so its members are those whose journals hold it, former ones too, and it is complete where they are as many.
//! Between checkpoints the members are those of now. Whoever cannot be opened at the cut is left out only by the
//! operator's own word.

use super::at::{Moment, first_of, hindrance, journal_of};
use super::groups::{KeptGroup, Pick};
use super::vm::RecoveredVm;
use crate::clock;
use crate::error::{OperationError, Result, with_sources};
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, VmId, WriteSeq};

/// What a failover opens.
#[derive(Debug, Clone)]
pub(super) struct GroupCut {
    pub(super) cut: WriteSeq,
    pub(super) vms: Vec<Arc<RecoveredVm>>,
    /// Whom it leaves out by the operator's word, and why that is so.
    pub(super) left_out: Vec<(Arc<RecoveredVm>, String)>,
    /// What the operator should know of the cut.
    pub(super) notes: Vec<String>,
}

/// Finds the cut of a group at `at`, and the VMs that are opened there.
pub(super) fn find(group: &KeptGroup, at: &str, pick: &Pick) -> Result<GroupCut> {
    let spans_hosts = group.members.iter().any(|vm| vm.record().spans_hosts);
    match Moment::parse(at) {
        Moment::Latest if !spans_hosts => tail(group, pick),
        Moment::Id(id) => at_checkpoint(group, id, pick),
        moment => newest(group, moment, pick),
    }
}

/// The newest cut durable and consistent in every stream that is meant.
fn tail(group: &KeptGroup, pick: &Pick) -> Result<GroupCut> {
    let (vms, others): (Vec<_>, Vec<_>) = group.members.iter().partition(|vm| pick.has(vm.id()));
    let vms: Vec<_> = vms.into_iter().cloned().collect();
    if vms.is_empty() {
        return Err(OperationError::unavailable(format!(
            "no VM of group {} is left to be opened at its newest state; its former members can be opened at a \
             checkpoint: `holdfast checkpoint list` shows them",
            group.label()
        )));
    }
    let hindered: Vec<_> = vms.iter().filter_map(|vm| Some((vm, hindrance(vm)?))).collect();
    if !hindered.is_empty() {
        return Err(held_up(group, &hindered));
    }
    let journals = vms.iter().map(|vm| journal_of(vm)).collect::<Result<Vec<_>>>()?;
    let shared: Vec<_> = journals.iter().map(|journal| journal.shared().clone()).collect();
    let cut = journal::newest_common_cut(&shared).map_err(|at| {
        let name = vms[at].name();
        OperationError::unavailable(format!(
            "VM {name} has no state that the others have too; name it with `--without {name}`"
        ))
    })?;
    let notes = vms.iter().filter_map(|vm| held_back_by(vm, &vms)).collect();
    Ok(GroupCut { cut, notes, left_out: explain(others), vms })
}

/// What is to be said of a VM whose newest state is much older than that of others.
fn held_back_by(vm: &RecoveredVm, vms: &[Arc<RecoveredVm>]) -> Option<String> {
    let newest = |vm: &RecoveredVm| Some(vm.journal()?.newest_checkpoint().ok()??.checkpoint.taken_at);
    let name = vm.name();
    if vm.journal().is_some_and(|journal| journal.status().gap_open) {
        return Some(format!("VM {name} is being synced: the group is opened as it was before that began"));
    }
    let (own, others) = (newest(vm)?, vms.iter().filter_map(|vm| newest(vm)).max()?);
    let behind = u64::try_from(others.0.saturating_sub(own.0)).unwrap_or(0) / 1_000_000;
    (behind > vm.record().rpo_seconds.max(1)).then(|| {
        format!(
            "VM {name} holds the group back by {behind} s: nothing newer of it is here; `--without {name}` opens the \
             others at {}",
            clock::to_text(others)
        )
    })
}

fn held_up(group: &KeptGroup, hindered: &[(&Arc<RecoveredVm>, String)]) -> OperationError {
    let why: Vec<_> = hindered.iter().map(|(_, why)| why.as_str()).collect();
    let words: Vec<_> = hindered.iter().map(|(vm, _)| format!("--without {}", vm.name())).collect();
    OperationError::unavailable(format!(
        "{}; give `{}` to fail the others of group {} over without, or `--at` a checkpoint from before",
        why.join("; "),
        words.join(" "),
        group.name
    ))
}

fn explain<'a>(vms: impl IntoIterator<Item = &'a Arc<RecoveredVm>>) -> Vec<(Arc<RecoveredVm>, String)> {
    let why = |vm: &Arc<RecoveredVm>| hindrance(vm).unwrap_or_else(|| "not asked for".to_owned());
    vms.into_iter().map(|vm| (vm.clone(), why(vm))).collect()
}

/// The cut of one checkpoint.
fn at_checkpoint(group: &KeptGroup, id: CheckpointId, pick: &Pick) -> Result<GroupCut> {
    let mut found = None;
    for vm in group.all() {
        let Some(journal) = vm.journal() else { continue };
        let facts = journal.checkpoint(id).map_err(unreadable)?;
        found = found.or(facts.map(|facts| facts.checkpoint));
    }
    let checkpoint = found.ok_or_else(|| missing(group, &format!("no checkpoint {id}")))?;
    judge(group, &checkpoint, pick, false)?.map_err(|lacking| lacking.to_error(group, &checkpoint))
}

/// The newest checkpoint of a moment that has everybody it should have.
fn newest(group: &KeptGroup, moment: Moment, pick: &Pick) -> Result<GroupCut> {
    let (query, what) = moment.query();
    let undamaged = query.undamaged;
    let mut best: Option<GroupCut> = None;
    let mut incomplete: Option<OperationError> = None;
    // No journal need hold them all: who joined later lacks the old ones, who has left the new ones.
    for vm in group.all().filter(|vm| vm.journal().is_some()) {
        let found =
            first_of(vm, query.clone(), |checkpoint| match judge(group, checkpoint, pick, undamaged)? {
                Ok(cut) => Ok(Some(cut)),
                Err(lacking) => {
                    incomplete.get_or_insert_with(|| lacking.to_error(group, checkpoint));
                    Ok(None)
                }
            })?;
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| found.cut > best.cut)
        {
            best = Some(found);
        }
    }
    best.ok_or_else(|| incomplete.unwrap_or_else(|| missing(group, &what)))
}

/// Whom a checkpoint lacks of those that are meant.
struct Lacking {
    holders: Vec<String>,
    named: Vec<VmId>,
}

impl Lacking {
    fn to_error(&self, group: &KeptGroup, checkpoint: &Checkpoint) -> OperationError {
        let words = if checkpoint.tag.is_empty() { String::new() } else { format!(" ({})", checkpoint.tag) };
        let absent: Vec<_> = group.members.iter().filter(|vm| !self.holders.contains(&vm.name())).collect();
        let named: Vec<_> = self.named.iter().map(VmId::to_string).collect();
        let lacks: Vec<_> = absent.iter().map(|vm| vm.name()).chain(named).collect();
        OperationError::unavailable(format!(
            "checkpoint {}{words} of group {} is of {} VMs and can be opened for {} of them ({}), not for {}; \
             give `--vm NAME` for each that is to be opened",
            checkpoint.id,
            group.label(),
            checkpoint.members,
            self.holders.len(),
            self.holders.join(", "),
            if lacks.is_empty() { "one that is not kept here any more".to_owned() } else { lacks.join(", ") }
        ))
    }
}

/// Whether a checkpoint has everybody who is meant: the cut, or whom it lacks. With `undamaged` whose checkpoint is damaged
/// does not have it.
fn judge(
    group: &KeptGroup,
    checkpoint: &Checkpoint,
    pick: &Pick,
    undamaged: bool,
) -> Result<std::result::Result<GroupCut, Lacking>> {
    let (mut holders, mut damaged) = (Vec::new(), Vec::new());
    for vm in group.all() {
        let Some(journal) = vm.journal() else { continue };
        let Some(facts) = journal.checkpoint(checkpoint.id).map_err(unreadable)? else { continue };
        if facts.damaged_bytes == 0 || !undamaged {
            holders.push(vm.clone());
        }
        if facts.damaged_bytes > 0 {
            damaged.push((vm.id(), facts.damaged_bytes));
        }
    }
    let members = usize::from(checkpoint.members);
    let ids: Vec<_> = holders.iter().map(|vm| vm.id()).collect();
    let lacking = |named: Vec<VmId>| Lacking { holders: holders.iter().map(|vm| vm.name()).collect(), named };
    let vms: Vec<_> = match pick {
        Pick::All if ids.len() < members => return Ok(Err(lacking(Vec::new()))),
        Pick::All => holders.clone(),
        Pick::Only(only) => {
            let absent: Vec<_> = only.iter().filter(|id| !ids.contains(id)).copied().collect();
            if !absent.is_empty() {
                return Ok(Err(lacking(absent)));
            }
            holders.iter().filter(|vm| only.contains(&vm.id())).cloned().collect()
        }
        Pick::Without(without) => {
            let absent = without.iter().filter(|id| !ids.contains(id)).count();
            let rest: Vec<_> = holders.iter().filter(|vm| !without.contains(&vm.id())).cloned().collect();
            if ids.len() + absent < members || rest.is_empty() {
                return Ok(Err(lacking(Vec::new())));
            }
            rest
        }
    };
    let others = group.members.iter().filter(|vm| {
        let then = ids.contains(&vm.id());
        let named = matches!(pick, Pick::Without(without) if without.contains(&vm.id()));
        (then || named) && !vms.iter().any(|chosen| chosen.id() == vm.id())
    });
    let left_out = explain(others);
    let former = vms.iter().filter(|vm| vm.record().left.is_some());
    let former = former.map(|vm| format!("VM {} has left the group since", vm.name()));
    let damaged = vms.iter().filter_map(|vm| {
        let (_, bytes) = damaged.iter().find(|(id, _)| *id == vm.id())?;
        Some(format!("{bytes} bytes of VM {} are damaged there: reading them fails", vm.name()))
    });
    let notes = former.chain(damaged).collect();
    Ok(Ok(GroupCut { cut: checkpoint.cut, vms, left_out, notes }))
}

fn missing(group: &KeptGroup, what: &str) -> OperationError {
    OperationError::not_found(format!(
        "{what} of group {}; `holdfast checkpoint list --vm NAME` shows what each of its VMs has",
        group.label()
    ))
}

fn unreadable(error: journal::CheckpointError) -> OperationError {
    OperationError::unavailable(with_sources(&error))
}
