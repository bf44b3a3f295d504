//! Disks that lie: each kind of damage is found, named with its place, contained, and never given to a
//! reader as if it were good.
#![allow(clippy::unwrap_used, reason = "a test")]

mod before_images;
mod checkpoints;
mod copies;
mod demand;
mod found;
mod indexes;
mod left_out;
mod made_good;
mod met;
mod open_images;
mod open_segments;
mod pieces;
mod replicas;
#[path = "../stream/mod.rs"]
mod stream;
mod unreadable;
mod untold;

use journal::{Damage, FoldError, Journal, Scrubbed, Settings, Upkeep};
use sim::SimStore;
use std::sync::Arc;
use stream::{SMALL, Stream, append, compare, create, cuts, keep_up, read_all};
use types::WallTime;

/// A few batches a segment, so that a short history has several of them.
pub(crate) const SEGMENTS: Settings = Settings { segment_bytes: 40 << 10, ..SMALL };

/// A journal of `count` writes with a checkpoint each, all footers written, and the disk it lies on.
pub(crate) fn sealed(count: u64) -> (SimStore, Stream) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = Stream::begin();
    for number in 0..count {
        stream.write(number * 512, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(&journal, count);
    (store, stream)
}

pub(crate) fn open(store: &SimStore) -> Journal {
    Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap().journal
}

/// Scrubs everything once.
pub(crate) fn scrub_all(journal: &Journal) -> Scrubbed {
    try_scrub(journal).unwrap()
}

/// The same, on a disk that may fail.
pub(crate) fn try_scrub(journal: &Journal) -> Result<Scrubbed, FoldError> {
    let mut all = Scrubbed::default();
    let mut place = None;
    loop {
        let step = journal.scrub(place, &Upkeep::plain(WallTime(0), [5; 16]))?;
        all.damage.extend(step.damage);
        all.rebuilt += step.rebuilt;
        all.mended.extend(step.mended);
        all.lost.extend(step.lost);
        all.bytes += step.bytes;
        match step.place {
            Some(next) => place = Some(next),
            None => return Ok(all),
        }
    }
}

/// Every checkpoint either reads as it was, or its reading is refused. How many read well.
pub(crate) fn good_or_refused(journal: &Journal, stream: &Stream) -> usize {
    let mut good = 0;
    for cut in cuts(journal) {
        let (_, expected) = stream.states.iter().find(|(at, _)| *at == cut).unwrap();
        match read_all(journal, cut) {
            Ok(found) => {
                assert!(found == *expected, "checkpoint {cut} is given out wrong");
                good += 1;
            }
            Err(error) => {
                let told = error.to_string();
                assert!(
                    told.contains("segment-") || told.contains("disk vda at byte"),
                    "{told} names its place"
                );
            }
        }
    }
    good
}

/// Bytes of writes whose batch has two frames, so that one may be good where the other is not.
pub(crate) const LARGE: u64 = 72 << 10;

/// Sixteen writes, to blocks of their own but for one, with a checkpoint each.
pub(crate) fn written(journal: &Journal) -> Stream {
    let mut stream = Stream::begin();
    for number in 0..16 {
        let len = if number == 4 { LARGE } else { 6000 };
        let block = if number == 8 { 5 } else { number };
        stream.write(block << 16, &vec![number as u8 + 1; len as usize]);
        stream.checkpoint();
        append(journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(journal, 20);
    stream
}

/// A journal of such writes, of which something rots; that is found, contained, and made good by a
/// sync of what differs. How many checkpoints there are then.
pub(crate) fn made_good(spoil: impl Fn(&SimStore)) -> (SimStore, Stream, Journal, usize) {
    let (store, stream, journal, kept, _) = found_and_made_good(spoil);
    (store, stream, journal, kept)
}

/// As [`made_good`], with what was found.
pub(crate) fn found_and_made_good(
    spoil: impl Fn(&SimStore),
) -> (SimStore, Stream, Journal, usize, Vec<Damage>) {
    let store = SimStore::new();
    let journal = create(&store, SEGMENTS);
    let mut stream = written(&journal);
    // What is in memory since is good, and is not to be taken for what the disk has.
    compare(&journal, &stream.states);
    spoil(&store);
    let found = scrub_all(&journal).damage;
    assert!(!found.is_empty());
    let kept = make_good(&journal, &mut stream, 100);
    (store, stream, journal, kept, found)
}

pub(crate) fn make_good(journal: &Journal, stream: &mut Stream, at_seconds: u64) -> usize {
    stream.delta_sync(journal);
    stream.checkpoint();
    append(journal, stream.batch(), at_seconds, at_seconds as u8);
    keep_up(journal, at_seconds);
    assert_eq!(scrub_all(journal).damage, Vec::new(), "nothing new");
    compare(journal, &stream.states)
}

pub(crate) const WITH_LARGE: &str = "segment-00000002";

/// It has four batches.
pub(crate) const WITH_SMALL: &str = "segment-00000003";

pub(crate) const BATCHES_AT: [u64; 4] = [8192, 16384, 24576, 32768];

/// In an envelope, in the tables behind it, and in a frame.
pub(crate) const IN_A_BATCH: [u64; 3] = [20, 200, 3000];
