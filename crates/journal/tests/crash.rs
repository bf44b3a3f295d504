//! Crashes and damage: after each the journal holds what it acknowledged, or names what is missing.
#![allow(clippy::unwrap_used, reason = "a test")]

mod stream;

use journal::{AppendError, AppendMeta, Image, Journal, Mode, Settings, Store, Upkeep, verify};
use sim::{Rng, SimStore};
use std::sync::Arc;
use std::time::Duration;
use stream::{DISK_BYTES, SMALL, Stream, append, compare, create, keep_up, read_all, try_append};
use types::{DiskIndex, Epoch, WallTime};

/// A journal of three batches, each a write and a checkpoint, and the disk it lies on.
fn three_batches(settings: Settings) -> (SimStore, Stream) {
    let store = SimStore::new();
    let journal = create(&store, settings);
    let mut stream = Stream::begin();
    for byte in 1..=3u8 {
        stream.write(u64::from(byte) * 1000, &[byte; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 0, 1);
    }
    (store, stream)
}

#[test]
fn a_last_batch_torn_at_every_byte_is_cut_off_and_the_others_stay() {
    let (store, stream) = three_batches(SMALL);
    let len = store.len_of("segment-00000001").unwrap();
    let two = three_batches_len(2);
    for cut in two..len {
        let torn = store.fork();
        torn.truncate("segment-00000001", cut);
        let opened = Journal::open(Arc::new(torn), SMALL).unwrap();
        assert!(opened.damage.is_empty(), "cut at {cut}: {:?}", opened.damage);
        let count = compare(&opened.journal, &stream.states);
        assert!(count == 2 || (count == 3 && cut + 4096 > len), "cut at {cut} leaves {count} checkpoints");
    }
}

/// Where the batch after `count` batches begins: the length of a journal of so many.
fn three_batches_len(count: u8) -> u64 {
    let store = SimStore::new();
    let journal = create(&store, SMALL);
    let mut stream = Stream::begin();
    for byte in 1..=count {
        stream.write(u64::from(byte) * 1000, &[byte; 6000]);
        stream.checkpoint();
        append(&journal, stream.batch(), 0, 1);
    }
    store.len_of("segment-00000001").unwrap()
}

#[test]
fn rot_in_an_acknowledged_batch_is_named_and_contained() {
    let (store, stream) = three_batches(SMALL);
    let second = three_batches_len(1);
    for offset in [0, 30, 70, 200, 400] {
        let rotten = store.fork();
        assert!(rotten.rot("segment-00000001", second + offset));
        let report = verify(&rotten, true, |_| {}).unwrap();
        assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
        assert!(
            report.damage[0].contains(&format!("segment-00000001 at byte {second}")),
            "{:?}",
            report.damage
        );
        assert_eq!(report.checkpoints.len(), 1, "the checkpoint before the damage is good");
        let opened = Journal::open(Arc::new(rotten), SMALL).unwrap();
        let damage = opened.damage.first().expect("acknowledged writes are never cut in silence");
        assert!(damage.what.contains("segment-00000001 at byte"), "{damage:?}");
        assert_eq!(compare(&opened.journal, &stream.states), 1);
    }
}

#[test]
fn a_journal_goes_on_after_damage_was_set_aside() {
    let (store, mut stream) = three_batches(SMALL);
    assert!(store.rot("segment-00000001", three_batches_len(2) + 100));
    // The last batch has nothing behind it that proves it was acknowledged; the source knows better.
    let opened = Journal::open(Arc::new(store.clone()), SMALL).unwrap();
    assert!(opened.journal.status().last_seq < stream.sent(), "the source will see that writes are missing");
    let gone = stream.batch();
    let refused = try_append(&opened.journal, gone, 0, 2);
    assert!(matches!(refused, Err(AppendError::Order { .. })), "{refused:?}");
}

#[test]
fn a_segment_of_another_place_is_not_believed() {
    let settings = Settings { segment_bytes: 20 << 10, ..SMALL };
    let (store, _) = three_batches(settings);
    assert!(store.len_of("segment-00000002").is_some(), "the batches fill several segments");
    journal::Store::rename(&store, "segment-00000002", "segment-00000001").unwrap();
    let opened = Journal::open(Arc::new(store), settings).unwrap();
    assert!(opened.damage[0].what.contains("another segment stands in its place"), "{:?}", opened.damage);
}

#[test]
fn a_full_disk_refuses_and_the_journal_stays_as_it_was() {
    let (store, mut stream) = three_batches(SMALL);
    let journal = Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal;
    stream.write(0, &[9; 9000]);
    let batch = stream.batch();
    store.limit_room(Some(5000));
    let full = try_append(&journal, batch.clone(), 0, 3).unwrap_err();
    assert!(matches!(full, AppendError::Full(_)) && full.is_transient(), "{full:?}");
    store.limit_room(None);
    append(&journal, batch, 0, 4);
    assert_eq!(compare(&journal, &stream.states), 3);
}

#[test]
fn a_failed_sync_closes_the_journal_until_it_is_opened_again() {
    let (store, mut stream) = three_batches(SMALL);
    let journal = Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal;
    stream.write(0, &[9; 9000]);
    let batch = stream.batch();
    store.fail_sync_after(Some(0));
    let append_it = |journal: &Journal| try_append(journal, batch.clone(), 0, 3);
    assert!(matches!(append_it(&journal), Err(AppendError::Failed(_))));
    store.fail_sync_after(None);
    assert!(matches!(append_it(&journal), Err(AppendError::Closed)), "a sync is never tried again");
    // What was read back from memory is put on the disk before it counts.
    let opened = Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal;
    let durable = opened.status().last_seq;
    drop(opened);
    store.lose_power(&mut Rng::new(1));
    let after = Journal::open(Arc::new(store), SMALL).unwrap().journal;
    assert_eq!(after.status().last_seq, durable);
}

#[test]
fn a_lower_epoch_is_refused() {
    let (store, mut stream) = three_batches(SMALL);
    let journal = Journal::open(Arc::new(store), SMALL).unwrap().journal;
    journal.raise_epoch(Epoch(2)).unwrap();
    let refused = try_append(&journal, stream.batch(), 0, 3);
    assert!(matches!(refused, Err(AppendError::Epoch { .. })), "{refused:?}");
}

#[test]
fn what_a_write_that_failed_left_behind_is_not_found_after_the_epoch_was_raised() {
    let (store, mut stream) = three_batches(SMALL);
    let mut group = Vec::new();
    for byte in 4..=5u8 {
        stream.write(u64::from(byte) * 1000, &[byte; 6000]);
        group.push(stream.batch());
    }
    let (mut came_back, mut full) = (0, 0);
    for room in (0..20u64).map(|step| Some(step << 10)).chain([None]) {
        let broken = store.fork();
        let journal = Journal::open(Arc::new(broken.clone()), SMALL).unwrap().journal;
        let before = journal.status().last_seq;
        // Where there is room for all of it, the sync fails.
        broken.limit_capacity(room.map(|room| broken.used_bytes() + room));
        broken.fail_sync_after(room.is_none().then_some(0));
        let meta = AppendMeta { epoch: Epoch::FIRST, received_at: WallTime(0), entropy: [7; 16] };
        match journal.append(group.clone(), meta) {
            Ok(_) => continue,
            Err(error) => full += u64::from(matches!(error, AppendError::Full(_))),
        }
        broken.limit_capacity(None);
        broken.fail_sync_after(None);
        let unfenced = Journal::open(Arc::new(broken.fork()), SMALL).unwrap().journal;
        came_back += u64::from(unfenced.status().last_seq > before);
        assert!(journal.fence(Epoch(2), Duration::ZERO).unwrap());
        assert_eq!(journal.status().last_seq, before);
        let opened = Journal::open(Arc::new(broken), SMALL).unwrap();
        assert!(opened.damage.is_empty(), "{:?}", opened.damage);
        assert_eq!(opened.journal.status().last_seq, before, "with room for {room:?}");
        let meta = AppendMeta { epoch: Epoch(2), ..meta };
        assert!(opened.journal.append(group.clone(), meta).is_ok(), "the new epoch goes on there");
    }
    assert!(came_back > 1 && full > 1, "{came_back} {full}");
}

#[test]
fn a_fold_cut_short_at_every_sync_leaves_only_good_checkpoints() {
    for mode in [Mode::RollForward, Mode::Rollback] {
        let settings = Settings { segment_bytes: 20 << 10, bytes_soft: 1, mode, ..SMALL };
        let (store, stream) = three_batches(Settings { bytes_soft: 0, ..settings });
        for syncs in 0..24 {
            for seed in 0..10 {
                let broken = store.fork();
                let journal = Journal::open(Arc::new(broken.clone()), settings).unwrap().journal;
                broken.fail_sync_after(Some(syncs));
                // Whether it succeeds depends on how many syncs it needs.
                let _ = journal.keep_up(&Upkeep::plain(WallTime(0), [seed as u8; 16]));
                assert!(compare(&journal, &stream.states) >= 1);
                drop(journal);
                broken.lose_power(&mut Rng::new(seed));
                let opened = Journal::open(Arc::new(broken), settings).unwrap();
                assert!(opened.damage.is_empty(), "{:?}", opened.damage);
                assert!(compare(&opened.journal, &stream.states) >= 1);
                keep_up(&opened.journal, 0);
                assert!(compare(&opened.journal, &stream.states) >= 1);
            }
        }
    }
}

#[test]
fn a_step_whose_end_never_reached_the_disk_has_not_begun() {
    let settings = Settings { mode: Mode::Rollback, ..SMALL };
    let store = SimStore::new();
    let journal = create(&store, settings);
    let mut stream = Stream::begin();
    for byte in 1..=2u8 {
        let mut random = Rng::new(u64::from(byte));
        let noise: Vec<u8> = (0..DISK_BYTES).map(|_| random.bits() as u8).collect();
        // The second goes over a region's edge: two before-images of one sequence, the one in the first batch,
        // which is full then, the other in the next.
        let (first, second) = noise.split_at(512 << 10);
        stream.write(0, first);
        stream.write(512 << 10, second);
        stream.checkpoint();
        append(&journal, stream.batch(), 0, 1);
        if byte == 1 {
            keep_up(&journal, 0);
        }
    }
    drop(journal);
    let read = |store: &SimStore| {
        let mut bytes = vec![0; store.len_of("undo-00000001").unwrap() as usize];
        store.open("undo-00000001", false).unwrap().read_at(0, &mut bytes).unwrap();
        bytes
    };
    let before = read(&store).len();
    let stepped = store.fork();
    keep_up(&Journal::open(Arc::new(stepped.clone()), settings).unwrap().journal, 0);
    let undo = read(&stepped);
    assert!(undo.len() > before + DISK_BYTES as usize, "both batches are in the file");
    for cut in (before..undo.len()).step_by(64 << 10) {
        let torn = store.fork();
        torn.open("undo-00000001", false).unwrap().write_at(0, &undo[..cut]).unwrap();
        let opened = Journal::open(Arc::new(torn), settings).unwrap();
        assert!(opened.damage.is_empty(), "cut at {cut}: {:?}", opened.damage);
        keep_up(&opened.journal, 0);
        assert_eq!(compare(&opened.journal, &stream.states), 2, "cut at {cut}");
    }
}

#[test]
fn retention_keeps_the_window_and_what_is_pinned() {
    let store = SimStore::new();
    let settings = Settings { segment_bytes: 20 << 10, ..SMALL };
    let journal = Arc::new(create(&store, settings));
    let mut stream = Stream::begin();
    for minute in 0..120u64 {
        stream.write(minute * 512, &[minute as u8; 5000]);
        stream.checkpoint();
        append(&journal, stream.batch(), minute * 60, minute as u8);
    }
    let now = 120 * 60;
    let (pinned, _) = stream.states[10].clone();
    let image = Image::open(journal.clone(), pinned, None, [1; 16]).unwrap();
    keep_up(&journal, now);
    let kept = compare(&journal, &stream.states);
    assert!(kept >= 110 && read_all(&journal, pinned).is_ok(), "a pin holds the fold back: {kept} are kept");
    drop(image);
    keep_up(&journal, now);
    let kept = compare(&journal, &stream.states);
    assert!((60..75).contains(&kept), "an hour of minutes is kept: {kept}");
    assert!(Image::open(journal.clone(), pinned, None, [1; 16]).is_err());
    assert!(journal.status().history >= Duration::from_secs(3600 - 120));
}

#[test]
fn an_overlay_survives_the_agent_and_forgets_after_a_loss_of_power_only_what_was_not_flushed() {
    let (store, stream) = three_batches(SMALL);
    let (cut, before) = stream.states[2].clone();
    let open = |boot: u8| {
        let journal = Arc::new(Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal);
        Image::open(journal, cut, Some("image-1"), [boot; 16]).unwrap()
    };
    let read = |image: &Image, start: u64, len: usize| {
        let mut buf = vec![0; len];
        image.read_at(DiskIndex(0), start, &mut buf).unwrap();
        buf
    };
    let image = open(1);
    image.write_at(DiskIndex(0), 10_000, &[1; 5000]).unwrap();
    image.flush(DiskIndex(0)).unwrap();
    image.write_at(DiskIndex(0), 40_000, &[2; 5000]).unwrap();
    drop(image);
    // The agent was killed: everything written is there, flushed or not.
    let image = open(1);
    assert_eq!(read(&image, 10_000, 5000), vec![1; 5000]);
    assert_eq!(read(&image, 40_000, 5000), vec![2; 5000]);
    drop(image);
    // The host was rebooted by a loss of power: what was flushed is there, what was not is as below.
    store.lose_power(&mut Rng::new(7));
    let image = open(2);
    assert_eq!(read(&image, 10_000, 5000), vec![1; 5000]);
    let unflushed = read(&image, 36_864, 12_288);
    assert_eq!(unflushed, before[36_864..49_152], "no block is taken from data that never reached the disk");
}

#[test]
fn an_overlay_whose_flush_has_failed_takes_nothing_more_and_is_opened_as_of_the_last_flush() {
    let (store, stream) = three_batches(SMALL);
    let (cut, before) = stream.states[2].clone();
    let open = || {
        let journal = Arc::new(Journal::open(Arc::new(store.clone()), SMALL).unwrap().journal);
        Image::open(journal, cut, Some("image-1"), [1; 16]).unwrap()
    };
    let read = |image: &Image, start: u64, len: usize| {
        let mut buf = vec![0; len];
        image.read_at(DiskIndex(0), start, &mut buf).unwrap();
        buf
    };
    for syncs_before in 0..2 {
        let image = open();
        image.write_at(DiskIndex(0), 8192, &[1; 4096]).unwrap();
        image.flush(DiskIndex(0)).unwrap();
        image.write_at(DiskIndex(0), 40_960, &[2; 4096]).unwrap();
        store.fail_sync_after(Some(syncs_before));
        assert!(image.flush(DiskIndex(0)).is_err());
        store.fail_sync_after(None);
        assert!(image.flush(DiskIndex(0)).is_err(), "the next sync knows nothing of what was lost");
        assert!(image.write_at(DiskIndex(0), 0, &[3; 4096]).is_err());
        drop(image);
        // What is written and flushed from then on is durable, with all that is taken for the overlay's own.
        let image = open();
        assert_eq!(read(&image, 8192, 4096), vec![1; 4096]);
        let lost = read(&image, 40_960, 4096);
        assert!(syncs_before > 0 || lost == before[40_960..45_056], "taken for written");
        image.write_at(DiskIndex(0), 20_480, &[4; 4096]).unwrap();
        image.flush(DiskIndex(0)).unwrap();
        drop(image);
        store.lose_power(&mut Rng::new(7));
        let image = open();
        assert_eq!(read(&image, 20_480, 4096), vec![4; 4096]);
        assert_eq!(read(&image, 40_960, 4096), lost);
        image.journal().discard_overlays("image-1").unwrap();
    }
}
