//! The protected VM's local disk, its dirty map and its region log, in memory. They survive the death of the
//! agent, as files do; a loss of power takes what was not synced, each write by chance.

use crate::rng::Rng;
use splitter::{Extent, ExtentKind, LocalDisk, MapStore};
use std::io;
use std::sync::Arc;
use threads::sync::Mutex;
use types::ByteRange;
use types::limits::BLOCK_BYTES;

/// Bytes and where they were.
type Before = (u64, Vec<u8>);

/// A disk that may fail writes. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// What was there before each write since the last flush.
    unsynced: Arc<Mutex<Vec<Before>>>,
    /// The next write fails, and leaves half of itself behind.
    failing: Arc<Mutex<bool>>,
}

impl SimDisk {
    /// A disk with something on it here and there.
    pub(crate) fn new(size_bytes: u64, rng: &mut Rng) -> Self {
        let mut bytes = vec![0; size_bytes as usize];
        for block in bytes.chunks_mut(BLOCK_BYTES as usize) {
            if rng.one_in(3) {
                block.fill(rng.bits() as u8);
            }
        }
        Self { bytes: Arc::new(Mutex::new(bytes)), unsynced: Arc::default(), failing: Arc::default() }
    }

    /// The power goes: of what was not flushed, each sector is kept or lost.
    pub(crate) fn lose_power(&self, rng: &mut Rng) {
        let mut disk = self.bytes.lock().expect("a panic aborts the process");
        let mut unsynced = self.unsynced.lock().expect("a panic aborts the process");
        while let Some((at, before)) = unsynced.pop() {
            for (sector, bytes) in before.chunks(512).enumerate() {
                if rng.one_in(2) {
                    let at = at as usize + sector * 512;
                    disk[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
    }

    fn remember(&self, disk: &[u8], range: ByteRange) {
        let before = disk[range.start as usize..range.end() as usize].to_vec();
        self.unsynced.lock().expect("a panic aborts the process").push((range.start, before));
    }

    pub(crate) fn fail_next_write(&self) {
        *self.failing.lock().expect("a panic aborts the process") = true;
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.bytes.lock().expect("a panic aborts the process").clone()
    }
}

impl LocalDisk for SimDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.lock().expect("a panic aborts the process").len() as u64
    }

    fn label(&self) -> String {
        "simulated".into()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().expect("a panic aborts the process");
        buf.copy_from_slice(&bytes[at as usize..at as usize + buf.len()]);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let failing = std::mem::take(&mut *self.failing.lock().expect("a panic aborts the process"));
        let len = if failing { bytes.len() / 2 } else { bytes.len() };
        let mut disk = self.bytes.lock().expect("a panic aborts the process");
        self.remember(&disk, ByteRange::new(at, len as u64));
        disk[at as usize..at as usize + len].copy_from_slice(&bytes[..len]);
        if failing { Err(io::Error::other("simulated failure of a write")) } else { Ok(()) }
    }

    fn zero(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        let mut disk = self.bytes.lock().expect("a panic aborts the process");
        self.remember(&disk, range);
        disk[range.start as usize..range.end() as usize].fill(0);
        Ok(())
    }

    fn zeroes_fast(&self) -> bool {
        true
    }

    fn prefetch(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.unsynced.lock().expect("a panic aborts the process").clear();
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let bytes = self.bytes.lock().expect("a panic aborts the process");
        let kind = |piece: ByteRange| {
            let zero = bytes[piece.start as usize..piece.end() as usize].iter().all(|&byte| byte == 0);
            if zero { ExtentKind::Hole } else { ExtentKind::Data }
        };
        Ok(range
            .split_at_multiples(BLOCK_BYTES)
            .map(|piece| Extent { range: piece, kind: kind(piece) })
            .collect())
    }
}

/// A dirty map or region log. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimMap(Arc<Mutex<MapBytes>>);

#[derive(Debug, Default)]
struct MapBytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

impl SimMap {
    /// The power goes: of the bytes that were not synced, each is kept or lost.
    pub(crate) fn lose_power(&self, rng: &mut Rng) {
        let mut map = self.lock();
        let mut left = map.durable.clone();
        for (at, &byte) in map.now.iter().enumerate() {
            match left.get_mut(at) {
                Some(old) if *old != byte && rng.one_in(2) => *old = byte,
                Some(_) => {}
                None => break,
            }
        }
        map.now = left.clone();
        map.durable = left;
    }

    fn lock(&self) -> threads::sync::MutexGuard<'_, MapBytes> {
        self.0.lock().expect("a panic aborts the process")
    }
}

impl MapStore for SimMap {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.lock().now.clone())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut map = self.lock();
        let end = at as usize + bytes.len();
        let len = map.now.len().max(end);
        map.now.resize(len, 0);
        map.now[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut map = self.lock();
        map.durable = map.now.clone();
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        self.lock().now.clear();
        Ok(())
    }
}
