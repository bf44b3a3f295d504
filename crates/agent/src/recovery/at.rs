//! Which cut of one VM an operator means by `latest`, a checkpoint's id, a time or a tag.

use super::life::{Lease, not_usable};
use super::vm::RecoveredVm;
use crate::clock;
use crate::error::{OperationError, Result};
use joint::choice::At;
use joint::life::{Refused, Use};
use journal::{CheckpointError, CheckpointQuery, Journal};
use std::sync::Arc;
use types::{Checkpoint, CheckpointId, WallTime, WriteSeq};

/// A moment as an operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Moment {
    Latest,
    Id(CheckpointId),
    /// The newest checkpoint taken at this time or before.
    At(WallTime, String),
    /// The newest checkpoint with these words.
    Tag(String),
}

impl Moment {
    pub(super) fn parse(at: &str) -> Self {
        if at == "latest" {
            return Self::Latest;
        }
        if let Ok(id) = at.parse() {
            return Self::Id(id);
        }
        match clock::from_text(at) {
            Some(time) => Self::At(time, at.to_owned()),
            None => Self::Tag(at.to_owned()),
        }
    }

    /// The same, as the cut of a group is chosen by it.
    pub(super) fn at(&self) -> At {
        match self {
            Self::Latest => At::Latest,
            Self::Id(id) => At::Id(*id),
            Self::At(time, _) => At::Time(*time),
            Self::Tag(tag) => At::Tag(tag.clone()),
        }
    }

    /// Asks a journal for the checkpoints it may be, best first; and what to say where there is none.
    pub(super) fn query(self) -> (CheckpointQuery, String) {
        let newest =
            CheckpointQuery { newest_first: true, limit: ROWS_AT_ONCE, ..CheckpointQuery::default() };
        let undamaged = CheckpointQuery { undamaged: true, ..newest.clone() };
        match self {
            // Between checkpoints the hosts of a group have no order among themselves.
            Self::Latest => (undamaged, "no checkpoint that all hosts have made".to_owned()),
            Self::Id(id) => {
                let after = Some(id.0.previous());
                let query = CheckpointQuery { after, limit: 1, ..CheckpointQuery::default() };
                (query, format!("no checkpoint {id}"))
            }
            Self::At(time, text) => (
                CheckpointQuery { to: Some(time), ..undamaged },
                format!("no checkpoint at or before {text}"),
            ),
            Self::Tag(tag) => {
                let what = format!("no checkpoint tagged {tag:?} (and it is no id, time or `latest`)");
                (CheckpointQuery { tag: Some(tag), ..newest }, what)
            }
        }
    }
}

/// Why a VM cannot be opened at its newest state; none where it can.
pub(super) fn hindrance(vm: &RecoveredVm) -> Option<String> {
    let journal = match journal_of(vm) {
        Ok(journal) => journal,
        Err(error) => return Some(error.detail),
    };
    if journal.newest_consistent(WriteSeq::MAX).is_some() {
        return None;
    }
    let name = vm.name();
    let any = CheckpointQuery { limit: 1, ..CheckpointQuery::default() };
    Some(match journal.checkpoints(&any).rows.is_empty() {
        true => format!("VM {name} has no consistent state yet: its initial sync is not done"),
        false => format!(
            "every state of VM {name} that is kept is damaged; `holdfast checkpoint list --vm {name}` shows how much of \
             each, and its id opens one all the same"
        ),
    })
}

/// Finds the cut a VM can be opened at.
pub(super) fn resolve(vm: &Arc<RecoveredVm>, at: &str) -> Result<WriteSeq> {
    let moment = Moment::parse(at);
    if moment == Moment::Latest && !vm.record().spans_hosts {
        return journal_of(vm)?.newest_consistent(WriteSeq::MAX).ok_or_else(|| {
            OperationError::unavailable(
                hindrance(vm).unwrap_or_else(|| "its state has just changed".to_owned()),
            )
        });
    }
    let id = if let Moment::Id(id) = &moment { Some(*id) } else { None };
    let (query, what) = moment.query();
    let fits = |checkpoint: &Checkpoint| id.is_none_or(|id| checkpoint.id == id);
    let journal = journal_of(vm)?;
    let (found, mut unread) =
        look_for(&journal, query, |checkpoint| fits(checkpoint).then_some(checkpoint.cut));
    // Of what cannot be read nobody knows whether it would be taken.
    if let Some(error) = unread.pop().filter(|_| found.is_none()) {
        return Err(OperationError::unavailable(error.to_string()));
    }
    found.ok_or_else(|| {
        OperationError::not_found(format!(
            "{what}; `holdfast checkpoint list --vm {}` shows what there is",
            vm.name()
        ))
    })
}

/// When the newest checkpoint at or below a cut was taken, where that can be told.
pub(super) fn time_of(journal: &Journal, cut: WriteSeq) -> Option<String> {
    let after = Some(cut.next());
    let query = CheckpointQuery { newest_first: true, limit: 1, after, ..CheckpointQuery::default() };
    journal.checkpoints(&query).rows.first().map(|facts| clock::to_text(facts.checkpoint.taken_at))
}

/// What is to be said of a VM whose newest checkpoint of a moment was not taken, because some of it cannot be read. It may be
/// newer by days: four kilobytes that have rotted, and that nothing was written over since, are enough.
pub(super) fn passed_over(vm: &RecoveredVm, cut: WriteSeq, moment: &Moment) -> Option<String> {
    let to = match moment {
        Moment::Latest => None,
        Moment::At(time, _) => Some(*time),
        Moment::Id(_) | Moment::Tag(_) => return None,
    };
    let query = CheckpointQuery { newest_first: true, limit: 1, to, ..CheckpointQuery::default() };
    let journal = vm.journal()?;
    let newest = journal.checkpoints(&query).rows.into_iter().next()?;
    if newest.checkpoint.cut <= cut || newest.damaged_bytes == 0 {
        return None;
    }
    let whole = CheckpointQuery { undamaged: true, to: None, after: Some(cut.next()), ..query };
    let whole = journal.checkpoints(&whole).rows.into_iter().next();
    let instead = whole.map_or_else(
        || "from before its first checkpoint".to_owned(),
        |whole| format!("at or after {}", clock::to_text(whole.checkpoint.taken_at)),
    );
    Some(format!(
        "VM {} has a newer state, of {}, which is not taken because {} bytes of it are damaged; what is opened is {instead}. \
         `--at {}` opens the newer one, in which reading those bytes fails",
        vm.name(),
        clock::to_text(newest.checkpoint.taken_at),
        newest.damaged_bytes,
        newest.checkpoint.id
    ))
}

/// Rows looked at before more are asked for.
const ROWS_AT_ONCE: usize = 64;

/// What `take` makes of the first checkpoint in the query's order that it takes, and what may hold others before it that
/// cannot be read.
pub(super) fn look_for<T>(
    journal: &Journal,
    mut query: CheckpointQuery,
    mut take: impl FnMut(&Checkpoint) -> Option<T>,
) -> (Option<T>, Vec<CheckpointError>) {
    let mut unread = Vec::new();
    loop {
        let found = journal.checkpoints(&query);
        unread.extend(found.unread);
        if let Some(taken) = found.rows.iter().find_map(|row| take(&row.checkpoint)) {
            return (Some(taken), unread);
        }
        match found.rows.last() {
            Some(last) if found.rows.len() >= query.limit && query.newest_first => {
                query.after = Some(last.checkpoint.cut);
            }
            _ => return (None, unread),
        }
    }
}

pub(super) fn journal_of(vm: &RecoveredVm) -> Result<Lease> {
    lease_of(vm, Use::Look)
}

/// Its journal for a use of it, as long as it is open.
pub(super) fn lease_of(vm: &RecoveredVm, what: Use) -> Result<Lease> {
    vm.lease(what).map_err(|refused| match refused {
        Refused::State(state) => OperationError::unavailable(not_usable(&vm.name(), state)),
        Refused::Images => unreachable!("images hinder nobody who uses a journal"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_latest_an_id_a_time_or_a_tag() {
        assert_eq!(Moment::parse("latest"), Moment::Latest);
        assert_eq!(Moment::parse("1-3"), Moment::Id("1-3".parse().unwrap()));
        let time = "2026-01-31T12:00:00Z";
        assert_eq!(Moment::parse(time), Moment::At(clock::from_text(time).unwrap(), time.into()));
        assert_eq!(Moment::parse("before"), Moment::Tag("before".into()));
    }
}
