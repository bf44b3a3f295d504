//! One journal at a time stands over a folder: one that was opened before changes nothing any more.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{AppendError, FsStore, Image, Journal, Mode, OpenError, Settings, Store};
use std::sync::Arc;
use stream::{SMALL, Stream, append, compare, create_in, keep_up, try_append};
use types::{DiskIndex, VmId};

const SETTINGS: Settings = Settings { segment_bytes: 40 << 10, ..SMALL };
const DISK: DiskIndex = DiskIndex(0);

fn open(store: &Arc<FsStore>) -> Journal {
    Journal::open(store.clone() as Arc<dyn Store>, SETTINGS).unwrap().journal
}

/// Writes one batch after the other; the number of the last one.
fn write(journal: &Journal, stream: &mut Stream, numbers: std::ops::Range<u64>) {
    for number in numbers {
        stream.write(number * 4096, &[number as u8 + 1; 30_000]);
        stream.checkpoint();
        append(journal, stream.batch(), number, number as u8 + 1);
    }
}

#[test]
fn a_folder_with_the_journal_of_another_vm_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let mut stream = Stream::begin();
    let journal = create_in(store.clone(), SETTINGS);
    write(&journal, &mut stream, 0..3);
    drop(journal);
    let of = VmId::from_bytes([1; 16]);
    // What a crash has left there, and opening removes.
    let left = folder.path().join("run-99");
    std::fs::write(&left, "").unwrap();
    let open = |vm| Journal::open_of(vm, store.clone() as Arc<dyn Store>, SETTINGS);
    let refused = open(VmId::from_bytes([99; 16])).unwrap_err();
    assert!(matches!(&refused, OpenError::AnotherVm { found } if *found == of.to_string()), "{refused}");
    assert!(left.exists());
    assert_eq!(compare(&open(of).unwrap().journal, &stream.states), 3);
    assert!(!left.exists());
}

#[test]
fn a_journal_that_was_opened_anew_saves_nothing_of_its_old_life() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let one = create_in(store.clone(), SETTINGS);
    let mut stream = Stream::begin();
    write(&one, &mut stream, 0..2);
    one.pin("an image", stream.states[0].0, None).unwrap();
    let two = open(&store);
    write(&two, &mut stream, 2..9);
    let acked = two.status().last_seq;
    // An image that was opened before is closed; a stream, a fold and a scrub of before go on.
    assert!(one.unpin(|_| true).is_err());
    assert!(matches!(try_append(&one, stream.batch(), 9, 9), Err(AppendError::Closed)));
    one.set(Settings { bytes_soft: 1, ..SETTINGS });
    let how = journal::Upkeep::plain(types::WallTime(9_000_000), [3; 16]);
    assert!(one.keep_up(&how).is_err() && one.is_closed());
    drop((one, two));
    let journal = open(&store);
    assert!(journal.status().last_seq >= acked);
    assert_eq!(compare(&journal, &stream.states[..9]), 9);
    assert_eq!(journal.pins().len(), 1);
}

#[test]
fn an_image_goes_over_to_the_journal_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let one = Arc::new(create_in(store.clone(), SETTINGS));
    one.set(Settings { mode: Mode::Rollback, ..SETTINGS });
    let mut stream = Stream::begin();
    write(&one, &mut stream, 0..3);
    keep_up(&one, 3);
    let (cut, before) = stream.states[2].clone();
    one.pin("image 1", cut, None).unwrap();
    let image = Image::open(one.clone(), cut, Some("image-1"), [1; 16]).unwrap();
    one.close();
    let two = Arc::new(open(&store));
    two.set(Settings { mode: Mode::Rollback, ..SETTINGS });
    image.rebind(two.clone()).unwrap();
    // The replica is brought up to what came since: only the new journal has what was there before.
    write(&two, &mut stream, 3..9);
    two.set(Settings { mode: Mode::Rollback, bytes_soft: 1, ..SETTINGS });
    keep_up(&two, 10);
    assert_eq!(two.status().applied, two.status().last_seq);
    let mut found = vec![0; before.len()];
    image.read_at(DISK, 0, &mut found).unwrap();
    assert!(found == before, "the image shows its cut");
    drop(image);
    assert_eq!(two.unpin(|_| true).unwrap(), 1);
}

/// Whoever wants the folder waits for a step, and not for all of what is long.
#[test]
fn upkeep_and_scrubs_give_way_at_once_and_go_on_where_nobody_comes_after_all() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { bytes_soft: 1, segment_bytes: 16 << 20, ..SETTINGS };
    let one = create_in(Arc::new(FsStore::open(folder.path()).unwrap()), settings);
    let mut stream = Stream::begin();
    write(&one, &mut stream, 0..9);
    let epoch = one.status().epoch.next();
    assert!(one.fence(epoch, std::time::Duration::from_secs(60)).unwrap());
    let plain = journal::Upkeep::plain(types::WallTime(9_000_000), [3; 16]);
    one.set(Settings { bytes_soft: 0, ..settings });
    one.keep_up(&plain).unwrap();
    one.set(settings);

    let steps = std::sync::atomic::AtomicUsize::new(0);
    let pace = |_| {
        one.give_way(true);
        steps.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    };
    assert!(one.scrub(None, &journal::Upkeep { pace: &pace, ..plain }).is_err());
    assert_eq!(steps.into_inner(), 1, "of nine batches");
    assert!(one.keep_up(&plain).is_err() && one.gives_way() && !one.is_closed());
    assert_eq!(one.status().applied, types::WriteSeq::ZERO);
    one.give_way(false);
    one.scrub(None, &plain).unwrap();
    one.keep_up(&plain).unwrap();
    assert!(one.status().applied > types::WriteSeq::ZERO);
}

/// Whoever closes a journal may open it anew at once: a fold that was under way has ended, at the region it was at.
#[test]
fn closing_waits_for_what_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let one = Arc::new(create_in(store.clone(), SETTINGS));
    let mut stream = Stream::begin();
    write(&one, &mut stream, 0..9);
    keep_up(&one, 9);
    one.set(Settings { bytes_soft: 1, ..SETTINGS });
    let (begun, begins) = std::sync::mpsc::channel();
    let folding = {
        let one = one.clone();
        std::thread::spawn(move || {
            let begun = std::sync::Mutex::new(begun);
            let pace = |_| {
                let _ = begun.lock().unwrap().send(());
            };
            let plain = journal::Upkeep::plain(types::WallTime(10_000_000), [3; 16]);
            let _ = one.keep_up(&journal::Upkeep { pace: &pace, ..plain });
        })
    };
    begins.recv().unwrap();
    one.close();
    let two = open(&store);
    assert!(compare(&two, &stream.states) > 0);
    folding.join().unwrap();
    write(&two, &mut stream, 9..12);
    compare(&two, &stream.states);
}
