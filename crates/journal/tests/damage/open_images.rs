//! Images that were opened before damage was found: whatever becomes of journal and index, what they show is what was there,
//! or an error.

use crate::made_good::rot_index;
use crate::stream::{Stream, append, compare, create};
use crate::{BATCHES_AT, IN_A_BATCH, SEGMENTS, WITH_SMALL, make_good, open, scrub_all, sealed, written};
use journal::{Image, Journal, Mode, Settings, Store, Upkeep};
use sim::SimStore;
use std::sync::Arc;
use types::{DiskIndex, WallTime, WriteSeq};

/// An image at every checkpoint, and what is to be read of it.
fn images(journal: &Arc<Journal>, stream: &Stream) -> Vec<(Image, Vec<u8>)> {
    let image = |cut| Image::open(journal.clone(), cut, None, [1; 16]).unwrap();
    stream.states.iter().map(|(cut, content)| (image(*cut), content.clone())).collect()
}

/// How many sectors can be read; each is what it was.
fn good(image: &Image, content: &[u8], told: &str) -> usize {
    let sectors = content.chunks(512).enumerate();
    let is_good = |(at, expected): &(usize, &[u8])| {
        let mut read = vec![0; expected.len()];
        let is_read = image.read_at(DiskIndex(0), *at as u64 * 512, &mut read).is_ok();
        assert!(!is_read || read == *expected, "{told}: sector {at} at {} is not what it was", image.cut());
        is_read
    };
    sectors.filter(is_good).count()
}

/// The index of a segment and one of its batches are lost together: nobody knows any more what that batch had written,
/// and what lies below it is older.
#[test]
fn what_is_lost_with_its_index_is_not_read_as_what_was_there_before() {
    for byte in IN_A_BATCH {
        let told = format!("byte {byte}");
        let (store, mut stream) = sealed(20);
        let journal = Arc::new(open(&store));
        let images = images(&journal, &stream);
        assert!(store.rot(WITH_SMALL, BATCHES_AT[0] + byte));
        rot_index(&store, WITH_SMALL);
        let found = scrub_all(&journal);
        assert!(found.damage.len() == 1 && found.rebuilt == 1, "{found:?}");
        for (image, content) in &images {
            let all = good(image, content, &told) == content.len() / 512;
            assert!(all || image.cut() >= found.damage[0].from, "{told}: what needs nothing of it is read");
        }
        make_good(&journal, &mut stream, 100);
        for (image, content) in &images {
            good(image, content, &told);
        }
        assert!(compare(&journal, &stream.states) > 1);
        let newest = journal.newest_consistent(WriteSeq::MAX).unwrap();
        let newest = Image::open(journal.clone(), newest, None, [1; 16]).unwrap();
        let (_, content) = stream.states.last().unwrap();
        assert_eq!(good(&newest, content, &told), content.len() / 512, "what was sent again is read");
    }
}

/// Once damage was made good, folds and steps leave out what cannot be read and no cut needs that can be opened; an
/// image that is open since before is no such cut, and would be shown what lies below.
#[test]
fn what_cannot_be_read_is_left_out_of_no_fold_that_an_open_image_reads_through() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        for (byte, held) in IN_A_BATCH.into_iter().flat_map(|byte| (7..12).map(move |held| (byte, held))) {
            let told = format!("{mode:?}, byte {byte}, held {held}");
            let store = SimStore::new();
            let journal = Arc::new(create(&store, SEGMENTS));
            let mut stream = written(&journal);
            let (image, content) = images(&journal, &stream).swap_remove(held);
            assert!(store.rot(WITH_SMALL, BATCHES_AT[1] + byte));
            drop(journal);
            // Read from the disk, and not out of memory.
            let journal = Arc::new(open(&store));
            image.rebind(journal.clone()).unwrap();
            assert_eq!(scrub_all(&journal).damage.len(), 1, "{told}");
            let before = good(&image, &content, &told);
            // What the guest writes until then comes with the sync.
            (0..16).for_each(|block: usize| stream.disk[block << 16..][..6000].fill(77));
            make_good(&journal, &mut stream, 100);
            journal.set(Settings { mode, bytes_soft: 1, ..SEGMENTS });
            for number in 0..8 {
                // It may be held up by what cannot be read.
                let _ = journal.keep_up(&Upkeep::plain(WallTime(0), [number; 16]));
                assert_eq!(good(&image, &content, &told), before, "{told}");
            }
            drop(image);
            for number in 20..28 {
                journal.keep_up(&Upkeep::plain(WallTime(0), [number; 16])).expect(&told);
            }
            assert!(compare(&journal, &stream.states) >= 1, "{told}");
        }
    }
}

/// A segment is gone whose index is not, which an opening tells as cuts: pinned images show what they can. What the source
/// has sent since lies over that.
#[test]
fn what_an_image_cannot_read_of_a_segment_that_is_gone_is_never_what_came_later() {
    for (mode, held) in
        [Mode::RollForward, Mode::Rollback].into_iter().flat_map(|mode| (7..12).map(move |at| (mode, at)))
    {
        let told = format!("{mode:?}, held {held}");
        let store = SimStore::new();
        let journal = create(&store, SEGMENTS);
        let mut stream = written(&journal);
        rot_index(&store, WITH_SMALL);
        assert_eq!(scrub_all(&journal).rebuilt, 1, "it is in a file of its own now");
        let (cut, content) = stream.states[held].clone();
        journal.pin("image 1", cut, None).unwrap();
        drop(journal);
        Store::remove(&store, WITH_SMALL).unwrap();
        let journal = Arc::new(open(&store));
        let image = Image::open(journal.clone(), cut, None, [1; 16]).unwrap();
        let before = good(&image, &content, &told);
        (0..16).for_each(|block: usize| stream.disk[block << 16..][..6000].fill(77));
        stream.delta_sync(&journal);
        stream.checkpoint();
        append(&journal, stream.batch(), 100, 100);
        journal.set(Settings { mode, bytes_soft: 1, ..SEGMENTS });
        for number in 0..8 {
            // It may be held up by what cannot be read.
            let _ = journal.keep_up(&Upkeep::plain(WallTime(0), [number; 16]));
            assert_eq!(good(&image, &content, &told), before, "{told}");
        }
        journal.keep_up(&Upkeep::plain(WallTime(0), [9; 16])).expect(&told);
    }
}
