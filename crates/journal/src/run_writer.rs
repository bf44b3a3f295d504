//! Writing a run: extents come in order, pages go out, the header last.

use crate::cover::LogKind;
use crate::extent::{ENTRY_BYTES, Extent};
use crate::page::{PAGE_BYTES, PageKind, ROWS_BYTES, seal_page};
use crate::run::{RawRunHeader, block_key, wide_key};
use crate::store::StoreFile;
use roaring::RoaringTreemap;
use std::io;
use zerocopy::IntoBytes;

/// Pages are written this many bytes at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A run being written to a file from `at` on.
pub(crate) struct RunWriter<'a> {
    file: &'a dyn StoreFile,
    at: u64,
    header: RawRunHeader,
    rows: Vec<u8>,
    /// Place of the first entry of the page, its sequence, and the longest extent so far.
    page: Option<(u64, u64, u64)>,
    chunk: Vec<u8>,
    chunk_at: u64,
    directory: Vec<u8>,
    blocks: RoaringTreemap,
    /// Pages before the first wide extent.
    narrow_pages: Option<u64>,
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WrittenRun {
    pub(crate) entries: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) bytes: u64,
}

impl<'a> RunWriter<'a> {
    /// `stamp` is random. Extents' pages are counted from `base_page`.
    pub(crate) fn begin(file: &'a dyn StoreFile, at: u64, kind: LogKind, stamp: u32, base_page: u64) -> Self {
        Self {
            file,
            at,
            header: RawRunHeader::new(kind, stamp, base_page),
            rows: Vec::with_capacity(ROWS_BYTES),
            page: None,
            chunk: Vec::with_capacity(CHUNK_BYTES),
            chunk_at: at + PAGE_BYTES,
            directory: Vec::new(),
            blocks: RoaringTreemap::new(),
            narrow_pages: None,
        }
    }

    /// Takes the next extent in the order of a run.
    pub(crate) fn push(&mut self, extent: &Extent) -> io::Result<()> {
        let begins_wide = extent.is_wide() && self.narrow_pages.is_none();
        if begins_wide || self.rows.len() + ENTRY_BYTES > ROWS_BYTES {
            self.close_page()?;
        }
        if begins_wide {
            self.narrow_pages = Some(self.header.pages.get());
        }
        assert_eq!(extent.is_wide(), self.narrow_pages.is_some(), "wide extents stand behind the others");
        let (place, seq) = extent.sort_key();
        let (_, _, longest) = self.page.get_or_insert((place, seq.raw(), 1));
        if !extent.is_wide() {
            *longest = extent.range.len.max(*longest);
        }
        self.rows.extend_from_slice(&extent.pack(self.header.base_page.get()));
        let header = &mut self.header;
        let first = if header.entries.get() == 0 { seq.raw() } else { header.first_seq.get().min(seq.raw()) };
        header.first_seq = first.into();
        header.last_seq = header.last_seq.get().max(seq.raw()).into();
        header.entries = (header.entries.get() + 1).into();
        match extent.wide_piece() {
            Some(piece) => {
                self.blocks.insert(wide_key(piece));
            }
            None => {
                let last = block_key(extent.disk, extent.range.end() - 1);
                self.blocks.insert_range(block_key(extent.disk, extent.range.start)..=last);
            }
        }
        Ok(())
    }

    fn close_page(&mut self) -> io::Result<()> {
        let Some((place, seq, longest)) = self.page.take() else { return Ok(()) };
        self.directory.extend_from_slice(&(place << 12 | (longest.div_ceil(256) - 1)).to_le_bytes());
        self.directory.extend_from_slice(&seq.to_le_bytes());
        let number = self.header.pages.get();
        let count = (self.rows.len() / ENTRY_BYTES) as u16;
        let page = seal_page(&self.rows, count, PageKind::Entries, number as u32, self.header.stamp.get());
        self.header.pages = (number + 1).into();
        self.rows.clear();
        self.write(&page)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.chunk_at, &self.chunk)?;
        self.chunk_at += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    /// Writes what is left, the header last. Not synced.
    pub(crate) fn finish(mut self) -> io::Result<WrittenRun> {
        self.close_page()?;
        let mut bitmap = Vec::with_capacity(self.blocks.serialized_size());
        self.blocks.serialize_into(&mut bitmap)?;
        let stamp = self.header.stamp.get();
        let pages = self.header.pages.get();
        self.header.set_wide_pages((pages - self.narrow_pages.unwrap_or(pages)) as u32);
        self.header.directory_bytes = (self.directory.len() as u64).into();
        self.header.directory_crc = crc32c::crc32c_append(stamp, &self.directory).into();
        self.header.bitmap_bytes = (bitmap.len() as u64).into();
        self.header.bitmap_crc = crc32c::crc32c_append(stamp, &bitmap).into();
        self.header.crc = self.header.checksum().into();
        let directory = std::mem::take(&mut self.directory);
        self.write(&directory)?;
        self.write(&bitmap)?;
        // Whole pages, so that a file opened as direct takes them.
        let len = self.chunk.len().next_multiple_of(PAGE_BYTES as usize);
        self.chunk.resize(len, 0);
        self.flush()?;
        let mut page = self.header.as_bytes().to_vec();
        page.resize(PAGE_BYTES as usize, 0);
        self.file.write_at(self.at, &page)?;
        Ok(WrittenRun {
            entries: self.header.entries.get(),
            first_seq: self.header.first_seq.get(),
            last_seq: self.header.last_seq.get(),
            bytes: self.header.total_bytes().next_multiple_of(PAGE_BYTES),
        })
    }
}
