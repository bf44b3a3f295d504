//! The disk of a VM that runs on its own image: the hypervisor writes it, and tells us of each write.
//!
//! A write is in the image before we hear of it, so there is nothing to write here; what is committed while a sync
//! reads a block waits for the range lock, and gets the higher sequence.
//!
//! What holds: nothing of ours is open at the hypervisor for reading while nobody reads. The disk is opened by its
//! [`ReadDoor`] for a read, stays open while reads follow each other, and is closed by [`TappedDisk::close_idle`], which
//! somebody calls now and then. After a read that failed it is closed, and the next read opens it anew.
//!
//! What holds, too: nothing is opened or closed between [`LocalDisk::begin_read`] and [`LocalDisk::end_read`], in which a
//! range of the disk is locked. The hypervisor waits for the guest's writes for either, and such a write may wait for us
//! to have that range unlocked: it would stand still until its monitor's patience is at its end.

use crate::device::{Extent, ExtentKind};
use crate::disk::LocalDisk;
use crate::identity::DiskIdentity;
use crate::nbd::Client;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use types::ByteRange;

/// Flags of `base:allocation`: reads as zeroes.
const STATE_ZERO: u32 = 1 << 1;

/// The way to a disk's content.
pub trait ReadDoor: Send + Sync + fmt::Debug {
    /// Opens the disk for reading.
    ///
    /// # Errors
    /// As the hypervisor or the file system says.
    fn open(&self) -> io::Result<Box<dyn DiskReader>>;

    /// Takes away what was opened. It may fail to where the hypervisor has gone, and then there is nothing.
    fn close(&self, reader: Box<dyn DiskReader>);
}

/// An open disk.
pub trait DiskReader: Send + fmt::Debug {
    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// As the disk says.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Which parts of `range` are allocated, in order and without holes between.
    ///
    /// # Errors
    /// As the disk says.
    fn extents(&mut self, range: ByteRange) -> io::Result<Vec<Extent>>;
}

/// Such a disk. Clones share how it is read.
#[derive(Debug, Clone)]
pub struct TappedDisk {
    size_bytes: u64,
    label: String,
    reading: Arc<Mutex<Reading>>,
}

#[derive(Debug, Default)]
struct Reading {
    door: Option<Arc<dyn ReadDoor>>,
    reader: Option<Box<dyn DiskReader>>,
    /// It was read since somebody last asked whether it is idle.
    is_used: bool,
    /// Why the last read failed.
    trouble: Option<String>,
    is_gone: bool,
    /// How many have begun to read and not ended yet.
    reading: usize,
    /// What is closed as soon as nobody reads.
    spent: Vec<(Arc<dyn ReadDoor>, Box<dyn DiskReader>)>,
}

impl Reading {
    fn close(&mut self) {
        if let (Some(door), Some(reader)) = (&self.door, self.reader.take()) {
            self.spent.push((door.clone(), reader));
        }
        if self.reading == 0 {
            self.spent.drain(..).for_each(|(door, reader)| door.close(reader));
        }
    }

    fn open(&mut self) -> io::Result<&mut Box<dyn DiskReader>> {
        let Some(door) = &self.door else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the VM cannot be read"));
        };
        match &mut self.reader {
            Some(reader) => Ok(reader),
            None if self.reading > 0 => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "another read of it has just failed; it is opened anew",
            )),
            closed => Ok(closed.insert(door.open()?)),
        }
    }

    fn read_with<T>(&mut self, read: impl FnOnce(&mut dyn DiskReader) -> io::Result<T>) -> io::Result<T> {
        self.is_used = true;
        let done = read(&mut **self.open()?);
        if done.is_err() {
            // What follows on a connection whose answer was not waited for would be the answer to something else.
            self.close();
        }
        done
    }
}

impl TappedDisk {
    /// A disk that cannot be read yet.
    pub fn new(size_bytes: u64, label: String) -> Self {
        Self { size_bytes, label, reading: Arc::default() }
    }

    /// What stands for the file's own identity: whether somebody wrote to the disk while nobody listened is for the
    /// hypervisor's change log to tell, not for a file's times.
    pub fn identity(&self) -> DiskIdentity {
        let name = crc32c::crc32c(self.label.as_bytes());
        DiskIdentity::without_times(0, name.into())
    }

    /// Is read through this door from now on; nothing is opened yet.
    pub fn read_by(&self, door: Arc<dyn ReadDoor>) {
        let mut reading = self.lock();
        reading.close();
        reading.door = Some(door);
        (reading.trouble, reading.is_gone) = (None, false);
    }

    /// Closes it where it was not read since this was last called.
    pub fn close_idle(&self) {
        let mut reading = self.lock();
        if !std::mem::take(&mut reading.is_used) && reading.reading == 0 {
            reading.close();
        }
    }

    /// Closes it, and it is not read any more.
    pub fn shut(&self) {
        let mut reading = self.lock();
        reading.close();
        reading.door = None;
    }

    /// The VM has it no more.
    pub fn lose(&self) {
        let mut reading = self.lock();
        reading.close();
        (reading.door, reading.trouble, reading.is_gone) = (None, None, true);
    }

    /// Why it could not be read when that was last tried.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    fn read_with<T>(&self, read: impl FnOnce(&mut dyn DiskReader) -> io::Result<T>) -> io::Result<T> {
        let mut reading = self.lock();
        let done = reading.read_with(read);
        reading.trouble = done.as_ref().err().map(ToString::to_string);
        done
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().expect("a panic aborts the process")
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

    fn is_gone(&self) -> bool {
        self.lock().is_gone
    }

    fn begin_read(&self) -> io::Result<()> {
        let mut reading = self.lock();
        let opened = reading.open().map(drop);
        reading.trouble = opened.as_ref().err().map(ToString::to_string);
        opened?;
        reading.is_used = true;
        reading.reading += 1;
        Ok(())
    }

    fn end_read(&self) {
        let mut reading = self.lock();
        reading.reading -= 1;
        if reading.reading == 0 {
            reading.spent.drain(..).for_each(|(door, reader)| door.close(reader));
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_with(|reader| reader.read(at, buf))
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

    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        Ok(Some(TappedDisk::identity(self)))
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        self.read_with(|reader| reader.extents(range))
    }
}

/// An export of the hypervisor's, with the context `base:allocation`.
impl DiskReader for Client {
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        Client::read(self, at, buf)
    }

    fn extents(&mut self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let kind = |flags: u32| if flags & STATE_ZERO != 0 { ExtentKind::Hole } else { ExtentKind::Data };
        let status = status_of(self, range)?.into_iter();
        Ok(status.map(|(range, flags)| Extent { range, kind: kind(flags) }).collect())
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

#[cfg(test)]
mod tests;
