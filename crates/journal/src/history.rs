//! Which checkpoints and cuts of a journal can be opened, out of its files and its memory.

use crate::checkpoint_files::{CheckpointError, Files};
use crate::checkpoints::{CheckpointFacts, CheckpointQuery};
use crate::lost::Lost;
use crate::state::State;
use types::{CheckpointId, WallTime, WriteSeq};

/// A list of checkpoints.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listed {
    pub rows: Vec<CheckpointFacts>,
    /// Where more may be missing in it.
    pub unread: Vec<CheckpointError>,
}

impl Listed {
    /// The only one there is; an error where what cannot be read may be it.
    fn only(mut self) -> Result<Option<CheckpointFacts>, CheckpointError> {
        match (self.rows.pop(), self.unread.pop()) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }
}

/// Asks for one checkpoint, the newest.
fn newest() -> CheckpointQuery {
    CheckpointQuery { newest_first: true, limit: 1, ..CheckpointQuery::default() }
}

/// What can be opened of a journal now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History<'a> {
    pub(crate) state: &'a State,
}

impl History<'_> {
    /// Checkpoints that can be opened, in the order asked for, at most as many as the query's limit.
    pub(crate) fn checkpoints(&self, query: &CheckpointQuery) -> Listed {
        let (manifest, timeline, thinning, recent) = {
            let shared = self.state.read_shared();
            let frozen = shared.view.redo.frozen.iter().flat_map(|table| &table.checkpoints);
            let recent: Vec<_> = frozen.chain(&shared.redo_table.checkpoints).cloned().collect();
            (shared.manifest.clone(), shared.timeline.clone(), shared.settings.thinning, recent)
        };
        let mut listed = Listed::default();
        let Listed { rows: found, unread } = &mut listed;
        let mut take = |facts: CheckpointFacts| {
            let is_kept =
                || !query.thinned || facts.is_kept(&thinning, self.state.read_shared().age_of(facts.cut()));
            let damaged_bytes = timeline.lost().by_cut().bytes_at(facts.cut());
            let is_wanted = !query.undamaged || damaged_bytes == 0;
            if is_wanted && timeline.is_consistent_checkpoint(facts.cut()) && is_kept() {
                found.push(CheckpointFacts { damaged_bytes, ..facts });
            }
            found.len() < query.limit
        };
        let files = Files { store: &*self.state.store, manifest: &manifest };
        if query.limit == 0 {
            return listed;
        }
        if query.newest_first {
            let recent = recent.into_iter().rev().filter(|facts| query.wants(facts));
            let mut all = true;
            for facts in recent {
                all = take(facts);
                if !all {
                    break;
                }
            }
            if all {
                files.visit(query, unread, &mut take);
            }
        } else if files.visit(query, unread, &mut take) {
            for facts in recent.into_iter().filter(|facts| query.wants(facts)) {
                if !take(facts) {
                    break;
                }
            }
        }
        listed
    }

    /// A checkpoint by its id, if it can be opened; thinned ones too, as long as their data is there.
    pub(crate) fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointFacts>, CheckpointError> {
        let query = CheckpointQuery { after: Some(id.0.previous()), limit: 1, ..CheckpointQuery::default() };
        let Listed { rows, unread } = self.checkpoints(&query);
        let found = rows.into_iter().find(|facts| facts.checkpoint.id == id);
        // Of one that lies behind it nobody knows, either: it was not looked for.
        let of_it = unread.into_iter().find(|lost| lost.first_cut <= id.0 && id.0 <= lost.last_cut);
        match of_it.filter(|_| found.is_none()) {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    /// The newest consistent cut at or below `cut` of which nothing is lost, if there is one.
    pub(crate) fn newest_consistent(&self, cut: WriteSeq) -> Option<WriteSeq> {
        self.newest(cut, true, |_| {})
    }

    /// The newest consistent cut at or below `cut`; an `undamaged` one is one of which nothing is lost. What may hold others,
    /// and cannot be read, is told.
    fn newest(
        &self,
        cut: WriteSeq,
        undamaged: bool,
        mut tell_unread: impl FnMut(CheckpointError),
    ) -> Option<WriteSeq> {
        let timeline = self.state.read_shared().timeline.clone();
        let nothing = Lost::default();
        let lost = if undamaged { timeline.lost() } else { &nothing };
        timeline.newest_consistent(cut, lost, |cut| {
            let after = Some(cut.next());
            let query = CheckpointQuery { after, undamaged, ..newest() };
            // One that cannot be read is none: an older cut is taken.
            let Listed { mut rows, unread } = self.checkpoints(&query);
            unread.into_iter().for_each(&mut tell_unread);
            rows.pop().map(|facts| facts.cut())
        })
    }

    /// Whether the VM can be opened exactly at `cut`; reads of what is lost there fail. An error where only a checkpoint can
    /// be, and those there cannot be read.
    pub(crate) fn is_consistent(&self, cut: WriteSeq) -> Result<bool, CheckpointError> {
        let mut of_it = None;
        let newest = self.newest(cut, false, |lost| {
            of_it = of_it.take().or(Some(lost).filter(|lost| lost.first_cut <= cut && cut <= lost.last_cut));
        });
        match of_it.filter(|_| newest != Some(cut)) {
            Some(error) => Err(error),
            None => Ok(newest == Some(cut)),
        }
    }

    /// The newest checkpoint that can be opened, and of which nothing is lost.
    pub(crate) fn newest_checkpoint(&self) -> Result<Option<CheckpointFacts>, CheckpointError> {
        self.checkpoints(&CheckpointQuery { undamaged: true, ..newest() }).only()
    }

    /// The newest checkpoint taken at or before `time` of which nothing is lost.
    pub(crate) fn nearest_checkpoint(
        &self,
        time: WallTime,
    ) -> Result<Option<CheckpointFacts>, CheckpointError> {
        self.checkpoints(&CheckpointQuery { to: Some(time), undamaged: true, ..newest() }).only()
    }
}
