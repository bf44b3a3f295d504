//! What retention takes, and what it leaves.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use batch::Kind;
use journal::{
    AppendError, AppendMeta, CheckpointQuery, Clock, Expiry, Journal, Manifest, Mode, Settings, Thinning,
    Upkeep,
};
use sim::{Rng, SimStore};
use std::sync::Arc;
use std::time::Duration;
use stream::{DISK_BYTES, SMALL, Stream, append, compare, create, cuts, keep_up, try_append};
use types::{ByteRange, Epoch, Monotonic, WallTime, WriteSeq};

/// Two checkpoints, then a sync that has brought over as much again, three times, and has not ended.
fn in_a_sync(settings: Settings) -> (Journal, Stream, WriteSeq) {
    let journal = create(&SimStore::new(), settings);
    let mut stream = Stream::begin();
    let mut last_good = WriteSeq::ZERO;
    for number in 0..2u64 {
        stream.write(number * 4096, &[number as u8 + 1; 30_000]);
        last_good = stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    stream.begin_sync();
    for number in 2..5u64 {
        stream.copy_all();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
    }
    (journal, stream, last_good)
}

#[test]
fn a_whole_cut_that_was_let_go_of_holds_no_history() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let settings = Settings { segment_bytes: 24 << 10, mode, ..SMALL };
        let (journal, _, last_good) = in_a_sync(settings);
        journal.set(Settings { let_go: Some(last_good.previous()), ..settings });
        keep_up(&journal, 1_000_000);
        assert!(cuts(&journal).contains(&last_good), "{mode:?}: it is newer than what was let go of");
        journal.set(Settings { let_go: Some(last_good), ..settings });
        keep_up(&journal, 1_000_000);
        assert!(!cuts(&journal).contains(&last_good), "{mode:?}");
    }
}

#[test]
fn a_sync_under_way_leaves_the_last_good_checkpoint_whatever_is_due() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let settings = Settings { segment_bytes: 24 << 10, mode, ..SMALL };
        let (journal, mut stream, last_good) = in_a_sync(settings);
        // By size, then by age.
        journal.set(Settings { bytes_soft: 1, ..settings });
        keep_up(&journal, 10);
        journal.set(settings);
        keep_up(&journal, 1_000_000);
        assert_eq!(cuts(&journal).last(), Some(&last_good), "{mode:?}");
        compare(&journal, &stream.states);
        stream.end_sync();
        let after = stream.checkpoint();
        append(&journal, stream.batch(), 1_000_001, 6);
        keep_up(&journal, 2_000_000);
        assert!(!cuts(&journal).contains(&last_good), "{mode:?}: the sync has ended, and its time has come");
        stream.write(0, &[9; 30_000]);
        append(&journal, stream.batch(), 2_000_000, 7);
        assert!(journal.newest_consistent(WriteSeq::MAX) > Some(after), "{mode:?}");
    }
}

#[test]
fn it_gives_way_to_a_sync_that_the_hard_limit_would_stop() {
    let settings = Settings { segment_bytes: 24 << 10, ..SMALL };
    let (journal, mut stream, _) = in_a_sync(settings);
    journal.set(Settings { bytes_hard: 1, ..settings });
    keep_up(&journal, 10);
    assert_eq!(journal.newest_consistent(WriteSeq::MAX), None);
    journal.set(settings);
    stream.end_sync();
    stream.checkpoint();
    append(&journal, stream.batch(), 11, 6);
    assert_eq!(compare(&journal, &stream.states), 1);
}

const SECOND: i64 = 1_000_000;
const TODAY: i64 = 1_800_000_000 * SECOND;

/// A journal kept up by a monotonic clock, whatever the wall clock says.
struct Kept {
    journal: Journal,
    stream: Stream,
    passed: Duration,
}

impl Kept {
    /// One checkpoint a minute for `minutes`, written and kept up under a clock that says `wall`.
    fn write_for(&mut self, minutes: u64, wall: i64) {
        for minute in 0..minutes {
            let wall = WallTime(wall + minute as i64 * 60 * SECOND);
            self.stream.write(minute * 4096 % (1 << 19), &[minute as u8; 30_000]);
            self.stream.checkpoint();
            let meta = AppendMeta { epoch: Epoch::FIRST, received_at: wall, entropy: [minute as u8; 16] };
            self.journal.append(vec![self.stream.batch()], meta).unwrap();
            self.passed += Duration::from_secs(60);
            self.keep_up(wall);
        }
    }

    fn keep_up(&self, wall: WallTime) {
        let clock = Clock::Monotonic(Monotonic(self.passed));
        let how = Upkeep { clock, ..Upkeep::plain(wall, [9; 16]) };
        while self.journal.keep_up(&how).unwrap().more {}
    }
}

fn kept(store: &SimStore, mode: Mode) -> Kept {
    let settings = Settings { segment_bytes: 40 << 10, mode, ..SMALL };
    Kept { journal: create(store, settings), stream: Stream::begin(), passed: Duration::ZERO }
}

#[test]
fn a_clock_that_jumps_costs_no_checkpoint_and_stops_no_retention() {
    let year = 365 * 86_400 * SECOND;
    for mode in [Mode::RollForward, Mode::Rollback] {
        for jump in [2 * 3600 * SECOND, 40 * 86_400 * SECOND, 10 * year, -2 * 3600 * SECOND, -50 * year] {
            let store = SimStore::new();
            let mut kept = kept(&store, mode);
            kept.write_for(20, TODAY);
            // It is wrong for a while, with writes and without, and comes back.
            kept.keep_up(WallTime(TODAY + jump));
            kept.write_for(10, TODAY + jump);
            kept.keep_up(WallTime(TODAY + 30 * 60 * SECOND));
            assert_eq!(compare(&kept.journal, &kept.stream.states), 30, "{mode:?}, {jump}");
            let query = CheckpointQuery { limit: usize::MAX, thinned: true, ..CheckpointQuery::default() };
            assert_eq!(kept.journal.checkpoints(&query).rows.len(), 30, "none is left out of a list");
            // An hour is kept, and no more, wherever the clock has been.
            kept.write_for(90, TODAY + 31 * 60 * SECOND);
            let left = compare(&kept.journal, &kept.stream.states);
            assert!((60..75).contains(&left), "{mode:?}, {jump}: {left} are kept");
        }
    }
}

#[test]
fn what_passes_while_no_agent_runs_makes_nothing_older() {
    let store = SimStore::new();
    let mut kept = kept(&store, Mode::RollForward);
    kept.write_for(30, TODAY);
    let settings = kept.journal.status().settings;
    drop(kept.journal);
    // By its clock the agent was away for a month. Its monotonic clock begins anew.
    kept.journal = Journal::open(std::sync::Arc::new(store), settings).unwrap().journal;
    kept.passed = Duration::from_secs(7);
    let month = TODAY + 30 * 86_400 * SECOND;
    kept.keep_up(WallTime(month));
    assert_eq!(compare(&kept.journal, &kept.stream.states), 30);
    kept.write_for(90, month);
    let left = compare(&kept.journal, &kept.stream.states);
    assert!((60..80).contains(&left), "what was seen to pass before counts: {left} are kept");
}

#[test]
fn a_pin_ends_after_its_time_and_not_by_a_clock() {
    let store = SimStore::new();
    let mut kept = kept(&store, Mode::RollForward);
    kept.write_for(3, TODAY);
    let (after, cut) = (Duration::from_secs(1800), kept.stream.states[1].0);
    let expiry = Expiry { after, at: WallTime(TODAY + 1980 * SECOND) };
    kept.journal.pin("a copy", cut, Some(expiry)).unwrap();
    kept.keep_up(WallTime(TODAY + 10 * 86_400 * SECOND));
    assert_eq!(kept.journal.pins().len(), 1);
    kept.write_for(40, TODAY - 86_400 * SECOND);
    assert!(kept.journal.pins().is_empty());
}

/// Thinning hides rows by how old they are here. What the source's clock said when they were taken does not matter:
/// in these streams it was 1970.
#[test]
fn thinning_goes_by_the_age_that_was_seen_to_pass() {
    let store = SimStore::new();
    let mut kept = kept(&store, Mode::RollForward);
    kept.write_for(30, TODAY);
    let settings = kept.journal.status().settings;
    let ten = Duration::from_secs(600);
    kept.journal.set(Settings { thinning: Thinning { all: ten, minutely: ten }, ..settings });
    let query = CheckpointQuery { limit: usize::MAX, thinned: true, ..CheckpointQuery::default() };
    let listed = kept.journal.checkpoints(&query).rows.len();
    assert!((10..20).contains(&listed), "the last ten minutes and a segment, and the first: {listed}");
    assert_eq!(compare(&kept.journal, &kept.stream.states), 30, "all can be opened");
}

#[test]
fn what_is_tagged_is_kept_for_a_time_of_its_own() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let mut kept = kept(&SimStore::new(), mode);
        let settings = kept.journal.status().settings;
        kept.journal.set(Settings { tagged_history: Duration::from_secs(3 * 3600), ..settings });
        kept.write_for(3, TODAY);
        let tagged = kept.stream.tagged_checkpoint("before the upgrade");
        kept.write_for(150, TODAY + 180 * SECOND);
        compare(&kept.journal, &kept.stream.states);
        assert!(cuts(&kept.journal).contains(&tagged), "{mode:?}: the hour of the others is long over");
        kept.write_for(60, TODAY + 153 * 60 * SECOND);
        assert!(!cuts(&kept.journal).contains(&tagged), "{mode:?}: and then its own");
    }
}

/// Zeroes take no room in the segment that has them, and their before-images all that was there.
#[test]
fn a_tag_holds_its_before_images_while_its_own_segment_is_open() {
    let settings = Settings {
        segment_bytes: 256 << 10,
        mode: Mode::Rollback,
        tagged_history: Duration::from_secs(3600),
        let_go: None,
        ..SMALL
    };
    let journal = create(&SimStore::new(), settings);
    let mut stream = Stream::begin();
    let parts: Vec<_> = ByteRange::new(0, DISK_BYTES).split_at_multiples(64 << 10).collect();
    let mut number = 0;
    let mut go_on = |stream: &mut Stream| {
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        keep_up(&journal, number);
        number += 1;
    };
    let mut rng = Rng::new(7);
    for part in &parts {
        // Nothing that before-images can be made smaller by.
        let noise: Vec<u8> = (0..part.len).map(|_| rng.bits() as u8).collect();
        stream.write(part.start, &noise);
        go_on(&mut stream);
    }
    let tagged = stream.tagged_checkpoint("before the upgrade");
    for part in parts {
        stream.zero(Kind::Zero, part);
    }
    go_on(&mut stream);
    stream.write(0, &[9; 4096]);
    go_on(&mut stream);
    // By size, then by age.
    journal.set(Settings { bytes_soft: 1, ..settings });
    keep_up(&journal, 100);
    journal.set(Settings { history: Duration::from_secs(10), ..settings });
    keep_up(&journal, 1000);
    assert!(cuts(&journal).contains(&tagged));
    compare(&journal, &stream.states);
}

#[test]
fn what_is_locked_goes_neither_by_age_nor_by_size_and_takes_nothing_more_at_its_hard_limit() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let settings = Settings { segment_bytes: 24 << 10, mode, ..SMALL };
        let (journal, mut stream, last_good) = in_a_sync(settings);
        stream.end_sync();
        stream.checkpoint();
        append(&journal, stream.batch(), 6, 6);
        keep_up(&journal, 6);
        let whole = cuts(&journal);
        let locked = Settings { is_locked: true, let_go: Some(last_good), ..settings };
        for pressed in [Settings { bytes_soft: 1, ..locked }, Settings { bytes_hard: 1, ..locked }, locked] {
            journal.set(pressed);
            keep_up(&journal, 1_000_000);
            assert_eq!(cuts(&journal), whole, "{mode:?}");
            assert_eq!(journal.status().projected_history, None, "no limit leaves less");
        }
        compare(&journal, &stream.states);
        journal.set(Settings { bytes_hard: 1, ..locked });
        stream.write(0, &[9; 4096]);
        let refused = try_append(&journal, stream.batch(), 7, 7).unwrap_err();
        assert!(matches!(refused, AppendError::HardLimit { .. }), "{refused}");
        journal.set(settings);
        keep_up(&journal, 1_000_000);
        assert!(cuts(&journal).len() < whole.len(), "{mode:?}: and it goes once it is not locked");
    }
}

/// Nothing comes in, and the agent is started again and again: what somebody waits for comes all the same.
#[test]
fn the_age_that_a_lock_waits_for_is_written_down_often_and_any_other_seldom() {
    for (is_locked, kept) in [(true, 9 * 301), (false, 0)] {
        let settings = Settings { history: Duration::from_secs(86_400), is_locked, ..SMALL };
        let store = SimStore::new();
        let mut journal = create(&store, settings);
        for _ in 0..9 {
            for seconds in [0, 301, 310] {
                let clock = Clock::Monotonic(Monotonic(Duration::from_secs(seconds)));
                journal.keep_up(&Upkeep { clock, ..Upkeep::plain(WallTime(0), [6; 16]) }).unwrap();
            }
            drop(journal);
            journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
        }
        assert_eq!(Manifest::load(&store).unwrap().age_clock, kept * 1_000_000, "locked: {is_locked}");
    }
}
