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

/// Hands in three groups of one journal and three of another; the last two of the first are framed when the first of it is
/// written.
/// `then` is called when it is about to.
fn three_each(then: impl FnOnce(&Fates)) -> [(SimStore, Vec<Result<Appended, AppendError>>); 2] {
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
    // The first stands at the disk until the two of its journal behind it are framed: each is stamped, and journals take
    // turns, so that all before the last one of the other are.
    fates.set(&[Fate::Waits]);
    let mut reported = Vec::new();
    for number in 0..6 {
        let (journal, stream) = match number {
            3.. => (&other_journal, &mut other_stream),
            _ => (&journal, &mut stream),
        };
        let (to, reports) = reporting(journal);
        stream.write(number * 4096, &[number as u8 + 1; 4096]);
        shards.append(&to, stream.batch());
        reported.push(reports);
    }
    drop(stamped.wait_while(stamps.lock().unwrap(), |stamps| *stamps < 6).unwrap());
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
        three_each(|fates| fates.set(&[Fate::Succeeds, Fate::Succeeds, Fate::FindsItFull]));
    assert!(ours[2].is_err(), "the third finds the disk full");
    assert!(others.iter().all(Result::is_ok), "a journal beside it is not touched");
    check_is_durable(&store, &ours);
    check_is_durable(&other_store, &others);
}

#[test]
fn groups_that_one_sync_was_to_make_durable_are_all_told_that_it_failed() {
    let [(store, ours), (other_store, others)] = three_each(|fates| {
        fates.fails_syncs.store(true, Ordering::SeqCst);
        fates.set(&[]);
    });
    assert!(ours.iter().all(Result::is_err), "none of the three: {ours:?}");
    assert!(others.iter().all(Result::is_ok), "a journal beside it is not touched");
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

/// As many writers as the agent has stand at disks that hang, and all that there may be at one of them.
#[test]
fn a_disk_that_hangs_holds_up_no_journal_of_another_and_what_it_had_is_written_in_order_later() {
    let hanging = Arc::new(Fates::default());
    let shards = Shards::start(2, || (WallTime(1), [1; 16]));
    let mut held: Vec<_> = (0..3).map(|_| begin(&hanging)).collect();
    hanging.set(&[Fate::Waits]);
    let hand_in = |(_, journal, stream): &mut (SimStore, Arc<Journal>, Stream)| {
        let (appends, reported) = reporting(journal);
        for number in 0..20 {
            stream.write(number % 4 * 4096, &[number as u8; 4096]);
            shards.append(&appends, stream.batch());
        }
        reported
    };
    let waiting: Vec<_> = held.iter_mut().map(hand_in).collect();
    let mut well = begin(&Arc::default());
    let sent = hand_in(&mut well);
    let told = told_of_all(&sent);
    assert_eq!(told, well.1.status().last_seq, "a journal beside them is written");
    assert!(waiting.iter().all(|reported| reported.try_recv().is_err()), "of those nothing is told");
    hanging.set(&[]);
    for ((store, journal, _), reported) in held.iter().zip(&waiting) {
        let told = told_of_all(reported);
        assert_eq!(told, journal.status().last_seq);
        check_is_durable(store, &[Ok(Appended { durable: told, watermark: told })]);
    }
}

/// What is durable once all twenty batches are reported, each group as more than the one before.
fn told_of_all(reported: &mpsc::Receiver<Report>) -> WriteSeq {
    let (mut batches, mut told) = (0, WriteSeq::ZERO);
    while batches < 20 {
        let report = reported.recv_timeout(Duration::from_secs(600)).unwrap();
        let durable = report.result.unwrap().durable;
        assert!(durable > told);
        (batches, told) = (batches + report.batches, durable);
    }
    told
}
