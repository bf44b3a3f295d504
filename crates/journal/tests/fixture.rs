//! A journal of each released format must open for ever. `HOLDFAST_MAKE_FIXTURE=1` makes the newest one
//! anew, which is right only as long as its format is not released.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{FsStore, Journal, Mode, Settings, Upkeep, verify};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stream::{DISK_BYTES, SMALL, Stream, append, create_in, cuts, keep_up, read_all};

const SETTINGS: Settings = Settings { segment_bytes: 40 << 10, ..SMALL };

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/2")
}

/// A journal with everything in it: both logs, footers, merged runs, checkpoint files, a tag, a pin, an open
/// segment. What each checkpoint shows is written beside it.
fn make(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
    let store = Arc::new(FsStore::open(folder).unwrap());
    let journal = create_in(store, SETTINGS);
    let mut stream = Stream::begin();
    for number in 0..70u64 {
        stream.write(number * 1700, &[number as u8 + 1; 5000]);
        if number % 7 == 0 {
            stream.zero(batch::Kind::Discard, types::ByteRange::new(number * 2000, 9000));
        }
        stream.checkpoint();
        append(&journal, stream.batch(), number, number as u8 + 1);
        let mode = if (4..8).contains(&number) { Mode::Rollback } else { Mode::RollForward };
        journal.set(Settings { mode, ..SETTINGS });
        if number != 69 {
            keep_up(&journal, number);
        }
    }
    journal.pin("the fixture", stream.states[30].0, None).unwrap();
    let mut expected = String::new();
    for cut in cuts(&journal) {
        let crc = crc32c::crc32c(&read_all(&journal, cut).unwrap());
        writeln!(expected, "{cut} {crc:08x}").unwrap();
    }
    drop(journal);
    std::fs::write(folder.join("expected"), expected).unwrap();
    let _ = std::fs::remove_file(folder.join("lock"));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for row in std::fs::read_dir(from).unwrap() {
        let path = row.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn the_fixture_of_format_2_opens_and_shows_what_it_showed() {
    if std::env::var_os("HOLDFAST_MAKE_FIXTURE").is_some() {
        make(&fixture());
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(), folder.path());
    let store = Arc::new(FsStore::open(folder.path()).unwrap());
    let report = verify(&*store, true, |_| {}).unwrap();
    assert_eq!(report.damage, Vec::<String>::new());
    let journal = Journal::open(store, SETTINGS).unwrap().journal;
    let mut found = String::new();
    for cut in cuts(&journal) {
        let crc = crc32c::crc32c(&read_all(&journal, cut).unwrap());
        writeln!(found, "{cut} {crc:08x}").unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(folder.path().join("expected")).unwrap());
    assert!(found.lines().count() >= 40 && DISK_BYTES > 0);
    let status = journal.status();
    assert!(status.runs > 1 && status.applied.raw() > 0);
    assert_eq!(journal.pins()[0].owner, "the fixture");
}

#[test]
fn a_checkpoint_file_of_an_older_version_is_given_its_second_copy() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture(), folder.path());
    let open = || Journal::open(Arc::new(FsStore::open(folder.path()).unwrap()), SETTINGS).unwrap().journal;
    let journal = open();
    let listed = cuts(&journal);
    let mut place = None;
    loop {
        let step = journal.scrub(place, &Upkeep::plain(types::WallTime(0), [5; 16])).unwrap();
        assert_eq!((step.mended, step.lost), (vec![], vec![]), "it lacks nothing that it had");
        place = step.place;
        if place.is_none() {
            break;
        }
    }
    drop(journal);
    for name in ["checkpoints-00000001", "checkpoints-00000001-2"] {
        let (path, aside) = (folder.path().join(name), folder.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert_eq!(cuts(&open()), listed, "without {name}");
        std::fs::rename(&aside, &path).unwrap();
    }
}
