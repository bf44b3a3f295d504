//! What may not be readable of a journal in which something rots at any time: told from the bytes that rotted, as the files
//! would hold them, and never from what the journal says of itself.
//!
//! A page of a log costs at most the records of the batches that lie in it. A block of the replica costs the cuts that read it
//! there, and whatever was written to parts of it and brought there before a scrub had come by. An index costs nothing, but
//! until a scrub has come by nothing can be read through it.

use crate::spoilt::{Record, covers, records, written_between};
use crate::store::SimStore;
use batch::{Batch, Form};
use journal::{Manifest, SegmentInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use types::{ByteRange, WriteSeq};

const PAGE_BYTES: u64 = 4096;
const HEADER_PAGES: u64 = 2;
const ENVELOPE_BYTES: usize = 64;

/// What has rotted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rotten {
    Log,
    Index,
    Replica,
    Sums,
    Copy,
}

/// A block of the replica that has rotted.
#[derive(Debug)]
struct Block {
    range: ByteRange,
    /// Before-images of it that there were, which older cuts have.
    images: Vec<Record>,
    /// The replica stood there.
    applied: WriteSeq,
    /// It stood there when a scrub had found it.
    found_at: Option<WriteSeq>,
}

/// All that has rotted of the journal of one VM.
#[derive(Debug, Default)]
pub(crate) struct Decayed {
    /// Records that lay in what rotted, of before-images where that is said.
    logs: BTreeSet<(bool, Record)>,
    blocks: Vec<Block>,
    /// What no whole round of the scrub has come by since, by its number.
    unfound: BTreeMap<u64, Rotten>,
    count: u64,
    /// Where the replica stands.
    pub(crate) applied: WriteSeq,
}

/// A batch of a segment: its pages, the last sequence before it and its own, and its records.
#[derive(Debug)]
pub(crate) struct Placed {
    pages: Range<u64>,
    pub(crate) before: WriteSeq,
    records: Vec<Record>,
}

/// The batches that a segment would hold, one behind the other; `before` is the last sequence before it.
pub(crate) fn placed(store: &SimStore, name: &str, form: Form, mut before: WriteSeq) -> Vec<Placed> {
    let Some(content) = store.truth(name) else { return Vec::new() };
    let (mut at, mut found) = (HEADER_PAGES * PAGE_BYTES, Vec::new());
    while let Some(body) = content.get(at as usize + ENVELOPE_BYTES..)
        && let Some(len) = batch::peek_length(body)
        && let Some(body) = body.get(..len)
        && let Ok(batch) = Batch::parse_as(form, body.to_vec().into())
        && (batch.header().prev_seq == before || form == Form::Undo)
    {
        let end = (at + (ENVELOPE_BYTES + len) as u64).next_multiple_of(PAGE_BYTES);
        let pages = at / PAGE_BYTES..end / PAGE_BYTES;
        found.push(Placed { pages, before, records: records(&batch).collect() });
        before = batch.header().last_seq;
        at = end;
    }
    found
}

/// The segments of a log, with the last sequence before each.
pub(crate) fn segments(manifest: &Manifest, form: Form) -> Vec<(SegmentInfo, String, WriteSeq)> {
    let (log, kind, mut before) = match form {
        Form::Stream => (&manifest.redo, "segment", manifest.base.last_seq),
        Form::Undo => (&manifest.undo, "undo", 0),
    };
    let with_name = |info: &SegmentInfo| {
        let found = (info.clone(), format!("{kind}-{:08}", info.number), WriteSeq::from_raw(before));
        before = info.sealed.as_ref().map_or(before, |sealed| sealed.point.last_seq);
        found
    };
    log.segments.iter().map(with_name).collect()
}

impl Decayed {
    fn note(&mut self, what: Rotten) {
        self.count += 1;
        self.unfound.insert(self.count, what);
    }

    /// How much has rotted until now.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_unfound(&self, what: Rotten) -> bool {
        self.unfound.values().any(|other| *other == what)
    }

    /// Whether anything has rotted that no scrub has come by.
    pub(crate) fn has_unfound(&self) -> bool {
        !self.unfound.is_empty()
    }

    /// A page of a segment has rotted.
    pub(crate) fn log(&mut self, store: &SimStore, name: &str, form: Form, before: WriteSeq, page: u64) {
        let rotten = store.rotten_pages(name);
        let has_header = !(0..HEADER_PAGES).all(|page| rotten.contains(&page));
        for batch in placed(store, name, form, before) {
            if !has_header || batch.pages.contains(&page) {
                self.logs.extend(batch.records.into_iter().map(|record| (form == Form::Undo, record)));
            }
        }
        self.note(Rotten::Log);
    }

    /// A block of the replica has rotted, beside these before-images.
    pub(crate) fn block(&mut self, range: ByteRange, images: impl Iterator<Item = Record>) {
        let images = images.filter(|(_, image)| image.overlaps(range)).collect();
        self.blocks.push(Block { range, images, applied: self.applied, found_at: None });
        self.note(Rotten::Replica);
    }

    /// Something has rotted that costs nothing.
    pub(crate) fn costless(&mut self, what: Rotten) {
        self.note(what);
    }

    /// A round of the scrub that began when so much had rotted has come to its end, with all of the replica or without what
    /// a fold had left half done.
    pub(crate) fn found(&mut self, upto: u64, of_replicas: bool) {
        self.unfound.retain(|at, what| *at > upto || (*what == Rotten::Replica && !of_replicas));
        if !self.is_unfound(Rotten::Replica) {
            let applied = self.applied;
            self.blocks.iter_mut().for_each(|block| block.found_at = block.found_at.or(Some(applied)));
        }
    }

    /// Whether some of a range may not be readable as of a cut, after what was `written`.
    pub(crate) fn may_be_lost(&self, range: ByteRange, cut: WriteSeq, written: &[Record]) -> bool {
        if self.is_unfound(Rotten::Index) {
            return true;
        }
        let lost = |(is_undo, (seq, lost)): &(bool, Record)| {
            let between = if *is_undo { (cut, seq.previous()) } else { (*seq, cut) };
            (cut < *seq) == *is_undo
                && lost
                    .intersection(range)
                    .is_some_and(|part| !covers(part, written_between(written, between)))
        };
        self.logs.iter().any(lost) || self.blocks.iter().any(|block| self.is_lost(block, range, cut, written))
    }

    fn is_lost(&self, block: &Block, range: ByteRange, cut: WriteSeq, written: &[Record]) -> bool {
        let Some(part) = block.range.intersection(range) else { return false };
        let is_whole = |write: ByteRange| write.intersection(block.range) == Some(block.range);
        if written_between(written, (block.applied, cut)).any(is_whole) {
            return false;
        }
        let good_from = block.found_at.unwrap_or(self.applied);
        let images = block.images.iter().filter(|(seq, _)| *seq > cut).map(|(_, image)| *image);
        !covers(part, images.chain(written_between(written, (good_from, cut))))
    }
}

/// The before-images that a journal has.
pub(crate) fn before_images(store: &SimStore, manifest: &Manifest) -> Vec<Record> {
    let batches = segments(manifest, Form::Undo)
        .into_iter()
        .flat_map(|(_, name, before)| placed(store, &name, Form::Undo, before));
    batches.flat_map(|batch| batch.records).collect()
}

/// From where on an opening may miss something because of what has rotted in segments that have no index yet: of the redo log,
/// and of before-images.
pub(crate) fn opening_may_miss(store: &SimStore) -> [Option<WriteSeq>; 2] {
    let Ok(manifest) = Manifest::load(store) else { return [None; 2] };
    [Form::Stream, Form::Undo].map(|form| {
        segments(&manifest, form).into_iter().find_map(|(info, name, before)| {
            if info.sealed.as_ref().is_some_and(|sealed| sealed.footer.is_some()) {
                return None;
            }
            let rotten = store.rotten_pages(&name);
            if (0..HEADER_PAGES).all(|page| rotten.contains(&page)) {
                return Some(before.next());
            }
            let batches = placed(store, &name, form, before);
            let hit = batches.iter().find(|batch| rotten.iter().any(|page| batch.pages.contains(page)));
            hit.map(|batch| batch.before.next())
        })
    })
}
