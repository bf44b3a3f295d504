//! What the shards report is durable, whatever becomes of the groups beside it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{AppendStream, Journal, Report, Shards, Store, StoreFile};
use sim::{Rng, SimStore};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use stream::{SMALL, Stream, append, create_in};
use types::{ByteRange, Epoch, WallTime, WriteSeq};

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

#[derive(Debug)]
struct FatedStore(SimStore, Arc<Fates>);

#[derive(Debug)]
struct FatedFile(Arc<dyn StoreFile>, Arc<Fates>);

impl Store for FatedStore {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        let file = self.0.open(name, create)?;
        Ok(match name.starts_with("segment-") {
            true => Arc::new(FatedFile(file, self.1.clone())),
            false => file,
        })
    }
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.0.exists(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Store::names(&self.0)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.0.sync_folder()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl StoreFile for FatedFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(at, buf)
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.1.take()?;
        self.0.write_at(at, buf)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.0.zero(range)
    }
}

/// A journal with one batch in its open segment.
fn begin(fates: &Arc<Fates>) -> (SimStore, Arc<Journal>, Stream) {
    let store = SimStore::new();
    let journal = create_in(Arc::new(FatedStore(store.clone(), fates.clone())), SMALL);
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

#[test]
fn a_group_before_one_that_finds_the_disk_full_is_durable_when_it_is_reported() {
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
    fates.set(&[Fate::Succeeds, Fate::Succeeds, Fate::FindsItFull]);
    let results: Vec<_> = reported.iter().map(|reports| reports.recv().unwrap().result).collect();
    drop((shards, reported, journal, other_journal));

    assert!(results[2].is_err(), "the third finds the disk full");
    let told = |results: &[Result<journal::Appended, _>]| {
        results.iter().flatten().map(|appended| appended.durable).max().unwrap_or(WriteSeq::ZERO)
    };
    let ours: Vec<_> = results[..3].iter().map(|result| result.as_ref().copied().map_err(drop)).collect();
    let others: Vec<_> = results[3..].iter().map(|result| result.as_ref().copied().map_err(drop)).collect();
    assert!(others[0].is_ok(), "a journal beside it is not touched");
    for (store, told) in [(store, told(&ours)), (other_store, told(&others))] {
        for seed in 0..8 {
            let after = store.fork();
            after.lose_power(&mut Rng::new(seed));
            let last = Journal::open(Arc::new(after), SMALL).unwrap().journal.status().last_seq;
            assert!(last >= told, "what was reported is on the disk: {last}, {told}");
        }
    }
}
