//! The raw image of a VM that runs on it, read beside the hypervisor: for one that cannot be read through its
//! hypervisor without danger.
//!
//! What holds: it is only ever read, and past the page cache where the file system can. Direct I/O sees what the
//! hypervisor has written, whether that went through the cache or past it; a page that was cached before need not.

use crate::bounce::{BOUNCE_ALIGN, Bounce};
use crate::device::Extent;
use crate::raw::extents_of;
use crate::tapped::{DiskReader, ReadDoor};
use rustix::fs::SeekFrom;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use types::ByteRange;

/// Such an image. Clones share the open file.
#[derive(Debug, Clone)]
pub struct ImageFile(Arc<File>);

impl ImageFile {
    /// Opens the image for reading.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = match open(libc::O_DIRECT) {
            // Not every file system can: one that has nothing but the page cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => open(0)?,
            other => other?,
        };
        Ok(Self(Arc::new(file)))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// How long it is, a block device as well.
    ///
    /// # Errors
    /// As the file system says.
    pub fn size_bytes(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&*self.0, SeekFrom::End(0))?)
    }
}

impl ReadDoor for ImageFile {
    fn open(&self) -> io::Result<Box<dyn DiskReader>> {
        Ok(Box::new(self.clone()))
    }

    fn close(&self, _reader: Box<dyn DiskReader>) {}
}

impl DiskReader for ImageFile {
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = ByteRange::new(at, buf.len() as u64);
        let around = range.widened_to(BOUNCE_ALIGN as u64);
        let mut bounce = Bounce::take(around.len as usize);
        let skip = (at - around.start) as usize;
        let mut filled = 0;
        // The file may end within the last unit.
        while filled < skip + buf.len() {
            match self.0.read_at(&mut bounce[filled..], around.start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    fn extents(&mut self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(extents_of(&self.0, range, usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ExtentKind;

    #[test]
    fn an_image_is_read_at_any_place_and_tells_its_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        // Ends within a unit of direct I/O.
        let size = (2 << 20) + 512;
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[9; 1024], size - 1024).unwrap();
        file.write_all_at(&[5; 512], 1536).unwrap();
        file.sync_all().unwrap();
        let image = ImageFile::open(&path).unwrap();
        assert_eq!(image.size_bytes().unwrap(), size);
        let mut reader = image.open().unwrap();
        let mut bytes = [0; 1024];
        reader.read(size - 1024, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 1024]);
        reader.read(1024, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[512]), (0, 5));
        assert_eq!(reader.read(size - 512, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let extents = reader.extents(ByteRange::new(0, size)).unwrap();
        assert_eq!(extents[0].kind, ExtentKind::Data);
        assert_eq!(extents.iter().map(|extent| extent.range.len).sum::<u64>(), size);
        assert!(extents.iter().any(|extent| extent.kind == ExtentKind::Hole));
    }
}
