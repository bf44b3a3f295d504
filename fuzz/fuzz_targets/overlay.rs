//! The map files of an image's overlay, as they are and with their headers put right: opening, writing, reading
//! and flushing must answer, and never panic.
#![no_main]

use journal::{Overlay, OverlayError, Store};
use libfuzzer_sys::fuzz_target;
use sim::SimStore;
use types::ByteRange;

/// Not a whole number of blocks.
const DISK_BYTES: u64 = (1 << 20) - 1000;
const BOOT_ID: [u8; 16] = [3; 16];
const SECTOR: usize = 512;

fn put(store: &SimStore, name: &str, bytes: &[u8]) {
    let opened = Store::open(store, &format!("image/vda.{name}"), true).expect("made");
    opened.write_at(0, bytes).expect("written");
}

fn put_header(file: &mut [u8], version: u32) {
    file[..4].copy_from_slice(b"HFOV");
    file[4..8].copy_from_slice(&version.to_le_bytes());
    file[8..16].copy_from_slice(&DISK_BYTES.div_ceil(4096).to_le_bytes());
    file[16..32].copy_from_slice(&BOOT_ID);
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let store = SimStore::new();
    for (bit, name, sectors) in [(1, "flushed", 2), (2, "now", 3)] {
        if choice & bit != 0 {
            let mut file = bytes.to_vec();
            if choice & 8 != 0 {
                file.resize(sectors * SECTOR, choice);
            }
            if choice & 4 != 0 && file.len() >= SECTOR {
                put_header(&mut file, 2);
            }
            put(&store, name, &file);
        }
    }
    // As the version before had them.
    for (bit, name) in [(32, "map"), (64, "live")] {
        if choice & bit != 0 {
            let mut file = bytes.to_vec();
            if choice & 4 != 0 && file.len() >= 32 {
                put_header(&mut file, 1);
            }
            if choice & 8 != 0 {
                file.resize(32 + DISK_BYTES.div_ceil(4096).div_ceil(8) as usize, choice);
            }
            put(&store, name, &file);
        }
    }
    let Ok(overlay) = Overlay::open(&store, "image", "vda", DISK_BYTES, BOOT_ID) else { return };
    let below = |_: u64, buf: &mut [u8]| -> Result<(), OverlayError> {
        buf.fill(7);
        Ok(())
    };
    // Where the map has rotted, and only there, it is said to be unknown what is read.
    let is_known = |result: Result<(), OverlayError>| match result {
        Ok(()) => true,
        Err(OverlayError::Rotten { .. }) if !overlay.damage().is_empty() => false,
        Err(error) => panic!("no map makes this fail: {error:?}"),
    };
    let mut all = vec![0; DISK_BYTES as usize];
    is_known(overlay.read_at(0, &mut all, below));
    // Checksums count as right here.
    let start = bytes.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) % (DISK_BYTES - 9000);
    let mut found = vec![9; 9000];
    let is_written = is_known(overlay.write_at(start, &[1; 5000], below))
        && is_known(overlay.zero(ByteRange::new(start + 3000, 6000), below));
    assert!(is_known(overlay.flush()), "a flush reads no map");
    if is_known(overlay.read_at(start, &mut found, below)) && is_written {
        assert!(found[..3000].iter().all(|&byte| byte == 1) && found[3000..].iter().all(|&byte| byte == 0));
    }
    let _ = overlay.held_bytes();
});
