//! The disk of a VM that runs on its own image: the hypervisor writes it, and tells us of each write.
//!
//! It is read through the hypervisor, for a sync. A write is in the image before we hear of it, so there is nothing
//! to write here; what is committed while a sync reads a block waits for the range lock, and gets the higher
//! sequence.

use crate::device::{Extent, ExtentKind};
use crate::dirty_map::DiskIdentity;
use crate::disk::LocalDisk;
use crate::nbd::Client;
use std::io;
use std::sync::{Arc, Mutex};
use types::{ByteRange, WallTime};

/// Flags of `base:allocation`: reads as zeroes.
const STATE_ZERO: u32 = 1 << 1;

/// Such a disk. Clones share the connection it is read by.
#[derive(Debug, Clone)]
pub struct TappedDisk {
    size_bytes: u64,
    label: String,
    reader: Arc<Mutex<Option<Client>>>,
}

impl TappedDisk {
    /// A disk that cannot be read yet.
    pub fn new(size_bytes: u64, label: String) -> Self {
        Self { size_bytes, label, reader: Arc::default() }
    }

    /// What stands for the file's own identity: whether somebody wrote to the disk while nobody listened is for the
    /// hypervisor's change log to tell, not for a file's times.
    pub fn identity(&self) -> DiskIdentity {
        let name = crc32c::crc32c(self.label.as_bytes());
        DiskIdentity { device: 0, inode: name.into(), changed_at: WallTime(0) }
    }

    /// Reads by this connection from now on.
    pub fn read_by(&self, client: Client) {
        *self.reader.lock().expect("a panic aborts the process") = Some(client);
    }

    fn with_reader<T>(&self, ask: impl FnOnce(&mut Client) -> io::Result<T>) -> io::Result<T> {
        let mut reader = self.reader.lock().expect("a panic aborts the process");
        match &mut *reader {
            Some(client) => ask(client),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "the VM cannot be read")),
        }
    }
}

impl LocalDisk for TappedDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn is_written_elsewhere(&self) -> bool {
        true
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with_reader(|client| client.read(at, buf))
    }

    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _range: ByteRange, _unmap: bool) -> io::Result<()> {
        Ok(())
    }

    fn zeroes_fast(&self) -> bool {
        true
    }

    fn prefetch(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for (part, flags) in self.with_reader(|client| status_of(client, range))? {
            let kind = if flags & STATE_ZERO != 0 { ExtentKind::Hole } else { ExtentKind::Data };
            extents.push(Extent { range: part, kind });
        }
        Ok(extents)
    }
}

/// The context's flags of a whole range, however long.
///
/// # Errors
/// As [`Client::block_status`].
pub fn status_of(client: &mut Client, range: ByteRange) -> io::Result<Vec<(ByteRange, u32)>> {
    // What one request may ask for.
    const ASKED_BYTES_MAX: u64 = 1 << 30;
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end() {
        let asked = ByteRange::new(at, (range.end() - at).min(ASKED_BYTES_MAX));
        for (len, flags) in client.block_status(asked)? {
            let len = len.min(range.end() - at);
            if len > 0 {
                parts.push((ByteRange::new(at, len), flags));
                at += len;
            }
        }
    }
    Ok(parts)
}
