//! Replicas and the checksums beside them: rot in a replica is told with its place, and reading it fails.

use crate::stream::{DISK_BYTES, SMALL, Stream, append, compare, create, cuts, keep_up, read_all};
use crate::{BATCHES_AT, make_good, scrub_all, try_scrub};
use journal::{Journal, Manifest, Mode, Settings, Store, Upkeep};
use sim::{Rng, SimStore};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use types::limits::DAMAGE_TOLD_TOGETHER_MAX;
use types::{ByteRange, DiskIndex, DiskSpec, Epoch, VmId, WallTime, WriteSeq};

const REPLICA: &str = "replica/vda.raw";
const SUMS: &str = "replica/vda.sums";
const BLOCK: u64 = 4096;
const MODES: [Mode; 2] = [Mode::RollForward, Mode::Rollback];

fn settings(mode: Mode) -> Settings {
    Settings { segment_bytes: 40 << 10, bytes_soft: u64::from(mode == Mode::RollForward), mode, ..SMALL }
}

/// Writes of odd lengths at odd places, zeroes among them, a checkpoint after each.
fn scatter(journal: &Journal, stream: &mut Stream, count: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    for number in 0..count {
        let len = 1 + rng.below(9000);
        let start = rng.below(DISK_BYTES / 2 - len);
        match rng.below(4) {
            0 => stream.zero(batch::Kind::Discard, ByteRange::new(start, len)),
            _ => stream.write(start, &vec![rng.bits() as u8 | 1; len as usize]),
        }
        stream.checkpoint();
        append(journal, stream.batch(), number, number as u8);
    }
}

/// A journal whose replica has most of what was written.
fn folded(mode: Mode) -> (SimStore, Journal, Stream) {
    let store = SimStore::new();
    let journal = create(&store, settings(mode));
    let mut stream = Stream::begin();
    scatter(&journal, &mut stream, 30, 1);
    keep_up(&journal, 30);
    assert!(journal.status().applied.raw() > 20 && compare(&journal, &stream.states) > 0);
    (store, journal, stream)
}

/// Every byte of the newest state is what it was, or cannot be read; which blocks cannot.
fn unread(journal: &Journal, content: &[u8]) -> Vec<u64> {
    let blocks = (0..DISK_BYTES / BLOCK).filter(|block| {
        let mut read = vec![0; BLOCK as usize];
        let result = journal.read_at(DiskIndex(0), WriteSeq::MAX, block * BLOCK, &mut read);
        let expected = &content[(block * BLOCK) as usize..][..BLOCK as usize];
        assert!(result.is_err() || read == expected, "block {block} is given out wrong");
        result.is_err()
    });
    blocks.collect()
}

#[test]
fn rot_in_a_replica_is_told_with_its_place_and_reads_of_it_fail_instead_of_giving_wrong_bytes() {
    for mode in MODES {
        for at in [0, 4095, 4096, 70_001, DISK_BYTES / 2 + 5, DISK_BYTES - 1] {
            let (store, journal, mut stream) = folded(mode);
            let content = stream.states.last().unwrap().1.clone();
            assert_eq!(scrub_all(&journal).damage, Vec::new());
            assert!(store.rot(REPLICA, at));
            let (block, before) = (at / BLOCK, unread(&journal, &content));
            assert!(before.iter().all(|unread| *unread == block), "{at}: {before:?}");
            let found = scrub_all(&journal);
            let place = format!("replica of disk vda at byte {}, 4096 bytes: ", block * BLOCK);
            assert!(found.damage.len() == 1 && found.damage[0].what.starts_with(&place), "{found:?}");
            assert!(journal.status().damage[0].starts_with(&place));
            let mut odd = [0; 100];
            if !before.is_empty() {
                let read = journal.read_at(DiskIndex(0), WriteSeq::MAX, block * BLOCK + 37, &mut odd);
                assert!(read.unwrap_err().to_string().starts_with("disk vda at byte "));
            }
            drop(journal);
            let journal = Journal::open(Arc::new(store.clone()), settings(mode)).unwrap().journal;
            make_good(&journal, &mut stream, 100);
            assert!(!cuts(&journal).is_empty(), "{mode:?} {at}");
            // What was sent again comes to the replica, and then it is whole.
            scatter(&journal, &mut stream, 20, 2);
            keep_up(&journal, 200);
            assert!(compare(&journal, &stream.states) > 0, "{mode:?} {at}");
            assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
        }
    }
}

/// Each time something is contained the open segment ends and the manifest is written.
#[test]
fn many_rotten_blocks_are_contained_together_in_words_that_are_bounded() {
    for mode in MODES {
        let (store, journal, stream) = folded(mode);
        let content = stream.states.last().unwrap().1.clone();
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        let rotten: Vec<u64> = (0..DISK_BYTES / BLOCK).step_by(2).collect();
        rotten.iter().for_each(|block| assert!(store.rot(REPLICA, block * BLOCK + 7)));
        let before = Manifest::load(&store).unwrap().generation;
        let found = scrub_all(&journal);
        let changes = Manifest::load(&store).unwrap().generation - before;
        assert!(changes < 8, "{mode:?}: {changes} times for {} blocks", rotten.len());
        assert_eq!(found.damage.len(), DAMAGE_TOLD_TOGETHER_MAX);
        let more = format!(", and {} more places", rotten.len() - DAMAGE_TOLD_TOGETHER_MAX);
        assert!(found.damage.last().unwrap().what.ends_with(&more), "{:?}", found.damage.last());
        assert_eq!(journal.status().damage.len(), DAMAGE_TOLD_TOGETHER_MAX);
        let cannot = unread(&journal, &content);
        assert!(!cannot.is_empty() && cannot.iter().all(|block| rotten.contains(block)));
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "nothing that was not known");
        drop(journal);
        let journal = Journal::open(Arc::new(store.clone()), settings(mode)).unwrap().journal;
        assert_eq!(
            (unread(&journal, &content), journal.status().damage.len()),
            (cannot, DAMAGE_TOLD_TOGETHER_MAX)
        );
    }
}

/// A part of a block rots; what is folded over another part of it does not make the block good.
#[test]
fn what_is_written_to_a_part_of_a_block_does_not_hide_rot_in_the_rest() {
    let store = SimStore::new();
    let journal = create(&store, settings(Mode::RollForward));
    let mut stream = Stream::begin();
    let fold = |stream: &mut Stream, from: u64| {
        for number in from..from + 12 {
            stream.write((20 + number) * 8192, &[number as u8 + 1; 6000]);
            stream.checkpoint();
            append(&journal, stream.batch(), number, number as u8);
        }
        keep_up(&journal, from + 12);
    };
    stream.write(0, &[7; 8192]);
    fold(&mut stream, 0);
    let whole = read_all(&journal, WriteSeq::MAX).unwrap();
    assert!(whole == stream.disk && Manifest::load(&store).unwrap().applied > 3);
    assert!(store.rot(REPLICA, 5000));
    stream.write(4096, &[8; 512]);
    stream.checkpoint();
    append(&journal, stream.batch(), 13, 13);
    fold(&mut stream, 14);
    assert_eq!(unread(&journal, &stream.disk), [1]);
    make_good(&journal, &mut stream, 29);
    fold(&mut stream, 30);
    assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
    assert_eq!(scrub_all(&journal).damage, Vec::new());
}

#[test]
fn rot_in_the_checksums_costs_nothing_and_is_made_good_by_a_scrub() {
    for mode in MODES {
        let len = folded(mode).0.len_of(SUMS).unwrap();
        for at in (0..len).step_by(97) {
            let (store, journal, stream) = folded(mode);
            assert!(store.rot(SUMS, at));
            assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
            assert_eq!(scrub_all(&journal).damage, Vec::new());
            assert!(compare(&journal, &stream.states) > 0);
            assert!(store.rot(REPLICA, 70_000));
            assert_eq!(scrub_all(&journal).damage.len(), 1, "it is summed again");
        }
    }
}

#[test]
fn checksums_that_are_gone_are_unknown_until_a_scrub_has_made_them_again() {
    for len in [None, Some(0), Some(5)] {
        let (store, journal, stream) = folded(Mode::RollForward);
        drop(journal);
        match len {
            None => Store::remove(&store, SUMS).unwrap(),
            Some(len) => store.truncate(SUMS, len),
        }
        let opened = Journal::open(Arc::new(store.clone()), settings(Mode::RollForward)).unwrap();
        assert!(opened.mended.len() == 1 && opened.mended[0].starts_with(SUMS), "{:?}", opened.mended);
        assert!(compare(&opened.journal, &stream.states) > 0);
        assert_eq!(scrub_all(&opened.journal).damage, Vec::new());
        assert_eq!(Manifest::load(&store).unwrap().disks[0].summed_below, DISK_BYTES);
        assert!(store.rot(REPLICA, DISK_BYTES - 3));
        assert_eq!(scrub_all(&opened.journal).damage.len(), 1);
    }
}

/// A journal over a disk that became its replica as it was, with some writes since.
fn seeded() -> (SimStore, Journal, Stream) {
    let store = SimStore::new();
    let seed: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 3000) as u8).collect();
    Store::open(&store, REPLICA, true).unwrap().write_at(0, &seed).unwrap();
    let disks = [DiskSpec { name: "vda".into(), size_bytes: DISK_BYTES }];
    let (vm, rolling) = (VmId::from_bytes([1; 16]), settings(Mode::RollForward));
    let shared = Arc::new(store.clone());
    let journal = Journal::create_seeded(shared, vm, "web", &disks, Epoch::FIRST, rolling).unwrap();
    let mut stream = Stream::begin();
    stream.disk = seed;
    scatter(&journal, &mut stream, 30, 3);
    keep_up(&journal, 30);
    (store, journal, stream)
}

#[test]
fn of_a_disk_that_became_a_replica_nothing_is_known_until_a_scrub_has_read_it() {
    let (store, journal, stream) = seeded();
    assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
    assert_eq!(Manifest::load(&store).unwrap().disks[0].summed_below, 0);
    assert_eq!(scrub_all(&journal).damage, Vec::new());
    assert_eq!(Manifest::load(&store).unwrap().disks[0].summed_below, DISK_BYTES);
    assert!(store.rot(REPLICA, DISK_BYTES - 3));
    assert_eq!(unread(&journal, &stream.disk), [DISK_BYTES / BLOCK - 1]);
    assert_eq!(scrub_all(&journal).damage.len(), 1);
}

/// (1) A page of checksums rots; (2) a scrub makes it again; (3) the power goes; (4) a block of the replica rots.
#[test]
fn checksums_that_a_scrub_has_made_again_outlive_a_loss_of_power() {
    for seed in 0..8 {
        let (store, journal, stream) = seeded();
        scrub_all(&journal);
        assert!(store.rot(SUMS, 100));
        scrub_all(&journal);
        drop(journal);
        store.lose_power(&mut Rng::new(seed));
        let opened = Journal::open(Arc::new(store.clone()), settings(Mode::RollForward)).unwrap();
        assert!(store.rot(REPLICA, DISK_BYTES - 3));
        assert_eq!(unread(&opened.journal, &stream.disk), [DISK_BYTES / BLOCK - 1], "seed {seed}");
    }
}

/// A page of checksums rots; the scrub makes it anew, and cannot make that durable, or is killed before it does. Once it has come
/// by what rots later is found, though the power has gone meanwhile.
#[test]
fn checksums_that_a_scrub_could_not_make_durable_are_made_once_more() {
    for (seed, changes) in (0..8).flat_map(|seed| (0..12).map(move |changes| (seed, changes))) {
        let (store, mut journal, stream) = seeded();
        scrub_all(&journal);
        assert!(store.rot(SUMS, 100));
        let open = || Journal::open(Arc::new(store.clone()), settings(Mode::RollForward)).unwrap().journal;
        if changes < 4 {
            store.fail_sync_after(Some(changes));
            let _ = try_scrub(&journal);
            store.fail_sync_after(None);
        } else {
            store.die_after(Some(changes - 3));
            let _ = try_scrub(&journal);
            store.die_after(None);
            drop(journal);
            journal = open();
        }
        scrub_all(&journal);
        drop(journal);
        store.lose_power(&mut Rng::new(seed));
        let opened = open();
        assert!(store.rot(REPLICA, DISK_BYTES - 3));
        let last = DISK_BYTES / BLOCK - 1;
        assert_eq!(unread(&opened, &stream.disk), [last], "seed {seed}, {changes} changes");
    }
}

/// The process is killed at each change of the disk in a turn that folds; then the power goes, or not. Nothing is taken for
/// damage, before the fold is done again and after it, and what rots later is found.
#[test]
fn a_fold_that_is_cut_short_at_any_change_of_the_disk_leaves_no_checksum_that_is_wrong() {
    for mode in MODES {
        let kept = Settings { bytes_soft: 0, mode: Mode::RollForward, ..settings(mode) };
        let base = SimStore::new();
        let mut stream = Stream::begin();
        {
            let journal = create(&base, settings(mode));
            scatter(&journal, &mut stream, 10, 4);
            keep_up(&journal, 10);
            journal.set(kept);
            scatter(&journal, &mut stream, 10, 5);
        }
        let mut was_cut = 0;
        for changes in 0.. {
            let store = base.fork();
            let journal = Journal::open(Arc::new(store.clone()), settings(mode)).unwrap().journal;
            store.die_after(Some(changes));
            let is_done = journal.keep_up(&Upkeep::plain(WallTime(30_000_000), [9; 16])).is_ok();
            let is_over = !store.is_dead();
            drop(journal);
            store.die_after(None);
            for seed in 0..4 {
                let store = store.fork();
                if seed > 0 {
                    store.lose_power(&mut Rng::new(changes * 8 + seed));
                }
                let journal = Journal::open(Arc::new(store.clone()), settings(mode)).unwrap().journal;
                let (applied, upto) = (journal.status().applied.raw(), Manifest::load(&store).unwrap());
                was_cut += u32::from(upto.retired_below.max(upto.before_images_upto) > applied);
                let told = format!("{mode:?}, {changes} changes, seed {seed}");
                assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new(), "{told}");
                assert!(compare(&journal, &stream.states) > 0, "{told}");
                assert_eq!(try_scrub(&journal).unwrap().damage, Vec::new(), "{told}");
                keep_up(&journal, 40);
                assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new(), "{told}");
                assert!(compare(&journal, &stream.states) > 0, "{told}");
                assert_eq!(try_scrub(&journal).unwrap().damage, Vec::new(), "{told}");
                assert!(store.rot(REPLICA, 70_000 + changes));
                assert_eq!(try_scrub(&journal).unwrap().damage.len(), 1, "{told}");
            }
            if is_over {
                assert!(is_done && was_cut > 20, "{was_cut}");
                break;
            }
        }
    }
}

/// The disk fills up at any place of a fold; the next one goes less far, for an operator has allowed more to be kept, and the
/// one after it does the rest. What the first has left behind that lies above what the second has done is damage to neither.
#[test]
fn what_a_fold_that_failed_has_left_behind_is_no_damage_to_folds_that_go_less_far() {
    let base = SimStore::new();
    let mut stream = Stream::begin();
    let all = Settings { bytes_soft: 0, ..settings(Mode::RollForward) };
    {
        let journal = create(&base, all);
        scatter(&journal, &mut stream, 30, 7);
    }
    let mut went_less_far = 0;
    for room in (0..).step_by(2500) {
        let store = base.fork();
        let journal = Journal::open(Arc::new(store.clone()), all).unwrap().journal;
        journal.keep_up(&Upkeep::plain(WallTime(30_000_000), [9; 16])).unwrap();
        journal.set(settings(Mode::RollForward));
        store.limit_room(Some(room));
        let is_done = journal.keep_up(&Upkeep::plain(WallTime(30_000_000), [9; 16])).is_ok();
        store.limit_room(None);
        journal.set(Settings { bytes_soft: journal.status().journal_bytes - 1, ..all });
        journal.keep_up(&Upkeep::plain(WallTime(30_000_000), [9; 16])).unwrap();
        let manifest = Manifest::load(&store).unwrap();
        went_less_far += u32::from(manifest.retired_below > manifest.applied && manifest.applied > 0);
        journal.set(settings(Mode::RollForward));
        keep_up(&journal, 30);
        assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new(), "room for {room}");
        assert_eq!(try_scrub(&journal).unwrap().damage, Vec::new(), "room for {room}");
        if is_done {
            break;
        }
    }
    assert!(went_less_far > 10, "{went_less_far}");
}

/// The readers end with this, also where something else does not hold.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Readers look at the replica while a fold writes to it, in steps of many blocks that are written in part.
#[test]
fn who_reads_while_a_fold_writes_reads_what_was_there() {
    for mode in MODES {
        let store = SimStore::new();
        let journal = create(&store, settings(mode));
        let mut stream = Stream::begin();
        scatter(&journal, &mut stream, 10, 6);
        let expected = Mutex::new(Vec::new());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (journal, expected, is_over) = (&journal, &expected, &is_over);
            let reader = scope.spawn(move || {
                let mut rounds = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let newest: Option<(WriteSeq, Vec<u8>)> = expected.lock().unwrap().last().cloned();
                    let Some((cut, content)) = newest else { continue };
                    let Ok(pin) = journal.pin("a reader", cut, None) else { continue };
                    assert!(read_all(journal, cut).unwrap() == content);
                    journal.unpin(|other| other.id == pin).unwrap();
                    rounds += 1;
                }
                rounds
            });
            let ends = Ends(is_over);
            for seed in 10..60 {
                scatter(journal, &mut stream, 5, seed);
                expected.lock().unwrap().push(stream.states.last().unwrap().clone());
                keep_up(journal, seed);
            }
            drop(ends);
            assert!(reader.join().unwrap() > 0);
        });
        assert_eq!(scrub_all(&journal).damage, Vec::new());
    }
}

#[test]
fn a_block_that_rots_again_once_it_was_made_good_is_told_again() {
    for mode in MODES {
        let (store, journal, mut stream) = folded(mode);
        assert!(store.rot(REPLICA, 70_001));
        assert_eq!(scrub_all(&journal).damage.len(), 1);
        make_good(&journal, &mut stream, 100);
        scatter(&journal, &mut stream, 20, 2);
        keep_up(&journal, 200);
        assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
        assert_eq!(scrub_all(&journal).damage, Vec::new());
        assert!(store.rot(REPLICA, 70_001));
        let lost = unread(&journal, &stream.disk);
        assert_eq!(scrub_all(&journal).damage.len(), 1);
        assert_eq!(journal.to_send_again().is_empty(), lost.is_empty(), "{mode:?}");
    }
}

/// The source is gone when the block is found.
#[test]
fn a_rotten_block_leaves_every_checkpoint_to_be_opened() {
    for mode in MODES {
        let (store, journal, stream) = folded(mode);
        let before = cuts(&journal);
        assert!(!before.is_empty() && store.rot(REPLICA, 70_001));
        assert_eq!(scrub_all(&journal).damage.len(), 1);
        assert_eq!(cuts(&journal), before);
        compare(&journal, &stream.states);
        let journal = Arc::new(journal);
        for cut in before {
            assert!(journal::Image::open(journal.clone(), cut, None, [1; 16]).is_ok(), "{mode:?}");
        }
    }
}

/// Two blocks side by side rot, and the source sends both. Then a fold brings something older to one of them.
#[test]
fn what_was_made_good_is_no_news_once_a_part_of_it_was_written() {
    let store = SimStore::new();
    let rolling = Settings { bytes_soft: 0, ..settings(Mode::RollForward) };
    let journal = create(&store, rolling);
    let mut stream = Stream::begin();
    let write = |stream: &mut Stream, at: u64, block: u64, len: u64, byte: u8| {
        stream.write(block * BLOCK, &vec![byte; len as usize]);
        stream.checkpoint();
        append(&journal, stream.batch(), at, byte);
    };
    let write_others = |stream: &mut Stream, from: u64, byte: u8| {
        (0..8).for_each(|number| write(stream, from + number, 100 + number * 4, 12_000, byte + number as u8));
    };
    write(&mut stream, 0, 17, 2 * BLOCK, 7);
    write_others(&mut stream, 1, 20);
    keep_up(&journal, 10);
    keep_up(&journal, 3700);
    assert!(journal.status().applied.raw() > 3, "both blocks are in the replica");
    write(&mut stream, 4000, 17, BLOCK, 8);
    write_others(&mut stream, 4001, 40);
    keep_up(&journal, 4010);
    assert!(store.rot(REPLICA, 17 * BLOCK + 9) && store.rot(REPLICA, 18 * BLOCK + 9));
    assert_eq!(scrub_all(&journal).damage.len(), 1);
    make_good(&journal, &mut stream, 5500);
    write_others(&mut stream, 5501, 60);
    keep_up(&journal, 5520);
    assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new());
    for at in (5600..8900).step_by(50) {
        keep_up(&journal, at);
        assert_eq!(scrub_all(&journal).damage, Vec::new(), "at {at}");
        compare(&journal, &stream.states);
    }
}

/// What a failed sync has given up stays readable, and the next sync says that all is well. Then memory is short.
#[test]
fn checksums_whose_sync_has_failed_are_not_told_as_durable_by_the_next() {
    let (store, journal, stream) = seeded();
    store.fail_sync_after(Some(0));
    assert!(try_scrub(&journal).is_err());
    store.fail_sync_after(None);
    assert_eq!(scrub_all(&journal).damage, Vec::new());
    assert_eq!(Manifest::load(&store).unwrap().disks[0].summed_below, DISK_BYTES);
    store.evict();
    assert_eq!(unread(&journal, &stream.disk), Vec::<u64>::new(), "good blocks that cannot be read");
    assert_eq!(scrub_all(&journal).damage, Vec::new());
}

/// A fold writes a part of a block and fails before the checksum is on the disk; then what it wrote rots in the redo log, and
/// the fold that is done again leaves it out.
#[test]
fn what_a_fold_that_is_done_again_leaves_out_does_not_cost_the_rest_of_its_block() {
    let settings = Settings { bytes_soft: 0, ..settings(Mode::RollForward) };
    let mut reached = 0;
    for syncs in 0..12 {
        let store = SimStore::new();
        let journal = create(&store, settings);
        let mut stream = Stream::begin();
        let write = |stream: &mut Stream, journal: &Journal, number: u64, start: u64, len: usize| {
            stream.write(start, &vec![number as u8 + 1; len]);
            stream.checkpoint();
            append(journal, stream.batch(), number, number as u8);
        };
        write(&mut stream, &journal, 0, 0, 8192);
        (1..8).for_each(|number| write(&mut stream, &journal, number, (10 + number) * 8192, 6000));
        journal.set(Settings { bytes_soft: 1, ..settings });
        keep_up(&journal, 8);
        journal.set(settings);
        write(&mut stream, &journal, 8, 512, 1024);
        (9..20).for_each(|number| write(&mut stream, &journal, number, (10 + number) * 8192, 6000));
        keep_up(&journal, 20);
        let before = Manifest::load(&store).unwrap();
        journal.set(Settings { bytes_soft: 1, ..settings });
        store.fail_sync_after(Some(syncs));
        let turn = journal.keep_up(&Upkeep::plain(WallTime(21_000_000), [9; 16]));
        store.fail_sync_after(None);
        store.evict();
        drop(journal);
        if turn.is_ok() || Manifest::load(&store).unwrap().applied > before.applied {
            continue;
        }
        for (name, at) in before.redo.segments.iter().flat_map(|info| {
            let name = format!("segment-{:08}", info.number);
            BATCHES_AT.map(|at| (name.clone(), at + 200))
        }) {
            let store = store.fork();
            store.rot(&name, at);
            let journal = Journal::open(Arc::new(store.clone()), settings).unwrap().journal;
            scrub_all(&journal);
            journal.set(Settings { bytes_soft: 1, ..settings });
            keep_up(&journal, 30);
            let sectors = (0..16_u64).filter(|sector| {
                let mut read = [0; 512];
                let result = journal.read_at(DiskIndex(0), WriteSeq::MAX, sector * 512, &mut read);
                assert!(result.is_err() || read == stream.disk[(sector * 512) as usize..][..512]);
                result.is_err()
            });
            let sectors: Vec<_> = sectors.collect();
            assert!(
                sectors.is_empty() || sectors == [1, 2],
                "{name} at {at} after {syncs} syncs: {sectors:?}"
            );
            reached +=
                u64::from(sectors == [1, 2] && Manifest::load(&store).unwrap().applied > before.applied);
        }
    }
    assert!(reached > 1, "{reached}");
}
