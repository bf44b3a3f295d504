//! What the shards report is durable, whatever becomes of the groups beside it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{AppendError, AppendStream, Appended, Journal, Report, Shards};
use sim::{Rng, SimStore};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;
use stream::hooked::{Access, Hooked};
use stream::{SMALL, Stream, append, create_in};
use types::{Epoch, WallTime, WriteSeq};

/// What becomes of the next writes to segments; after the last one all succeed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Waits,
    Succeeds,
    FindsItFull,
}

#[derive(Debug, Default)]
struct Fates {
    next: Mutex<VecDeque<Fate>>,
    changed: Condvar,
    fails_syncs: AtomicBool,
}

impl Fates {
    fn set(&self, next: &[Fate]) {
        *self.next.lock().unwrap() = next.iter().copied().collect();
        self.changed.notify_all();
    }

    fn take(&self) -> io::Result<()> {
        let waits = |next: &mut VecDeque<Fate>| next.front() == Some(&Fate::Waits);
        let mut next = self.changed.wait_while(self.next.lock().unwrap(), waits).unwrap();
        match next.pop_front() {
            Some(Fate::FindsItFull) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fate::Waits | Fate::Succeeds) | None => Ok(()),
        }
    }
}

/// A journal with one batch in its open segment.
fn begin(fates: &Arc<Fates>) -> (SimStore, Arc<Journal>, Stream) {
    let store = SimStore::new();
    let fates = fates.clone();
    let hooked = Hooked::over(Arc::new(store.clone()), move |name, access| match access {
        Access::Write if name.starts_with("segment-") => fates.take(),
        Access::Sync if name.starts_with("segment-") && fates.fails_syncs.load(Ordering::SeqCst) => {
            Err(io::Error::from_raw_os_error(5))
        }
        Access::Write | Access::Read | Access::Sync | Access::Zero(_) => Ok(()),
    });
    let journal = create_in(Arc::new(hooked), SMALL);
    let mut stream = Stream::begin();
    append(&journal, stream.batch(), 1, 1);
    (store, Arc::new(journal), stream)
}

fn reporting(journal: &Arc<Journal>) -> (Arc<AppendStream>, mpsc::Receiver<Report>) {
    let (reports, reported) = mpsc::channel();
    let stream =
        AppendStream::new(journal.clone(), Epoch::FIRST, move |report| reports.send(report).unwrap());
    (stream, reported)
}

/// Hands in three groups of one journal and one of another; the writer has all of them before it writes the last three.
/// `then` is called when it is about to.
fn four_at_once(then: impl FnOnce(&Fates)) -> [(SimStore, Vec<Result<Appended, AppendError>>); 2] {
    let (fates, stamps, stamped) = (Arc::<Fates>::default(), Arc::new(Mutex::new(0)), Condvar::new());
    let stamped = Arc::new(stamped);
    let (store, journal, mut stream) = begin(&fates);
    let (other_store, other_journal, mut other_stream) = begin(&Arc::default());
    let shards = {
        let (stamps, stamped) = (stamps.clone(), stamped.clone());
        Shards::start(1, move || {
            *stamps.lock().unwrap() += 1;
            stamped.notify_all();
            (WallTime(2), [2; 16])
        })
    };
    // The first stands at the disk until the three behind it are framed: each is stamped twice, the last time when
    // those before it are on their way to the writer.
    fates.set(&[Fate::Waits]);
    let mut reported = Vec::new();
    for number in 0..4 {
        let (journal, stream) = match number {
            3 => (&other_journal, &mut other_stream),
            _ => (&journal, &mut stream),
        };
        let (to, reports) = reporting(journal);
        stream.write(number * 4096, &[number as u8 + 1; 4096]);
        shards.append(&to, stream.batch());
        reported.push(reports);
    }
    drop(stamped.wait_while(stamps.lock().unwrap(), |stamps| *stamps < 8).unwrap());
    then(&fates);
    let mut ours: Vec<_> = reported.iter().map(|reports| reports.recv().unwrap().result).collect();
    drop((shards, reported, journal, other_journal));
    let others = ours.split_off(3);
    [(store, ours), (other_store, others)]
}

/// What was reported as durable is on the disk after a loss of power.
fn check_is_durable(store: &SimStore, results: &[Result<Appended, AppendError>]) {
    let told = results.iter().flatten().map(|appended| appended.durable).max().unwrap_or(WriteSeq::ZERO);
    for seed in 0..8 {
        let after = store.fork();
        after.lose_power(&mut Rng::new(seed));
        let last = Journal::open(Arc::new(after), SMALL).unwrap().journal.status().last_seq;
        assert!(last >= told, "what was reported is on the disk: {last}, {told}");
    }
}

#[test]
fn a_group_before_one_that_finds_the_disk_full_is_durable_when_it_is_reported() {
    let [(store, ours), (other_store, others)] =
        four_at_once(|fates| fates.set(&[Fate::Succeeds, Fate::Succeeds, Fate::FindsItFull]));
    assert!(ours[2].is_err(), "the third finds the disk full");
    assert!(others[0].is_ok(), "a journal beside it is not touched");
    check_is_durable(&store, &ours);
    check_is_durable(&other_store, &others);
}

#[test]
fn groups_that_one_sync_was_to_make_durable_are_all_told_that_it_failed() {
    let [(store, ours), (other_store, others)] = four_at_once(|fates| {
        fates.fails_syncs.store(true, Ordering::SeqCst);
        fates.set(&[]);
    });
    assert!(ours.iter().all(Result::is_err), "none of the three: {ours:?}");
    assert!(others[0].is_ok(), "a journal beside it is not touched");
    check_is_durable(&store, &ours);
    check_is_durable(&other_store, &others);
}

#[test]
fn what_had_its_place_before_the_epoch_was_raised_is_waited_for_and_nothing_comes_after() {
    let fates = Arc::new(Fates::default());
    let (_store, journal, mut stream) = begin(&fates);
    let (appends, reported) = reporting(&journal);
    let shards = Shards::start(1, || (WallTime(1), [1; 16]));
    fates.set(&[Fate::Waits]);
    let before = journal.status().last_seq;
    stream.write(0, &[1; 4096]);
    shards.append(&appends, stream.batch());
    while journal.wait_for_appends_within(Duration::ZERO) {
        std::thread::yield_now(); // It has no place yet.
    }
    journal.raise_epoch(Epoch::FIRST.next()).unwrap();
    assert!(!journal.wait_for_appends_within(Duration::from_millis(1)), "its disk does not answer");
    assert_eq!(journal.status().last_seq, before);
    fates.set(&[]);
    assert!(journal.wait_for_appends_within(Duration::from_secs(600)));
    let cut = journal.status().last_seq;
    assert!(cut > before, "a cut that is chosen now has it");
    assert!(reported.recv().unwrap().result.is_ok_and(|appended| appended.durable == cut));
    stream.write(0, &[2; 4096]);
    shards.append(&appends, stream.batch());
    assert!(reported.recv().unwrap().result.is_err(), "of the old epoch");
    assert_eq!(journal.status().last_seq, cut);
}
