//! Which cut an operator means by `latest`, a checkpoint's id, a time or a tag.

use super::vm::RecoveredVm;
use crate::clock;
use crate::error::{OperationError, Result};
use journal::CheckpointQuery;
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, WriteSeq};

/// Finds the cut all of `vms` can be opened at.
pub(super) fn resolve(vms: &[Arc<RecoveredVm>], at: &str) -> Result<WriteSeq> {
    let across = vms.iter().any(|vm| vm.record().spans_hosts);
    if at == "latest" && !across {
        return tail(vms);
    }
    let missing = |what: String| {
        OperationError::not_found(format!("{what}; `holdfast checkpoint list` shows what there is"))
    };
    let newest = CheckpointQuery { newest_first: true, limit: ROWS_AT_ONCE, ..CheckpointQuery::default() };
    let (query, what) = if let Ok(id) = at.parse::<CheckpointId>() {
        let after = Some(id.0.previous());
        let found = newest_common(vms, CheckpointQuery { after, limit: 1, ..CheckpointQuery::default() })?;
        let found = found.filter(|checkpoint| checkpoint.id == id);
        return found.map(|checkpoint| checkpoint.cut).ok_or_else(|| missing(format!("no checkpoint {id}")));
    } else if at == "latest" {
        // Between checkpoints the hosts of the group have no order among themselves.
        (newest, "no checkpoint that all hosts of the group have made".to_owned())
    } else if let Some(time) = clock::from_text(at) {
        (CheckpointQuery { to: Some(time), ..newest }, format!("no checkpoint at or before {at}"))
    } else {
        let what = format!("no checkpoint tagged {at:?} (and it is no id, time or `latest`)");
        (CheckpointQuery { tag: Some(at.to_owned()), ..newest }, what)
    };
    let found = newest_common(vms, query)?.ok_or_else(|| missing(what))?;
    Ok(found.cut)
}

/// Rows looked at before more are asked for.
const ROWS_AT_ONCE: usize = 64;

/// The first checkpoint in the query's order that every VM has.
fn newest_common(vms: &[Arc<RecoveredVm>], mut query: CheckpointQuery) -> Result<Option<Checkpoint>> {
    let journals = vms.iter().map(|vm| journal_of(vm)).collect::<Result<Vec<_>>>()?;
    let Some((first, others)) = journals.split_first() else { return Ok(None) };
    let unreadable = |error| OperationError::unavailable(crate::source::with_sources(&error));
    loop {
        let rows = first.checkpoints(&query).map_err(unreadable)?;
        let Some(last) = rows.last() else { return Ok(None) };
        query.after = Some(last.checkpoint.cut);
        for row in &rows {
            let mut everywhere = true;
            for journal in others {
                everywhere &= journal.checkpoint(row.checkpoint.id).map_err(unreadable)?.is_some();
            }
            if everywhere {
                return Ok(Some(row.checkpoint.clone()));
            }
        }
        if rows.len() < query.limit || !query.newest_first {
            return Ok(None);
        }
    }
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

pub(super) fn journal_of(vm: &RecoveredVm) -> Result<Arc<journal::Journal>> {
    vm.journal().ok_or_else(|| {
        let name = vm.name();
        OperationError::unavailable(match vm.moving() {
            Some(_) => format!("the journal of VM {name} is being moved: wait until it is there"),
            None => format!("the journal of VM {name} is not open; `holdfast status` says why"),
        })
    })
}
