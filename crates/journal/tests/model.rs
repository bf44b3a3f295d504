//! Random operations against a plain list of disk states: every checkpoint kept is compared in full.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use batch::Kind;
use journal::{Image, Journal, Mode, Settings, Upkeep};
use proptest::prelude::*;
use sim::{Rng, SimStore};
use std::sync::Arc;
use stream::{DISK_BYTES, Stream, append, compare, create, cuts};
use types::{ByteRange, DiskIndex, WallTime};

/// Segments of a few batches, so that footers, merges and folds come soon.
const SMALL: Settings = Settings { segment_bytes: 128 << 10, ..stream::SMALL };

#[derive(Debug, Clone)]
enum Step {
    Write {
        start: u64,
        len: u64,
        byte: u8,
    },
    Zero {
        start: u64,
        len: u64,
        discard: bool,
    },
    Checkpoint,
    Send,
    Keep {
        bytes_soft: u64,
        rollback: bool,
    },
    Rest,
    /// Opens an image that stays open.
    Mount {
        pick: usize,
        writable: bool,
    },
    /// Writes to, or promotes, an image that is open.
    Use {
        pick: usize,
        start: u64,
        len: u64,
        byte: u8,
        promote: bool,
    },
    Unmount {
        pick: usize,
    },
    Scrub,
    Crash {
        seed: u64,
    },
    Image {
        pick: usize,
        start: u64,
        len: u64,
        byte: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Unaligned to anything, often over a region's edge.
    let place =
        || (0..DISK_BYTES - 1, 1u64..150_000).prop_map(|(start, len)| (start, len.min(DISK_BYTES - start)));
    prop_oneof![
        8 => (place(), 1u8..).prop_map(|((start, len), byte)| Step::Write { start, len, byte }),
        1 => (place(), any::<bool>()).prop_map(|((start, len), discard)| Step::Zero { start, len, discard }),
        3 => Just(Step::Checkpoint),
        4 => Just(Step::Send),
        3 => (0u64..6 << 20, any::<bool>())
            .prop_map(|(bytes_soft, rollback)| Step::Keep { bytes_soft, rollback }),
        1 => Just(Step::Rest),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(pick, writable)| Step::Mount { pick, writable }),
        3 => (any::<usize>(), place(), any::<u8>(), any::<bool>()).prop_map(
            |(pick, (start, len), byte, promote)| Step::Use { pick, start, len, byte, promote }),
        1 => any::<usize>().prop_map(|pick| Step::Unmount { pick }),
        1 => Just(Step::Scrub),
        1 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        1 => (any::<usize>(), place(), any::<u8>())
            .prop_map(|(pick, (start, len), byte)| Step::Image { pick, start, len, byte }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_checkpoint_kept_is_as_it_was(steps in proptest::collection::vec(step(), 1..90)) {
        let store = SimStore::new();
        let mut journal = Arc::new(create(&store, SMALL));
        let mut stream = Stream::begin();
        let mut incarnation = 0;
        let mut mounts = Mounts::default();
        for step in steps {
            match step {
                Step::Write { start, len, byte } => {
                    let bytes: Vec<u8> = (0..len).map(|at| byte.wrapping_add((at / 700) as u8)).collect();
                    stream.write(start, &bytes);
                }
                Step::Zero { start, len, discard } => {
                    let kind = if discard { Kind::Discard } else { Kind::Zero };
                    stream.zero(kind, ByteRange::new(start, len));
                }
                Step::Checkpoint => drop(stream.checkpoint()),
                Step::Send => {
                    incarnation += 1;
                    append(&journal, stream.batch(), 0, incarnation);
                }
                Step::Keep { bytes_soft, rollback } => {
                    let mode = if rollback { Mode::Rollback } else { Mode::RollForward };
                    journal.set(Settings { bytes_soft, mode, ..SMALL });
                    incarnation += 1;
                    journal.keep_up(&Upkeep::plain(WallTime(0), [incarnation; 16])).unwrap();
                }
                Step::Rest => journal.rest(),
                Step::Mount { pick, writable } => mounts.open(&journal, &stream, pick, writable),
                Step::Use { pick, start, len, byte, promote } => mounts.work(pick, start, len, byte, promote),
                Step::Unmount { pick } => mounts.close(&journal, pick),
                Step::Scrub => {
                    let mut place = None;
                    loop {
                        let step = journal.scrub(place, &Upkeep::plain(WallTime(0), [7; 16])).unwrap();
                        prop_assert!(step.damage.is_empty() && step.rebuilt == 0);
                        place = step.place;
                        if place.is_none() {
                            break;
                        }
                    }
                }
                Step::Crash { seed } => {
                    let durable = journal.status().last_seq;
                    mounts.0.clear();
                    drop(journal);
                    store.lose_power(&mut Rng::new(seed));
                    let opened = Journal::open(Arc::new(store.clone()), SMALL).unwrap();
                    prop_assert!(opened.damage.is_empty());
                    prop_assert_eq!(opened.journal.status().last_seq, durable, "acknowledged writes are there");
                    journal = Arc::new(opened.journal);
                }
                Step::Image { pick, start, len, byte } => write_to_image(&journal, &stream, pick, start, len, byte)?,
            }
            compare(&journal, &stream.states);
            mounts.compare();
        }
    }
}

/// Images that are open, with what each must show and the folder of its overlay.
#[derive(Default)]
struct Mounts(Vec<(Image, Vec<u8>, String)>);

impl Mounts {
    fn open(&mut self, journal: &Arc<Journal>, stream: &Stream, pick: usize, writable: bool) {
        let cuts = cuts(journal);
        let Some(&cut) = cuts.get(pick % cuts.len().max(1)) else { return };
        if self.0.len() >= 3 {
            return;
        }
        let expected = stream.states.iter().find(|(at, _)| *at == cut).unwrap().1.clone();
        let folder = format!("image-{pick}");
        journal.discard_overlays(&folder).unwrap();
        let image = Image::open(journal.clone(), cut, writable.then_some(&*folder), [1; 16]).unwrap();
        self.0.push((image, expected, folder));
    }

    fn work(&mut self, pick: usize, start: u64, len: u64, byte: u8, promote: bool) {
        let count = self.0.len().max(1);
        let Some((image, expected, _)) = self.0.get_mut(pick % count) else { return };
        if !image.is_writable() {
            assert!(image.write_at(DiskIndex(0), start, &[byte]).is_err());
            return;
        }
        image.write_at(DiskIndex(0), start, &vec![byte; len as usize]).unwrap();
        expected[start as usize..(start + len) as usize].fill(byte);
        if promote {
            // As far as some steps go; another time it goes on.
            let steps = std::cell::Cell::new(usize::from(byte) % 3);
            image.promote(|_| steps.replace(steps.get().saturating_sub(1)) > 0).unwrap();
        }
    }

    fn close(&mut self, journal: &Arc<Journal>, pick: usize) {
        if self.0.is_empty() {
            return;
        }
        let (image, _, folder) = self.0.remove(pick % self.0.len());
        drop(image);
        journal.discard_overlays(&folder).unwrap();
    }

    fn compare(&self) {
        for (image, expected, _) in &self.0 {
            let mut found = vec![0; expected.len()];
            image.read_at(DiskIndex(0), 0, &mut found).unwrap();
            assert!(found == *expected, "an open image shows what it showed, whatever goes on");
        }
    }
}

/// Opens a writable image at some checkpoint, writes, reads back, and the checkpoint is as before.
fn write_to_image(
    journal: &Arc<Journal>,
    stream: &Stream,
    pick: usize,
    start: u64,
    len: u64,
    byte: u8,
) -> Result<(), TestCaseError> {
    let cuts = cuts(journal);
    let Some(&cut) = cuts.get(pick % cuts.len().max(1)) else { return Ok(()) };
    let mut expected = stream.states.iter().find(|(at, _)| *at == cut).unwrap().1.clone();
    let image = Image::open(journal.clone(), cut, Some("image-1"), [1; 16]).unwrap();
    let disk = DiskIndex(0);
    image.write_at(disk, start, &vec![byte; len as usize]).unwrap();
    expected[start as usize..(start + len) as usize].fill(byte);
    let hole = ByteRange::new(start / 2, len.min(9000));
    image.zero(disk, hole).unwrap();
    expected[hole.start as usize..hole.end() as usize].fill(0);
    let mut found = vec![0; expected.len()];
    image.read_at(disk, 0, &mut found).unwrap();
    prop_assert!(found == expected, "an image reads back what was written to it");
    drop(image);
    journal.discard_overlays("image-1").unwrap();
    Ok(())
}
