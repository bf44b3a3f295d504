//! The machine's own limits: plain loops of direct I/O, and what machine this is.

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const ALIGN: usize = 4096;

/// Bytes at an address that direct I/O takes.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    skew: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0xa5u8; len + ALIGN];
        let skew = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, skew, len }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.skew..self.skew + self.len]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skew..self.skew + self.len]
    }
}

/// A file for direct I/O.
pub(crate) fn open_direct(path: &Path) -> Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    options.open(path).with_context(|| format!("open {} for direct I/O", path.display()))
}

/// A file whose every block has been written.
pub(crate) fn written_file(path: &Path, bytes: u64) -> Result<File> {
    let file = open_direct(path)?;
    sequential_write(&file, bytes, &source(), 4 << 20)?;
    Ok(file)
}

/// Bytes that a loop writes over and over: more than any cache of the processor holds, for what is
/// written in life comes from memory too.
const SOURCE_BYTES: usize = 256 << 20;

/// What a loop writes.
pub(crate) fn source() -> Aligned {
    Aligned::new(SOURCE_BYTES)
}

/// Writes a file from front to back, `chunk` bytes at a time, one at a time, and syncs it at the end.
pub(crate) fn sequential_write(file: &File, bytes: u64, source: &Aligned, chunk: usize) -> Result<()> {
    for at in (0..bytes).step_by(chunk) {
        let from = at as usize % SOURCE_BYTES;
        file.write_all_at(&source.get()[from..from + chunk], at).context("write")?;
    }
    file.sync_data().context("sync")
}

/// `count` operations of `len` bytes at places that `place` draws, by so many threads.
pub(crate) fn in_threads(
    threads: usize,
    count: u64,
    len: usize,
    place: impl Fn(u64) -> u64 + Sync,
    operation: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        let mut buf = Aligned::new(len);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            operation(place(number), buf.get_mut())?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a panic aborts the process"))
    })
}

/// Empties the page cache where this process may; whether it could.
pub(crate) fn drop_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Bytes this process has sent to disks so far.
pub(crate) fn bytes_written() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io").context("read /proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.context("no write_bytes in /proc/self/io")?.parse().context("a number of bytes")
}

/// Processor, cores, memory.
pub(crate) fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    format!("{model}, {cores} cores, {} GiB", kib >> 20)
}
