//! A cut that was given out holds, whatever the source sends and whatever is found later.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{Image, Journal, Mode, Settings, Upkeep};
use sim::SimStore;
use std::sync::{Arc, Condvar, Mutex};
use stream::hooked::{Access, Hooked};
use stream::{SMALL, Stream, append, create, create_in, keep_up};
use types::{DiskIndex, WallTime, WriteSeq};

const SETTINGS: Settings = Settings { segment_bytes: 40 << 10, ..SMALL };
const DISK: DiskIndex = DiskIndex(0);

/// Where a read stands that is to wait.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gate {
    Open,
    Shut,
    Waiting,
}

fn open(store: &SimStore) -> Arc<Journal> {
    Arc::new(Journal::open(Arc::new(store.clone()), SETTINGS).unwrap().journal)
}

fn read(image: &Image, start: u64, len: usize) -> Result<Vec<u8>, journal::ImageError> {
    let mut found = vec![0; len];
    image.read_at(DISK, start, &mut found).map(|()| found)
}

/// The tail of a group lies above the last write of a VM that was quiet. What such a source misses after a crash
/// begins just behind its last write, below what was given out.
#[test]
fn an_image_at_the_tail_of_a_group_is_opened_again_after_the_source_began_anew() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let store = SimStore::new();
        let journal = Arc::new(create(&store, SETTINGS));
        journal.set(Settings { mode, ..SETTINGS });
        let mut stream = Stream::begin();
        stream.write(0, &[1; 9000]);
        let tail = stream.pass(5);
        append(&journal, stream.batch(), 1, 1);
        let before = stream.disk.clone();
        assert_eq!(journal.newest_consistent(WriteSeq::MAX), Some(tail));
        let image = Image::open(journal.clone(), tail, Some("image-1"), [1; 16]).unwrap();
        image.write_at(DISK, 20_000, &[7; 4096]).unwrap();
        let pin = journal.pin("image 1", tail, None).unwrap();
        stream.begin_sync_from(stream.sent().next());
        stream.write(0, &[2; 9000]);
        stream.copy_all();
        stream.end_sync();
        append(&journal, stream.batch(), 2, 2);
        keep_up(&journal, 3);
        drop((image, journal));
        let journal = open(&store);
        let image = Image::open(journal.clone(), tail, Some("image-1"), [1; 16]).unwrap();
        assert_eq!(read(&image, 0, 9000).unwrap(), before[..9000], "{mode:?}");
        assert_eq!(read(&image, 20_000, 4096).unwrap(), [7; 4096]);
        drop(image);
        assert_eq!(journal.unpin(|one| one.id == pin).unwrap(), 1);
    }
}

/// A link that is too slow leaves writes out before a cut that was given out, and behind it: between the two only checkpoints
/// can be opened by who has not been promised anything.
#[test]
fn an_image_between_two_places_where_writes_are_left_out_is_opened_again() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SETTINGS));
    let mut stream = Stream::begin();
    stream.leave_out();
    stream.write(0, &[1; 4096]);
    stream.checkpoint();
    stream.write(8192, &[2; 4096]);
    append(&journal, stream.batch(), 1, 1);
    let (tail, before) = (stream.sent(), stream.disk.clone());
    let image = Image::open(journal.clone(), tail, None, [1; 16]).unwrap();
    assert!(!image.promotion().is_done(), "it has nothing of its own");
    let pin = journal.pin("image 1", tail, None).unwrap();
    stream.write(8192, &[3; 4096]);
    stream.checkpoint();
    stream.leave_out();
    stream.write(0, &[4; 4096]);
    stream.checkpoint();
    append(&journal, stream.batch(), 2, 2);
    drop((image, journal));
    let journal = open(&store);
    let image = Image::open(journal.clone(), tail, None, [1; 16]).unwrap();
    assert_eq!(read(&image, 0, 16_384).unwrap(), before[..16_384]);
    drop(image);
    journal.unpin(|one| one.id == pin).unwrap();
    assert_ne!(journal.newest_consistent(tail), Some(tail), "there the two are one stretch");
}

/// The last batch rots, behind which nothing tells that it was acknowledged, but for the pin. What comes next passes the cut.
#[test]
fn a_pinned_cut_that_is_gone_with_the_end_of_the_log_is_not_given_out_once_others_have_its_numbers() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SETTINGS));
    let mut stream = Stream::begin();
    stream.write(0, &[1; 9000]);
    append(&journal, stream.batch(), 1, 1);
    stream.write(16_384, &[2; 9000]);
    append(&journal, stream.batch(), 2, 2);
    let pinned = stream.sent();
    journal.pin("image 1", pinned, None).unwrap();
    drop(journal);
    let content = store.content("segment-00000001").unwrap();
    let at = content.windows(4096).position(|part| part.iter().all(|byte| *byte == 2)).unwrap();
    assert!(store.rot("segment-00000001", at as u64));
    let journal = open(&store);
    assert!(journal.status().last_seq < pinned);
    assert_eq!(journal.status().damage.len(), 1, "{:?}", journal.status().damage);
    assert!(Image::open(journal.clone(), pinned, None, [1; 16]).is_err());
    stream.goes_on_behind(journal.status().last_seq);
    stream.mark_missing_from(0);
    stream.write(16_384, &[3; 9000]);
    stream.copy_all();
    stream.end_sync();
    append(&journal, stream.batch(), 3, 3);
    assert!(journal.newest_consistent(WriteSeq::MAX) > Some(pinned));
    for journal in [journal, open(&store)] {
        assert!(Image::open(journal, pinned, None, [1; 16]).is_err());
    }
}

/// The same beside a segment that has been missing for long, which each opening finds anew.
#[test]
fn a_pinned_cut_that_is_gone_with_the_end_of_the_log_is_noticed_beside_damage_that_is_known() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SETTINGS));
    let mut stream = Stream::begin();
    for number in 0..6u64 {
        stream.write(number << 16, &[number as u8 + 1; 30_000]);
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(&journal, 10);
    drop(journal);
    journal::Store::remove(&store, "segment-00000001").unwrap();
    let journal = open(&store);
    assert_eq!(journal.status().damage.len(), 1, "{:?}", journal.status().damage);
    stream.resync();
    append(&journal, stream.batch(), 20, 1);
    stream.write(16_384, &[77; 9000]);
    append(&journal, stream.batch(), 21, 2);
    let pinned = stream.sent();
    journal.pin("image 1", pinned, None).unwrap();
    drop(journal);
    let rotten = journal::Store::names(&store).unwrap().into_iter().find_map(|name: String| {
        let content = store.content(&name).filter(|_| name.starts_with("segment-"))?;
        let at = content.windows(4096).position(|part| part.iter().all(|byte| *byte == 77))?;
        Some((name, at as u64))
    });
    let (name, at) = rotten.unwrap();
    assert!(store.rot(&name, at));
    let journal = open(&store);
    assert!(journal.status().last_seq < pinned);
    stream.goes_on_behind(journal.status().last_seq);
    stream.mark_missing_from(0);
    stream.write(16_384, &[78; 9000]);
    stream.copy_all();
    stream.end_sync();
    append(&journal, stream.batch(), 30, 3);
    assert!(journal.newest_consistent(WriteSeq::MAX) > Some(pinned));
    for journal in [journal, open(&store)] {
        assert!(Image::open(journal, pinned, None, [1; 16]).is_err(), "other bytes have its number");
    }
}

/// A batch below the pin rots, and what lies behind it is gone with it. Until it is compared that is the same at each opening.
#[test]
fn a_pinned_cut_that_is_gone_with_the_end_of_the_log_is_told_once() {
    let store = SimStore::new();
    let journal = create(&store, SETTINGS);
    let mut stream = Stream::begin();
    for number in 1..4u8 {
        stream.write(u64::from(number) * 16_384, &[number; 6000]);
        append(&journal, stream.batch(), number.into(), number);
    }
    journal.pin("image 1", stream.sent(), None).unwrap();
    drop(journal);
    let content = store.content("segment-00000001").unwrap();
    let at = content.windows(4096).position(|part| part.iter().all(|byte| *byte == 2)).unwrap();
    assert!(store.rot("segment-00000001", at as u64));
    let again = || Journal::open(Arc::new(store.clone()), SETTINGS).unwrap();
    assert_eq!(again().damage.len(), 1);
    let opened = again();
    assert_eq!(opened.damage, Vec::new());
    assert!(
        opened.journal.status().must_resync.is_some() && opened.journal.status().last_seq < stream.sent()
    );
}

#[test]
fn a_pinned_image_is_opened_again_and_fails_only_where_it_was_damaged() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SETTINGS));
    let mut stream = Stream::begin();
    for number in 0..6u64 {
        stream.write(number << 16, &[number as u8 + 1; 30_000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(&journal, 10);
    let (cut, before) = stream.states[4].clone();
    journal.pin("image 1", cut, None).unwrap();
    // A byte of the second write's payload.
    assert!(store.rot("segment-00000002", 8192 + 20_000));
    let mut place = None;
    let mut damages = 0;
    loop {
        let step = journal.scrub(place, &Upkeep::plain(WallTime(0), [5; 16])).unwrap();
        damages += step.damage.len();
        place = step.place;
        if place.is_none() {
            break;
        }
    }
    assert_eq!(damages, 1);
    drop(journal);
    let journal = open(&store);
    assert!(
        Image::open(journal.clone(), stream.states[3].0, None, [1; 16]).is_ok(),
        "all that are listed can be"
    );
    let image = Image::open(journal.clone(), cut, None, [1; 16]).unwrap();
    let mut failed = 0;
    for number in 0..6u64 {
        match read(&image, number << 16, 30_000) {
            Ok(found) => assert_eq!(found, before[(number as usize) << 16..][..30_000], "{number}"),
            Err(_) => failed += 1,
        }
    }
    assert_eq!(failed, 1, "what is damaged is told and not made up");
}

/// What stood in the open segment is in no index: a cut above cannot be shown, and what is shown is not made up.
#[test]
fn a_pinned_image_of_which_the_end_is_lost_is_refused() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SMALL));
    let mut stream = Stream::begin();
    for number in 0..4u64 {
        stream.write(number << 16, &[number as u8 + 1; 30_000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    let cut = stream.states[3].0;
    journal.pin("image 1", cut, None).unwrap();
    drop(journal);
    assert!(store.rot("segment-00000001", 8192 + 70), "in the first batch, of the open segment");
    let journal = open(&store);
    assert!(Image::open(journal.clone(), cut, None, [1; 16]).is_err());
}

/// A read has looked up what is the image's own and what is not. While it waits for the disk the promotion ends, and
/// what the image was opened at may be folded away.
#[test]
fn a_promotion_does_not_end_under_a_read() {
    let store = SimStore::new();
    let gate = Arc::new((Mutex::new(Gate::Open), Condvar::new()));
    let hooked = {
        let gate = gate.clone();
        Hooked::over(Arc::new(store), move |name, access| {
            let (state, changed) = &*gate;
            let mut state = state.lock().unwrap();
            if access == Access::Read && name.ends_with(".data") && *state == Gate::Shut {
                *state = Gate::Waiting;
                changed.notify_all();
                drop(changed.wait_while(state, |state| *state != Gate::Open).unwrap());
            }
            Ok(())
        })
    };
    let set = |to: Gate| {
        *gate.0.lock().unwrap() = to;
        gate.1.notify_all();
    };
    let journal = Arc::new(create_in(Arc::new(hooked), SETTINGS));
    let mut stream = Stream::begin();
    stream.write(0, &[1; 30_000]);
    let cut = stream.checkpoint();
    append(&journal, stream.batch(), 1, 1);
    let image = Arc::new(Image::open(journal.clone(), cut, Some("image-1"), [1; 16]).unwrap());
    image.write_at(DISK, 0, &[7; 4096]).unwrap();
    for number in 2..6 {
        stream.write(0, &[number as u8; 30_000]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8);
    }
    set(Gate::Shut);
    let reading = {
        let image = image.clone();
        std::thread::spawn(move || read(&image, 0, 16_384).unwrap())
    };
    drop(gate.1.wait_while(gate.0.lock().unwrap(), |state| *state != Gate::Waiting).unwrap());
    let promoting = {
        let image = image.clone();
        std::thread::spawn(move || image.promote(|_| true).unwrap())
    };
    while !image.promotion().is_done() {
        std::thread::yield_now();
    }
    journal.set(Settings { bytes_soft: 1, ..SETTINGS });
    for _ in 0..50 {
        keep_up(&journal, 10);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    set(Gate::Open);
    let found = reading.join().unwrap();
    assert!(found[..4096] == [7; 4096] && found[4096..] == [1; 12_288], "what the image was opened at");
    assert!(promoting.join().unwrap().is_done());
    assert_eq!(read(&image, 4096, 4096).unwrap(), [1; 4096]);
}

/// A source that was set back, as by a backup of its state folder, draws numbers again that are below the watermark.
#[test]
fn a_source_that_has_forgotten_what_it_drew_gives_no_half_synced_cut() {
    let store = SimStore::new();
    let journal = Arc::new(create(&store, SETTINGS));
    let mut stream = Stream::begin();
    stream.write(0, &[1; 9000]);
    append(&journal, stream.batch(), 1, 1);
    let (last, tail) = (stream.sent(), stream.pass(1000));
    append(&journal, stream.batch(), 2, 2);
    assert_eq!(journal.newest_consistent(WriteSeq::MAX), Some(tail));
    stream.set_back_to(last);
    stream.begin_sync_from(last.next());
    stream.write(0, &[2; 9000]);
    append(&journal, stream.batch(), 3, 3);
    assert_eq!(journal.newest_consistent(WriteSeq::MAX), Some(last), "half of a sync is no state");
}

/// A read of an older cut has looked up that the replica has its bytes. While it waits for the disk, newer writes are to
/// be brought there.
#[test]
fn nothing_is_written_to_a_replica_under_a_read_that_was_sent_there() {
    let gate = Arc::new((Mutex::new(Gate::Open), Condvar::new()));
    let hooked = {
        let gate = gate.clone();
        Hooked::over(Arc::new(SimStore::new()), move |name, access| {
            let (state, changed) = &*gate;
            let mut state = state.lock().unwrap();
            if access == Access::Read && name.starts_with("replica") && *state == Gate::Shut {
                *state = Gate::Waiting;
                changed.notify_all();
                drop(changed.wait_while(state, |state| *state != Gate::Open).unwrap());
            }
            Ok(())
        })
    };
    let set = |to: Gate| {
        *gate.0.lock().unwrap() = to;
        gate.1.notify_all();
    };
    let journal = Arc::new(create_in(Arc::new(hooked), Settings { mode: Mode::Rollback, ..SETTINGS }));
    let mut stream = Stream::begin();
    stream.write(0, &[1; 8192]);
    let cut = stream.checkpoint();
    append(&journal, stream.batch(), 1, 1);
    keep_up(&journal, 1);
    stream.write(0, &[2; 8192]);
    append(&journal, stream.batch(), 2, 2);
    set(Gate::Shut);
    let reading = {
        let journal = journal.clone();
        std::thread::spawn(move || {
            let mut found = [0; 8192];
            journal.read_at(DISK, cut, 0, &mut found).map(|()| found)
        })
    };
    drop(gate.1.wait_while(gate.0.lock().unwrap(), |state| *state != Gate::Waiting).unwrap());
    let bringing = {
        let journal = journal.clone();
        std::thread::spawn(move || keep_up(&journal, 3))
    };
    // Long enough to write where nobody waits for the read.
    std::thread::sleep(std::time::Duration::from_millis(100));
    set(Gate::Open);
    assert!(reading.join().unwrap().unwrap() == [1; 8192], "what the disk was at the older cut");
    bringing.join().unwrap();
    assert_eq!(journal.status().applied, journal.status().last_seq);
}
