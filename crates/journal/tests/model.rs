//! A state machine of a journal's user against a plain list of disk states: whatever is done, in whatever
//! order, every checkpoint kept and every image that is open is compared in full.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use batch::Kind;
use journal::{CheckpointQuery, Image, Journal, Mode, Settings, Thinning, Upkeep};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use sim::{Rng, SimStore};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stream::{DISK_BYTES, Stream, append, compare, create, cuts};
use types::{ByteRange, DiskIndex, WallTime, WriteSeq};

/// Segments of a few batches, so that footers, merges and folds come soon.
const SMALL: Settings = Settings { segment_bytes: 128 << 10, ..stream::SMALL };
/// With these, checkpoints some seconds old stand for a quarter of an hour each.
const THIN: Thinning = Thinning { all: Duration::from_secs(1), minutely: Duration::from_secs(2) };
/// Images that may be open at once; each has a folder of its own.
const MOUNTS: usize = 3;
const DISK: DiskIndex = DiskIndex(0);

/// A write, or the making of zeroes: bytes at a place.
#[derive(Debug, Clone, Copy)]
struct Change {
    range: ByteRange,
    byte: u8,
}

impl Change {
    fn bytes(self) -> Vec<u8> {
        (0..self.range.len).map(|at| self.byte.wrapping_add((at / 700) as u8)).collect()
    }

    fn apply(self, disk: &mut [u8]) {
        disk[self.range.start as usize..self.range.end() as usize].copy_from_slice(&self.bytes());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(Change),
    Zero { range: ByteRange, discard: bool },
    Checkpoint,
    Send,
    Keep { bytes_soft: u64, rollback: bool },
    Thin,
    Rest,
    Scrub,
    Crash { seed: u64 },
    Mount { slot: usize, pick: usize, writable: bool },
    WriteMounted { slot: usize, change: Change },
    ZeroMounted { slot: usize, range: ByteRange },
    Promote { slot: usize, steps: usize },
    Unmount { slot: usize },
}

/// What the journal must show, kept as whole disks.
#[derive(Debug, Clone)]
struct Plain {
    disk: Vec<u8>,
    /// The disk at each checkpoint that was taken, in their order.
    states: Vec<Arc<Vec<u8>>>,
    /// Of these, how many were sent.
    sent: usize,
    unsent: bool,
    /// Slots in which an image was opened, and whether it is writable.
    mounts: BTreeMap<usize, bool>,
}

struct Model;

impl ReferenceStateMachine for Model {
    type State = Plain;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Plain> {
        let disk = vec![0; DISK_BYTES as usize];
        let plain = Plain { disk, states: Vec::new(), sent: 0, unsent: true, mounts: BTreeMap::new() };
        Just(plain).boxed()
    }

    fn transitions(plain: &Plain) -> BoxedStrategy<Step> {
        // Unaligned to anything, often over a region's edge.
        let range = || {
            let place = (0..DISK_BYTES - 1, 1u64..150_000);
            place.prop_map(|(start, len)| ByteRange::new(start, len.min(DISK_BYTES - start)))
        };
        let change = || (range(), 1u8..).prop_map(|(range, byte)| Change { range, byte });
        let mut steps: Vec<(u32, BoxedStrategy<Step>)> = vec![
            (8, change().prop_map(Step::Write).boxed()),
            (1, (range(), any::<bool>()).prop_map(|(range, discard)| Step::Zero { range, discard }).boxed()),
            (3, Just(Step::Checkpoint).boxed()),
            (
                3,
                (0u64..6 << 20, any::<bool>())
                    .prop_map(|(bytes_soft, rollback)| Step::Keep { bytes_soft, rollback })
                    .boxed(),
            ),
            (1, prop_oneof![Just(Step::Rest), Just(Step::Scrub)].boxed()),
            (1, any::<u64>().prop_map(|seed| Step::Crash { seed }).boxed()),
        ];
        if plain.unsent {
            steps.push((4, Just(Step::Send).boxed()));
        }
        if plain.sent > 0 {
            let free = (0..MOUNTS).find(|slot| !plain.mounts.contains_key(slot));
            let mount = |slot| {
                (any::<usize>(), any::<bool>()).prop_map(move |(pick, writable)| Step::Mount {
                    slot,
                    pick,
                    writable,
                })
            };
            steps.extend(free.map(|slot| (3, mount(slot).boxed())));
            steps.push((1, Just(Step::Thin).boxed()));
        }
        let mounted: Vec<usize> = plain.mounts.keys().copied().collect();
        if !mounted.is_empty() {
            let slot = || proptest::sample::select(mounted.clone());
            steps.push((
                2,
                (slot(), change()).prop_map(|(slot, change)| Step::WriteMounted { slot, change }).boxed(),
            ));
            steps.push((
                1,
                (slot(), range()).prop_map(|(slot, range)| Step::ZeroMounted { slot, range }).boxed(),
            ));
            steps.push((
                1,
                (slot(), 0usize..4).prop_map(|(slot, steps)| Step::Promote { slot, steps }).boxed(),
            ));
            steps.push((1, slot().prop_map(|slot| Step::Unmount { slot }).boxed()));
        }
        proptest::strategy::Union::new_weighted(steps).boxed()
    }

    fn preconditions(plain: &Plain, step: &Step) -> bool {
        match step {
            Step::Mount { slot, .. } => plain.sent > 0 && !plain.mounts.contains_key(slot),
            Step::WriteMounted { slot, .. }
            | Step::ZeroMounted { slot, .. }
            | Step::Promote { slot, .. }
            | Step::Unmount { slot } => plain.mounts.contains_key(slot),
            Step::Send => plain.unsent,
            Step::Thin => plain.sent > 0,
            _ => true,
        }
    }

    fn apply(mut plain: Plain, step: &Step) -> Plain {
        match step {
            Step::Write(change) => change.apply(&mut plain.disk),
            Step::Zero { range, .. } => plain.disk[range.start as usize..range.end() as usize].fill(0),
            Step::Checkpoint => plain.states.push(Arc::new(plain.disk.clone())),
            Step::Send => plain.sent = plain.states.len(),
            Step::Crash { .. } => plain.mounts.clear(),
            Step::Mount { slot, writable, .. } => drop(plain.mounts.insert(*slot, *writable)),
            Step::Unmount { slot } => drop(plain.mounts.remove(slot)),
            _ => {}
        }
        plain.unsent = match step {
            Step::Write(_) | Step::Zero { .. } | Step::Checkpoint => true,
            Step::Send => false,
            _ => plain.unsent,
        };
        plain
    }
}

/// The journal, what feeds it, and the images that are open, each with what it must show.
struct Real {
    store: SimStore,
    journal: Arc<Journal>,
    stream: Stream,
    /// Cuts of the checkpoints, in the order in which the model has their states.
    cuts: Vec<WriteSeq>,
    incarnation: u8,
    mounts: BTreeMap<usize, (Image, Vec<u8>)>,
}

impl Real {
    fn fresh(&mut self) -> [u8; 16] {
        self.incarnation = self.incarnation.wrapping_add(1).max(1);
        [self.incarnation; 16]
    }

    fn keep_up(&mut self, settings: Settings, now: WallTime) {
        let entropy = self.fresh();
        self.journal.set(settings);
        self.journal.keep_up(&Upkeep::plain(now, entropy)).unwrap();
    }

    fn scrub(&self) {
        let mut place = None;
        loop {
            let step = self.journal.scrub(place, &Upkeep::plain(WallTime(0), [7; 16])).unwrap();
            assert!(step.damage.is_empty() && step.rebuilt == 0);
            place = step.place;
            if place.is_none() {
                break;
            }
        }
    }

    fn crash(&mut self, seed: u64) {
        let durable = self.journal.status().last_seq;
        self.mounts.clear();
        self.journal = Arc::new(create(&SimStore::new(), SMALL));
        self.store.lose_power(&mut Rng::new(seed));
        let opened = Journal::open(Arc::new(self.store.clone()), SMALL).unwrap();
        assert!(opened.damage.is_empty());
        assert_eq!(opened.journal.status().last_seq, durable, "acknowledged writes are there");
        self.journal = Arc::new(opened.journal);
    }

    fn mount(&mut self, plain: &Plain, slot: usize, pick: usize, writable: bool) {
        let kept = cuts(&self.journal);
        let Some(&cut) = kept.get(pick % kept.len().max(1)) else { return };
        let folder = format!("image-{slot}");
        self.journal.discard_overlays(&folder).unwrap();
        let folder = writable.then_some(&*folder);
        let image = Image::open(self.journal.clone(), cut, folder, [1; 16]).unwrap();
        let number = self.cuts.iter().position(|at| *at == cut).unwrap();
        self.mounts.insert(slot, (image, plain.states[number].to_vec()));
    }

    fn change_mounted(&mut self, slot: usize, range: ByteRange, bytes: Option<Vec<u8>>) {
        let Some((image, expected)) = self.mounts.get_mut(&slot) else { return };
        let done = match &bytes {
            Some(bytes) => image.write_at(DISK, range.start, bytes),
            None => image.zero(DISK, range),
        };
        assert_eq!(done.is_ok(), image.is_writable());
        if done.is_ok() {
            let bytes = bytes.unwrap_or_else(|| vec![0; range.len as usize]);
            expected[range.start as usize..range.end() as usize].copy_from_slice(&bytes);
        }
    }

    /// What an aged list leaves out can still be opened: it is the list that is thinned.
    fn thin(&mut self) {
        let all = cuts(&self.journal);
        self.journal.set(Settings { thinning: THIN, ..self.journal.status().settings });
        let query = CheckpointQuery { limit: usize::MAX, thinned: true, ..CheckpointQuery::default() };
        let aged = self.journal.checkpoints(&query).rows;
        assert!(aged.iter().all(|facts| all.contains(&facts.checkpoint.cut)));
        assert_eq!(cuts(&self.journal), all);
    }

    /// Promotes as far as some steps go; another time it goes on.
    fn promote(&self, slot: usize, steps: usize) {
        let Some((image, _)) = self.mounts.get(&slot) else { return };
        if image.is_writable() {
            let left = Cell::new(steps);
            image.promote(|_| left.replace(left.get().saturating_sub(1)) > 0).unwrap();
        }
    }

    fn unmount(&mut self, slot: usize) {
        self.mounts.remove(&slot);
        self.journal.discard_overlays(&format!("image-{slot}")).unwrap();
    }
}

impl StateMachineTest for Real {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Plain) -> Self {
        let store = SimStore::new();
        let journal = Arc::new(create(&store, SMALL));
        let (stream, mounts) = (Stream::begin(), BTreeMap::new());
        Self { store, journal, stream, cuts: Vec::new(), incarnation: 0, mounts }
    }

    fn apply(mut real: Self, plain: &Plain, step: Step) -> Self {
        match step {
            Step::Write(change) => real.stream.write(change.range.start, &change.bytes()),
            Step::Zero { range, discard } => {
                real.stream.zero(if discard { Kind::Discard } else { Kind::Zero }, range);
            }
            Step::Checkpoint => {
                let cut = real.stream.checkpoint();
                real.cuts.push(cut);
            }
            Step::Send => {
                let incarnation = real.fresh()[0];
                append(&real.journal, real.stream.batch(), 0, incarnation);
            }
            Step::Keep { bytes_soft, rollback } => {
                let mode = if rollback { Mode::Rollback } else { Mode::RollForward };
                real.keep_up(Settings { bytes_soft, mode, ..SMALL }, WallTime(0));
            }
            Step::Thin => real.thin(),
            Step::Rest => real.journal.rest(),
            Step::Scrub => real.scrub(),
            Step::Crash { seed } => real.crash(seed),
            Step::Mount { slot, pick, writable } => real.mount(plain, slot, pick, writable),
            Step::WriteMounted { slot, change } => {
                real.change_mounted(slot, change.range, Some(change.bytes()));
            }
            Step::ZeroMounted { slot, range } => real.change_mounted(slot, range, None),
            Step::Promote { slot, steps } => real.promote(slot, steps),
            Step::Unmount { slot } => real.unmount(slot),
        }
        real
    }

    fn check_invariants(real: &Self, plain: &Plain) {
        let states = real.cuts.iter().copied().zip(plain.states.iter().map(|state| state.to_vec()));
        compare(&real.journal, &states.collect::<Vec<_>>());
        for (image, expected) in real.mounts.values() {
            let mut found = vec![0; expected.len()];
            image.read_at(DISK, 0, &mut found).unwrap();
            assert!(found == *expected, "an open image shows what it showed, whatever goes on");
        }
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_checkpoint_kept_is_as_it_was(sequential 1..90 => Real);
}
