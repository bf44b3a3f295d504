//! Overlays over a disk whose syncs fail: what a guest reads and was told is durable stays.

#![allow(clippy::unwrap_used, reason = "a test")]

use journal::{Overlay, OverlayError, Store};
use sim::{Rng, SimStore};

const SIZE: u64 = 64 << 10;

fn open(store: &SimStore, boot: u8) -> Overlay {
    Overlay::open(store, "image-1", "vda", SIZE, [boot; 16]).unwrap()
}

fn write(overlay: &Overlay, byte: u8) {
    overlay.write_at::<OverlayError>(0, &[byte; 4096], |_, _| Ok(())).unwrap();
}

fn read(overlay: &Overlay) -> Vec<u8> {
    let mut block = vec![0; 4096];
    overlay.read_at::<OverlayError>(0, &mut block, |_, _| panic!("it is the overlay's own")).unwrap();
    block
}

/// A block is flushed and written again, and a flush fails as `fail` has it; what is then read of the overlay that was opened
/// anew, and flushed, is there after a loss of power.
fn what_is_read_after_a_flush_outlives_a_loss_of_power(fail: impl Fn(&SimStore, &Overlay)) {
    for seed in 0..20 {
        let store = SimStore::new();
        let overlay = open(&store, 1);
        write(&overlay, 1);
        overlay.flush().unwrap();
        write(&overlay, 2);
        store.fail_sync_after(Some(0));
        fail(&store, &overlay);
        store.fail_sync_after(None);
        drop(overlay);
        let again = open(&store, 1);
        let seen = read(&again);
        again.flush().unwrap();
        drop(again);
        store.lose_power(&mut Rng::new(seed));
        assert_eq!(read(&open(&store, 2))[0], seen[0], "seed {seed}");
    }
}

/// (1) A block is flushed; (2) it is written again, and the flush fails: the kernel counts its pages as clean, though they
/// never reached the disk; (3) the guest is started again, reads the new bytes, and flushes: told as done; (4) the power
/// goes.
#[test]
fn what_is_read_after_a_flush_has_failed_is_made_durable_by_the_next() {
    what_is_read_after_a_flush_outlives_a_loss_of_power(|_, overlay| {
        overlay.flush().unwrap_err();
    });
}

/// The folder could not be synced when the overlay was made: its files would be gone after a loss of power.
#[test]
fn what_is_flushed_stays_though_making_the_overlay_failed_at_first() {
    for (seed, syncs) in (0..20).flat_map(|seed| [(seed, 0), (seed, 1), (seed, 2)]) {
        let store = SimStore::new();
        store.fail_sync_after(Some(syncs));
        Overlay::open(&store, "image-1", "vda", SIZE, [1; 16]).unwrap_err();
        store.fail_sync_after(None);
        let overlay = open(&store, 1);
        write(&overlay, 7);
        overlay.flush().unwrap();
        drop(overlay);
        store.lose_power(&mut Rng::new(seed));
        assert_eq!(read(&open(&store, 2))[0], 7, "seed {seed}, {syncs} syncs");
    }
}

/// (1) The host was started anew, and the disk fails as the overlay is opened: its map is made for this boot, in memory alone;
/// (2) it is opened again, and written to; (3) memory is short; (4) the agent is killed, and the guest goes on.
#[test]
fn what_is_written_stays_though_the_map_could_not_be_made_durable_for_this_boot_at_first() {
    for syncs in [0, 1] {
        let store = SimStore::new();
        let overlay = open(&store, 1);
        write(&overlay, 1);
        overlay.flush().unwrap();
        drop(overlay);
        store.lose_power(&mut Rng::new(syncs));
        store.fail_sync_after(Some(syncs));
        Overlay::open(&store, "image-1", "vda", SIZE, [2; 16]).unwrap_err();
        store.fail_sync_after(None);
        let overlay = open(&store, 2);
        write(&overlay, 2);
        let at_4_kib = |overlay: &Overlay| {
            let mut block = [0; 4096];
            overlay.read_at::<OverlayError>(4096, &mut block, |_, _| Ok(())).unwrap();
            block[0]
        };
        overlay.write_at::<OverlayError>(4096, &[3; 4096], |_, _| Ok(())).unwrap();
        store.evict();
        drop(overlay);
        let again = open(&store, 2);
        assert_eq!((read(&again)[0], at_4_kib(&again)), (2, 3), "{syncs} syncs");
    }
}

/// A block that was never flushed is given up by the flush that fails, and memory runs short: it is an error, not zeroes.
/// One in a region that was not written since it was flushed is what was flushed.
#[test]
fn what_a_failed_flush_has_given_up_is_never_read_as_zeroes() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write(&overlay, 1);
    overlay.flush().unwrap();
    overlay.write_at::<OverlayError>(MIB, &[2; 4096], |_, _| Ok(())).unwrap();
    store.fail_sync_after(Some(0));
    overlay.flush().unwrap_err();
    store.evict();
    let mut block = [0; 4096];
    let lost = overlay.read_at::<OverlayError>(MIB, &mut block, |_, _| panic!("it is the overlay's own"));
    assert!(matches!(lost, Err(OverlayError::Failed)), "{lost:?}, {}", block[0]);
    assert_eq!(read(&overlay)[0], 1);
    store.fail_sync_after(None);
    drop(overlay);
    let again = open_large(&store);
    assert_eq!(read(&again)[0], 1);
    again
        .read_at::<OverlayError>(MIB, &mut block, |_, below| {
            below.fill(9);
            Ok(())
        })
        .unwrap();
    assert_eq!(block[0], 9, "the block below");
}

/// (1) The disk is gone, as where a file system has gone read-only: a flush fails, and that it did cannot be written down;
/// (2) it is there again, and the agent is started anew; (3) the guest flushes: told as done; (4) the power goes.
#[test]
fn what_a_flush_has_given_up_is_made_durable_by_the_next_though_nothing_could_be_noted_of_it() {
    what_is_read_after_a_flush_outlives_a_loss_of_power(|store, overlay| {
        store.die_after(Some(1));
        overlay.flush().unwrap_err();
        assert!(store.is_dead(), "nothing more could be written");
        store.die_after(None);
    });
}

const MIB: u64 = 1 << 20;

fn open_large(store: &SimStore) -> Overlay {
    Overlay::open(store, "image-1", "vda", 64 * MIB, [1; 16]).unwrap()
}

fn write_large(overlay: &Overlay, range: std::ops::Range<u64>) {
    for at in range.step_by(MIB as usize) {
        overlay.write_at::<OverlayError>(at, &[at as u8 | 1; MIB as usize], |_, _| Ok(())).unwrap();
    }
}

fn fail_a_flush(store: &SimStore, overlay: Overlay) {
    store.fail_sync_after(Some(0));
    overlay.flush().unwrap_err();
    store.fail_sync_after(None);
}

#[test]
fn only_what_was_written_since_the_last_flush_is_written_again_after_one_has_failed() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write_large(&overlay, 0..64 * MIB);
    overlay.flush().unwrap();
    write_large(&overlay, 5 * MIB..6 * MIB);
    fail_a_flush(&store, overlay);
    store.limit_room(Some(2 * MIB));
    let again = open_large(&store);
    assert_eq!(again.in_doubt_bytes(), MIB);
    assert!(again.had_failed());
    again.flush().unwrap();
    assert_eq!(again.in_doubt_bytes(), 0);
}

/// The kernel drops what a failed sync has given up whenever memory is short, and reads from the disk what was there before.
#[test]
fn what_is_shown_of_what_a_failed_flush_was_about_does_not_change_by_itself() {
    let store = SimStore::new();
    let first_byte = |overlay: &Overlay, at: u64| {
        let mut block = [0; 512];
        let read = overlay.read_at::<OverlayError>(at, &mut block, |_, _| Ok(()));
        read.map(|()| block[0])
    };
    let overlay = open_large(&store);
    write_large(&overlay, 0..2 * MIB);
    overlay.flush().unwrap();
    overlay.write_at::<OverlayError>(MIB, &[7; 4096], |_, _| Ok(())).unwrap();
    store.fail_sync_after(Some(0));
    overlay.flush().unwrap_err();
    store.fail_sync_after(None);
    assert!(
        matches!(first_byte(&overlay, MIB), Err(OverlayError::Failed)),
        "it may be one thing now and another later"
    );
    assert_eq!(first_byte(&overlay, 0).unwrap(), 1, "nothing was written there since");
    drop(overlay);
    let again = open_large(&store);
    let shown = first_byte(&again, MIB).unwrap();
    store.evict();
    assert_eq!(first_byte(&again, MIB).unwrap(), shown);
    assert_eq!(again.in_doubt_bytes(), 0);
    again.flush().unwrap();
    store.lose_power(&mut sim::Rng::new(1));
    assert_eq!(first_byte(&open_large(&store), MIB).unwrap(), shown);
}

/// Nobody waits for it when the image is opened, and whoever is cut short does not begin from the first byte.
#[test]
fn what_is_to_be_written_again_is_so_in_steps_that_last() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write_large(&overlay, 0..48 * MIB);
    overlay.flush().unwrap();
    write_large(&overlay, 0..48 * MIB);
    fail_a_flush(&store, overlay);
    let again = open_large(&store);
    assert_eq!(again.in_doubt_bytes(), 48 * MIB);
    store.limit_room(Some(40 * MIB));
    again.flush().unwrap_err();
    drop(again);
    store.limit_room(Some(34 * MIB));
    let again = open_large(&store);
    assert!(again.in_doubt_bytes() <= 32 * MIB, "{}", again.in_doubt_bytes());
    again.flush().unwrap();
}

/// The first step of a flush that has more to write again makes no block durable that is still in doubt.
#[test]
fn what_is_in_doubt_is_not_in_the_map_before_it_is_on_the_disk() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write_large(&overlay, 0..48 * MIB);
    store.fail_sync_after(Some(0));
    store.die_after(Some(1));
    overlay.flush().unwrap_err();
    store.die_after(None);
    store.fail_sync_after(None);
    drop(overlay);
    let again = open_large(&store);
    assert!(again.in_doubt_bytes() == 48 * MIB && !again.had_failed(), "as after a kill of the agent");
    // It is cut short between its steps.
    store.fail_sync_after(Some(2));
    again.flush().unwrap_err();
    drop(again);
    store.fail_sync_after(None);
    store.lose_power(&mut Rng::new(1));
    let last = Overlay::open(&store, "image-1", "vda", 64 * MIB, [2; 16]).unwrap();
    for at in (0..64 * MIB).step_by(MIB as usize) {
        let read = read_at(&last, at).unwrap();
        assert!(read == 9 || (at < 48 * MIB && read == at as u8 | 1), "{read} at {at}");
    }
}

fn read_at(overlay: &Overlay, at: u64) -> Result<u8, OverlayError> {
    let mut byte = [0];
    overlay.read_at::<OverlayError>(at, &mut byte, |_, below| {
        below.fill(9);
        Ok(())
    })?;
    Ok(byte[0])
}

const FLUSHED: &str = "image-1/vda.flushed";
/// One sector of a map tells of 4064 blocks, and the first sector is the header.
const SECTOR_BYTES: u64 = 4064 * 4096;

#[test]
fn a_map_that_rots_under_an_open_image_is_made_anew_by_a_scrub() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write_large(&overlay, 0..40 * MIB);
    overlay.flush().unwrap();
    assert_eq!(overlay.scrub(&store).unwrap(), Vec::<String>::new());
    assert!(store.rot(FLUSHED, 512 + 17) && store.rot(FLUSHED, 2 * 512 + 100));
    let found = overlay.scrub(&store).unwrap();
    assert_eq!(found, [format!("{FLUSHED} at byte 512"), format!("{FLUSHED} at byte 1024")]);
    assert_eq!(overlay.scrub(&store).unwrap(), Vec::<String>::new());
    drop(overlay);
    store.lose_power(&mut Rng::new(1));
    let again = Overlay::open(&store, "image-1", "vda", 64 * MIB, [2; 16]).unwrap();
    assert_eq!(again.damage(), Vec::<String>::new());
    for at in (0..64 * MIB).step_by(MIB as usize) {
        let expected = if at < 40 * MIB { at as u8 | 1 } else { 9 };
        assert_eq!(read_at(&again, at).unwrap(), expected, "at {at}");
    }
}

/// Whose blocks they are is not known: what is below may be older, and what is in the data file of no time at all.
#[test]
fn what_a_rotten_map_tells_of_cannot_be_read_and_all_else_can() {
    let store = SimStore::new();
    let overlay = open_large(&store);
    write_large(&overlay, 0..40 * MIB);
    overlay.flush().unwrap();
    drop(overlay);
    store.lose_power(&mut Rng::new(1));
    assert!(store.rot(FLUSHED, 2 * 512 + 100));
    // Also where the agent is killed, and finds what it has written of that itself.
    for boot in [2, 2, 3] {
        let again = Overlay::open(&store, "image-1", "vda", 64 * MIB, [boot; 16]).unwrap();
        assert_eq!(again.damage(), [format!("{FLUSHED} at byte 1024")]);
        for at in (0..64 * MIB).step_by(MIB as usize) {
            let (read, written) =
                (read_at(&again, at), again.write_at::<OverlayError>(at, &[7; 10], |_, _| Ok(())));
            if (SECTOR_BYTES..2 * SECTOR_BYTES).contains(&at) {
                let error = read.unwrap_err().to_string();
                assert!(error.contains("at byte 1024") && written.is_err(), "{error}");
            } else {
                read.unwrap();
                written.unwrap();
            }
        }
        again.flush().unwrap();
    }
}

/// An overlay as the release before has left it in boot 1, durable: block 0 is flushed, block 1 is written.
fn of_version_1() -> SimStore {
    let mut header = b"HFOV\x01\0\0\0".to_vec();
    header.extend(16_u64.to_le_bytes());
    header.extend([1; 16]);
    let store = SimStore::new();
    let data: Vec<u8> = (0..SIZE).map(|at| 1 + (at / 4096) as u8).collect();
    let (map, live) = ([&header[..], &[0b01, 0]].concat(), [&header[..], &[0b11, 0]].concat());
    for (name, bytes) in [("data", data), ("map", map), ("live", live)] {
        let file = Store::open(&store, &format!("image-1/vda.{name}"), true).unwrap();
        file.write_at(0, &bytes).unwrap();
        file.sync_data().unwrap();
    }
    Store::sync_folder(&store).unwrap();
    store
}

#[test]
fn an_overlay_of_version_1_is_taken_up() {
    for (boot, expected) in [(1, [1, 2, 9]), (2, [1, 9, 9])] {
        let store = of_version_1();
        for _ in 0..2 {
            let overlay = open(&store, boot);
            assert_eq!([0, 4096, 8192].map(|at| read_at(&overlay, at).unwrap()), expected);
            overlay.flush().unwrap();
            assert!(!store.names().iter().any(|name| name.ends_with(".map") || name.ends_with(".live")));
        }
        store.lose_power(&mut Rng::new(5));
        assert_eq!([0, 4096, 8192].map(|at| read_at(&open(&store, 3), at).unwrap()), expected);
    }
}

/// A thin volume gives zeroes for what it has lost.
#[test]
fn a_map_whose_header_reads_as_zeroes_has_its_bits_all_the_same() {
    let store = SimStore::new();
    let overlay = open(&store, 1);
    write(&overlay, 0x55);
    overlay.flush().unwrap();
    drop(overlay);
    let file = Store::open(&store, "image-1/vda.flushed", false).unwrap();
    file.write_at(0, &[0; 512]).unwrap();
    file.sync_data().unwrap();
    let overlay = open(&store, 3);
    assert_eq!(read_at(&overlay, 0).unwrap(), 0x55, "the guest's flushed block is read from below");
}

const NOW: &str = "image-1/vda.now";

/// Whether what it says was written in this boot is not known then: what was flushed is right in either case, and of what was
/// written since neither what is below nor what is in the data file may be shown.
#[test]
fn what_was_written_since_a_flush_is_not_read_as_what_is_below_where_the_header_of_what_is_now_has_rotted() {
    for byte in [0, 9, 17, 32, 400, 508] {
        let store = SimStore::new();
        let overlay = open_large(&store);
        write_large(&overlay, 0..4 * MIB);
        overlay.flush().unwrap();
        write_large(&overlay, 20 * MIB..24 * MIB);
        drop(overlay);
        assert!(store.rot(NOW, byte));
        for boot in [1, 1, 2] {
            let again = Overlay::open(&store, "image-1", "vda", 64 * MIB, [boot; 16]).unwrap();
            for at in (0..64 * MIB).step_by(MIB as usize) {
                let read = read_at(&again, at);
                match at / SECTOR_BYTES {
                    // Another boot, whose agent found a map that says what is not known.
                    1 if boot == 1 => assert!(read.unwrap_err().to_string().contains("at byte 1024"), "{at}"),
                    1 => {}
                    _ if at < 4 * MIB => assert_eq!(read.unwrap(), at as u8 | 1),
                    _ => assert_eq!(read.unwrap(), 9),
                }
            }
        }
    }
}

/// Also of a map that is longer than what a disk takes at once, whose header may come there later than the rest.
#[test]
fn a_loss_of_power_leaves_everything_that_was_flushed_to_be_read() {
    for seed in 0..12 {
        let store = SimStore::new();
        let overlay = Overlay::open(&store, "image-1", "vda", 256 * MIB, [1; 16]).unwrap();
        write_large(&overlay, 0..4 * MIB);
        overlay.flush().unwrap();
        write_large(&overlay, 200 * MIB..203 * MIB);
        drop(overlay);
        store.lose_power(&mut Rng::new(seed));
        let again = Overlay::open(&store, "image-1", "vda", 256 * MIB, [2; 16]).unwrap();
        for at in (0..256 * MIB).step_by(MIB as usize) {
            let expected = if at < 4 * MIB { at as u8 | 1 } else { 9 };
            assert_eq!(read_at(&again, at).unwrap(), expected, "seed {seed}, at {at}");
        }
    }
}

#[test]
fn what_is_flushed_after_version_1_was_taken_up_outlives_a_loss_of_power() {
    for seed in 0..16 {
        let store = of_version_1();
        let overlay = open(&store, 1);
        overlay.write_at::<OverlayError>(8192, &[0x77; 4096], |_, _| Ok(())).unwrap();
        overlay.flush().unwrap();
        drop(overlay);
        store.lose_power(&mut Rng::new(seed));
        assert_eq!(read_at(&open(&store, 3), 8192).unwrap(), 0x77, "seed {seed}");
    }
}
