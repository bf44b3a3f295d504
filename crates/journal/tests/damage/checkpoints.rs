//! The two copies of checkpoint files: rot in one costs nothing, rot in both what is in those pages and is not tagged.

use crate::stream::{SMALL, Stream, append, compare, create, cuts, keep_up};
use crate::{SEGMENTS, scrub_all, sealed, try_scrub};
use journal::{
    CheckpointQuery, Image, ImageError, Journal, Listed, Manifest, PinError, Settings, Store, Upkeep, verify,
};
use sim::{Rng, SimStore};
use std::sync::Arc;
use types::{CheckpointId, CheckpointKind, WallTime, WriteSeq};

const COPIES: [&str; 2] = ["checkpoints-00000001", "checkpoints-00000001-2"];
const ROWS_PER_PAGE: usize = 85;
const PAGE: u64 = 4096;

/// A journal whose checkpoint file has three full pages and one more, with a tagged checkpoint in each; each page's cuts.
fn four_pages() -> (SimStore, Vec<Vec<WriteSeq>>) {
    four_pages_with(|_| {})
}

/// The same, with something more before each write.
fn four_pages_with(more: impl Fn(&mut Stream)) -> (SimStore, Vec<Vec<WriteSeq>>) {
    let store = SimStore::new();
    let journal = create(&store, SMALL);
    let mut stream = Stream::begin();
    for number in 0..3 * ROWS_PER_PAGE + 20 {
        more(&mut stream);
        stream.write(number as u64 % 64 * 512, &[number as u8; 512]);
        stream.tagged_checkpoint(if number % ROWS_PER_PAGE == 10 { "kept" } else { "" });
    }
    append(&journal, stream.batch(), 0, 1);
    journal.fence(types::Epoch(1), std::time::Duration::ZERO).unwrap();
    keep_up(&journal, 1);
    let all = cuts(&journal);
    assert_eq!(Manifest::load(&store).unwrap().checkpoints[0].pages, 4);
    (store, all.chunks(ROWS_PER_PAGE).map(<[_]>::to_vec).collect())
}

fn list(journal: &Journal, query: &CheckpointQuery) -> (Vec<WriteSeq>, Vec<String>) {
    let Listed { rows, unread } = journal.checkpoints(query);
    (rows.iter().map(|row| row.checkpoint.cut).collect(), unread.iter().map(ToString::to_string).collect())
}

fn all() -> CheckpointQuery {
    CheckpointQuery { limit: usize::MAX, ..CheckpointQuery::default() }
}

fn both_are_whole(store: &SimStore) -> bool {
    COPIES.iter().all(|name| {
        let alone = store.fork();
        Store::remove(&alone, name).unwrap();
        list(&Journal::open(Arc::new(alone), SMALL).unwrap().journal, &all()).1.is_empty()
    })
}

#[test]
fn rot_in_one_copy_of_a_checkpoint_file_is_told_costs_nothing_and_is_made_good() {
    let (store, pages) = four_pages();
    let everything: Vec<_> = pages.concat();
    for name in COPIES {
        for at in (0..4 * PAGE).step_by(331) {
            let rotten = store.fork();
            assert!(rotten.rot(name, at));
            let report = verify(&rotten, false, |_| {}).unwrap();
            let place = format!("{name}, page {}: ", at / PAGE);
            assert!(report.damage.len() == 1 && report.damage[0].starts_with(&place), "{:?}", report.damage);
            let journal = Journal::open(Arc::new(rotten.clone()), SMALL).unwrap().journal;
            assert_eq!(list(&journal, &all()), (everything.clone(), vec![]));
            let found = scrub_all(&journal);
            assert!(found.mended.len() == 1 && found.mended[0].starts_with(&place), "{found:?}");
            assert!(found.damage.is_empty() && found.lost.is_empty(), "{found:?}");
            assert!(both_are_whole(&rotten), "byte {at} of {name}");
            assert_eq!(scrub_all(&journal).mended, Vec::<String>::new());
        }
    }
}

#[test]
fn a_copy_of_a_checkpoint_file_that_is_gone_or_cut_short_is_made_again() {
    let (store, pages) = four_pages();
    for name in COPIES {
        for len in [None, Some(0), Some(PAGE + 7)] {
            let store = store.fork();
            match len {
                None => Store::remove(&store, name).unwrap(),
                Some(len) => store.truncate(name, len),
            }
            let journal = Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal;
            assert_eq!(list(&journal, &all()), (pages.concat(), vec![]));
            assert_eq!(scrub_all(&journal).mended.len(), 1);
            assert!(both_are_whole(&store));
        }
    }
}

/// Any pages are lost in both copies: every list has what the other pages hold and the tagged ones of all, in its order and
/// with any page size, and says what it does not show.
#[test]
fn pages_that_both_copies_have_lost_are_told_and_everything_else_is_listed() {
    let (store, pages) = four_pages();
    for lost in 1..16u32 {
        let rotten = store.fork();
        let is_lost = |page: usize| lost & 1 << page != 0;
        for page in (0..4).filter(|page| is_lost(*page)) {
            COPIES.iter().for_each(|name| assert!(rotten.rot(name, page as u64 * PAGE + 5)));
        }
        let is_listed = |page: usize, row: usize| row == 10 || !is_lost(page);
        let mut expected = Vec::new();
        for (page, cuts) in pages.iter().enumerate() {
            expected.extend(
                cuts.iter().enumerate().filter(|(row, _)| is_listed(page, *row)).map(|(_, cut)| *cut),
            );
        }
        let journal = Journal::open(Arc::new(rotten.clone()), SMALL).unwrap().journal;
        let (found, unread) = list(&journal, &all());
        assert_eq!(found, expected, "{lost:b}");
        assert!(!unread.is_empty() && unread.iter().all(|text| text.starts_with(COPIES[0])), "{unread:?}");
        for newest_first in [false, true] {
            for limit in [1, 7, 100] {
                let mut query = CheckpointQuery { limit, newest_first, ..all() };
                let mut found = Vec::new();
                while let Some(last) = list(&journal, &query).0.last() {
                    found.extend(list(&journal, &query).0);
                    query.after = Some(*last);
                }
                if newest_first {
                    found.reverse();
                }
                assert_eq!(found, expected, "{lost:b} {newest_first} {limit}");
            }
        }
        for (page, cuts) in pages.iter().enumerate() {
            let of = |row: usize| journal.checkpoint(CheckpointId(cuts[row]));
            let facts = of(10).unwrap().unwrap();
            assert_eq!((facts.checkpoint.kind, &*facts.checkpoint.tag), (CheckpointKind::Tagged, "kept"));
            assert_eq!(facts.checkpoint.taken_at, WallTime(cuts[10].raw() as i64));
            for row in [0, 9, 11, cuts.len() - 1] {
                let told = of(row);
                assert_eq!(told.is_err(), is_lost(page), "{lost:b}: row {row} of {page}: {told:?}");
                assert!(is_lost(page) || told.unwrap().is_some());
            }
        }
        let scrubbed = scrub_all(&journal);
        assert!(!scrubbed.lost.is_empty() && scrubbed.mended.is_empty(), "{scrubbed:?}");
        assert!(!verify(&rotten, false, |_| {}).unwrap().damage.is_empty());
    }
}

/// The process is killed at each change of the disk, then the power goes, or not, while checkpoints go to their file or a
/// copy is made again; then either copy is lost.
#[test]
fn checkpoint_files_that_are_cut_short_at_any_change_of_the_disk_lose_nothing() {
    let settings = Settings { segment_bytes: 20 << 10, ..SEGMENTS };
    for is_rotten in [false, true] {
        for changes in 0.. {
            let (store, mut stream) = sealed(9);
            let journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
            for number in 9..12 {
                stream.write(number * 512, &[7; 6000]);
                stream.checkpoint();
                append(&journal, stream.batch(), number, number as u8 + 1);
            }
            if is_rotten {
                assert!(store.rot(COPIES[0], 40));
            }
            store.die_after(Some(changes));
            let now = WallTime(20_000_000);
            let done = journal.keep_up(&Upkeep::plain(now, [9; 16])).is_ok()
                && (!is_rotten || try_scrub(&journal).is_ok());
            let is_over = !store.is_dead();
            drop(journal);
            store.die_after(None);
            for seed in 0..6 {
                let store = store.fork();
                if seed > 0 {
                    store.lose_power(&mut Rng::new(seed));
                }
                for gone in [None, Some(COPIES[1])]
                    .into_iter()
                    .chain((!is_rotten || is_over).then_some(Some(COPIES[0])))
                {
                    let store = store.fork();
                    if let Some(gone) = gone {
                        Store::remove(&store, gone).unwrap();
                    }
                    if is_rotten && !is_over && gone.is_some() {
                        continue; // Both are lost.
                    }
                    let journal = Journal::open(Arc::new(store), settings).unwrap().journal;
                    assert_eq!(
                        compare(&journal, &stream.states),
                        12,
                        "{changes} changes, seed {seed}, {gone:?}"
                    );
                    keep_up(&journal, 20);
                    assert_eq!(compare(&journal, &stream.states), 12);
                }
            }
            if is_over {
                assert!(done && changes > 10);
                break;
            }
        }
    }
}

/// Where writes were left out only checkpoints can be opened, and nobody knows any more where those of the page were.
#[test]
fn whether_a_cut_is_one_of_a_lost_page_is_told_as_unknown_and_not_as_wrong() {
    let (store, pages) = four_pages_with(Stream::leave_out);
    COPIES.iter().for_each(|name| assert!(store.rot(name, PAGE + 100)));
    let journal = Arc::new(Journal::open(Arc::new(store), SMALL).unwrap().journal);
    for (number, cut) in
        pages.iter().enumerate().flat_map(|(number, cuts)| cuts.iter().map(move |cut| (number, *cut)))
    {
        let is_tagged = pages[number][10] == cut && number < 3;
        match journal.pin("a test", cut, None) {
            Ok(_) => assert!(number != 1 || is_tagged, "{cut}"),
            Err(PinError::Unread { .. }) => assert!(number == 1 && !is_tagged, "{cut}"),
            Err(error) => panic!("{cut} in page {number}: {error}"),
        }
    }
    let error = Image::open(journal.clone(), pages[1][4], None, [1; 16]).unwrap_err();
    assert!(matches!(error, ImageError::Unread { .. }), "{error}");
    let between = journal.pin("a test", pages[2][4].previous(), None);
    assert!(matches!(between, Err(PinError::NotConsistent { .. })), "{between:?}");
}
