//! The checksums of a replica, in a file beside it: one word for each block of 4 KiB, in pages that check themselves.
//!
//! ```text
//! page n    rows of 4 bytes for the blocks from 1020 · n on, as `page.rs` has it, of kind 3
//! word      0 zeroes, or nothing known above what was summed   1 nothing known   2^32 − 1 known to be damaged
//!           else CRC-32C of the block, its highest bit turned where it would be one of these
//! ```
//! A page of zeroes, as in a hole, has words of 0. Of a page that does not check nothing is known: it costs no data, and the
//! scrub makes it anew. The stamp binds the file to its VM and disk.

use crate::page::{PAGE_BYTES, PageKind, ROWS_BYTES, open_page, seal_page};
use crate::store::StoreFile;
use batch::is_zero;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use threads::sync::Mutex;
use types::ByteRange;

/// What has a checksum of its own; the last block of a disk may be shorter.
pub(crate) const SUMMED_BYTES: u64 = 4096;
const WORD_BYTES: usize = 4;
const WORDS_PER_PAGE: u64 = (ROWS_BYTES / WORD_BYTES) as u64;

/// What is known of a block, in one word of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u32);

impl Word {
    /// Zeroes; above what was summed nothing is known.
    pub(crate) const ZEROES: Self = Self(0);
    pub(crate) const UNKNOWN: Self = Self(1);
    pub(crate) const DAMAGED: Self = Self(u32::MAX);

    /// Of a block that holds these bytes.
    pub(crate) fn of(block: &[u8]) -> Self {
        match crc32c::crc32c(block) {
            sum @ (0 | 1 | u32::MAX) => Self(sum ^ 1 << 31),
            sum => Self(sum),
        }
    }

    /// Whether a block below what was summed may hold these bytes.
    pub(crate) fn allows(self, block: &[u8]) -> bool {
        match self {
            Self::UNKNOWN => true,
            Self::ZEROES => is_zero(block),
            other => other == Self::of(block),
        }
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct Sums {
    file: Arc<dyn StoreFile>,
    stamp: u32,
    /// Held by whoever changes a page.
    one: Mutex<()>,
}

/// The words of one page.
type Words = Vec<Word>;

fn unknown() -> Words {
    vec![Word::UNKNOWN; WORDS_PER_PAGE as usize]
}

/// How long the file of a disk is.
pub(crate) fn file_bytes(disk_bytes: u64) -> u64 {
    disk_bytes.div_ceil(SUMMED_BYTES).div_ceil(WORDS_PER_PAGE) * PAGE_BYTES
}

impl Sums {
    pub(crate) fn new(file: Arc<dyn StoreFile>, vm: &str, disk: &str) -> Self {
        let stamp = crc32c::crc32c_append(crc32c::crc32c(vm.as_bytes()), disk.as_bytes());
        Self { file, stamp, one: Mutex::default() }
    }

    /// Of a page that the disk does not give just now nothing is known.
    fn page(&self, page: u64) -> Words {
        self.read_page(page).unwrap_or_else(|_| unknown())
    }

    /// The words of a page that is about to be written anew, with what is known of others. A page that the disk does not give,
    /// though it gives another one, is as good as rotten; where it gives none it may give them all later, and nothing may take
    /// their place: rot behind them would be told by nobody.
    fn page_to_change(&self, page: u64) -> io::Result<Words> {
        match self.read_page(page) {
            Err(_) if self.gives_another(page)? => Ok(unknown()),
            read => read,
        }
    }

    fn read_page(&self, page: u64) -> io::Result<Words> {
        let mut bytes = [0; PAGE_BYTES as usize];
        self.file.read_at(page * PAGE_BYTES, &mut bytes)?;
        if is_zero(&bytes) {
            return Ok(vec![Word::ZEROES; WORDS_PER_PAGE as usize]);
        }
        Ok(match open_page(&bytes, PageKind::Sums, page as u32, self.stamp, WORD_BYTES) {
            Ok(count) => {
                let words = bytes[..count * WORD_BYTES].as_chunks::<WORD_BYTES>().0.iter();
                words.map(|word| Word(u32::from_le_bytes(*word))).collect()
            }
            Err(_) => unknown(),
        })
    }

    /// Whether the disk gives the first page or the last; nobody can tell where there is but one.
    fn gives_another(&self, page: u64) -> io::Result<bool> {
        let last = (self.file.len()? / PAGE_BYTES).saturating_sub(1);
        let is_given =
            |other: u64| self.file.read_at(other * PAGE_BYTES, &mut [0; PAGE_BYTES as usize]).is_ok();
        Ok(last == 0 || [0, last].into_iter().any(|other| other != page && is_given(other)))
    }

    fn put(&self, page: u64, words: &[Word]) -> io::Result<()> {
        let rows: Vec<u8> = words.iter().flat_map(|word| word.0.to_le_bytes()).collect();
        let bytes = seal_page(&rows, words.len() as u16, PageKind::Sums, page as u32, self.stamp);
        self.file.write_at(page * PAGE_BYTES, &bytes)
    }

    /// The words of blocks that follow each other.
    pub(crate) fn words(&self, blocks: Range<u64>) -> Words {
        let mut found = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let mut at = blocks.start;
        while at < blocks.end {
            let (page, first) = (at / WORDS_PER_PAGE, (at % WORDS_PER_PAGE) as usize);
            let words = self.page(page);
            let past = (words.len() as u64).min(blocks.end - page * WORDS_PER_PAGE) as usize;
            found.extend_from_slice(&words[first..past]);
            at = page * WORDS_PER_PAGE + past as u64;
        }
        found
    }

    /// Changes words; not synced.
    pub(crate) fn set(&self, words: &BTreeMap<u64, Word>) -> io::Result<()> {
        let _one = self.one.lock().expect("a panic aborts the process");
        let mut words = words.iter().peekable();
        while let Some((first, _)) = words.peek() {
            let page = **first / WORDS_PER_PAGE;
            let mut known = self.page_to_change(page)?;
            while let Some((block, word)) = words.next_if(|(block, _)| **block / WORDS_PER_PAGE == page) {
                known[(block % WORDS_PER_PAGE) as usize] = *word;
            }
            self.put(page, &known)?;
        }
        Ok(())
    }

    /// The same for blocks that are zeroes from now on, however many they are.
    pub(crate) fn set_zeroes(&self, blocks: Range<u64>) -> io::Result<()> {
        let whole = blocks.start.div_ceil(WORDS_PER_PAGE)..blocks.end / WORDS_PER_PAGE;
        if whole.is_empty() {
            return self.set(&blocks.map(|block| (block, Word::ZEROES)).collect());
        }
        self.set(&(blocks.start..whole.start * WORDS_PER_PAGE).map(|block| (block, Word::ZEROES)).collect())?;
        self.set(&(whole.end * WORDS_PER_PAGE..blocks.end).map(|block| (block, Word::ZEROES)).collect())?;
        let _one = self.one.lock().expect("a panic aborts the process");
        self.file.zero(ByteRange::new(whole.start * PAGE_BYTES, (whole.end - whole.start) * PAGE_BYTES))
    }

    /// The first block at or behind `block` of which the file may say something.
    pub(crate) fn next_block(&self, block: u64) -> io::Result<Option<u64>> {
        let next = self.file.next_data(block / WORDS_PER_PAGE * PAGE_BYTES)?;
        Ok(next.map(|at| (at / PAGE_BYTES * WORDS_PER_PAGE).max(block)))
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests;
