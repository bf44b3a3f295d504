//! Merging: extents of several sorted sources as one sorted stream.

use crate::extent::{Extent, SortKey, Width};
use crate::run::{Guide, Run, RunError};
use crate::store::Store;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Pages of a run read at once.
const PAGES_AHEAD: usize = 64;

/// A source of extents in the order of a run.
pub(crate) enum Source {
    Memory(std::vec::IntoIter<Extent>),
    Run { run: Arc<Run>, guide: Arc<Guide>, pages: Range<usize>, read: VecDeque<Extent> },
}

impl Source {
    /// The run's extents of one width.
    pub(crate) fn of_run(run: Arc<Run>, width: Width, store: &dyn Store) -> Result<Self, RunError> {
        let guide = run.guide(store)?;
        let pages = guide.pages_of(width);
        Ok(Self::Run { run, guide, pages, read: VecDeque::new() })
    }

    fn next(&mut self) -> Result<Option<Extent>, RunError> {
        match self {
            Self::Memory(extents) => Ok(extents.next()),
            Self::Run { run, guide, pages, read } => {
                if read.is_empty() && pages.start < pages.end {
                    let count = PAGES_AHEAD.min(pages.len());
                    let mut extents = Vec::new();
                    run.read_pages(guide, pages.start, count, &mut extents)?;
                    pages.start += count;
                    read.extend(extents);
                }
                Ok(read.pop_front())
            }
        }
    }
}

/// Several sources as one.
pub(crate) struct Merge {
    sources: Vec<Source>,
    heads: BinaryHeap<Reverse<(SortKey, usize)>>,
    waiting: Vec<Option<Extent>>,
}

impl Merge {
    pub(crate) fn new(mut sources: Vec<Source>) -> Result<Self, RunError> {
        let mut heads = BinaryHeap::with_capacity(sources.len());
        let mut waiting = Vec::with_capacity(sources.len());
        for (at, source) in sources.iter_mut().enumerate() {
            let first = source.next()?;
            heads.extend(first.map(|extent| Reverse((extent.sort_key(), at))));
            waiting.push(first);
        }
        Ok(Self { sources, heads, waiting })
    }

    pub(crate) fn next(&mut self) -> Result<Option<Extent>, RunError> {
        let Some(Reverse((_, at))) = self.heads.pop() else { return Ok(None) };
        let next = self.sources[at].next()?;
        self.heads.extend(next.map(|extent| Reverse((extent.sort_key(), at))));
        Ok(std::mem::replace(&mut self.waiting[at], next))
    }
}
