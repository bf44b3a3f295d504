//! A file read from front to back in large reads, the next of which are under way while what came before is
//! looked at.

use crate::page::PAGE_BYTES;
use crate::store::StoreFile;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use threads::thread::JoinHandle;
use types::limits::BATCH_BYTES_MAX;

/// As much is read at once.
const WINDOW_BYTES: usize = 4 << 20;
/// As many windows are read ahead: one keeps the disk busy while the other is handed over.
const AHEAD: usize = 2;
/// Room before a window for what is left of the one before: no more than is asked for at once.
const ROOM_BEFORE: u64 = BATCH_BYTES_MAX as u64;

/// What is held of a file, and what is read ahead of it.
#[derive(Debug)]
pub(crate) struct Windows {
    file: Arc<dyn StoreFile>,
    end: u64,
    /// How many windows are read ahead.
    depth: usize,
    /// Bytes of the file, from `held_at` on.
    held: Bytes,
    held_at: u64,
    /// The memory behind `held`, for another window if nobody has a part of it by then.
    memory: Bytes,
    /// Where the next windows begin, and who reads them.
    ahead: VecDeque<(u64, JoinHandle<io::Result<Window>>)>,
}

/// Memory with bytes of the file, and room for older ones before them.
#[derive(Debug)]
struct Window {
    memory: BytesMut,
    bytes: Range<usize>,
}

impl Windows {
    /// The file up to byte `end`. Threads read ahead where `reads_ahead` says so.
    pub(crate) fn of(file: Arc<dyn StoreFile>, end: u64, reads_ahead: bool) -> Self {
        let (held, memory, depth) = (Bytes::new(), Bytes::new(), if reads_ahead { AHEAD } else { 0 });
        Self { file, end, depth, held, held_at: 0, memory, ahead: VecDeque::new() }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// `len` bytes at `at`, at most [`BATCH_BYTES_MAX`]; none where they reach past the end. Where a window cannot be
    /// read they are read by themselves: a disk fails sector by sector.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn bytes(&mut self, at: u64, len: usize) -> io::Result<Option<Bytes>> {
        let to = at + len as u64;
        if to > self.end {
            return Ok(None);
        }
        let (from, bytes) = match self.hold(at, to) {
            Ok(()) => (self.held_at, self.held.clone()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
            Err(_) => {
                let from = at / PAGE_BYTES * PAGE_BYTES;
                let until = to.next_multiple_of(PAGE_BYTES).min(self.end);
                let Window { memory, bytes } = read(&*self.file, from..until, Bytes::new())?;
                (from, memory.freeze().slice(bytes))
            }
        };
        let start = (at - from) as usize;
        Ok(Some(bytes.slice(start..start + len)))
    }

    /// Takes windows until one holds everything from `at` to `to`.
    fn hold(&mut self, at: u64, to: u64) -> io::Result<()> {
        if at < self.held_at || at > self.held_to() {
            self.take(at / PAGE_BYTES * PAGE_BYTES, Bytes::new())?;
        }
        if to > self.held_to() {
            let rest = self.held.slice((at - self.held_at) as usize..);
            self.take(self.held_to(), rest)?;
        }
        Ok(())
    }

    /// The window that begins there.
    fn window(&self, from: u64) -> Range<u64> {
        from..self.end.min(from + WINDOW_BYTES as u64)
    }

    fn held_to(&self) -> u64 {
        self.held_at + self.held.len() as u64
    }

    /// Takes the window at `from`, with the bytes before it that are still asked for.
    fn take(&mut self, from: u64, rest: Bytes) -> io::Result<()> {
        if self.ahead.front().is_some_and(|(at, _)| *at != from) {
            self.ahead.clear();
        }
        let mut window = match self.ahead.pop_front() {
            Some((_, thread)) => join(thread)?,
            None => read(&*self.file, self.window(from), Bytes::new())?,
        };
        let held = window.bytes.start - rest.len()..window.bytes.end;
        window.memory[held.start..window.bytes.start].copy_from_slice(&rest);
        self.held_at = from - rest.len() as u64;
        drop(rest);
        let mut before = std::mem::replace(&mut self.memory, window.memory.freeze());
        self.held = self.memory.slice(held);
        let first_ahead = from + window.bytes.len() as u64;
        let next = self.ahead.back().map_or(first_ahead, |(at, _)| at + WINDOW_BYTES as u64);
        let missing = self.depth - self.ahead.len();
        for at in (next..self.end).step_by(WINDOW_BYTES).take(missing) {
            let (file, window, memory) = (self.file.clone(), self.window(at), std::mem::take(&mut before));
            self.ahead.push_back((at, threads::thread::spawn(move || read(&*file, window, memory))));
        }
        Ok(())
    }
}

/// Reads a part of the file, into `memory` if it is large enough and nobody has a part of it.
fn read(file: &dyn StoreFile, part: Range<u64>, memory: Bytes) -> io::Result<Window> {
    let len = (part.end - part.start) as usize;
    let before = ROOM_BEFORE.min(part.start) as usize;
    let size = before + PAGE_BYTES as usize + len;
    let mut memory = match memory.try_into_mut() {
        Ok(memory) if memory.len() >= size => memory,
        _ => BytesMut::zeroed(size),
    };
    // At a multiple of a page, so that direct I/O needs no copy.
    let start = before + memory[before..].as_ptr().align_offset(PAGE_BYTES as usize);
    let bytes = start..start + len;
    file.read_at(part.start, &mut memory[bytes.clone()])?;
    Ok(Window { memory, bytes })
}

fn join(thread: JoinHandle<io::Result<Window>>) -> io::Result<Window> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::{FsStore, Store};

    /// A file of `len` bytes that differ from page to page.
    fn file_of(len: usize) -> (tempfile::TempDir, Arc<dyn StoreFile>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let store = FsStore::open(folder.path()).unwrap();
        let file = store.open_direct("file", true).unwrap();
        let bytes: Vec<u8> = (0..len).map(|at| (at / 4096 * 31 + at % 251) as u8).collect();
        file.write_at(0, &bytes).unwrap();
        (folder, file, bytes)
    }

    /// Pieces of many lengths are read, forwards with gaps between them, and once from the middle again.
    #[test]
    fn what_is_read_ahead_is_what_the_file_has() {
        let (_folder, file, bytes) = file_of(3 * WINDOW_BYTES + 12_345);
        for reads_ahead in [false, true] {
            let mut windows = Windows::of(file.clone(), bytes.len() as u64, reads_ahead);
            let lengths = [64, 100_000, 4096, BATCH_BYTES_MAX, 64, 1_000_003, BATCH_BYTES_MAX - 1];
            for start in [0, WINDOW_BYTES + 777] {
                let mut at = start;
                for len in lengths.iter().cycle() {
                    let Some(found) = windows.bytes(at as u64, *len).unwrap() else { break };
                    assert!(found[..] == bytes[at..at + len], "{len} bytes at {at}");
                    at += len + 123;
                }
            }
        }
    }

    #[test]
    fn a_window_that_cannot_be_read_takes_nothing_from_the_one_before() {
        let (_folder, file, bytes) = file_of(WINDOW_BYTES + 100);
        let mut windows = Windows::of(file, 2 * WINDOW_BYTES as u64, true);
        let last = WINDOW_BYTES as u64 - 4096;
        for at in [0, last] {
            let found = windows.bytes(at, 4096).unwrap().unwrap();
            assert!(found[..] == bytes[at as usize..][..4096]);
        }
        let beyond = windows.bytes(last, 8192).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        assert!(windows.bytes(last, 4096).unwrap().unwrap()[..] == bytes[last as usize..][..4096]);
    }
}
