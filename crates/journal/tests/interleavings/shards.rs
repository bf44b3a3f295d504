//! Two journals of one shard, one of which lies on a disk that fails: what is reported as durable is.

use crate::stream::{SMALL, Stream, append, create_in};
use journal::{AppendStream, Journal, Report, Settings, Shards, Upkeep};
use sim::{Rng, SimStore};
use std::sync::Arc;
use threads::by_seed::{play, seeds};
use threads::sync::Mutex;
use threads::sync::atomic::{AtomicU64, Ordering};
use threads::thread;
use types::{Epoch, WallTime, WriteSeq};

const BATCHES: u64 = 6;

struct Site {
    store: SimStore,
    journal: Arc<Journal>,
    stream: Arc<AppendStream>,
    source: Mutex<Stream>,
    /// Batches handed in whose end is not reported.
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    durable: WriteSeq,
    has_failed: bool,
}

/// A journal with one batch in it; each report of its stream is held against what is on the disk by then.
fn begin() -> Site {
    let store = SimStore::new();
    let settings = Settings { segment_bytes: 64 << 10, ..SMALL };
    let journal = Arc::new(create_in(Arc::new(store.clone()), settings));
    let mut source = Stream::begin();
    append(&journal, source.batch(), 1, 1);
    let told = Arc::<Mutex<Told>>::default();
    let report = {
        let (store, told) = (store.clone(), told.clone());
        move |report: Report| {
            let mut told = told.lock().unwrap();
            match report.result {
                Ok(appended) => {
                    let left = Journal::open(Arc::new(store.fork_of_what_is_synced()), settings).unwrap();
                    let durable = left.journal.status().last_seq;
                    assert!(durable >= appended.durable, "{durable} is left of {}", appended.durable);
                    assert!(appended.durable > told.durable, "each report is of more than the one before");
                    told.durable = appended.durable;
                }
                Err(_) => assert!(!std::mem::replace(&mut told.has_failed, true), "one error is reported"),
            }
        }
    };
    let stream = AppendStream::new(journal.clone(), Epoch::FIRST, report);
    Site { store, journal, stream, source: Mutex::new(source), told }
}

fn feed(site: &Site, shards: &Shards, seed: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..BATCHES {
        let mut source = site.source.lock().unwrap();
        for _ in 0..1 + rng.below(3) {
            let len = 512 * (1 + rng.below(40));
            source.write(rng.below(64) * 4096, &vec![rng.bits() as u8; len as usize]);
        }
        source.checkpoint();
        let batch = source.batch();
        shards.append(&site.stream, batch);
    }
}

fn keep_up(site: &Site, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut place = None;
    for round in 0..3 {
        // A disk that fails may hinder it; nothing is lost then.
        let how = Upkeep { threads: 2, ..Upkeep::plain(WallTime(round * 4_000_000_000), rng.sixteen()) };
        drop(site.journal.keep_up(&how));
        if let Ok(step) = site.journal.scrub(place, &how) {
            assert!(step.damage.is_empty(), "damage without cause: {:?}", step.damage);
            place = step.place;
        }
    }
}

fn two_journals(seed: u64) {
    let sites = [Arc::new(begin()), Arc::new(begin())];
    let mut rng = Rng::new(seed);
    match rng.below(4) {
        0 => sites[0].store.fail_sync_after(Some(rng.below(6))),
        1 => sites[0].store.limit_room(Some(rng.below(300 << 10))),
        _ => {}
    }
    let stamps = AtomicU64::new(2_000_000);
    let stamp = move || (WallTime(stamps.fetch_add(1000, Ordering::SeqCst) as i64), [2; 16]);
    let shards = Arc::new(Shards::start(1, stamp));
    let mut threads = Vec::new();
    for site in &sites {
        let (seed, of_feeder, of_keeper) = (rng.bits(), (site.clone(), shards.clone()), site.clone());
        threads.push(thread::spawn(move || feed(&of_feeder.0, &of_feeder.1, seed)));
        threads.push(thread::spawn(move || keep_up(&of_keeper, seed)));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(shards);
    while !sites.iter().all(|site| site.is_reported()) {
        thread::yield_now();
    }
    sites.iter().for_each(|site| site.check_what_is_left());
}

impl Site {
    /// Whether all that was handed in is durable, or the first error is told.
    fn is_reported(&self) -> bool {
        let told = self.told.lock().unwrap();
        told.has_failed || told.durable == self.source.lock().unwrap().sent()
    }

    /// After a loss of power whatever was told is there, and each checkpoint shows its moment.
    fn check_what_is_left(&self) {
        let told = self.told.lock().unwrap().durable;
        let left = Journal::open(Arc::new(self.store.fork_of_what_is_synced()), SMALL).unwrap();
        assert!(left.damage.is_empty(), "{:?}", left.damage);
        assert!(left.journal.status().last_seq >= told);
        crate::stream::compare(&left.journal, &self.source.lock().unwrap().states);
    }
}

#[test]
fn what_is_reported_of_two_journals_of_a_shard_is_durable_while_they_are_kept_up() {
    play(seeds(150), two_journals);
}
