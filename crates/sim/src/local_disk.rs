//! The protected VM's local disk and its dirty map, in memory. They survive the death of the agent, as
//! files do.

use crate::rng::Rng;
use splitter::{Extent, ExtentKind, LocalDisk, MapStore};
use std::io;
use std::sync::{Arc, Mutex};
use types::ByteRange;
use types::limits::BLOCK_BYTES;

/// A disk that may fail writes. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
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
        Self { bytes: Arc::new(Mutex::new(bytes)), failing: Arc::default() }
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
        disk[at as usize..at as usize + len].copy_from_slice(&bytes[..len]);
        if failing { Err(io::Error::other("simulated failure of a write")) } else { Ok(()) }
    }

    fn zero(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.bytes.lock().expect("a panic aborts the process")[range.start as usize..range.end() as usize]
            .fill(0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
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

/// A dirty map. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimMap(Arc<Mutex<Vec<u8>>>);

impl MapStore for SimMap {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().expect("a panic aborts the process").clone())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.lock().expect("a panic aborts the process");
        let end = at as usize + bytes.len();
        let len = all.len().max(end);
        all.resize(len, 0);
        all[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self) -> io::Result<()> {
        self.0.lock().expect("a panic aborts the process").clear();
        Ok(())
    }
}
