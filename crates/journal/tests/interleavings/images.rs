//! An image that a guest runs on while it is made a plain disk and the journal below it grows, is folded and is scrubbed.

use crate::stream::{SMALL, Stream, append, create_in};
use journal::{Image, Journal, Mode, Settings, Upkeep};
use sim::{Rng, SimStore};
use std::sync::Arc;
use std::time::Duration;
use threads::by_seed::{play, seeds};
use threads::sync::atomic::{AtomicBool, Ordering};
use threads::thread;
use types::{ByteRange, DiskIndex, WallTime};

const DISK: DiskIndex = DiskIndex(0);
const FOLDER: &str = "image-1";
const SECTOR: u64 = 512;
const DAY_MICROS: i64 = 86_400_000_000;
const ROUNDS_MAX: i64 = 40;

fn any_range(rng: &mut Rng, len: u64) -> ByteRange {
    let sectors = len / SECTOR;
    let start = rng.below(sectors);
    let longest = if rng.one_in(4) { 300 } else { 24 };
    ByteRange::new(start * SECTOR, SECTOR * (1 + rng.below(longest.min(sectors - start))))
}

fn some_writes(stream: &mut Stream, rng: &mut Rng) {
    for _ in 0..4 {
        let range = any_range(rng, stream.disk.len() as u64);
        stream.write(range.start, &vec![rng.bits() as u8; range.len as usize]);
    }
}

/// Others have some turns first.
fn linger(rng: &mut Rng, longest: u64) {
    (0..rng.below(longest)).for_each(|_| thread::yield_now());
}

/// The guest: whatever it reads is what it wrote, over what the disk was at the cut.
fn run_guest(image: &Image, mut disk: Vec<u8>, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    for _ in 0..24 {
        linger(&mut rng, 40);
        let range = any_range(&mut rng, disk.len() as u64);
        let place = range.start as usize..range.end() as usize;
        match rng.below(5) {
            0..2 => {
                let mut found = vec![0; place.len()];
                image.read_at(DISK, range.start, &mut found).unwrap();
                assert!(found == disk[place.clone()], "{place:?} is not as it was written");
            }
            2 => {
                image.zero(DISK, range).unwrap();
                disk[place].fill(0);
            }
            3 => image.flush(DISK).unwrap(),
            _ => {
                disk[place.clone()].fill(rng.bits() as u8);
                image.write_at(DISK, range.start, &disk[place]).unwrap();
            }
        }
    }
    disk
}

/// Upkeep goes on for as long as anybody runs on the image.
fn keep_up(journal: &Journal, is_done: &AtomicBool, seed: u64) {
    let mut rng = Rng::new(seed);
    for day in 1..ROUNDS_MAX {
        thread::yield_now();
        if is_done.load(Ordering::SeqCst) {
            return;
        }
        let how = Upkeep { threads: 2, ..Upkeep::plain(WallTime(day * DAY_MICROS), rng.sixteen()) };
        journal.keep_up(&how).unwrap();
        let step = journal.scrub(None, &how).unwrap();
        assert!(step.damage.is_empty(), "damage without cause: {:?}", step.damage);
    }
}

fn a_guest_on_an_image(seed: u64) {
    let mut rng = Rng::new(seed);
    let mode = if rng.one_in(2) { Mode::Rollback } else { Mode::RollForward };
    let settings = Settings { segment_bytes: 64 << 10, history: Duration::from_secs(60), mode, ..SMALL };
    let store = SimStore::new();
    let journal = Arc::new(create_in(Arc::new(store.clone()), settings));
    let mut stream = Stream::begin();
    let mut at = 1;
    for _ in 0..3 {
        some_writes(&mut stream, &mut rng);
        stream.checkpoint();
        append(&journal, stream.batch(), at, 1);
        at += 1;
    }
    let (cut, below) = stream.states[rng.below(stream.states.len() as u64) as usize].clone();
    let image = Arc::new(Image::open(journal.clone(), cut, Some(FOLDER), [1; 16]).unwrap());
    let (of_guest, of_promotion) = (image.clone(), image.clone());
    let [of_upkeep, of_stream] = [journal.clone(), journal.clone()];
    let [for_guest, for_upkeep, for_stream, for_promotion] = [0; 4].map(|_: u64| rng.bits());
    let guest = thread::spawn(move || run_guest(&of_guest, below, for_guest));
    let promotion = thread::spawn(move || {
        linger(&mut Rng::new(for_promotion), 400);
        of_promotion.promote(|_| true).unwrap()
    });
    let is_done = Arc::new(AtomicBool::new(false));
    let upkeep = {
        let is_done = is_done.clone();
        thread::spawn(move || keep_up(&of_upkeep, &is_done, for_upkeep))
    };
    let appends = thread::spawn(move || {
        let mut rng = Rng::new(for_stream);
        for _ in 0..3 {
            some_writes(&mut stream, &mut rng);
            stream.checkpoint();
            append(&of_stream, stream.batch(), at, 1);
            at += 1;
        }
    });
    let disk = guest.join().unwrap();
    assert!(promotion.join().unwrap().is_done());
    appends.join().unwrap();
    is_done.store(true, Ordering::SeqCst);
    upkeep.join().unwrap();
    image.flush(DISK).unwrap();
    drop(image);
    let plain = store.content(&format!("{FOLDER}/vda.data")).unwrap();
    assert!(plain[..disk.len()] == disk, "the plain disk is what the guest has left");
}

#[test]
fn what_a_guest_has_on_an_image_stays_while_it_is_promoted_and_the_journal_is_folded() {
    play(seeds(150), a_guest_on_an_image);
}
