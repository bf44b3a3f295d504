//! A raw image file or a block device on this host.

use crate::bounce::{BOUNCE_ALIGN, Bounce};
use crate::clock;
use crate::device::{Extent, ExtentKind};
use crate::disk::{LocalDisk, Look};
use crate::identity::{DiskIdentity, FileTime};
use crate::image_lock;
use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, Statx, StatxFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use types::ByteRange;
use types::limits::{DISK_BYTES_MAX, SECTOR_BYTES};

/// Further back than the last tick of any file system's clock that counts parts of a second.
const TICK: Duration = Duration::from_millis(20);
/// As that, of one that counts seconds, or every other second.
const COARSE_TICK: Duration = Duration::from_millis(2100);

/// A disk's local image, held by this process alone.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    zeroes_fast: bool,
    /// Of direct I/O; 1 where the file is buffered.
    unit_bytes: u64,
    /// Of a block device: what others had left in the page cache for its partitions is on it.
    others_settled: Mutex<bool>,
}

/// Why a local image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RawDiskError {
    #[error("disk image {} does not exist; check the path given with --disk", path.display())]
    Missing { path: PathBuf },
    #[error("disk image {} cannot be written: it is read-only for this agent", path.display())]
    ReadOnly { path: PathBuf },
    #[error("disk image {} is in use; stop the VM that runs on it, then start it on the agent's socket (a disk of an image that is open here is in use by that: `holdfast image list`)", path.display())]
    InUse { path: PathBuf },
    #[error("block device {} is in use: it is mounted, swapped to, or part of a volume group, a RAID or another device (`lsblk` shows it); end that, and protect it then", path.display())]
    Claimed { path: PathBuf },
    #[error("{} is neither a file nor a block device", path.display())]
    Kind { path: PathBuf },
    #[error("disk image {} has {size_bytes} bytes; whole 512-byte sectors up to 64 TiB are possible", path.display())]
    Size { path: PathBuf, size_bytes: u64 },
    #[error("disk image {path} is in {format} format, which only QEMU writes: protect the running VM with `--qmp`, or convert it with `qemu-img convert -f {qemu_name} -O raw {path} NEW.raw` if it was you who made it so. If it is a raw disk, on which its guest has written what looks like {format}, say `--format raw`, and never convert it: what it begins with may name other files of this host", path = path.display())]
    Format { path: PathBuf, format: &'static str, qemu_name: &'static str },
    #[error("cannot open disk image {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl RawDisk {
    /// Opens the image and takes it for this process. It is raw, whatever it begins with: that is the guest's to write.
    ///
    /// # Errors
    /// [`RawDiskError`] with what the operator can do.
    pub fn open(path: &Path) -> Result<Self, RawDiskError> {
        let path = path.to_path_buf();
        let file = match open_file(&path, libc::O_DIRECT) {
            // Not every file system can.
            Err(RawDiskError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
                open_file(&path, 0)?
            }
            other => other?,
        };
        let io = |source| RawDiskError::Io { path: path.clone(), source };
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() && !facts.file_type().is_block_device() {
            return Err(RawDiskError::Kind { path });
        }
        if facts.is_file() && facts.permissions().readonly() {
            return Err(RawDiskError::ReadOnly { path });
        }
        if !image_lock::try_lock(&file).map_err(io)? {
            return Err(RawDiskError::InUse { path });
        }
        let size_bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|errno| io(errno.into()))?;
        if size_bytes == 0 || size_bytes > DISK_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(RawDiskError::Size { path, size_bytes });
        }
        let unit_bytes = match direct_unit(&file, size_bytes) {
            Some(unit) => unit,
            None => {
                tracing::warn!(disk = %path.display(), "no direct I/O: reads and writes go through the page cache");
                set_buffered(&file).map_err(io)?;
                1
            }
        };
        let zeroes_fast = has_fast_zeroes(&file);
        let others_settled = Mutex::new(facts.is_file());
        Ok(Self { file, path, size_bytes, zeroes_fast, unit_bytes, others_settled })
    }

    /// Whether a file that was never protected may be taken for a raw disk. One that begins as an image of another
    /// format does is none, and serving it as one would let a guest see the container, not the disk. To be asked
    /// before a guest has the disk, and never again.
    ///
    /// # Errors
    /// [`RawDiskError::Format`], with what the operator can do. What cannot be read is for [`RawDisk::open`] to say.
    pub fn check_is_raw(path: &Path) -> Result<(), RawDiskError> {
        match foreign_format(path) {
            Some((format, qemu_name)) => {
                Err(RawDiskError::Format { path: path.to_path_buf(), format, qemu_name })
            }
            None => Ok(()),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Serves no more than the first `size_bytes` of an image that has grown.
    pub fn limit_to(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.min(size_bytes);
    }

    /// Whether direct I/O takes it as it is.
    fn is_aligned(&self, range: ByteRange, memory: &[u8]) -> bool {
        let address = memory.as_ptr() as usize;
        self.unit_bytes == 1
            || (range.is_multiple_of(self.unit_bytes) && address.is_multiple_of(self.unit_bytes as usize))
    }
}

impl LocalDisk for RawDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn unit_bytes(&self) -> u64 {
        self.unit_bytes
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = ByteRange::new(at, buf.len() as u64);
        if self.is_aligned(range, buf) {
            return self.file.read_exact_at(buf, at);
        }
        let around = range.widened_to(self.unit_bytes);
        let mut bounce = Bounce::take(around.len as usize);
        self.file.read_exact_at(&mut bounce, around.start)?;
        let skip = (at - around.start) as usize;
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let range = ByteRange::new(at, bytes.len() as u64);
        if self.is_aligned(range, bytes) {
            return self.file.write_all_at(bytes, at);
        }
        let around = range.widened_to(self.unit_bytes);
        let mut bounce = Bounce::take(around.len as usize);
        if around != range {
            self.file.read_exact_at(&mut bounce, around.start)?;
        }
        let skip = (at - around.start) as usize;
        bounce[skip..skip + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(&bounce, around.start)
    }

    fn zeroes_fast(&self) -> bool {
        self.zeroes_fast
    }

    fn prefetch(&self, range: ByteRange) -> io::Result<()> {
        let len = std::num::NonZeroU64::new(range.len);
        Ok(rustix::fs::fadvise(&self.file, range.start, len, rustix::fs::Advice::WillNeed)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// None for a block device, which does not tell when it was changed.
    fn identity(&self) -> io::Result<Option<DiskIdentity>> {
        if !self.file.metadata()?.is_file() {
            return Ok(None);
        }
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let facts = rustix::fs::statx(&self.file, c"", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Some(identity_of(&facts, clock::wall_nanoseconds())))
    }

    /// The file systems that make holes fast are those of this host.
    fn has_prompt_times(&self) -> bool {
        self.zeroes_fast
    }

    fn look(&self) -> io::Result<Look> {
        let named = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
            other => other?,
        };
        let open = self.file.metadata()?;
        let file = |facts: &std::fs::Metadata| {
            if facts.is_file() { (facts.dev(), facts.ino()) } else { (0, facts.rdev()) }
        };
        if named.is_file() != open.is_file() || file(&named) != file(&open) {
            return Ok(Look::Replaced);
        }
        let size_bytes =
            if open.is_file() { open.len() } else { rustix::fs::seek(&self.file, SeekFrom::End(0))? };
        Ok(Look::Named { size_bytes })
    }

    /// Pages of a block device's partitions are invisible through the device itself, and neither a sync nor a flush of
    /// the device writes them back: only a sync of everything does. It is waited for once, by whoever is to read
    /// everything, and nobody can bring more behind that: the device is claimed.
    fn settle_others(&self) {
        let mut settled = self.others_settled.lock().expect("a panic aborts the process");
        if !*settled {
            rustix::fs::sync();
            *settled = true;
        }
    }

    /// Makes a range read as zeroes, by hole or by zeroed extents, else by writing zeroes.
    fn zero(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, range.start, range.len) {
            // The last: an unaligned range of a block device.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV | rustix::io::Errno::INVAL) => {
                let mut zeroes = Bounce::take(256 << 10);
                zeroes.fill(0);
                range
                    .split_at_multiples(zeroes.len() as u64)
                    .try_for_each(|piece| self.write_at(piece.start, &zeroes[..piece.len as usize]))
            }
            other => other.map_err(Into::into),
        }
    }

    /// Punches a hole, or does nothing: to write zeroes would cost what the guest wants to save.
    fn discard(&self, range: ByteRange) -> io::Result<bool> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, how, range.start, range.len) {
            Ok(()) => Ok(true),
            // The last: an unaligned range of a block device.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV | rustix::io::Errno::INVAL) => {
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn extents(&self, range: ByteRange) -> io::Result<Vec<Extent>> {
        Ok(extents_of(&self.file, range, usize::MAX))
    }

    fn first_extents(&self, range: ByteRange, most: usize) -> io::Result<Vec<Extent>> {
        Ok(extents_of(&self.file, range, most))
    }
}

/// Which parts are allocated, by `SEEK_DATA` and `SEEK_HOLE`; where that is not supported, all. The first
/// `most` of them.
pub(crate) fn extents_of(file: &File, range: ByteRange, most: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end() && extents.len() < most {
        let (kind, end) = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) if data > at => (ExtentKind::Hole, data),
            Ok(_) => match rustix::fs::seek(file, SeekFrom::Hole(at)) {
                Ok(hole) => (ExtentKind::Data, hole),
                Err(_) => (ExtentKind::Data, range.end()),
            },
            Err(rustix::io::Errno::NXIO) => (ExtentKind::Hole, range.end()),
            Err(_) => (ExtentKind::Data, range.end()),
        };
        let end = end.min(range.end()).max(at + 1);
        extents.push(Extent { range: ByteRange::new(at, end - at), kind });
        at = end;
    }
    extents
}

/// Whether the file system makes holes and zeroed extents. To try it would change the file's times, by which
/// it is told whether somebody else has written to it.
fn has_fast_zeroes(file: &File) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    const TMPFS: i64 = 0x0102_1994;
    let is_file = file.metadata().is_ok_and(|facts| facts.is_file());
    let kind = rustix::fs::fstatfs(file).map(|facts| facts.f_type);
    is_file && kind.is_ok_and(|kind| [EXT4, XFS, BTRFS, TMPFS].contains(&kind))
}

/// The name of an image format whose magic stands at the beginning, for people and for QEMU.
fn foreign_format(path: &Path) -> Option<(&'static str, &'static str)> {
    let mut start = [0; 8];
    // Read as any file is: how long it is, and what direct I/O wants, is not known yet.
    File::open(path).and_then(|file| file.read_exact_at(&mut start, 0)).ok()?;
    match &start {
        [b'Q', b'F', b'I', 0xfb, ..] => Some(("qcow2", "qcow2")),
        [b'K', b'D', b'M', b'V', ..] => Some(("VMDK", "vmdk")),
        b"vhdxfile" => Some(("VHDX", "vhdx")),
        b"conectix" => Some(("VHD", "vpc")),
        _ => None,
    }
}

/// Opens an image for reading and writing.
fn open_file(path: &Path, flags: i32) -> Result<File, RawDiskError> {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    let path = path.to_path_buf();
    // A block device that is claimed cannot be mounted, nor claimed by anybody else.
    let is_device = std::fs::metadata(&path).is_ok_and(|facts| facts.file_type().is_block_device());
    let flags = if is_device { flags | libc::O_EXCL } else { flags };
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == ResourceBusy => Err(RawDiskError::Claimed { path }),
        Err(error) if error.kind() == NotFound => Err(RawDiskError::Missing { path }),
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
            Err(RawDiskError::ReadOnly { path })
        }
        Err(source) => Err(RawDiskError::Io { path, source }),
    }
}

/// What a file is known by, as it stands at `now`.
fn identity_of(facts: &Statx, now: i64) -> DiskIdentity {
    let time = |time: rustix::fs::StatxTimestamp| {
        FileTime(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec)))
    };
    let (changed_at, modified_at) = (time(facts.stx_ctime), time(facts.stx_mtime));
    let is_coarse = changed_at.0 % 1_000_000_000 == 0;
    let tick = if is_coarse { COARSE_TICK } else { TICK };
    let has_made_at = facts.stx_mask & StatxFlags::BTIME.bits() != 0;
    DiskIdentity {
        device: rustix::fs::makedev(facts.stx_dev_major, facts.stx_dev_minor),
        inode: facts.stx_ino,
        made_at: if has_made_at { time(facts.stx_btime) } else { FileTime::default() },
        changed_at,
        modified_at,
        is_settled: u128::from(now.abs_diff(changed_at.0)) > tick.as_nanos(),
    }
}

/// What direct I/O to an open file is counted in, in bytes; none where it cannot be used.
fn direct_unit(file: &File, size_bytes: u64) -> Option<u64> {
    if !rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT)) {
        return None;
    }
    let mut probe = Bounce::take(BOUNCE_ALIGN);
    [SECTOR_BYTES, BOUNCE_ALIGN as u64].into_iter().find(|&unit| {
        size_bytes.is_multiple_of(unit) && file.read_exact_at(&mut probe[..unit as usize], 0).is_ok()
    })
}

fn set_buffered(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - rustix::fs::OFlags::DIRECT)?)
}
