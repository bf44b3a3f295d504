//! Disks that do not give everything: what cannot be read just now is an error, a sector that never can is damage.

use crate::stream::{DISK_BYTES, Stream, append, compare, create_in, cuts, keep_up, read_all};
use crate::{BATCHES_AT, SEGMENTS, WITH_SMALL, make_good, scrub_all, sealed, try_scrub, written};
use journal::{Journal, Manifest, Mode, Settings, Store, StoreFile, Upkeep};
use sim::{Decay, SimStore};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use types::{ByteRange, WallTime};

/// What of which files cannot be read just now.
pub(crate) type Unread = Arc<Mutex<Option<(&'static str, Range<u64>)>>>;

/// A disk that does not give everything.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable(pub(crate) SimStore, pub(crate) Unread);

#[derive(Debug)]
struct UnreadableFile(Arc<dyn StoreFile>, String, Unread);

impl Store for Unreadable {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(UnreadableFile(self.0.open(name, create)?, name.to_owned(), self.1.clone())))
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

impl StoreFile for UnreadableFile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let to = at + buf.len() as u64;
        match &*self.2.lock().unwrap() {
            Some((prefix, unread)) if self.1.starts_with(prefix) && at < unread.end && unread.start < to => {
                Err(io::Error::from_raw_os_error(5))
            }
            _ => self.0.read_at(at, buf),
        }
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
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

#[test]
fn a_disk_that_cannot_be_read_just_now_is_an_error_and_not_damage() {
    let (store, stream) = sealed(20);
    let unread = Unread::default();
    let unreadable = Arc::new(Unreadable(store, unread.clone()));
    let journal = Journal::open(unreadable.clone(), SEGMENTS).unwrap().journal;
    let total = cuts(&journal).len();
    *unread.lock().unwrap() = Some(("segment-", 0..u64::MAX));
    let cut = *cuts(&journal).last().unwrap();
    assert!(read_all(&journal, cut).unwrap_err().to_string().contains("segment-"));
    assert!(journal.scrub(None, &Upkeep::plain(WallTime(0), [5; 16])).is_err());
    assert!(matches!(Journal::open(unreadable, SEGMENTS), Err(journal::OpenError::Io(_))));
    *unread.lock().unwrap() = None;
    assert_eq!(journal.status().damage, Vec::<String>::new());
    assert_eq!(compare(&journal, &stream.states), total, "nothing is lost once it can be read again");
}

/// A disk fails sector by sector: one of them is damage, and costs what is in it.
#[test]
fn a_sector_that_cannot_be_read_is_damage() {
    for sector in [BATCHES_AT[1], BATCHES_AT[1] + 4096] {
        let store = SimStore::new();
        let unread = Unread::default();
        let unreadable = Arc::new(Unreadable(store.clone(), unread.clone()));
        let journal = create_in(unreadable.clone(), SEGMENTS);
        let mut stream = written(&journal);
        *unread.lock().unwrap() = Some((WITH_SMALL, sector..sector + 512));
        let found = scrub_all(&journal).damage;
        assert_eq!(found.len(), 1, "{found:?}");
        let place = format!("{WITH_SMALL} at byte {}: ", BATCHES_AT[1]);
        assert!(found[0].what.starts_with(&place) || sector > BATCHES_AT[1], "{found:?}");
        assert!(found[0].what.contains("cannot be read"), "{found:?}");
        make_good(&journal, &mut stream, 100);
        for old in 0..=200 {
            keep_up(&journal, SEGMENTS.history.as_secs() + old);
            assert!(compare(&journal, &stream.states) > 0);
        }
        let left = Manifest::load(&store).unwrap().redo.segments;
        assert!(left.iter().all(|info| info.number > 3), "{left:?}");
    }
}

#[test]
fn a_sector_of_the_open_segment_that_cannot_be_read_leaves_the_journal_to_be_opened() {
    let store = SimStore::new();
    let unread = Unread::default();
    let unreadable = Arc::new(Unreadable(store, unread.clone()));
    let settings = Settings { segment_bytes: 1 << 20, ..SEGMENTS };
    let journal = create_in(unreadable.clone(), settings);
    let stream = written(&journal);
    let name = "segment-00000001";
    drop(journal);
    *unread.lock().unwrap() = Some((name, BATCHES_AT[2]..BATCHES_AT[2] + 512));
    let opened = Journal::open(unreadable.clone(), settings).unwrap();
    assert!(opened.damage[0].what.contains("cannot be read"), "{:?}", opened.damage);
    assert_eq!(compare(&opened.journal, &stream.states), 2, "what lies before it");
    drop(opened);
    let opened = Journal::open(unreadable, settings).unwrap();
    assert_eq!(opened.damage, Vec::new());
    assert_eq!(compare(&opened.journal, &stream.states), 2);
}

/// Of two copies of a header one rots and the other one is not given any more, or neither is: of an open segment, and of one
/// that is sealed.
#[test]
fn a_segment_without_either_header_is_damage_as_long_as_the_disk_gives_the_rest() {
    for (segment, how) in [(4, Decay::Flip(9)), (4, Decay::Unread), (2, Decay::Flip(9)), (2, Decay::Unread)] {
        let (store, stream) = sealed(20);
        let journal = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap().journal;
        let total = compare(&journal, &stream.states);
        drop(journal);
        let segments = Manifest::load(&store).unwrap().redo.segments;
        let name = format!("segment-{:08}", segments[segment].number);
        assert!(store.decay(&name, 0, &how) && store.decay(&name, 1, &Decay::Unread), "{name}");
        let opened = Journal::open(Arc::new(store.clone()), SEGMENTS).unwrap();
        let found = [opened.damage, scrub_all(&opened.journal).damage].concat();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.starts_with(&name), "{found:?}");
        assert!((1..total).contains(&compare(&opened.journal, &stream.states)), "the others are whole");
    }
}

#[test]
fn a_sector_of_an_index_that_cannot_be_read_costs_nothing() {
    let store = SimStore::new();
    let unread = Unread::default();
    let journal = create_in(Arc::new(Unreadable(store.clone(), unread.clone())), SEGMENTS);
    let stream = written(&journal);
    let total = compare(&journal, &stream.states);
    let manifest = Manifest::load(&store).unwrap();
    let footer = manifest.redo.segments[2].sealed.clone().unwrap().footer.unwrap();
    for at in (footer.at..footer.at + footer.bytes).step_by(4096) {
        *unread.lock().unwrap() = Some((WITH_SMALL, at..at + 512));
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        assert_eq!(compare(&journal, &stream.states), total);
    }
    let footer = Manifest::load(&store).unwrap().redo.segments[2].sealed.clone().unwrap().footer.unwrap();
    assert!(footer.file.is_some(), "it was made again");
}

/// A journal in rollback mode whose replica has twenty blocks of 64 KiB, each written once.
fn with_replica() -> (SimStore, Unread, Journal, Stream) {
    let (disk, unread) = (SimStore::new(), Unread::default());
    let settings = Settings { mode: Mode::Rollback, ..SEGMENTS };
    let journal = create_in(Arc::new(Unreadable(disk.clone(), unread.clone())), settings);
    let mut stream = Stream::begin();
    for number in 0..DISK_BYTES >> 16 {
        stream.write(number << 16, &[number as u8 + 1; 1 << 16]);
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
    }
    keep_up(&journal, 20);
    (disk, unread, journal, stream)
}

#[test]
fn a_sector_that_was_not_given_once_hides_no_later_damage() {
    let (_disk, unread, journal, mut stream) = with_replica();
    let sector = || *unread.lock().unwrap() = Some(("replica/vda.raw", 69_632..73_728));
    sector();
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    *unread.lock().unwrap() = None;
    make_good(&journal, &mut stream, 100);
    sector();
    let again = scrub_all(&journal).damage;
    let newest = *cuts(&journal).last().unwrap();
    assert_eq!(again.is_empty(), read_all(&journal, newest).is_ok(), "{again:?}");
    compare(&journal, &stream.states);
}

#[test]
fn a_bad_area_as_large_as_a_region_is_damage_and_what_lies_behind_is_read() {
    let (disk, unread, journal, stream) = with_replica();
    assert_eq!(scrub_all(&journal).damage, Vec::new());
    *unread.lock().unwrap() = Some(("replica/vda.raw", 0..1 << 20));
    assert!(disk.rot("replica/vda.raw", (1 << 20) + 5000));
    assert_eq!(scrub_all(&journal).damage.len(), 2);
    compare(&journal, &stream.states);
    *unread.lock().unwrap() = Some(("replica/vda.raw", 0..u64::MAX));
    assert!(try_scrub(&journal).is_err(), "a disk that gives nothing is an error");
}

/// A step back reads all but one sector of a block that it writes a part of.
#[test]
fn a_sector_of_a_replica_that_a_step_back_cannot_read_is_contained_and_passed_by() {
    let (_disk, unread, journal, mut stream) = with_replica();
    *unread.lock().unwrap() = Some(("replica/vda.raw", 66_560..67_072));
    stream.write(65_536, &[77; 512]);
    stream.checkpoint();
    append(&journal, stream.batch(), 30, 30);
    let mut found = Vec::new();
    for _ in 0..20 {
        found.extend(journal.keep_up(&Upkeep::plain(WallTime(30_000_000), [9; 16])).unwrap().damage);
    }
    assert!(found.len() == 1 && found[0].what.ends_with("cannot be read"), "{found:?}");
    assert_eq!(journal.status().applied, journal.status().last_seq);
    // What was written beside it cannot be read either.
    scrub_all(&journal);
    assert!(compare(&journal, &stream.states) < cuts(&journal).len());
    *unread.lock().unwrap() = Some(("replica/vda.raw", 0..u64::MAX));
    stream.resync();
    append(&journal, stream.batch(), 31, 31);
    assert!(journal.keep_up(&Upkeep::plain(WallTime(31_000_000), [9; 16])).is_err(), "it gives nothing");
}
