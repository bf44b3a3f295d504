//! A run: extents on disk, sorted by place and then sequence, with a sparse directory and a block bitmap; behind them
//! the wide ones, in pages of their own.
//!
//! Runs are the footers of sealed segments and the files merged from them; the data itself never moves.
//! Only the directory (16 bytes a page, 0.094 an entry) and the bitmap are in memory, and only once
//! something has been looked up; pages are read through the page cache. Byte tables:
//! `docs/formats/journal.md`.

use crate::cover::{Cover, LogKind};
use crate::extent::{
    BASE_PAGE_MAX, ENTRY_BYTES, Extent, REGION_BYTES, WIDE_BYTES, WidePiece, Width, place_key, place_of,
};
use crate::manifest::RunInfo;
use crate::page::{PAGE_BYTES, PageKind, open_page};
use crate::store::{Store, StoreFile};
use crate::table::fill_in_order;
use roaring::RoaringTreemap;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use threads::sync::Mutex;
use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use types::limits::BLOCK_BYTES;
use types::{ByteRange, DiskIndex, WriteSeq, sum_matches};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"HFJI";
/// 2: the last pages may hold wide entries. 1: the first; what has none is still written as that.
const VERSION: u16 = 2;
const VERSION_NARROW: u16 = 1;
/// Set in the bitmap's keys of wide pieces.
const WIDE_KEY: u64 = 1 << 40;

/// The first 96 bytes of a run's header page.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawRunHeader {
    pub(crate) magic: [u8; 4],
    pub(crate) version: U16,
    /// 1 redo, 2 undo.
    pub(crate) kind: U16,
    /// Random; seeds the checksums of the pages, the directory and the bitmap.
    pub(crate) stamp: U32,
    /// How many of the pages, the last ones, hold wide entries; 0 in version 1.
    pub(crate) wide_pages: U32,
    pub(crate) entries: U64,
    pub(crate) pages: U64,
    pub(crate) base_page: U64,
    pub(crate) first_seq: U64,
    pub(crate) last_seq: U64,
    pub(crate) directory_bytes: U64,
    pub(crate) bitmap_bytes: U64,
    pub(crate) directory_crc: U32,
    pub(crate) bitmap_crc: U32,
    pub(crate) reserved2: U64,
    pub(crate) reserved3: U32,
    /// CRC-32C of the fields above.
    pub(crate) crc: U32,
}

const _: () = assert!(size_of::<RawRunHeader>() == 96);

impl RawRunHeader {
    pub(crate) fn new(kind: LogKind, stamp: u32, base_page: u64) -> Self {
        let mut header = <Self as FromZeros>::new_zeroed();
        header.magic = MAGIC;
        header.version = VERSION_NARROW.into();
        header.kind = match kind {
            LogKind::Redo => 1.into(),
            LogKind::Undo => 2.into(),
        };
        header.stamp = stamp.into();
        header.base_page = base_page.into();
        header
    }

    pub(crate) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..92])
    }

    /// The last pages, this many, hold wide entries.
    pub(crate) fn set_wide_pages(&mut self, pages: u32) {
        self.wide_pages = pages.into();
        self.version = if pages > 0 { VERSION } else { VERSION_NARROW }.into();
    }

    /// Bytes of the whole run.
    pub(crate) fn total_bytes(&self) -> u64 {
        PAGE_BYTES * (1 + self.pages.get()) + self.directory_bytes.get() + self.bitmap_bytes.get()
    }
}

/// A run's own bytes do not check.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("index run {name}: {what}")]
    Damaged { name: String, what: &'static str },
    #[error("cannot read index run {name}")]
    Io {
        name: String,
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// The file that has it.
    pub(crate) fn file(&self) -> &str {
        match self {
            RunError::Damaged { name, .. } | RunError::Io { name, .. } => name,
        }
    }
}

/// What of a run is in memory.
#[derive(Debug)]
pub(crate) struct Guide {
    file: Arc<dyn StoreFile>,
    stamp: u32,
    base_page: u64,
    /// Per page: place of its first entry and its longest extent; sequence of its first entry.
    directory: Vec<(u64, u64)>,
    /// Per page of wide extents, which stand behind the others: its first one's piece and sequence.
    wide: Vec<(WidePiece, WriteSeq)>,
    blocks: RoaringTreemap,
}

/// A run and, once it has been used, its guide.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) kind: LogKind,
    pub(crate) info: RunInfo,
    guide: Mutex<Option<Arc<Guide>>>,
    used: AtomicBool,
}

/// Reads counted for the bench: look-ups that came to a run's pages, and pages read.
pub(crate) static PAGES_READ: AtomicU64 = AtomicU64::new(0);

impl Run {
    pub(crate) fn new(kind: LogKind, info: RunInfo) -> Self {
        Self { kind, info, guide: Mutex::new(None), used: AtomicBool::new(false) }
    }

    pub(crate) fn name(&self) -> String {
        self.info.file_name(self.kind)
    }

    fn damaged(&self, what: &'static str) -> RunError {
        RunError::Damaged { name: self.name(), what }
    }

    fn io(&self, source: io::Error) -> RunError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged("the file ends within it"),
            io::ErrorKind::NotFound => self.damaged("the file is missing"),
            _ => RunError::Io { name: self.name(), source },
        }
    }

    /// The guide, read from the disk the first time.
    pub(crate) fn guide(&self, store: &dyn Store) -> Result<Arc<Guide>, RunError> {
        self.used.store(true, Ordering::Relaxed);
        let mut guide = self.guide.lock().expect("a panic aborts the process");
        if let Some(guide) = &*guide {
            return Ok(guide.clone());
        }
        let read = Arc::new(self.read_guide(store)?);
        *guide = Some(read.clone());
        Ok(read)
    }

    /// Lets go of the guide if nothing was looked up since the last call.
    pub(crate) fn rest(&self) {
        if !self.used.swap(false, Ordering::Relaxed) {
            *self.guide.lock().expect("a panic aborts the process") = None;
        }
    }

    /// Bytes of the directory and of the bitmap that are in memory.
    pub(crate) fn resident_bytes(&self) -> (usize, usize) {
        let guide = self.guide.lock().expect("a panic aborts the process");
        guide.as_ref().map_or((0, 0), |guide| {
            let rows = guide.directory.capacity() + guide.wide.capacity();
            (rows * size_of::<(u64, u64)>(), guide.blocks.serialized_size())
        })
    }

    pub(crate) fn read_header(&self, file: &dyn StoreFile) -> Result<RawRunHeader, RunError> {
        let mut bytes = [0; size_of::<RawRunHeader>()];
        file.read_at(self.info.at, &mut bytes).map_err(|error| self.io(error))?;
        let header = RawRunHeader::read_from_bytes(&bytes).expect("as many bytes as it has");
        if header.magic != MAGIC || !sum_matches(header.checksum(), header.crc.get()) {
            return Err(self.damaged("header: magic or checksum does not match"));
        }
        if !(VERSION_NARROW..=VERSION).contains(&header.version.get()) {
            return Err(self.damaged("a run of another format version"));
        }
        if header.entries.get() != self.info.entries || header.last_seq.get() != self.info.last_seq {
            return Err(self.damaged("another run stands in its place"));
        }
        if header.base_page.get() >= BASE_PAGE_MAX {
            return Err(self.damaged("header: no log has so many pages"));
        }
        let pages = header.pages.get();
        // Before anything of these sizes is made room for.
        let room = file.len().map_err(|error| self.io(error))?.saturating_sub(self.info.at);
        let fits = pages < room / PAGE_BYTES && header.bitmap_bytes.get() <= room;
        if u64::from(header.wide_pages.get()) > pages {
            return Err(self.damaged("header: more pages of wide entries than pages"));
        }
        if !fits || header.directory_bytes.get() != pages * 16 || header.total_bytes() > room {
            return Err(self.damaged("header: sizes do not fit"));
        }
        Ok(header)
    }

    fn read_guide(&self, store: &dyn Store) -> Result<Guide, RunError> {
        let file = store.open(&self.name(), false).map_err(|error| self.io(error))?;
        let header = self.read_header(&*file)?;
        let mut at = self.info.at + PAGE_BYTES * (1 + header.pages.get());
        let mut section = |len: u64, crc: u32, what: &'static str| {
            let mut bytes = vec![0; len as usize];
            file.read_at(at, &mut bytes).map_err(|error| self.io(error))?;
            at += len;
            match sum_matches(crc32c::crc32c_append(header.stamp.get(), &bytes), crc) {
                true => Ok(bytes),
                false => Err(self.damaged(what)),
            }
        };
        let directory = section(
            header.directory_bytes.get(),
            header.directory_crc.get(),
            "directory: checksum does not match",
        )?;
        let bitmap =
            section(header.bitmap_bytes.get(), header.bitmap_crc.get(), "bitmap: checksum does not match")?;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let rows = directory.chunks_exact(16).map(|row| (word(&row[..8]), word(&row[8..])));
        let mut directory: Vec<(u64, u64)> = rows.collect();
        let wide = directory.split_off(directory.len() - header.wide_pages.get() as usize);
        let wide = wide.into_iter().map(|(place, seq)| (WidePiece(place >> 12), WriteSeq::from_raw(seq)));
        Ok(Guide {
            stamp: header.stamp.get(),
            base_page: header.base_page.get(),
            directory,
            wide: wide.collect(),
            blocks: RoaringTreemap::deserialize_from(&bitmap[..])
                .map_err(|_| self.damaged("bitmap: cannot be read"))?,
            file,
        })
    }

    /// Reads `count` pages from page `first` on and appends their extents to `out`.
    pub(crate) fn read_pages(
        &self,
        guide: &Guide,
        first: usize,
        count: usize,
        out: &mut Vec<Extent>,
    ) -> Result<(), RunError> {
        PAGES_READ.fetch_add(count as u64, Ordering::Relaxed);
        let mut bytes = vec![0; count * PAGE_BYTES as usize];
        let at = self.info.at + PAGE_BYTES * (1 + first as u64);
        guide.file.read_at(at, &mut bytes).map_err(|error| self.io(error))?;
        for (number, page) in bytes.chunks_exact(PAGE_BYTES as usize).enumerate() {
            let page = page.try_into().expect("a chunk is a page");
            let number = (first + number) as u32;
            let rows = open_page(page, PageKind::Entries, number, guide.stamp, ENTRY_BYTES)
                .map_err(|what| self.damaged(what))?;
            let rows = page[..rows * ENTRY_BYTES].chunks_exact(ENTRY_BYTES);
            out.extend(rows.map(|row| Extent::unpack(row, guide.base_page)));
        }
        Ok(())
    }

    /// Finds in a page the extents that begin from the first of `places` up to below the second, and
    /// whose sequence counts.
    fn search_page(
        &self,
        guide: &Guide,
        page: usize,
        places: (u64, u64),
        (above, upto): (WriteSeq, WriteSeq),
        found: &mut Vec<Extent>,
    ) -> Result<(), RunError> {
        PAGES_READ.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; PAGE_BYTES as usize];
        let at = self.info.at + PAGE_BYTES * (1 + page as u64);
        guide.file.read_at(at, &mut bytes).map_err(|error| self.io(error))?;
        let rows = open_page(&bytes, PageKind::Entries, page as u32, guide.stamp, ENTRY_BYTES)
            .map_err(|what| self.damaged(what))?;
        let rows = bytes[..rows * ENTRY_BYTES].as_chunks::<ENTRY_BYTES>().0;
        let first = rows.partition_point(|row| place_of(row) < places.0);
        let rows = rows[first..].iter().take_while(|row| place_of(row) < places.1);
        let extents = rows.map(|row| Extent::unpack(row, guide.base_page));
        found.extend(extents.filter(|extent| extent.seq > above && extent.seq <= upto));
        Ok(())
    }

    /// Lets the run's extents above `above` and at or below `upto` fill `cover`, which lies in one region.
    pub(crate) fn fill(
        &self,
        store: &dyn Store,
        cover: &mut Cover,
        disk: DiskIndex,
        above: WriteSeq,
        upto: WriteSeq,
    ) -> Result<(), RunError> {
        if cover.is_done() || self.info.last_seq <= above.raw() || self.info.first_seq > upto.raw() {
            return Ok(());
        }
        let guide = self.guide(store)?;
        let mut pages = Vec::new();
        for open in cover.open().iter().filter(|open| guide.has_blocks_of(disk, **open)) {
            pages.extend(guide.pages_for(disk, *open));
        }
        pages.sort_unstable();
        pages.dedup();
        if self.kind == LogKind::Redo {
            pages.reverse();
        }
        let region = cover.open()[0].start / REGION_BYTES * REGION_BYTES;
        let end = cover.open()[cover.open().len() - 1].end();
        let places = (place_key(disk, region), place_key(disk, end));
        let mut found: Vec<Extent> = Vec::new();
        let mut longest = HashMap::new();
        for page in pages {
            if guide.is_hidden(page, (above, upto), &longest) {
                continue;
            }
            let before = found.len();
            self.search_page(&guide, page, places, (above, upto), &mut found)?;
            if guide.is_one_place(page) || page.checked_sub(1).is_some_and(|page| guide.is_one_place(page)) {
                for extent in &found[before..] {
                    let len = longest.entry(place_key(extent.disk, extent.range.start)).or_insert(0);
                    *len = extent.range.len.max(*len);
                }
            }
        }
        for piece in WidePiece::around(disk, region).filter(|piece| guide.has_piece(*piece)) {
            found.extend(self.search_wide(&guide, piece, (above, upto))?);
        }
        found.sort_by_key(|extent| extent.seq);
        fill_in_order(cover, &found, self.kind);
        Ok(())
    }

    /// All extents over a part of a region, above `above` and at or below `upto`.
    pub(crate) fn between(
        &self,
        store: &dyn Store,
        disk: DiskIndex,
        part: ByteRange,
        (above, upto): (WriteSeq, WriteSeq),
    ) -> Result<Vec<Extent>, RunError> {
        let mut found = Vec::new();
        if self.info.last_seq <= above.raw() || self.info.first_seq > upto.raw() {
            return Ok(found);
        }
        let guide = self.guide(store)?;
        let places = (place_key(disk, part.start / REGION_BYTES * REGION_BYTES), place_key(disk, part.end()));
        if guide.has_blocks_of(disk, part) {
            for page in guide.pages_for(disk, part) {
                self.search_page(&guide, page, places, (above, upto), &mut found)?;
            }
        }
        for piece in WidePiece::around(disk, part.start).filter(|piece| guide.has_piece(*piece)) {
            let at_or_below = |seq: WriteSeq| guide.wide.partition_point(|first| *first <= (piece, seq));
            let pages = at_or_below(WriteSeq::ZERO).saturating_sub(1)..at_or_below(WriteSeq::MAX);
            let mut wide = Vec::new();
            self.read_pages(&guide, guide.directory.len() + pages.start, pages.len(), &mut wide)?;
            let counts = |extent: &Extent| {
                extent.wide_piece() == Some(piece) && extent.seq > above && extent.seq <= upto
            };
            found.extend(wide.into_iter().filter(counts));
        }
        found.retain(|extent| extent.range.overlaps(part));
        Ok(found)
    }

    /// Whether its file gives anything: one end of it.
    pub(crate) fn answers(&self, store: &dyn Store) -> bool {
        let Ok(file) = store.open(&self.name(), false) else { return false };
        let last = file.len().unwrap_or(0).saturating_sub(PAGE_BYTES);
        let mut page = vec![0; PAGE_BYTES as usize];
        [0, last].into_iter().any(|at| file.read_at(at, &mut page).is_ok())
    }

    /// Tells `each` extent of the run.
    pub(crate) fn visit(&self, store: &dyn Store, mut each: impl FnMut(Extent)) -> Result<(), RunError> {
        let guide = self.guide(store)?;
        let mut extents = Vec::new();
        for page in 0..guide.pages() {
            self.read_pages(&guide, page, 1, &mut extents)?;
            extents.drain(..).for_each(&mut each);
        }
        Ok(())
    }

    /// Of a wide piece's extents the one that counts first, in the one page or two that may have it: all of them are
    /// equally long.
    fn search_wide(
        &self,
        guide: &Guide,
        piece: WidePiece,
        (above, upto): (WriteSeq, WriteSeq),
    ) -> Result<Option<Extent>, RunError> {
        let last_at_or_below = |seq: WriteSeq| guide.wide.partition_point(|first| *first <= (piece, seq));
        let pages = match self.kind {
            // Pages begin at or below what is looked for up to this one.
            LogKind::Redo => last_at_or_below(upto).saturating_sub(1)..last_at_or_below(upto),
            // What lies above may begin the next page.
            LogKind::Undo => {
                let past = last_at_or_below(above);
                past.saturating_sub(1)..(past + 1).min(guide.wide.len())
            }
        };
        let mut extents = Vec::new();
        if !pages.is_empty() {
            self.read_pages(guide, guide.directory.len() + pages.start, pages.len(), &mut extents)?;
        }
        let counts =
            |extent: &Extent| extent.wide_piece() == Some(piece) && extent.seq > above && extent.seq <= upto;
        let mut counted = extents.into_iter().filter(counts);
        Ok(if self.kind == LogKind::Redo { counted.next_back() } else { counted.next() })
    }
}

impl Guide {
    pub(crate) fn pages(&self) -> usize {
        self.directory.len() + self.wide.len()
    }

    /// The pages of one width.
    pub(crate) fn pages_of(&self, width: Width) -> Range<usize> {
        match width {
            Width::Narrow => 0..self.directory.len(),
            Width::Wide => self.directory.len()..self.pages(),
        }
    }

    fn has_piece(&self, piece: WidePiece) -> bool {
        !self.wide.is_empty() && self.blocks.contains(wide_key(piece))
    }

    fn has_blocks_of(&self, disk: DiskIndex, range: ByteRange) -> bool {
        let first = block_key(disk, range.start);
        let last = block_key(disk, range.end() - 1);
        (first..=last).any(|block| self.blocks.contains(block))
    }

    fn place(&self, page: usize) -> u64 {
        self.directory[page].0 >> 12
    }

    /// Whether the page holds nothing but versions of the place it begins with.
    fn is_one_place(&self, page: usize) -> bool {
        self.directory.get(page + 1).is_some_and(|next| next.0 >> 12 == self.place(page))
    }

    /// The longest extent of a page, rounded up to 256 bytes.
    fn longest(&self, page: usize) -> u64 {
        ((self.directory[page].0 & 0xfff) + 1) * 256
    }

    /// Pages that may hold extents over `range`, ascending.
    fn pages_for(&self, disk: DiskIndex, range: ByteRange) -> impl DoubleEndedIterator<Item = usize> {
        let region = range.start / REGION_BYTES * REGION_BYTES;
        let (lowest, past) = (place_key(disk, region), place_key(disk, range.end()));
        // The page before the first that begins in the region may end in it.
        let first = self.directory.partition_point(|row| row.0 >> 12 < lowest).saturating_sub(1);
        let end = self.directory.partition_point(|row| row.0 >> 12 < past);
        let start = place_key(disk, range.start);
        (first..end).filter(move |&page| {
            // The last extent of the page begins at most where the next page does.
            let last = self.directory.get(page + 1).map_or(past, |row| (row.0 >> 12).min(past));
            last + self.longest(page) > start
        })
    }

    /// Whether nothing in the page can count, though its place would: so that a place written over and
    /// over, whose versions fill many pages, costs a page or two.
    ///
    /// Where one place fills the page whole (the next page begins with it too), its sequences lie between
    /// the first one here and the first one there. Pages are read from the side that counts most: so once
    /// an extent of that place has been seen which counts and is as long as any here, it hides all here.
    fn is_hidden(
        &self,
        page: usize,
        (above, upto): (WriteSeq, WriteSeq),
        longest: &HashMap<u64, u64>,
    ) -> bool {
        if !self.is_one_place(page) {
            return false;
        }
        let (place, next) = (self.place(page), self.directory[page + 1]);
        let out_of_reach = self.directory[page].1 > upto.raw() || next.1 <= above.raw();
        out_of_reach || longest.get(&place).is_some_and(|len| *len >= self.longest(page))
    }
}

/// A block of a disk as the bitmap counts it.
pub(crate) fn block_key(disk: DiskIndex, at: u64) -> u64 {
    place_key(disk, at) / BLOCK_BYTES
}

/// A wide piece as the bitmap counts it.
pub(crate) fn wide_key(piece: WidePiece) -> u64 {
    let which = piece.0 & (REGION_BYTES - 1);
    WIDE_KEY | (piece.0 / WIDE_BYTES[0] * WIDE_BYTES.len() as u64 + which)
}

#[cfg(test)]
mod tests;
