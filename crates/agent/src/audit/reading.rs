//! Reading the record: the newest first, each change with how it ended.

use super::line::{Asked, Door, Ended, Line};
use super::log::{each_line, files};
use crate::clock;
use anyhow::{Context, Result};
use api::{AuditEntry, AuditOutcome, AuditPage};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use types::WallTime;

#[derive(Debug, Clone, Default)]
pub(crate) struct AuditQuery {
    /// Asked for at this time or later.
    pub(crate) since: Option<WallTime>,
    /// Only what was asked for before this one.
    pub(crate) before: Option<u64>,
    pub(crate) limit: usize,
}

impl AuditQuery {
    fn wants(&self, asked: &Asked) -> bool {
        let is_old = self.since.is_some_and(|since| clock::from_text(&asked.at).is_some_and(|at| at < since));
        !is_old && self.before.is_none_or(|before| asked.number < before)
    }
}

/// A page of the record in a folder.
///
/// # Errors
/// Where a file of it cannot be read.
pub(super) fn list(folder: &Path, query: &AuditQuery) -> Result<AuditPage> {
    let mut kept: VecDeque<(Asked, Option<Ended>)> = VecDeque::new();
    let files = match files(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.with_context(|| format!("list {}", folder.display()))?,
    };
    for (_, path) in files {
        let take = |line| match line {
            Line::Asked(asked) if query.wants(&asked) => {
                kept.push_back((asked, None));
                if kept.len() > query.limit + 1 {
                    kept.pop_front();
                }
            }
            Line::Asked(_) => {}
            Line::Ended(ended) => {
                if let Some(row) = kept.iter_mut().rev().find(|row| row.0.number == ended.number) {
                    row.1 = Some(ended);
                }
            }
        };
        match each_line(&path, take) {
            // Thrown away meanwhile, for it was the oldest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("read {}", path.display()))?,
        }
    }
    let has_more = kept.len() > query.limit;
    let rows = kept.into_iter().skip(usize::from(has_more)).rev().map(|(asked, ended)| to_api(asked, ended));
    let entries = rows.collect::<Vec<_>>();
    let next = entries.last().filter(|_| has_more).map(|last| last.id.clone());
    Ok(AuditPage { entries, next })
}

fn to_api(asked: Asked, ended: Option<Ended>) -> AuditEntry {
    let outcome = match ended.as_ref().map(|ended| ended.status) {
        None => AuditOutcome::Unknown,
        Some(None) => AuditOutcome::Left,
        Some(Some(200..300)) => AuditOutcome::Done,
        Some(Some(400..500)) => AuditOutcome::Refused,
        Some(Some(_)) => AuditOutcome::Failed,
    };
    AuditEntry {
        id: asked.number.to_string(),
        at: asked.at,
        door: match asked.door {
            Door::Socket => "socket".into(),
            Door::Tcp => "tcp".into(),
        },
        who: asked.who,
        fingerprint: asked.fingerprint,
        from: asked.from,
        role: asked.role.map(|role| role.to_string()),
        method: asked.method,
        path: asked.path,
        outcome,
        status: ended.as_ref().and_then(|ended| ended.status),
        operation: ended.as_ref().and_then(|ended| ended.operation.clone()),
        ended_at: ended.map(|ended| ended.at),
    }
}
