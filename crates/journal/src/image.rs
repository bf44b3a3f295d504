//! An image: the disks of the VM as of a cut, read through, and writable on overlays.

use crate::checkpoint_files::CheckpointError;
use crate::journal::Journal;
use crate::overlay::{Overlay, OverlayError};
use crate::payload::ReadError;
use crate::pins::PinError;
use std::sync::Arc;
use threads::sync::{Mutex, RwLock, RwLockReadGuard};
use types::{ByteRange, DiskIndex, WriteSeq};

/// Why an image could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("no consistent state of the VM at {cut}")]
    NotConsistent { cut: WriteSeq },
    #[error("the image is read-only")]
    ReadOnly,
    #[error("cannot tell whether the VM can be opened at {cut}")]
    Unread {
        cut: WriteSeq,
        #[source]
        source: CheckpointError,
    },
    #[error("cannot save the pin")]
    Manifest(#[source] std::io::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

impl ImageError {
    /// Whether what was there is gone for good, so that no later look brings it back.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_loss())
    }
}

impl From<PinError> for ImageError {
    fn from(error: PinError) -> Self {
        match error {
            PinError::NotConsistent { cut } => ImageError::NotConsistent { cut },
            PinError::Unread { cut, source } => ImageError::Unread { cut, source },
            PinError::Manifest(source) => ImageError::Manifest(source),
        }
    }
}

/// The VM's disks as of a cut. While it lives, its cut is pinned: fold leaves it readable.
#[derive(Debug)]
pub struct Image {
    /// Its life now: another takes its place where the journal is opened anew.
    journal: RwLock<Arc<Journal>>,
    cut: WriteSeq,
    /// None once all of it is its own.
    pin: Mutex<Option<u64>>,
    /// Held by whoever may be reading from the journal: the pin is given back only when nobody is.
    readers: RwLock<()>,
    sizes: Vec<u64>,
    /// One per disk where the image is writable.
    overlays: Vec<Overlay>,
}

impl Image {
    /// Opens the VM as of `cut`. `folder` names where overlays are kept, or are found again; without it
    /// the image is read-only.
    ///
    /// # Errors
    /// [`ImageError::NotConsistent`] where writes are missing at `cut`, or it is retired already;
    /// not of an image that was promoted.
    pub fn open(
        journal: Arc<Journal>,
        cut: WriteSeq,
        folder: Option<&str>,
        boot_id: [u8; 16],
    ) -> Result<Self, ImageError> {
        let disks = journal.disks();
        // Held while the overlays are opened; given back where they turn out to be all there is.
        let pinned = journal.held().pin_image(cut);
        let sizes = disks.iter().map(|disk| disk.size_bytes).collect();
        let pin = Mutex::new(pinned.as_ref().ok().copied());
        let journal = RwLock::new(journal);
        let mut image = Self { journal, cut, pin, readers: RwLock::default(), sizes, overlays: Vec::new() };
        if let Some(folder) = folder {
            for disk in &disks {
                let journal = image.journal();
                let store = &*journal.state.store;
                image.overlays.push(Overlay::open(store, folder, &disk.name, disk.size_bytes, boot_id)?);
            }
        }
        if image.promotion().is_done() {
            image.unpin();
        } else {
            pinned?;
        }
        Ok(image)
    }

    /// Gives the pin back: nothing is read from the journal any more.
    pub(crate) fn unpin(&self) {
        // Who has looked up what lies below reads it there still, and would read what a fold puts in its place.
        let _nobody = self.readers.write().expect("a panic aborts the process");
        let pin = self.pin.lock().expect("a panic aborts the process").take();
        if let Some(pin) = pin {
            self.journal().held().unpin_image(pin);
        }
    }

    /// The journal it reads from, as it was opened last.
    pub fn journal(&self) -> Arc<Journal> {
        self.journal.read().expect("a panic aborts the process").clone()
    }

    /// Goes over to the same journal opened anew, before anything there is folded. Reads that have begun end before.
    ///
    /// # Errors
    /// [`ImageError::NotConsistent`] where its cut cannot be read there; it stays with the old one.
    pub fn rebind(&self, journal: Arc<Journal>) -> Result<(), ImageError> {
        let _nobody = self.readers.write().expect("a panic aborts the process");
        let mut pin = self.pin.lock().expect("a panic aborts the process");
        if pin.is_some() {
            *pin = Some(journal.held().pin_image(self.cut)?);
        }
        *self.journal.write().expect("a panic aborts the process") = journal;
        Ok(())
    }

    pub fn cut(&self) -> WriteSeq {
        self.cut
    }

    pub fn is_writable(&self) -> bool {
        !self.overlays.is_empty()
    }

    /// Size of a disk in bytes; zero for a disk the VM has not.
    pub fn size_bytes(&self, disk: DiskIndex) -> u64 {
        self.sizes.get(usize::from(disk.0)).copied().unwrap_or(0)
    }

    /// Bytes written to the image.
    pub fn overlay_bytes(&self) -> u64 {
        self.overlays.iter().map(Overlay::held_bytes).sum()
    }

    /// Fills `buf` from `start` of a disk.
    ///
    /// # Errors
    /// [`ImageError::Read`] naming a damaged place.
    pub fn read_at(&self, disk: DiskIndex, start: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        let _reading = self.reading();
        match self.overlays.get(usize::from(disk.0)) {
            Some(overlay) => overlay.read_at(start, buf, |at, part| self.below(disk, at, part)),
            None => self.below(disk, start, buf),
        }
    }

    /// Writes to the overlay.
    ///
    /// # Errors
    /// [`ImageError::ReadOnly`] where there is none.
    pub fn write_at(&self, disk: DiskIndex, start: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let _reading = self.reading();
        self.overlay(disk)?.write_at(start, bytes, |at, part| self.below(disk, at, part))
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// [`ImageError::ReadOnly`] where there is no overlay.
    pub fn zero(&self, disk: DiskIndex, range: ByteRange) -> Result<(), ImageError> {
        let _reading = self.reading();
        self.overlay(disk)?.zero(range, |at, part| self.below(disk, at, part))
    }

    /// Makes every write to a disk so far durable.
    ///
    /// # Errors
    /// As the file system says.
    pub fn flush(&self, disk: DiskIndex) -> Result<(), ImageError> {
        match self.overlays.get(usize::from(disk.0)) {
            Some(overlay) => Ok(overlay.flush()?),
            None => Ok(()),
        }
    }

    /// Bytes that a flush has failed to make durable before the image was opened: they are written again before the next
    /// is told.
    pub fn in_doubt_bytes(&self) -> u64 {
        self.overlays.iter().filter(|overlay| overlay.had_failed()).map(Overlay::in_doubt_bytes).sum()
    }

    /// Where maps of the overlays had rotted when the image was opened: reading what they tell of is an error.
    pub fn damage(&self) -> Vec<String> {
        self.overlays.iter().flat_map(Overlay::damage).cloned().collect()
    }

    /// Reads the overlays' maps from the disk again, and makes anew what has rotted there; the places of that.
    ///
    /// # Errors
    /// As the file system says.
    pub fn scrub(&self) -> Result<Vec<String>, ImageError> {
        let journal = self.journal();
        let mut places = Vec::new();
        for overlay in &self.overlays {
            places.extend(overlay.scrub(&*journal.state.store)?);
        }
        Ok(places)
    }

    pub(crate) fn overlays(&self) -> &[Overlay] {
        &self.overlays
    }

    pub(crate) fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    pub(crate) fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.readers.read().expect("a panic aborts the process")
    }

    fn overlay(&self, disk: DiskIndex) -> Result<&Overlay, ImageError> {
        self.overlays.get(usize::from(disk.0)).ok_or(ImageError::ReadOnly)
    }

    pub(crate) fn below(&self, disk: DiskIndex, start: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        Ok(self.journal().read_image(disk, self.cut, start, buf)?)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.unpin();
    }
}
