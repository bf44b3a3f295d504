//! The cut of a whole group that an operator means, and whom it has: what [`joint::choice`] decides, asked of the journals
//! that are open here, and told in an operator's words.

use super::at::{Moment, hindrance, look_for, passed_over};
use super::groups::KeptGroup;
use super::life::Lease;
use super::vm::RecoveredVm;
use crate::clock;
use crate::error::{OperationError, Result, with_sources};
use joint::choice::{At, Chosen, Held, Journals, Lacking, NotChosen, Pick, choose};
use std::collections::BTreeMap;
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
    let moment = Moment::parse(at);
    let at = moment.at();
    let chosen = choose(&group.kept(), spans_hosts, &at, pick, &Open::of(group, &moment));
    let chosen = chosen.map_err(|why| to_error(group, &moment, why))?;
    let is_tail = at == At::Latest && !spans_hosts;
    let mut found = to_cut(group, chosen, is_tail);
    let passed_over = found.vms.iter().filter_map(|vm| passed_over(vm, found.cut, &moment));
    let passed_over: Vec<_> = passed_over.collect();
    found.notes.extend(passed_over);
    Ok(found)
}

/// The journals of a group that are open, and stay so while they are asked.
struct Open<'a> {
    moment: &'a Moment,
    leases: BTreeMap<VmId, Lease>,
}

impl<'a> Open<'a> {
    fn of(group: &KeptGroup, moment: &'a Moment) -> Self {
        let leases = group.all().filter_map(|vm| Some((vm.id(), vm.journal()?))).collect();
        Self { moment, leases }
    }
}

impl Journals for Open<'_> {
    type Error = OperationError;

    fn newest_consistent(&self, vm: VmId, at_most: WriteSeq) -> Option<WriteSeq> {
        self.leases.get(&vm)?.newest_consistent(at_most)
    }

    fn checkpoint(&self, vm: VmId, id: CheckpointId) -> Result<Option<Held>> {
        let Some(journal) = self.leases.get(&vm) else { return Ok(None) };
        let facts = journal.checkpoint(id).map_err(|error| unreadable(&error))?;
        Ok(facts.map(|facts| Held { damaged_bytes: facts.damaged_bytes, checkpoint: facts.checkpoint }))
    }

    fn each(&self, vm: VmId, _: &At, take: &mut dyn FnMut(&Checkpoint) -> bool) -> Result<Option<WriteSeq>> {
        let Some(journal) = self.leases.get(&vm) else { return Ok(None) };
        let (query, _) = self.moment.clone().query();
        let (taken, unread) = look_for(journal, query, |checkpoint| take(checkpoint).then_some(()));
        match (taken, unread.last()) {
            (None, Some(error)) => Err(unreadable(error)),
            _ => Ok(unread.iter().map(|lost| lost.last_cut).max()),
        }
    }
}

fn by_id(group: &KeptGroup, id: VmId) -> &Arc<RecoveredVm> {
    group.all().find(|vm| vm.id() == id).expect("only who is kept is chosen")
}

fn to_cut(group: &KeptGroup, chosen: Chosen, is_tail: bool) -> GroupCut {
    let Chosen { cut, vms, left_out, damaged, untold } = chosen;
    let vms: Vec<_> = vms.into_iter().map(|id| by_id(group, id).clone()).collect();
    let left_out = explain(left_out.into_iter().map(|id| by_id(group, id)));
    if is_tail {
        let notes = vms.iter().filter_map(|vm| held_back_by(vm, &vms)).collect();
        return GroupCut { cut, notes, left_out, vms };
    }
    let former = vms.iter().filter(|vm| vm.record().left.is_some());
    let former = former.map(|vm| format!("VM {} has left the group since", vm.name()));
    let damaged = damaged.into_iter().map(|(id, bytes)| {
        format!("{bytes} bytes of VM {} are damaged there: reading them fails", by_id(group, id).name())
    });
    let untold = untold.into_iter().map(|id| {
        let name = by_id(group, id).name();
        format!(
            "VM {name} may have newer checkpoints, but a part of their list is lost: this is the newest that can be told \
             of all; `holdfast checkpoint list --vm {name}` says which"
        )
    });
    let notes = former.chain(damaged).chain(untold).collect();
    GroupCut { cut, vms, left_out, notes }
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

fn explain<'a>(vms: impl IntoIterator<Item = &'a Arc<RecoveredVm>>) -> Vec<(Arc<RecoveredVm>, String)> {
    let why = |vm: &Arc<RecoveredVm>| hindrance(vm).unwrap_or_else(|| "not asked for".to_owned());
    vms.into_iter().map(|vm| (vm.clone(), why(vm))).collect()
}

fn to_error(group: &KeptGroup, moment: &Moment, why: NotChosen<OperationError>) -> OperationError {
    match why {
        NotChosen::Nobody => OperationError::unavailable(format!(
            "no VM of group {} is left to be opened at its newest state; its former members can be opened at a \
             checkpoint: `holdfast checkpoint list` shows them",
            group.label()
        )),
        NotChosen::Hindered(vms) => held_up(group, &vms),
        NotChosen::NothingInCommon(id) => {
            let name = by_id(group, id).name();
            OperationError::unavailable(format!(
                "VM {name} has no state that the others have too; name it with `--without {name}`"
            ))
        }
        NotChosen::Missing => missing(group, &moment.clone().query().1),
        NotChosen::Lacking(lacking) => lacks(group, &lacking),
        NotChosen::Unread(error) => error,
    }
}

fn held_up(group: &KeptGroup, hindered: &[VmId]) -> OperationError {
    let hindered: Vec<_> = hindered.iter().map(|id| by_id(group, *id)).collect();
    let why = |vm: &&Arc<RecoveredVm>| {
        hindrance(vm).unwrap_or_else(|| format!("the state of VM {} has just changed", vm.name()))
    };
    let why: Vec<_> = hindered.iter().map(why).collect();
    let words: Vec<_> = hindered.iter().map(|vm| format!("--without {}", vm.name())).collect();
    OperationError::unavailable(format!(
        "{}; give `{}` to fail the others of group {} over without, or `--at` a checkpoint from before",
        why.join("; "),
        words.join(" "),
        group.name
    ))
}

fn lacks(group: &KeptGroup, lacking: &Lacking) -> OperationError {
    let Lacking { checkpoint, holders, named } = lacking;
    let words = if checkpoint.tag.is_empty() { String::new() } else { format!(" ({})", checkpoint.tag) };
    let absent = group.members.iter().filter(|vm| !holders.contains(&vm.id())).map(|vm| vm.name());
    let lacks: Vec<_> = absent.chain(named.iter().map(VmId::to_string)).collect();
    let holders: Vec<_> = holders.iter().map(|id| by_id(group, *id).name()).collect();
    OperationError::unavailable(format!(
        "checkpoint {}{words} of group {} is of {} VMs and can be opened for {} of them ({}), not for {}; \
         give `--vm NAME` for each that is to be opened",
        checkpoint.id,
        group.label(),
        checkpoint.members,
        holders.len(),
        holders.join(", "),
        if lacks.is_empty() { "one that is not kept here any more".to_owned() } else { lacks.join(", ") }
    ))
}

fn missing(group: &KeptGroup, what: &str) -> OperationError {
    OperationError::not_found(format!(
        "{what} of group {}; `holdfast checkpoint list --vm NAME` shows what each of its VMs has",
        group.label()
    ))
}

fn unreadable(error: &journal::CheckpointError) -> OperationError {
    OperationError::unavailable(with_sources(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::tests::{PEER, append_sync, append_writes, hello, recovery, rot, rot_writes};
    use journal::CheckpointQuery;

    #[test]
    fn whoever_asks_for_the_newest_is_told_of_a_newer_one_that_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let recovery = recovery(folder.path());
        let (vm, journal) = recovery.admit(&hello(1), PEER).unwrap();
        append_sync(&journal);
        append_writes(&journal);
        let found = |at: &str| {
            let group = recovery.group(&hello(1).group.to_string()).unwrap();
            find(&group, at, &Pick::All).unwrap()
        };
        let newest = journal.newest_checkpoint().unwrap().unwrap().checkpoint;
        assert!(found("latest").notes.is_empty());
        rot_writes(&recovery, &vm);
        let far = clock::to_text(types::WallTime(i64::from(u32::MAX) * 1_000_000));
        for at in ["latest", &far] {
            let GroupCut { cut, notes, .. } = found(at);
            assert!(cut < newest.cut);
            let told = format!("`--at {}` opens the newer one", newest.id);
            assert!(
                notes.len() == 1 && notes[0].contains(" bytes of it are damaged") && notes[0].contains(&told),
                "{notes:?}"
            );
        }
        assert_eq!(found(&newest.id.to_string()).notes.len(), 1, "its damage is told as ever");
    }

    #[test]
    fn what_is_damaged_of_a_vm_is_shown_and_its_images_tell_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let side = recovery(folder.path());
        let (vm, journal) = side.admit(&hello(1), PEER).unwrap();
        assert_eq!(side.vms_to_api()[0].state, "initial-sync");
        append_sync(&journal);
        append_writes(&journal);
        drop(journal);
        rot_writes(&side, &vm);
        let shown = side.vms_to_api().remove(0);
        assert!(shown.state == "following" && shown.damaged_bytes > 0, "{shown:?}");
        let open = |at: &str| {
            let request = api::OpenImageRequest { vm: "vm-1".into(), at: at.into(), writable: false };
            side.open_image(&request).unwrap()
        };
        let at_latest = open("latest");
        let newest = vm.journal().unwrap().checkpoints(&CheckpointQuery {
            newest_first: true,
            limit: 1,
            ..CheckpointQuery::default()
        });
        let newest = newest.rows[0].checkpoint.clone();
        assert!(
            at_latest.notes.len() == 1 && at_latest.notes[0].contains(&newest.id.to_string()),
            "{:?}",
            at_latest.notes
        );
        assert_eq!(at_latest.taken_at, Some(clock::to_text(types::WallTime(1_000_000))));
        assert!(side.list_images()[0].notes.is_empty());
        let at_newest = open(&newest.id.to_string());
        assert_eq!((at_newest.taken_at, at_newest.notes.len()), (Some(clock::to_text(newest.taken_at)), 0));
        rot(&side, &vm, 7);
        let shown = side.vms_to_api().remove(0);
        assert_eq!((shown.state.as_str(), shown.newest_checkpoint, shown.checkpoints), ("damaged", None, 2));
    }
}
