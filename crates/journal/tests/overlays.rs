//! Overlays over a disk whose syncs fail: what a guest reads and was told is durable stays.

#![allow(clippy::unwrap_used, reason = "a test")]

use journal::{Overlay, OverlayError};
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

/// (1) A block is flushed; (2) it is written again, and the flush fails: the kernel counts its pages as clean, though they
/// never reached the disk; (3) the guest is started again, reads the new bytes, and flushes: told as done; (4) the power
/// goes.
#[test]
fn what_is_read_after_a_flush_has_failed_is_made_durable_by_the_next() {
    for seed in 0..20 {
        let store = SimStore::new();
        let overlay = open(&store, 1);
        write(&overlay, 1);
        overlay.flush().unwrap();
        write(&overlay, 2);
        store.fail_sync_after(Some(0));
        overlay.flush().unwrap_err();
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

/// The folder could not be synced when the overlay was made: its files would be gone after a loss of power.
#[test]
fn what_is_flushed_stays_though_making_the_overlay_failed_at_first() {
    for (seed, syncs) in (0..20).flat_map(|seed| [(seed, 0), (seed, 1)]) {
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

/// A block that was never flushed is given up by the flush that fails, and memory runs short: it is an error, not zeroes.
/// One that was flushed is what was flushed.
#[test]
fn what_a_failed_flush_has_given_up_is_never_read_as_zeroes() {
    let store = SimStore::new();
    let overlay = open(&store, 1);
    write(&overlay, 1);
    overlay.flush().unwrap();
    overlay.write_at::<OverlayError>(8192, &[2; 4096], |_, _| Ok(())).unwrap();
    store.fail_sync_after(Some(0));
    overlay.flush().unwrap_err();
    store.evict();
    let mut block = [0; 4096];
    let read = overlay.read_at::<OverlayError>(8192, &mut block, |_, _| panic!("it is the overlay's own"));
    assert!(matches!(read, Err(OverlayError::Failed)), "{read:?}, {}", block[0]);
    assert_eq!(first_byte(&overlay), 1);
    store.fail_sync_after(None);
    drop(overlay);
    let again = open(&store, 1);
    assert_eq!(first_byte(&again), 1);
    again
        .read_at::<OverlayError>(8192, &mut block, |_, below| {
            below.fill(9);
            Ok(())
        })
        .unwrap();
    assert_eq!(block[0], 9, "the block below");
}

fn first_byte(overlay: &Overlay) -> u8 {
    read(overlay)[0]
}
