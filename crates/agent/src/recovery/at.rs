//! Which cut an operator means by `latest`, a checkpoint's id, a time or a tag.

use super::vm::RecoveredVm;
use crate::clock;
use crate::error::{OperationError, Result};
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, WallTime, WriteSeq};

/// Finds the cut all of `vms` can be opened at.
pub(super) fn resolve(vms: &[Arc<RecoveredVm>], at: &str) -> Result<WriteSeq> {
    if at == "latest" {
        return tail(vms);
    }
    let common = common_checkpoints(vms)?;
    let missing = |what: String| {
        OperationError::not_found(format!("{what}; `holdfast checkpoint list` shows what there is"))
    };
    let found = if let Ok(id) = at.parse::<CheckpointId>() {
        common
            .into_iter()
            .find(|checkpoint| checkpoint.id == id)
            .ok_or_else(|| missing(format!("no checkpoint {id}")))
    } else if let Some(time) = clock::from_text(at) {
        newest_at_or_before(common, time).ok_or_else(|| missing(format!("no checkpoint at or before {at}")))
    } else {
        let tagged =
            common.into_iter().rev().find(|checkpoint| !checkpoint.tag.is_empty() && checkpoint.tag == at);
        tagged.ok_or_else(|| {
            missing(format!("no checkpoint tagged {at:?} (and it is no id, time or `latest`)"))
        })
    };
    found.map(|checkpoint| checkpoint.cut)
}

/// The newest cut durable and consistent in every stream.
fn tail(vms: &[Arc<RecoveredVm>]) -> Result<WriteSeq> {
    let journals = vms.iter().map(|vm| journal_of(vm)).collect::<Result<Vec<_>>>()?;
    journal::newest_common_cut(&journals).map_err(|at| {
        let name = vms[at].name();
        OperationError::unavailable(format!(
            "VM {name} has no consistent state yet: its initial sync is not done"
        ))
    })
}

/// Checkpoints that every VM has and that are complete, oldest first.
fn common_checkpoints(vms: &[Arc<RecoveredVm>]) -> Result<Vec<Checkpoint>> {
    let mut common: Option<Vec<Checkpoint>> = None;
    for vm in vms {
        let own: Vec<Checkpoint> = journal_of(vm)?
            .with_timeline(|timeline| timeline.checkpoints_after(WriteSeq::ZERO).cloned().collect());
        common = Some(match common {
            None => own,
            Some(so_far) => so_far
                .into_iter()
                .filter(|one| own.binary_search_by_key(&one.cut, |other| other.cut).is_ok())
                .collect(),
        });
    }
    Ok(common.unwrap_or_default())
}

fn newest_at_or_before(checkpoints: Vec<Checkpoint>, time: WallTime) -> Option<Checkpoint> {
    checkpoints.into_iter().rev().find(|checkpoint| checkpoint.taken_at <= time)
}

pub(super) fn journal_of(vm: &RecoveredVm) -> Result<Arc<journal::Journal>> {
    vm.journal().ok_or_else(|| {
        OperationError::unavailable(format!(
            "the journal of VM {} is not open; `holdfast status` says why",
            vm.name()
        ))
    })
}
