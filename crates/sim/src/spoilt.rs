//! What of a journal may be damaged, told from the pages that were spoilt and not from what the journal says of itself: which
//! bytes may not be readable any more, as of which cuts. Everything else has to be, at every cut.
//!
//! A page costs at most the records of the batches that lie in it, and the two pages of headers those of the whole segment. A
//! write is lost up to the next one over it; a before-image below its write, down to the last one before.

use crate::decayed::Decayed;
use batch::{Batch, Form};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use types::{ByteRange, WriteSeq};

const PAGE_BYTES: u64 = 4096;
const HEADER_PAGES: u64 = 2;
const ENVELOPE_BYTES: usize = 64;

pub(crate) type Record = (WriteSeq, ByteRange);

/// A segment as it was before anything in it was spoilt.
#[derive(Debug)]
struct Segment {
    form: Form,
    /// The pages of each batch and the records in it.
    batches: Vec<(Range<u64>, Vec<Record>)>,
    spoilt: BTreeSet<u64>,
}

impl Segment {
    /// The batches of which a page was spoilt, or all where both headers were.
    fn lost_batches(&self) -> impl Iterator<Item = &(Range<u64>, Vec<Record>)> {
        let has_header = !(0..HEADER_PAGES).all(|page| self.spoilt.contains(&page));
        let is_lost =
            move |pages: &Range<u64>| !has_header || self.spoilt.range(pages.clone()).next().is_some();
        self.batches.iter().filter(move |(pages, _)| is_lost(pages))
    }
}

/// What of the journal of one VM was spoilt, and what was written to it.
#[derive(Debug, Default)]
pub(crate) struct Spoilt {
    segments: BTreeMap<String, Segment>,
    written: Vec<Record>,
    /// What has rotted at any time, and not only where a scrub comes by at once.
    pub(crate) decayed: Decayed,
}

pub(crate) fn records(batch: &Batch) -> impl Iterator<Item = Record> {
    batch.entries().iter().filter(|entry| entry.kind.changes_disk()).map(|entry| (entry.seq, entry.range))
}

/// The batches of a segment file, one behind the other.
fn batches_of(form: Form, content: &[u8]) -> Vec<(Range<u64>, Vec<Record>)> {
    let (mut at, mut found) = (HEADER_PAGES * PAGE_BYTES, Vec::new());
    while let Some(body) = content.get(at as usize + ENVELOPE_BYTES..)
        && let Some(len) = batch::peek_length(body)
        && let Some(body) = body.get(..len)
        && let Ok(batch) = Batch::parse_as(form, body.to_vec().into())
    {
        let end = (at + (ENVELOPE_BYTES + len) as u64).next_multiple_of(PAGE_BYTES);
        found.push((at / PAGE_BYTES..end / PAGE_BYTES, records(&batch).collect()));
        at = end;
    }
    found
}

impl Spoilt {
    /// A batch is durable.
    pub(crate) fn written(&mut self, batch: &Batch) {
        self.written.extend(records(batch));
    }

    /// A page of a segment, which holds this, is about to be spoilt.
    pub(crate) fn page(&mut self, name: &str, content: &[u8], at: u64) {
        let form = if name.starts_with("undo") { Form::Undo } else { Form::Stream };
        let segment = self.segments.entry(name.to_owned()).or_insert_with(|| Segment {
            form,
            batches: batches_of(form, content),
            spoilt: BTreeSet::new(),
        });
        segment.spoilt.insert(at / PAGE_BYTES);
    }

    /// Whether a page of a segment was spoilt.
    pub(crate) fn has_page_of(&self, name: &str) -> bool {
        self.segments.contains_key(name)
    }

    /// Whether some of a range lay in a page that was spoilt, or may have where pages rot at any time.
    pub(crate) fn has_touched(&self, range: ByteRange) -> bool {
        self.decayed.count() > 0
            || self.segments.values().any(|segment| {
                let mut lost = segment.lost_batches().flat_map(|(_, lost)| lost);
                lost.any(|(_, lost)| lost.intersection(range).is_some())
            })
    }

    /// Whether some of a range may not be readable as of a cut.
    pub(crate) fn may_be_lost(&self, range: ByteRange, cut: WriteSeq) -> bool {
        if self.decayed.may_be_lost(range, cut, &self.written) {
            return true;
        }
        self.segments.values().any(|segment| {
            let lost = segment.lost_batches().flat_map(|(_, lost)| lost);
            let mut cuts = lost.map(|(seq, lost)| match segment.form {
                Form::Stream => (*seq <= cut, (*seq, cut), lost),
                Form::Undo => (cut < *seq, (cut, seq.previous()), lost),
            });
            cuts.any(|(is_at, between, lost)| {
                is_at && lost.intersection(range).is_some_and(|part| !self.is_written(part, between))
            })
        })
    }

    /// Whether all of a range was written above the first cut and at or below the second.
    fn is_written(&self, range: ByteRange, between: (WriteSeq, WriteSeq)) -> bool {
        covers(range, written_between(&self.written, between))
    }
}

/// The ranges written above the first cut and at or below the second.
pub(crate) fn written_between(
    written: &[Record],
    (above, upto): (WriteSeq, WriteSeq),
) -> impl Iterator<Item = ByteRange> {
    written.iter().filter(move |(seq, _)| *seq > above && *seq <= upto).map(|(_, range)| *range)
}

/// Whether ranges cover all of one.
pub(crate) fn covers(range: ByteRange, by: impl Iterator<Item = ByteRange>) -> bool {
    let mut parts: Vec<_> = by.filter_map(|one| one.intersection(range)).collect();
    parts.sort_unstable();
    let covered = |upto: u64, part: &ByteRange| match part.start <= upto {
        true => upto.max(part.end()),
        false => upto,
    };
    parts.iter().fold(range.start, covered) == range.end()
}
