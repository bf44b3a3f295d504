//! A loss of power at every step: the disk is looked at before each write, sync, rename and removal of a
//! journal's life, with sectors kept and lost by chance, and the journal opened again from what is there.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{AppendMeta, Journal, Mode, Settings, Store, StoreFile, Upkeep};
use sim::{Rng, SimStore};
use std::io;
use std::sync::{Arc, Mutex};
use stream::{DISK_BYTES, SMALL, Stream, compare, cuts, keep_up};
use types::{ByteRange, DiskSpec, Epoch, VmId, WallTime, WriteSeq};

/// Called before each change of the disk.
type Hook = Arc<dyn Fn(&SimStore) + Send + Sync>;

/// A store that says when it is about to change.
#[derive(Clone)]
struct Traced {
    inner: SimStore,
    hook: Hook,
}

struct TracedFile {
    inner: Arc<dyn StoreFile>,
    store: Traced,
}

impl std::fmt::Debug for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Traced")
    }
}

impl std::fmt::Debug for TracedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TracedFile")
    }
}

impl Traced {
    fn about_to_change(&self) {
        (self.hook)(&self.inner);
    }
}

impl Store for Traced {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        if create && !self.inner.exists(name)? {
            self.about_to_change();
        }
        Ok(Arc::new(TracedFile { inner: self.inner.open(name, create)?, store: self.clone() }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.inner.exists(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Store::names(&self.inner)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.about_to_change();
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.about_to_change();
        self.inner.remove(name)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.about_to_change();
        self.inner.sync_folder()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
}

impl StoreFile for TracedFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.store.about_to_change();
        self.inner.write_at(at, buf)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.store.about_to_change();
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.store.about_to_change();
        self.inner.set_len(len)
    }

    fn zero(&self, range: ByteRange) -> io::Result<()> {
        self.store.about_to_change();
        self.inner.zero(range)
    }
}

/// What must be there after a crash at this moment.
#[derive(Default)]
struct Promise {
    acked: WriteSeq,
    /// Cuts that were not due to be retired, oldest first.
    kept: Vec<WriteSeq>,
    states: Vec<(WriteSeq, Vec<u8>)>,
    checks: u64,
}

/// Opens what a loss of power leaves, in one way by chance, and holds it against the promise.
fn check(disk: &SimStore, promise: &mut Promise, settings: Settings) {
    promise.checks += 1;
    let crashed = disk.fork();
    crashed.lose_power(&mut Rng::new(promise.checks));
    let opened = Journal::open(Arc::new(crashed), settings).unwrap();
    assert!(opened.damage.is_empty(), "{:?}", opened.damage);
    let journal = opened.journal;
    assert!(journal.status().last_seq >= promise.acked, "acknowledged writes are there");
    let found = cuts(&journal);
    assert!(promise.kept.iter().all(|cut| found.contains(cut)), "{:?} are kept of {:?}", found, promise.kept);
    compare(&journal, &promise.states);
    // It goes on from there.
    keep_up(&journal, 0);
    compare(&journal, &promise.states);
}

fn life(mode: Mode) -> u64 {
    let settings = Settings { segment_bytes: 24 << 10, mode, ..SMALL };
    let disk = SimStore::new();
    let vm = VmId::from_bytes([1; 16]);
    let disks = [DiskSpec { name: "vda".into(), size_bytes: DISK_BYTES }];
    Journal::create(Arc::new(disk.clone()), vm, "web", &disks, Epoch::FIRST, settings).unwrap();
    let promise = Arc::new(Mutex::new(Promise::default()));
    let hook: Hook = {
        let promise = promise.clone();
        Arc::new(move |disk: &SimStore| check(disk, &mut promise.lock().unwrap(), settings))
    };
    let store = Arc::new(Traced { inner: disk.clone(), hook });
    let journal = Journal::open(store, settings).unwrap().journal;
    let mut stream = Stream::begin();
    for number in 0..14u64 {
        stream.write(number * 9000, &[number as u8 + 1; 7000]);
        if number % 3 == 0 {
            stream.zero(batch::Kind::Zero, ByteRange::new(number * 700, 3000));
        }
        let cut = stream.checkpoint();
        promise.lock().unwrap().states.clone_from(&stream.states);
        let entropy = [number as u8 + 1; 16];
        let meta = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(number as i64), entropy };
        let appended = journal.append(vec![stream.batch()], meta).unwrap();
        {
            let mut promise = promise.lock().unwrap();
            promise.acked = appended.durable;
            if number < 8 {
                promise.kept.push(cut);
            }
        }
        if number == 8 {
            // From here on the oldest may go; what was kept as files is written anew later.
            promise.lock().unwrap().kept.clear();
            journal.set(Settings { bytes_soft: 90 << 10, ..settings });
        }
        journal.keep_up(&Upkeep::plain(WallTime(number as i64), entropy)).unwrap();
        assert!(compare(&journal, &stream.states) >= 1);
    }
    let checks = promise.lock().unwrap().checks;
    assert!(mode == Mode::Rollback || disk.names().iter().any(|name| name.starts_with("spare-")));
    checks
}

#[test]
fn a_loss_of_power_before_any_step_loses_nothing_acknowledged() {
    let checks = life(Mode::RollForward);
    assert!(checks > 200, "{checks} steps are a life");
}

#[test]
fn a_loss_of_power_before_any_step_in_rollback_mode_loses_nothing_acknowledged() {
    let checks = life(Mode::Rollback);
    assert!(checks > 300, "{checks} steps are a life");
}
