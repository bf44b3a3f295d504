//! A qcow2 image on this host, through `imago`.
//!
//! Its tables are cached in this process, and a guest outlives the agent: what it was told is written must be found
//! by the next one. So after each change the tables go to the file before the guest is told, in the order that
//! `imago` keeps: a cluster is counted before it is referred to, and a kill in between leaks it at most. Images
//! with a backing file, snapshots or encryption are left to the tap.

use crate::bounce::BOUNCE_ALIGN;
use crate::device::{Extent, ExtentKind};
use crate::dirty_map::DiskIdentity;
use crate::disk::LocalDisk;
use crate::image_lock;
use crate::raw::{RawDiskError, identity_of, open_file};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate, StorageOpenOptions};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use types::ByteRange;
use types::limits::{DISK_BYTES_MAX, SECTOR_BYTES};

/// A disk in a qcow2 image, held by this process alone.
pub struct Qcow2Disk {
    image: FormatAccess<Storage>,
    /// Holds the lock, and tells when it was changed.
    file: File,
    path: PathBuf,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why an image is left to the tap; fields of the header, after
/// <https://www.qemu.org/docs/master/interop/qcow2.html>.
fn left_to_the_tap(file: &File) -> io::Result<Option<&'static str>> {
    let mut header = [0; 72];
    file.read_exact_at(&mut header, 0)?;
    let u32_at = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    Ok(if u64_at(8) != 0 {
        Some("qcow2 (with a backing file)")
    } else if u32_at(32) != 0 {
        Some("qcow2 (encrypted)")
    } else if u32_at(60) != 0 {
        Some("qcow2 (with snapshots)")
    } else {
        None
    })
}

impl Qcow2Disk {
    /// Opens the image and takes it for this process.
    ///
    /// # Errors
    /// [`RawDiskError`] with what the operator can do.
    pub fn open(path: &Path) -> Result<Self, RawDiskError> {
        let path = path.to_path_buf();
        let io = |source| RawDiskError::Io { path: path.clone(), source };
        let file = open_file(&path, 0)?;
        if !image_lock::try_lock(&file).map_err(io)? {
            return Err(RawDiskError::InUse { path });
        }
        if let Some(format) = left_to_the_tap(&file).map_err(io)? {
            return Err(RawDiskError::Format { path, format });
        }
        let opened = Qcow2::<Storage>::builder_path(&path)
            .storage_open_options(StorageOpenOptions::new().direct(true))
            .write(true);
        let opened = opened.open(PermissiveImplicitOpenGate::default()).map_err(io)?;
        let image = FormatAccess::new(opened);
        let size_bytes = image.size();
        if size_bytes == 0 || size_bytes > DISK_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(RawDiskError::Size { path, size_bytes });
        }
        Ok(Self { image, file, path })
    }

    /// Which file this is and when it was last changed.
    ///
    /// # Errors
    /// As the file system says.
    pub fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        identity_of(&self.file)
    }
}

impl LocalDisk for Qcow2Disk {
    fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn unit_bytes(&self) -> u64 {
        // Smaller writes are read, changed and written by `imago`.
        BOUNCE_ALIGN as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.image.read(buf, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.image.write(bytes, at)?;
        self.image.flush()
    }

    fn zero(&self, range: ByteRange, _unmap: bool) -> io::Result<()> {
        self.image.write_zeroes(range.start, range.len)?;
        self.image.flush()
    }

    fn zeroes_fast(&self) -> bool {
        true
    }

    fn prefetch(&self, _range: ByteRange) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.image.flush()?;
        self.image.sync()
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end() {
            let (mapping, len) = self.image.get_mapping(at, range.end() - at)?;
            let len = len.clamp(1, range.end() - at);
            let kind =
                if matches!(mapping, Mapping::Zero { .. }) { ExtentKind::Hole } else { ExtentKind::Data };
            extents.push(Extent { range: ByteRange::new(at, len), kind });
            at += len;
        }
        Ok(extents)
    }
}

/// A local disk and which file it is, whatever its format.
pub type OpenDisk = (Box<dyn LocalDisk>, Option<DiskIdentity>);

/// Opens a disk for the write path: a raw image or block device, or a qcow2 image.
///
/// # Errors
/// [`RawDiskError`] with what the operator can do.
pub fn open_local_disk(path: &Path) -> Result<OpenDisk, RawDiskError> {
    let io = |source| RawDiskError::Io { path: path.to_path_buf(), source };
    match crate::raw::RawDisk::open(path) {
        Ok(disk) => {
            let identity = disk.identity().map_err(io)?;
            Ok((Box::new(disk), identity))
        }
        Err(RawDiskError::Format { format: "qcow2", .. }) => {
            let disk = Qcow2Disk::open(path)?;
            let identity = disk.identity().map_err(io)?;
            Ok((Box::new(disk), identity))
        }
        Err(error) => Err(error),
    }
}
