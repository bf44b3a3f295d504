//! The dirty map and the dirty-region log, their headers' checksums put right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splitter::{Boot, DirtyMap, DiskIdentity, MapStore, RegionLog};
use std::io;
use std::sync::Mutex;
use types::{VmId, WallTime};

#[derive(Debug)]
struct Memory(Mutex<Vec<u8>>);

impl MapStore for Memory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock().unwrap();
        let len = all.len().max(at as usize + bytes.len());
        all.resize(len, 0);
        all[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        self.0.lock().unwrap().clear();
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let vm = VmId::from_bytes([0; 16]);
    let identity = DiskIdentity::without_times(0, 0);
    let disks = [(1 << 20, Some(identity)), (96 << 10, Some(identity))];
    for magic in [b"HFDM", b"HFRL"] {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= 112 {
            bytes[..4].copy_from_slice(magic);
            bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
            bytes[8..24].fill(0);
            bytes[92..96].copy_from_slice(&2u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..108]);
            bytes[108..112].copy_from_slice(&crc.to_le_bytes());
            // Each disk's note at the end, too.
            let notes = bytes.len().saturating_sub(2 * 64).max(112);
            for note in bytes[notes..].chunks_exact_mut(64) {
                let crc = crc32c::crc32c(&note[..60]);
                note[60..].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let store = || Box::new(Memory(Mutex::new(bytes.clone())));
        let _ = DirtyMap::open(store(), vm, &disks, [0; 16]);
        let _ = RegionLog::open(store(), vm, &disks, 128 << 10, Boot { id: [0; 16], at: WallTime(0) });
    }
});
