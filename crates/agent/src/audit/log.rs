//! The record's files: lines are added to the last one, whose room on the disk is taken when it is begun, so that a disk
//! that has become full does not stop what makes it emptier.
//!
//! What holds: a line that was added is on the disk. One that was cut off by a crash is passed over.

use super::line::Line;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use types::limits::{AUDIT_FILE_BYTES, AUDIT_FILES_MAX};

const SUFFIX: &str = ".jsonl";
const ROOM_FOR_SOME_LINES: u64 = 64 << 10;

/// The last file, open.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    file: File,
    bytes: u64,
    /// The number of what is added next.
    next: u64,
    /// Of a line at the end no more than a part is there.
    is_torn: bool,
}

impl Log {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let files = files(folder)?;
        let next = next_number(&files)?;
        let Some((_, last)) = files.last() else {
            let file = create(folder, next)?;
            return Ok(Self { folder: folder.to_path_buf(), file, bytes: 0, next, is_torn: false });
        };
        let mut file = OpenOptions::new().read(true).append(true).open(last)?;
        let bytes = file.metadata()?.len();
        let is_torn = bytes > 0 && {
            let mut end = [0];
            file.seek(SeekFrom::Start(bytes - 1))?;
            file.read_exact(&mut end)?;
            end != *b"\n"
        };
        // Of one that was begun while there was no room.
        reserve(&file);
        Ok(Self { folder: folder.to_path_buf(), file, bytes, next, is_torn })
    }

    /// The number for what is added next.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Where it may not be on the disk. Then the file is to be opened anew.
    pub(super) fn add(&mut self, line: &Line) -> io::Result<()> {
        let mut text = if self.is_torn { "\n".to_owned() } else { String::new() };
        text += &serde_json::to_string(line).map_err(io::Error::other)?;
        text.push('\n');
        if self.bytes + text.len() as u64 > AUDIT_FILE_BYTES {
            // Without room for another this one grows on.
            if let Err(error) = self.begin_another() {
                tracing::warn!(%error, "no new file of the audit record can be begun");
            }
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.bytes += text.len() as u64;
        self.is_torn = false;
        Ok(())
    }

    /// Whether lines can be added: takes room for some, and writes an empty one, which readers pass over.
    ///
    /// # Errors
    /// Where there is no room, or the disk fails.
    pub(super) fn try_to_write(&mut self) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.bytes, ROOM_FOR_SOME_LINES) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        self.file.write_all(b"\n")?;
        self.file.sync_data()?;
        self.bytes += 1;
        self.is_torn = false;
        Ok(())
    }

    fn begin_another(&mut self) -> io::Result<()> {
        let mut files = files(&self.folder)?;
        while files.len() >= AUDIT_FILES_MAX {
            std::fs::remove_file(files.remove(0).1)?;
        }
        self.file = create(&self.folder, self.next)?;
        (self.bytes, self.is_torn) = (0, false);
        Ok(())
    }
}

fn create(folder: &Path, first: u64) -> io::Result<File> {
    let path = folder.join(format!("{first:012}{SUFFIX}"));
    let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path)?;
    reserve(&file);
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// Takes a file's room, where there is any and the file system can.
fn reserve(file: &File) {
    if let Err(error) = fallocate(file, FallocateFlags::KEEP_SIZE, 0, AUDIT_FILE_BYTES) {
        tracing::debug!(%error, "no room is kept for the audit record");
    }
}

/// The files in order, each with the number it begins with.
pub(super) fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for row in std::fs::read_dir(folder)? {
        let path = row?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(SUFFIX)).and_then(|name| name.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// One more than the last that any line names.
fn next_number(files: &[(u64, PathBuf)]) -> io::Result<u64> {
    for (first, path) in files.iter().rev() {
        let mut last = None;
        each_line(path, |line| {
            if let Line::Asked(asked) = line {
                last = last.max(Some(asked.number));
            }
        })?;
        if let Some(last) = last {
            return Ok(last.saturating_add(1).max(*first));
        }
    }
    Ok(files.last().map_or(1, |(first, _)| *first))
}

/// Every line of a file that can be read, in order.
pub(super) fn each_line(path: &Path, mut take: impl FnMut(Line)) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if file.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        if let Ok(line) = serde_json::from_slice(&bytes) {
            take(line);
        }
    }
}
