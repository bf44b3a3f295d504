//! Segments that are open: what is durable of them is scrubbed while the writer goes on, and rot there costs what it costs
//! in a sealed one.

use crate::stream::{SMALL, Stream, append, compare, create, cuts, keep_up};
use crate::{BATCHES_AT, IN_A_BATCH, good_or_refused, make_good, scrub_all, try_scrub};
use journal::{Journal, Manifest, Mode, Settings, Upkeep};
use sim::{Rng, SimStore};
use std::sync::Arc;
use types::WallTime;

const OPEN: &str = "segment-00000001";

/// Eight writes in a segment that is open, each with a checkpoint.
fn with_open_segment(settings: Settings) -> (SimStore, Journal, Stream) {
    let store = SimStore::new();
    let journal = create(&store, settings);
    let mut stream = Stream::begin();
    for number in 0..8 {
        stream.write(number << 16, &[number as u8 + 1; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, 1);
    }
    (store, journal, stream)
}

#[test]
fn rot_in_an_open_segment_is_found_and_costs_what_it_costs_in_a_sealed_one_while_the_writer_goes_on() {
    for (batch, at) in BATCHES_AT.into_iter().enumerate() {
        for byte in IN_A_BATCH {
            let (store, journal, mut stream) = with_open_segment(SMALL);
            assert!(store.rot(OPEN, at + byte));
            let found = scrub_all(&journal);
            assert_eq!(found.damage.len(), 1, "{found:?}");
            assert!(found.damage[0].what.starts_with(&format!("{OPEN} at byte {}: ", at)));
            assert_eq!(compare(&journal, &stream.states), batch, "what lies before it");
            let reopened = Journal::open(Arc::new(store.fork()), SMALL).unwrap();
            assert!(reopened.damage.is_empty(), "it was written down: {:?}", reopened.damage);
            assert_eq!(compare(&reopened.journal, &stream.states), batch);
            assert_eq!(make_good(&journal, &mut stream, 100), batch + 1, "batch {batch}, byte {byte}");
        }
    }
}

#[test]
fn an_open_segment_whose_header_rots_is_found() {
    let (store, journal, mut stream) = with_open_segment(SMALL);
    [30, 4096 + 30].iter().for_each(|at| assert!(store.rot(OPEN, *at)));
    let found = scrub_all(&journal);
    assert!(found.damage.len() == 1 && found.damage[0].what.starts_with(OPEN), "{found:?}");
    assert_eq!(make_good(&journal, &mut stream, 100), 1);
}

#[test]
fn an_open_segment_of_before_images_is_scrubbed() {
    // In the envelope, and in a table: what was there before was zeroes, which have no payload.
    for byte in [20, 120] {
        let settings = Settings { mode: Mode::Rollback, ..SMALL };
        let (store, journal, mut stream) = with_open_segment(settings);
        keep_up(&journal, 8);
        // Over blocks that the replica has: they are kept before.
        stream.write(0, &[77; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 9, 1);
        keep_up(&journal, 9);
        assert!(Manifest::load(&store).unwrap().undo.segments.last().unwrap().sealed.is_none());
        assert_eq!(try_scrub(&journal).unwrap().damage.len(), 0);
        assert!(store.rot("undo-00000001", BATCHES_AT[0] + byte));
        let found = scrub_all(&journal);
        assert!(found.damage.len() == 1 && found.damage[0].what.starts_with("undo-00000001"), "{found:?}");
        good_or_refused(&journal, &stream);
        let reopened = Journal::open(Arc::new(store.fork()), settings).unwrap();
        assert!(reopened.damage.is_empty(), "{:?}", reopened.damage);
        assert!(make_good(&journal, &mut stream, 100) >= 1);
    }
}

/// Batches come in, segments are sealed and begun, and folded, while one scrub follows the other.
#[test]
fn what_is_written_while_a_scrub_reads_is_not_taken_for_damage() {
    let store = SimStore::new();
    let settings = Settings { segment_bytes: 40 << 10, bytes_soft: 200 << 10, ..SMALL };
    let journal = Arc::new(create(&store, settings));
    let mut stream = Stream::begin();
    std::thread::scope(|scope| {
        let scrubber =
            scope.spawn(|| (0..60).map(|_| try_scrub(&journal).unwrap().damage.len()).sum::<usize>());
        for number in 0..300u64 {
            stream.write((number % 64) * 512, &[number as u8; 6000]);
            stream.checkpoint();
            append(&journal, stream.batch(), number, number as u8);
            journal.keep_up(&Upkeep::plain(WallTime(0), [9; 16])).unwrap();
        }
        assert_eq!(scrubber.join().unwrap(), 0);
    });
    assert!(!cuts(&journal).is_empty() && compare(&journal, &stream.states) > 1);
}

/// The process is killed at each change of the disk while damage is contained that lies in the open segment.
#[test]
fn containing_rot_in_an_open_segment_may_be_cut_short_anywhere() {
    let mut exact = 0;
    for changes in 0.. {
        let (store, journal, stream) = with_open_segment(SMALL);
        assert!(store.rot(OPEN, BATCHES_AT[2] + IN_A_BATCH[1]));
        store.die_after(Some(changes));
        let is_done = try_scrub(&journal).is_ok();
        let is_over = !store.is_dead();
        assert!(!is_over || is_done);
        drop(journal);
        store.die_after(None);
        for seed in 0..5 {
            let store = store.fork();
            if seed > 0 {
                store.lose_power(&mut Rng::new(seed));
            }
            let journal = Journal::open(Arc::new(store), SMALL).unwrap().journal;
            good_or_refused(&journal, &stream);
            try_scrub(&journal).unwrap();
            assert_eq!(compare(&journal, &stream.states), 2, "after {changes} changes, seed {seed}");
            let (status, listed) = (journal.status(), cuts(&journal).len());
            assert!(status.damage.len() == 1);
            // Until the index is on the disk the opening knows nothing of what stands behind the damage.
            let is_exact = !status.gap_open;
            assert_eq!(
                (status.must_resync.is_none(), !journal.to_send_again().is_empty()),
                (is_exact, is_exact)
            );
            assert_eq!((listed, status.damaged_bytes), if is_exact { (8, 6000) } else { (2, 0) });
            exact += usize::from(is_exact);
            assert!(!is_over || is_exact, "nothing but the damaged bytes");
        }
        if is_over {
            assert!(exact > 5 && exact < 5 * changes as usize, "{exact} of {changes}");
            break;
        }
    }
}
